"""The caregate command."""
