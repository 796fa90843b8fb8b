"""Files of lines that are added and never changed: a line is on the disk as a whole, or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from gateway.audit.spool import sync_folder


def append(path: Path, text: bytes) -> int:
    """Add whole lines, durably, or none of them; the size of the file then.

    Raises: OSError.
    """
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            # NOTE: a checkpoint's number is given again: two of one number would look like another past.
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)
    return size + len(text)


def take_back(path: Path, size: int) -> None:
    """Cut the file back to what it was before lines were added, durably.

    Raises: OSError.
    """
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def end_at_line(path: Path) -> int:
    """Cut off a line that a crash tore; the size of the file then.

    Raises: OSError.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return whole
