"""The disk under the audit spool: small, slow or failing on demand, and without power at the end."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
SIZE_BYTES = 16 * 2**20


class NoCompiler(RuntimeError):
    """The shim cannot be compiled; the message says why."""


def build_shim() -> Path:
    """The shim as a library, compiled when its source is new.

    Raises: NoCompiler.
    """
    name = f"caregate-shim-{os.getuid()}-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if library.exists() and library.stat().st_uid == os.getuid():
        return library
    part = library.with_suffix(f".{os.getpid()}")
    argv = ["cc", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-o", str(part), str(SOURCE), "-ldl", "-lpthread"]
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoCompiler("cc is missing: apt-get install gcc") from None
    except subprocess.CalledProcessError as error:
        raise NoCompiler(error.stderr) from None
    part.rename(library)
    return library


class Disk:
    """One folder of the gateway. Holds: a mount on it where that is allowed, and what a loss of power would leave."""

    def __init__(self, folder: Path, beside: Path) -> None:
        """Shapes: `beside` is a folder for the image, which exists."""
        self.folder = folder
        self.mounted = False
        self._image = beside / "image"
        self._control = beside / "control"
        self._ballast = folder / ".ballast"
        for name in ("data", "dirs", "lost", "clean"):
            (self._image / name).mkdir(parents=True)
        self.behave()

    def mount(self) -> None:
        """Put a small file system there; without the right to, it is an ordinary folder and cannot be filled."""
        self.folder.mkdir(mode=0o700, parents=True)
        argv = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=700", "tmpfs", str(self.folder)]
        self.mounted = shutil.which("mount") is not None and not subprocess.run(argv, capture_output=True).returncode

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
            self.mounted = False

    def environment(self) -> dict[str, str]:
        """What the shim reads."""
        return {
            "CAREGATE_TEST_SHIM_ROOT": str(self.folder),
            "CAREGATE_TEST_SHIM_IMAGE": str(self._image),
            "CAREGATE_TEST_SHIM_CONTROL": str(self._control),
        }

    def behave(self, *, delay_ms: int = 0, failures: int = 0, lies: bool = False) -> None:
        """From now on syncs take longer, fail so often in a thousand, or do nothing and say they did."""
        descriptor = os.open(self._control, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # The shim keeps it open: one write in its place, always as long.
            os.pwrite(descriptor, f"{delay_ms:6} {failures:5} {int(lies)}\n".encode(), 0)
        finally:
            os.close(descriptor)

    def fill(self) -> None:
        """No room is left on it."""
        if not self.mounted:
            return
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        """There is room again."""
        self._ballast.unlink(missing_ok=True)

    def lose_power(self) -> None:
        """Leave what was synced and nothing else. Nobody may be using the folder any more."""
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._restore(self.folder, self._key(self.folder))
        # What comes back are other inodes: what the shim knew of the old ones is history.
        for name in ("data", "dirs", "lost", "clean"):
            shutil.rmtree(self._image / name)
            (self._image / name).mkdir()

    def _restore(self, folder: Path, key: str) -> None:
        names = self._image / "dirs" / key
        for line in names.read_text().splitlines() if key and names.exists() else ():
            kind, child, name = line.split(" ", 2)
            if kind == "d":
                (folder / name).mkdir(mode=0o700)
                self._restore(folder / name, child)
                continue
            data = self._image / "data" / child
            (folder / name).write_bytes(data.read_bytes() if data.exists() else b"")
            (folder / name).chmod(0o600)

    def _key(self, path: Path) -> str:
        """As the shim names it: only the folder's inode is known here, the moment it was made is not."""
        found = list((self._image / "dirs").glob(f"{path.stat().st_ino}-*"))
        return found[0].name if found else ""
