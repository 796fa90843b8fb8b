"""The keys of identity providers in one worker: fetched in the background, the last good ones kept, joined to whatever
configuration is in force.

A request that brings a key id nobody knows may have the keys fetched again, for a token from a bucket that all workers
of the machine share; it waits no longer than its deadline, and an id that was not there is remembered. One fetch of an
issuer runs at a time on the machine: the others take what it left on the disk.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import gevent
import msgspec
import structlog

from fastpath.bucket import BucketTable
from fastpath.token import Key
from gateway.auth.provider_fetch import Fetcher, FetchFailed
from gateway.auth.provider_keys import MAX_KID_CHARS, provider_key, read_provider_keys
from gateway.config.snapshot import CompiledProvider, Snapshot, SnapshotHolder
from gateway.errors import KeysUnavailable
from gateway.files import replace_file

RETRY_S: Final = 5.0
"""How soon a fetch that failed is tried again, at first."""
FIRST_WAIT_S: Final = 1.0
"""How long a worker that starts waits for providers of which it knows no keys."""
SIBLING_LOOK_S: Final = 0.02
MAX_UNKNOWN: Final = 1_024
"""Ids of keys that are remembered as unknown, an issuer."""
_RULE: Final = "identity-provider"
_NS: Final = 1_000_000_000

log = structlog.get_logger()

MakeFetcher = Callable[[CompiledProvider], Fetcher]
Count = Callable[[str, str], None]
"""(provider, outcome) of each fetch."""


class Kept(msgspec.Struct, frozen=True):
    """A provider's last good set as it lies on the disk. Units: `fetched_s` seconds since 1970."""

    issuer: str
    jwks_url: str
    fetched_s: float
    key_set: str


def fetcher_of(provider: CompiledProvider) -> Fetcher:
    """What fetches the keys of a provider. NOTE: where http may be, config.check_providers has judged."""
    return Fetcher(
        networks=provider.allowed_networks,
        max_bytes=provider.max_bytes,
        timeout_s=provider.timeout_ms / 1000,
        allow_http=provider.allow_http,
        certificates=provider.certificates,
    )


class _Source:
    """What is known of one issuer: the text of its keys, and which ids it does not have."""

    def __init__(self, provider: CompiledProvider, fetcher: Fetcher) -> None:
        self.provider = provider
        self.fetcher = fetcher
        self.kept: Kept | None = None
        self.keys: dict[str, Key] = {}
        self.made: dict[tuple[str, str], Key] = {}
        """By kid and thumbprint: a key that comes again is the same object, and what it signed stays verified."""
        self.unknown: dict[str, float] = {}
        self.flight: gevent.Greenlet[..., None] | None = None
        self.looped: gevent.Greenlet[..., None] | None = None
        self.seen_ns = 0
        self.failures = 0

    def remember(self, kid: str, until_s: float) -> None:
        """Note that there is no key of that id."""
        while len(self.unknown) >= MAX_UNKNOWN:
            del self.unknown[next(iter(self.unknown))]
        self.unknown[kid] = until_s


class Providers:
    """`start` after the fork."""

    def __init__(
        self,
        holder: SnapshotHolder,
        data_dir: Path,
        buckets: BucketTable,
        *,
        count: Count = lambda provider, outcome: None,
        make_fetcher: MakeFetcher = fetcher_of,
        now: Callable[[], float] = time.time,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._holder = holder
        self._data_dir = data_dir
        self._buckets = buckets
        self._count = count
        self._make_fetcher = make_fetcher
        self._now = now
        self._clock_ns = clock_ns
        self._sources: dict[str, _Source] = {}
        self._pending: dict[str, _Source] = {}
        self._running = False
        holder.before_swap(self._join)
        holder.subscribe(self._follow)
        self._join(holder.current)
        self._follow(holder.current)

    def start(self) -> None:
        """Fetch what is not known, and refresh from now on. Yields to the hub: for a second at most."""
        self._running = True
        self._follow(self._holder.current)
        missing = [self._fly(source) for source in self._sources.values() if not source.keys]
        gevent.joinall(missing, timeout=FIRST_WAIT_S)

    def stop(self) -> None:
        """Fetch no more."""
        self._running = False
        greenlets = [g for source in self._sources.values() for g in (source.flight, source.looped) if g is not None]
        gevent.killall(greenlets)

    def describe(self) -> dict[str, object]:
        """The keys of each provider; for the control socket."""
        return {
            source.provider.name: {
                "issuer": source.provider.issuer,
                "keys": sorted(source.keys),
                "fetched_s": source.kept.fetched_s if source.kept is not None else None,
                "failures": source.failures,
            }
            for source in self._sources.values()
        }

    def knows(self, issuer: str, kid: str, wait_s: float) -> bool:
        """Is there such a key by now? Looks for it again, if it may, and waits for that no longer than `wait_s`.

        Raises: KeysUnavailable if the issuer has no key that can be used, and no others could be fetched.
        Yields to the hub: yes.
        """
        source = self._sources.get(issuer)
        if source is None or len(kid) > MAX_KID_CHARS:
            return False
        if self._is_news(source):
            self._restore(source)
        if kid in source.keys:
            return True
        if source.keys and source.unknown.get(kid, 0.0) > self._now():
            return False
        flight = self._flight(source)
        if flight is not None:
            flight.join(wait_s)
            source = self._sources.get(issuer, source)
        if kid in source.keys:
            return True
        if not source.keys:
            raise KeysUnavailable("The identity provider's keys are not known", retry_after_s=5)
        if flight is not None and flight.ready() and not source.failures:
            source.remember(kid, self._now() + source.provider.unknown_kid_memory_s)
        return False

    # --- snapshots

    def _join(self, snapshot: Snapshot) -> None:
        """Give a snapshot that is about to come into force the keys that are known."""
        sources: dict[str, _Source] = {}
        for provider in snapshot.providers.values():
            source = _Source(provider, self._make_fetcher(provider))
            known = self._sources.get(provider.issuer)
            if known is not None and known.provider.jwks_url == provider.jwks_url and known.kept is not None:
                self._take(source, known.kept, snapshot)
                source.seen_ns = known.seen_ns
            else:
                self._restore(source, snapshot)
            sources[provider.issuer] = source
        self._pending = sources

    def _follow(self, snapshot: Snapshot) -> None:
        """After the swap: what was joined counts, and is refreshed."""
        gone, self._sources = self._sources, self._pending
        if not self._running:
            return
        # NOTE: a fetch under way ends by itself, and goes to whoever has the issuer by then.
        gevent.killall([source.looped for source in gone.values() if source.looped is not None], block=False)
        for source in self._sources.values():
            source.looped = gevent.spawn(self._refresh, source)

    def _take(self, source: _Source, kept: Kept, snapshot: Snapshot) -> None:
        """Put a set in force. Raises: ValueError if it is not one."""
        provider = source.provider
        # SEC: a key that the configuration names signs for whom that says. Another provider's does no harm here: it is
        # public, so anybody could put it here, and that must not cost its owner anything.
        found, faults = read_provider_keys(kept.key_set.encode(), provider.algorithms, snapshot.thumbprints)
        keys: dict[str, Key] = {}
        made: dict[tuple[str, str], Key] = {}
        for material in found:
            mark = (str(material.kid), material.thumbprint)
            made[mark] = keys[mark[0]] = source.made.get(mark) or provider_key(provider, material)
        if faults and (source.kept is None or source.kept.key_set != kept.key_set):
            log.warning(
                "keys of an identity provider cannot be used", provider=provider.name, faults=list(map(str, faults))
            )
        snapshot.verifier.set_issuer(provider.issuer, keys.values())
        source.keys, source.made, source.kept = keys, made, kept
        for kid in keys:
            source.unknown.pop(kid, None)

    # --- the copy on disk, which the workers of the machine share

    def _path(self, source: _Source) -> Path:
        return self._data_dir / f"identity-provider-{source.provider.name}.json"

    def _is_news(self, source: _Source) -> bool:
        """Has a sibling left another set?"""
        try:
            return os.stat(self._path(source)).st_mtime_ns != source.seen_ns
        except OSError:
            return False

    def _restore(self, source: _Source, snapshot: Snapshot | None = None) -> None:
        """Take what lies on the disk, if it is newer than what is known and not stale."""
        path = self._path(source)
        try:
            source.seen_ns = path.stat().st_mtime_ns
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return
        provider = source.provider
        if (kept.issuer, kept.jwks_url) != (provider.issuer, provider.jwks_url or ""):
            return
        if source.kept is not None and kept.fetched_s <= source.kept.fetched_s:
            return
        if kept.fetched_s + provider.stale_s < self._now():
            return
        try:
            self._take(source, kept, snapshot or self._holder.current)
        except ValueError:
            log.warning("the kept keys of an identity provider cannot be used", provider=provider.name)

    @contextmanager
    def _alone(self, source: _Source) -> Iterator[bool]:
        """Holds: the issuer's lock on this machine; False if a sibling holds it."""
        path = self._path(source).with_suffix(".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    # --- fetching

    def _flight(self, source: _Source) -> gevent.Greenlet[..., None] | None:
        """The fetch under way, or a new one if the bucket has a token for it."""
        if source.flight is not None and not source.flight.ready():
            return source.flight
        provider = source.provider
        interval_ns = provider.unknown_kid_period_s * _NS
        rule = self._buckets.key(_RULE)
        key = self._buckets.key(_RULE, provider.issuer)
        admitted, *_ = self._buckets.take(key, interval_ns, provider.unknown_kid_burst, self._clock_ns(), rule)
        return self._fly(source) if admitted else None

    def _fly(self, source: _Source) -> gevent.Greenlet[..., None]:
        if source.flight is None or source.flight.ready():
            source.flight = gevent.spawn(self._fetch, source)
        return source.flight

    def _fetch(self, source: _Source) -> None:
        """Fetch and keep, or wait for the sibling that does."""
        with self._alone(source) as alone:
            if alone:
                self._fetch_alone(source)
                return
        until_ns = self._clock_ns() + source.provider.timeout_ms * 1_000_000
        while self._clock_ns() < until_ns:
            gevent.sleep(SIBLING_LOOK_S)
            with self._alone(source) as ended:
                if ended:
                    break
        before = source.kept
        self._restore(source)
        source.failures = 0 if source.kept is not before else source.failures + 1

    def _fetch_alone(self, source: _Source) -> None:
        provider = source.provider
        try:
            text = source.fetcher.key_set(provider.issuer, provider.jwks_url)
            kept = Kept(provider.issuer, provider.jwks_url or "", self._now(), text.decode())
            source = self._heir(source)
            self._take(source, kept, self._holder.current)
        except FetchFailed as error:
            self._failed(source, error.reason)
            return
        except ValueError as error:
            self._failed(source, "malformed", str(error))
            return
        source.failures = 0
        self._count(provider.name, "ok")
        reason = gevent.get_hub().threadpool.apply(_keep, (self._path(source), msgspec.json.encode(kept)))
        if reason is not None:
            log.warning("an identity provider's keys could not be kept on disk", provider=provider.name, reason=reason)
        elif self._is_news(source):
            source.seen_ns = self._path(source).stat().st_mtime_ns

    def _heir(self, source: _Source) -> _Source:
        """Who has the issuer now: a configuration may have come into force meanwhile.

        SEC: keys of a source that is gone would bring its mapping along. Raises: FetchFailed if there is no heir.
        """
        heir = self._sources.get(source.provider.issuer)
        if heir is None or heir.provider.jwks_url != source.provider.jwks_url:
            raise FetchFailed("superseded")
        return heir

    def _failed(self, source: _Source, reason: str, detail: str = "") -> None:
        source.failures += 1
        self._count(source.provider.name, reason)
        log.warning(
            "the keys of an identity provider could not be fetched; the last good ones are used",
            provider=source.provider.name, reason=reason, detail=detail, keys=len(source.keys),
        )  # fmt: skip

    def _refresh(self, source: _Source) -> None:
        """Keep the keys of a provider fresh; drop what is stale."""
        while True:
            gevent.sleep(self._rest_s(source))
            if self._is_news(source):
                self._restore(source)
            if source.failures or self._left_s(source) <= 0:
                self._fly(source).join()
            self._drop_stale(source)

    def _rest_s(self, source: _Source) -> float:
        """NOTE: not the same in every worker, so that most of them find it done."""
        refresh_s: float = source.provider.refresh_s
        if source.failures:
            backoff_s: float = RETRY_S * 2 ** min(source.failures - 1, 10)
            return min(refresh_s, backoff_s) * random.uniform(0.8, 1.2)  # noqa: S311
        return max(0.0, self._left_s(source)) + random.uniform(0.0, 0.1 * refresh_s)  # noqa: S311

    def _left_s(self, source: _Source) -> float:
        """Until the keys are due."""
        return 0.0 if source.kept is None else source.kept.fetched_s + source.provider.refresh_s - self._now()

    def _drop_stale(self, source: _Source) -> None:
        kept, provider = source.kept, source.provider
        if kept is None or not source.keys or kept.fetched_s + provider.stale_s >= self._now():
            return
        log.error("the keys of an identity provider are too old to be used", provider=provider.name)
        source.keys = {}
        self._holder.current.verifier.set_issuer(provider.issuer, ())


def _keep(path: Path, content: bytes) -> str | None:
    """NOTE: what leaves a function of gevent's thread pool as an exception is printed with its traceback."""
    try:
        replace_file(path, content)
    except OSError as error:
        return error.strerror
    return None
