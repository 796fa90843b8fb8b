"""For programs that a test interrupts."""

import signal


def take_interruptions() -> None:
    """In the child: whoever runs the tests in the background may have them ignore INT and HUP, and that is inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
