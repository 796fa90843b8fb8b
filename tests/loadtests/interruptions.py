"""For programs that a test interrupts."""

import signal


def take_interruptions() -> None:
    """In the child: tests run in the background may ignore INT and HUP, which is inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
