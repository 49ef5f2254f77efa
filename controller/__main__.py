"""`python -m controller`: the command line where nothing was installed as `scopeloop`."""

from controller.cli import main

if __name__ == "__main__":
    main()
