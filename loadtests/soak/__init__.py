"""A long mixed load that watches what must not grow."""
