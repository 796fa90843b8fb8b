"""Idempotency keys at the unit: a request is run once, and its answer is given again to whoever repeats it.

The intent is on disk before the first byte goes to the local service, the answer before its last byte goes to the
gateway. What cannot be known or written is refused, never run a second time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from gevent.event import AsyncResult

from gateway.agent.ledger_store import EntryState, LedgerStore, LedgerUnavailable
from gateway.agent.offload import in_thread
from gateway.relay.frames import Fields, RefusalReason

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.agent.log import Log
    from gateway.agent.settings import LedgerSettings

KEY_FILE = "ledger.key"
KEY_BYTES = 32
NONCE_BYTES = 12
RETRY_S = 2.0
"""How long a ledger that could not be opened is left alone."""

Operation = Callable[[LedgerStore], Any]


class KeyRefused(Exception):
    """The request is not run; `reason` says to the gateway why."""

    def __init__(self, reason: RefusalReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """`body_print` is the fingerprint of the request's body, None if it was not read to its end."""

    status: int
    fields: Fields
    body: bytes
    body_print: bytes | None


class Claim:
    """The right to run a key's request, held by one exchange from `Ledger.claim` to `close`.

    Shapes: `kept` is set if the request has run before; then nothing but `close` is left to do.
    """

    def __init__(self, ledger: Ledger, name: bytes, head: bytes, kept: KeptAnswer | None) -> None:
        self.kept = kept
        self._ledger = ledger
        self._name = name
        self._head = head
        self._intended = False

    def intend(self) -> None:
        """Durable before it returns. Yields to the hub. Raises: LedgerUnavailable."""
        self._intended = True
        name, head, now_s = self._name, self._head, self._ledger.now()
        self._ledger.do(lambda store: store.intend(name, head, now_s))

    def keep(self, status: int, fields: Fields, body: bytes, request_digest: bytes | None) -> None:
        """Durable before it returns. Yields to the hub. Raises: LedgerUnavailable."""
        name, seal = self._name, self._ledger.seal
        answer = seal(name, status, fields, body)
        body_print = None if request_digest is None else self._ledger.print_of(request_digest)
        self._ledger.do(lambda store: store.keep(name, body_print, answer))

    def spend(self) -> None:
        """It is answered, and the answer is not kept. Yields to the hub. Raises: LedgerUnavailable."""
        name = self._name
        self._ledger.do(lambda store: store.spend(name))

    def matches(self, request_digest: bytes) -> bool:
        """Is this the body that the kept answer belongs to?"""
        if self.kept is None or self.kept.body_print is None:
            return True
        return hmac.compare_digest(self.kept.body_print, self._ledger.print_of(request_digest))

    def close(self, dispatched: bool) -> None:
        """Let go; an intent whose request was not dispatched is taken back, some time."""
        if self._intended and not dispatched:
            name = self._name
            self._ledger.do_later(lambda store: store.forget(name))
        self._ledger.release(self._name)


class Ledger:
    """Shared by all connections of an agent. The disk is touched in a native thread, one at a time.

    Units: `now` gives seconds since 1970.
    """

    def __init__(self, settings: LedgerSettings, log: Log, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._settings = settings
        self._log = log
        self._running: dict[bytes, bytes] = {}
        self._queue: list[tuple[Operation, AsyncResult]] = []
        self._worker: gevent.Greenlet | None = None
        self._store: LedgerStore | None = None
        self._print_key = b""
        self._cipher: AESGCM | None = None
        self._retry_at_s = 0.0
        self._fault = ""

    @property
    def available(self) -> bool:
        """Could it be used the last time it was?"""
        return self._store is not None and not self._fault

    def open(self) -> bool:
        """Try to; a ledger that cannot be opened refuses every key until it can. Yields to the hub."""
        try:
            self.do(lambda store: None)
        except LedgerUnavailable:
            return False
        return True

    def claim(self, key: str, method: str, target: str) -> Claim:
        """Yields to the hub. Raises: KeyRefused."""
        try:
            if self._cipher is None:
                self.do(lambda store: None)
            name = self._mac(b"name", key.encode())
            return self._claim(name, self._mac(b"head", f"{method} {target}".encode()))
        except LedgerUnavailable as error:
            raise KeyRefused(RefusalReason.LEDGER_UNAVAILABLE) from error

    def _claim(self, name: bytes, head: bytes) -> Claim:
        running = self._running.get(name)
        if running is not None:
            raise KeyRefused(RefusalReason.KEY_IN_PROGRESS if running == head else RefusalReason.KEY_REUSED)
        self._running[name] = head
        try:
            return Claim(self, name, head, self._look_up(name, head))
        except BaseException:
            self.release(name)
            raise

    def _look_up(self, name: bytes, head: bytes) -> KeptAnswer | None:
        now_s = self.now()
        entry = self.do(lambda store: store.find(name, now_s))
        if entry is None:
            return None
        if not hmac.compare_digest(entry.head, head):
            raise KeyRefused(RefusalReason.KEY_REUSED)
        if entry.state is EntryState.INTENT:
            raise KeyRefused(RefusalReason.OUTCOME_UNKNOWN)
        if entry.state is EntryState.SPENT:
            raise KeyRefused(RefusalReason.ANSWER_NOT_KEPT)
        return self._unseal(name, entry.answer, entry.body)

    def release(self, name: bytes) -> None:
        self._running.pop(name, None)

    @property
    def answer_max_bytes(self) -> int:
        return self._settings.answer_max_bytes

    # --- secrets

    def seal(self, name: bytes, status: int, fields: Fields, body: bytes) -> bytes:
        """The answer encrypted, bound to its key's name."""
        head = orjson.dumps([status, fields])
        nonce = os.urandom(NONCE_BYTES)
        plain = len(head).to_bytes(4, "big") + head + body
        return nonce + self._aead().encrypt(nonce, plain, name)

    def _unseal(self, name: bytes, sealed: bytes, body_print: bytes | None) -> KeptAnswer:
        try:
            plain = self._aead().decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name)
        except InvalidTag as error:
            self._log.error("ledger_fault", reason="an answer that was not sealed here")
            raise LedgerUnavailable("sealed by nobody") from error
        size = int.from_bytes(plain[:4], "big")
        status, fields = orjson.loads(plain[4 : 4 + size])
        return KeptAnswer(status, [(name, value) for name, value in fields], plain[4 + size :], body_print)

    def print_of(self, request_digest: bytes) -> bytes:
        """SEC: keyed, since a plain digest of a short body can be guessed by whoever gets the disk."""
        return self._mac(b"body", request_digest)

    def _mac(self, use: bytes, message: bytes) -> bytes:
        return hmac.digest(self._print_key, use + b"\0" + message, hashlib.sha256)

    def _aead(self) -> AESGCM:
        if self._cipher is None:
            raise LedgerUnavailable("not open")
        return self._cipher

    # --- the disk

    def do(self, operation: Operation) -> Any:
        """Have the store do something; what others ask meanwhile shares the commit. Yields to the hub.

        Raises: LedgerUnavailable.
        """
        return self._put(operation).get()

    def do_later(self, operation: Operation) -> None:
        """As `do`, for whoever cannot wait and need not know."""
        self._put(operation)

    def _put(self, operation: Operation) -> AsyncResult:
        result = AsyncResult()
        self._queue.append((operation, result))
        if self._worker is None:
            self._worker = gevent.spawn(self._work)
        return result

    def _work(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                outcomes = in_thread(partial(self._execute, [operation for operation, _ in batch], self.now()))
            except LedgerUnavailable as error:
                self._tell(str(error))
                for _, result in batch:
                    result.set_exception(error)
            except Exception as error:
                self._tell(type(error).__name__)
                for _, result in batch:
                    result.set_exception(LedgerUnavailable("fault"))
            else:
                refused = [outcome for outcome in outcomes if isinstance(outcome, LedgerUnavailable)]
                self._tell(str(refused[0]) if refused else "")
                for (_, result), outcome in zip(batch, outcomes, strict=True):
                    if isinstance(outcome, LedgerUnavailable):
                        result.set_exception(outcome)
                    else:
                        result.set(outcome)
        self._worker = None

    def _execute(self, operations: list[Operation], now_s: float) -> list[Any]:
        """In the thread: open if need be, then one transaction."""
        if self._store is None:
            if time.monotonic() < self._retry_at_s:
                raise LedgerUnavailable(self._fault)
            self._retry_at_s = time.monotonic() + RETRY_S
            self._store = LedgerStore(self._settings, self._load_key)
        return self._store.transaction(operations, now_s)

    def _load_key(self, existing: bool) -> bytes:
        """Read the key, or make one for a new ledger; what proves that it is this ledger's."""
        path = self._settings.key_file or self._settings.directory / KEY_FILE
        key = path.read_bytes() if existing or path.exists() else _make_key(path)
        if len(key) != KEY_BYTES:
            raise LedgerUnavailable("the key is not 32 bytes")
        self._print_key = hmac.digest(key, b"caregate ledger fingerprints", hashlib.sha256)
        self._cipher = AESGCM(hmac.digest(key, b"caregate ledger answers", hashlib.sha256))
        return self._mac(b"check", b"")

    def _tell(self, fault: str) -> None:
        """Log the turn from usable to not, and back."""
        if fault == self._fault:
            return
        self._fault = fault
        if fault:
            self._log.error("ledger_unavailable", reason=fault)
        else:
            self._log.info("ledger_available")

    def close(self) -> None:
        """Finish what is asked, then let go of the files. Yields to the hub."""
        while self._worker is not None:
            self._worker.join()
        if self._store is not None:
            in_thread(self._store.close)
            self._store = None


def _make_key(path: Path) -> bytes:
    """SEC: durable before the first answer is sealed with it; never overwritten."""
    key = os.urandom(KEY_BYTES)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, key)
        os.fsync(file)
    finally:
        os.close(file)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return key
