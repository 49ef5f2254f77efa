"""What can go wrong with an instrument: one family, named for what happened.

Foreign exceptions (an SDK's, pyserial's) are mapped to these once, at the rim. The message answers
three questions: what was asked, what came, what to do.
"""


class DriverError(Exception):
    """The root: something about a device; `device` names it."""

    def __init__(self, device: str, message: str) -> None:
        super().__init__(f"{device}: {message}")
        self.device = device


class LinkLost(DriverError):
    """There is no wire any more: reconnect or stop."""


class NoAnswer(DriverError):
    """A deadline passed in silence: a read may be tried again, a move never."""


class BadReply(DriverError):
    """The device said something its manual does not know; the message keeps the bytes or values."""


class Refused(DriverError):
    """The device understood and said no."""


class Unsupported(DriverError):
    """The device cannot do that at all."""
