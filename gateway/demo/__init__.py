"""The demo platform that make run starts."""
