"""Falcon middleware for the policy steps, and the one mapping from errors to answers."""
