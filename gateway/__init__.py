"""Caregate: one front door for a healthcare platform."""

__version__ = "0.1.0"
