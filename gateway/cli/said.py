"""How commands say what is wrong, in one line, and the arguments that several of them take."""

from __future__ import annotations

import argparse


def reason(error: Exception) -> str:
    """Why something failed, in one line: libraries write several."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return "what was read is not text in UTF-8"
    return " ".join(str(error).split())


def http_url(text: str) -> str:
    """An argument: where a listener is."""
    from gateway.settings import is_http

    if not is_http(text):
        raise argparse.ArgumentTypeError("takes a URL such as https://gateway.example.org")
    return text


def positive(text: str) -> int:
    """An argument: a whole number from 1 on."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 31):
        raise argparse.ArgumentTypeError("takes a whole number from 1 on")
    return int(text)
