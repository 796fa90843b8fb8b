"""The demo platform that make run starts."""

CONTROL = "demo.sock"
"""Where a running platform listens, in its directory; one that was killed leaves it behind."""
