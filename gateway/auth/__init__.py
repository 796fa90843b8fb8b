"""Keys, audiences and token verification."""
