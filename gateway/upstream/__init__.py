"""Type A: controllers answered by a cloud service over HTTP."""
