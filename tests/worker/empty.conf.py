"""No settings: the tests give them as arguments."""
