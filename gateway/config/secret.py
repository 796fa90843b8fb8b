"""Secret references of the document: `env:NAME`, `file:PATH`, `exec:["/program", "argument"]` -> bytes.

Convention: a file, and what a program prints, may end in one line break, which does not belong to the secret; nothing
else is taken off.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from gateway.config.command_secret import CommandFailed, read_argv, run_command

MAX_SECRET_BYTES = 65_536
MAX_DOCUMENT_BYTES = 2 * 1024 * 1024


class SecretUnavailable(ValueError):
    """A reference that does not resolve; the message never holds what it refers to."""


class Secrets:
    """Resolves references relative to a document's directory; each is read once.

    Shapes: `sent`: the document came over the network, see command_secret.read_argv.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str], *, sent: bool = False) -> None:
        self._directory = directory
        self._environ = environ
        self._sent = sent
        self._read: dict[tuple[str, bool], bytes] = {}

    def resolve(self, ref: str, *, private: bool) -> bytes:
        """The bytes behind a reference; `private` material must be unreadable for group and others.

        Raises: SecretUnavailable.
        """
        known = self._read.get((ref, private))
        if known is None:
            scheme, _, name = ref.partition(":")
            value = self._from(scheme, name, private)
            if not value.strip():
                raise SecretUnavailable("is empty")
            known = self._read[(ref, private)] = value
        return known

    def document(self, ref: str) -> bytes:
        """The bytes of a public `file:PATH` that is no secret and may be larger.

        Raises: SecretUnavailable.
        """
        return self._from_file(ref.partition(":")[2], False, MAX_DOCUMENT_BYTES)

    def _from(self, scheme: str, name: str, private: bool) -> bytes:
        if scheme == "env":
            return self._from_environ(name)
        return self._from_command(name) if scheme == "exec" else self._from_file(name, private)

    def _from_command(self, name: str) -> bytes:
        try:
            argv = read_argv(name, self._environ, sent=self._sent)
            content = run_command(argv, self._environ, MAX_SECRET_BYTES)
        except CommandFailed as error:
            raise SecretUnavailable(str(error)) from None
        return content.removesuffix(b"\n").removesuffix(b"\r")

    def _from_environ(self, name: str) -> bytes:
        value = self._environ.get(name)
        if value is None:
            raise SecretUnavailable(f"environment variable {name} is not set")
        return os.fsencode(value)

    def _from_file(self, name: str, private: bool, most_bytes: int = MAX_SECRET_BYTES) -> bytes:
        try:
            # NOTE: O_NONBLOCK, because opening a FIFO would wait for its writer.
            descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SecretUnavailable(f"file {name}: {_why(error)}") from None
        except ValueError:
            raise SecretUnavailable("is not a file name") from None
        try:
            _check_file(os.fstat(descriptor), name, private)
            content = _read(descriptor, most_bytes)
        except OSError as error:
            raise SecretUnavailable(f"file {name}: {_why(error)}") from None
        finally:
            os.close(descriptor)
        if len(content) > most_bytes:
            raise SecretUnavailable(f"file {name} is larger than {most_bytes} bytes")
        return content.removesuffix(b"\n").removesuffix(b"\r")


def _read(descriptor: int, most_bytes: int) -> bytes:
    """The content, or just more than it may have."""
    content = b""
    while len(content) <= most_bytes and (piece := os.read(descriptor, most_bytes + 1)):
        content += piece
    return content


def _why(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "does not exist"
    return "cannot be read" if error.errno is None else os.strerror(error.errno).lower()


def _check_file(status: os.stat_result, name: str, private: bool) -> None:
    # SEC: judged on the open descriptor, so that nobody swaps the file between look and read.
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise SecretUnavailable(f"file {name} is not a regular file")
    if mode & 0o022:
        raise SecretUnavailable(f"file {name} is writable by group or others (mode {mode:04o})")
    if private and mode & 0o077:
        raise SecretUnavailable(f"file {name} is readable by group or others (mode {mode:04o}), chmod 600 it")
