"""Every minute one worker of the machine signs where all chains stand; into a file, and into PostgreSQL when it can."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import gevent
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gevent.event import Event

from gateway.audit import checkpoint as cp
from gateway.audit.copies import Copy
from gateway.audit.lines import append, end_at_line
from gateway.audit.spool import chains, lock_chain, sync_folder
from gateway.audit.state import State
from gateway.audit.unfinished import Unfinished
from gateway.errors import GatewayError
from gateway.store.audit import AuditStore, RowRefused

log = logging.getLogger("caregate.audit")

FOLDER = "checkpoints"
KEY = "checkpoint.key"
PUBLIC = "checkpoint.pub"
_LOCK = "lock"
_SOURCE = "source"
_SHIPPED = "shipped"
_LOOK_S = 5.0
_SET_BACK_S = 1.0
_MONTHS_S = 6 * 3600.0
_MONTHS_RETRY_S = 60.0
_UNFINISHED_S = 60.0
_STORE_TIMEOUT_S = 5.0
_MOST_WAITING = 100_000


class KeyUnusable(ValueError):
    """The signing key is there and cannot be used; the message says why."""


class Notary:
    """Signs, if no other worker of the machine does.

    Holds: the lock that says so, as long as it lives.
    """

    def __init__(
        self,
        store: AuditStore,
        root: Path,
        *,
        node: str,
        key: Callable[[], Ed25519PrivateKey],
        interval_s: float,
        copies: Iterable[Path],
        count: Callable[[str, int], None],
        months_ahead: int = 3,
        unfinished: Callable[[int], None] = lambda found: None,
    ) -> None:
        """Shapes: `copies` are further folders that get the same lines; `count` hears of checkpoints: sealed, unsealed,
        uncopied; `unfinished` of how many requests of late were begun and never ended.
        """
        self._store = store
        self._root = root
        self._folder = root / FOLDER
        self._node = node
        self._load_key = key
        self._interval_s = interval_s
        self._copies = [Copy(place, count) for place in copies]
        self._sizes: dict[str, int] = {}
        self._count = count
        self._months_ahead = months_ahead
        self._months_s = 0.0
        self._unfinished = Unfinished(partial(store.count_unfinished, timeout_s=_STORE_TIMEOUT_S), unfinished)
        self._unfinished_s = 0.0
        self._lock = -1
        self._key: Ed25519PrivateKey | None = None
        self._source = ""
        self._number = 0
        self._previous = cp.FIRST_PREVIOUS
        self._covered_ms = 0
        self._waiting: deque[tuple[int, cp.Sealed]] = deque(maxlen=_MOST_WAITING)
        self._due_s = 0.0
        self._clock_s = 0.0
        self._stopping = Event()
        self._greenlet = gevent.spawn(self._run)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Sign once more, then let another worker do it.

        Yields to the hub: yes.
        """
        self._stopping.set()
        # NOTE: killed while it signs, it would not know whether the number is taken.
        self._greenlet.join(timeout=timeout_s)
        if self._lock >= 0:
            if self._greenlet.dead:
                self._attempt(self._sign)
            os.close(self._lock)
            self._lock = -1
        for place in self._copies:
            place.stop(timeout_s)
        self._greenlet.kill()

    def _run(self) -> None:
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if self._lock < 0:
                self._attempt(self._take_office)
                self._due_s = now_s
            if self._lock >= 0 and (now_s >= self._due_s or self._is_set_back()):
                self._due_s = now_s + self._interval_s
                self._attempt(self._sign)
            if self._waiting:
                self._attempt(self._ship)
            if self._lock >= 0 and now_s >= self._months_s:
                self._months_s = now_s + _MONTHS_RETRY_S
                self._attempt(self._make_months)
            if self._lock >= 0 and now_s >= self._unfinished_s:
                self._unfinished_s = now_s + _UNFINISHED_S
                self._attempt(self._unfinished.look)
            self._stopping.wait(timeout=min(_LOOK_S, self._interval_s))

    def _is_set_back(self) -> bool:
        """Was the clock set back since the last checkpoint? Until the next one, what is new seems to be older."""
        return time.time() - time.monotonic() < self._clock_s - _SET_BACK_S

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except GatewayError:
            pass
        except Exception:
            log.exception("no checkpoint could be made")
            self._count("unsealed", 1)

    def _take_office(self) -> None:
        """Become the one who signs, unless another worker is.

        Yields to the hub: while the files are read, or made and synced.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return
        try:
            gevent.get_hub().threadpool.apply(self._prepare)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def _prepare(self) -> None:
        sync_folder(self._root)
        self._key = self._load_key()
        self._source = _source(self._folder)
        self._resume()

    def _resume(self) -> None:
        """Go on behind the last whole line; what PostgreSQL does not have yet is sent."""
        shipped = _shipped(self._folder)
        self._waiting.clear()
        self._number, self._previous, self._covered_ms = 0, cp.FIRST_PREVIOUS, 0
        paths = sorted(self._folder.glob("*.ndjson"))
        self._sizes = {path.name: path.stat().st_size for path in paths}
        for path in paths[-2:]:
            self._sizes[path.name] = end_at_line(path)
            for sealed in read_sealed(path):
                checkpoint = msgspec.json.decode(sealed.checkpoint, type=cp.Checkpoint)
                self._number, self._previous = checkpoint.number, cp.digest(sealed.checkpoint)
                self._covered_ms = checkpoint.covers_ms
                if checkpoint.number > shipped:
                    self._waiting.append((checkpoint.number, sealed))

    def _sign(self) -> None:
        """Yields to the hub: while the file is synced."""
        if self._key is None:
            raise KeyUnusable("no key")
        now_ms = time.time_ns() // 1_000_000
        self._clock_s = now_ms / 1000 - time.monotonic()
        heads, covers_ms = _heads(self._root, now_ms, self._covered_ms)
        sealed = cp.seal(
            cp.Checkpoint(
                v=1, source=self._source, node=self._node, number=self._number + 1, at_ms=now_ms, covers_ms=covers_ms,
                previous=self._previous, heads=heads, root=cp.merkle_root(heads),
            ),
            self._key,
        )  # fmt: skip
        name = time.strftime("%Y-%m.ndjson", time.gmtime(now_ms // 1000))
        line = cp.encode(sealed) + b"\n"
        self._sizes[name] = gevent.get_hub().threadpool.apply(append, (self._folder / name, line))
        self._number, self._previous = self._number + 1, cp.digest(sealed.checkpoint)
        self._covered_ms = covers_ms
        self._waiting.append((self._number, sealed))
        self._count("sealed", 1)
        for place in self._copies:
            place.update(self._folder, self._source, self._sizes)

    def _make_months(self) -> None:
        """Raises: DatabaseUnavailable, DatabaseTimeout."""
        made = self._store.make_months(self._months_ahead, _STORE_TIMEOUT_S)
        if made:
            log.info("%d months of the trail were made", made)
        self._months_s = time.monotonic() + _MONTHS_S

    def _ship(self) -> None:
        """Raises: DatabaseUnavailable, DatabaseTimeout."""
        while self._waiting and not self._stopping.is_set():
            number, sealed = self._waiting[0]
            try:
                self._store.insert_checkpoint(
                    self._source, number, sealed.checkpoint, sealed.signature, _STORE_TIMEOUT_S
                )
            except RowRefused as refused:
                log.error("the database refused checkpoint %d: %s", number, refused)
            self._waiting.popleft()
            (self._folder / _SHIPPED).write_text(str(number))


def load_or_make_key(path: Path) -> Ed25519PrivateKey:
    """The signing key in a file of PEM; made, with its public half beside it, if there is none.

    Raises: KeyUnusable, OSError.
    """
    if not path.exists():
        _make_key(path)
    # SEC: who can read it can sign another past.
    if path.stat().st_mode & 0o077:
        raise KeyUnusable(f"{path} is readable by others, chmod 600 it")
    return read_private_key(path.read_bytes(), str(path))


def read_private_key(pem: bytes, name: str) -> Ed25519PrivateKey:
    """Raises: KeyUnusable."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise KeyUnusable(f"{name} is no private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{name} is no Ed25519 key")
    return key


def _make_key(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for target, content, mode in ((path, pem, 0o600), (path.with_suffix(".pub"), public, 0o644)):
        part = target.with_suffix(target.suffix + ".part")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        part.rename(target)
    sync_folder(path.parent)


def read_sealed(path: Path) -> Iterable[cp.Sealed]:
    """The checkpoints of a file. Raises: ValueError, OSError."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield cp.decode_sealed(line)


def _heads(root: Path, now_ms: int, covered_ms: int) -> tuple[tuple[cp.ChainHead, ...], int]:
    """The durable heads of all chains, and until when they tell everything.

    Units: `covered_ms` what the checkpoint before has said of that.
    """
    heads, covers_ms = [], now_ms
    for folder in chains(root):
        lock = lock_chain(folder)
        head, is_first_owner, is_settled = _head(folder)
        if head is not None:
            heads.append(head)
        if lock is not None:
            os.close(lock)
        if lock is None or not is_settled:
            # There may be more behind the head: its owner lives, or was killed and nobody has looked since.
            until_ms = head.at_ms if head is not None else now_ms if is_first_owner else covered_ms
            covers_ms = min(covers_ms, until_ms)
    return tuple(heads), covers_ms


def _head(folder: Path) -> tuple[cp.ChainHead | None, bool, bool]:
    """How far a chain is durable, if that is known; is its first owner the only one? is that all of it?"""
    with contextlib.suppress(OSError, ValueError):
        state = State(folder / "state", writable=False)
        try:
            first, settled = state.owners == 1, state.settled
            for _ in range(3):
                found = state.head
                if found is not None:
                    return cp.ChainHead(folder.name, found.sequence, found.hash.hex(), found.at_ms), first, settled
            return None, first, settled
        finally:
            state.close()
    return None, False, False


def _source(folder: Path) -> str:
    path = folder / _SOURCE
    if not path.exists():
        part = path.with_suffix(".part")
        with part.open("w") as file:
            file.write(os.urandom(8).hex())
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        sync_folder(folder)
    return path.read_text()


def read_shipped(folder: Path) -> dict[str, int]:
    """What a gateway has noted in its folder: its series -> the last of its checkpoints that PostgreSQL has."""
    return {_source(folder): _shipped(folder)} if (folder / _SOURCE).exists() else {}


def _shipped(folder: Path) -> int:
    try:
        return int((folder / _SHIPPED).read_text())
    except (OSError, ValueError):
        return 0
