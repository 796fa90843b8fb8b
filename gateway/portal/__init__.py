"""Type A: controllers answered by a function of the portal database."""
