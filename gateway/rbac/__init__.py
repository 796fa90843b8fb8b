"""Roles, permissions, bindings: pure decisions."""
