"""What each command of the command line does, and what it prints, one module a command."""
