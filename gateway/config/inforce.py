"""Which configuration the gateway has in force, kept on disk so that a worker that starts later joins the others.

`config-last-good.yaml` in the data directory is the text that was accepted last; `config-in-force.json` in the run
directory says which version and digest the workers of one arbiter run. A new worker takes the document's file if it is
the one in force; was the file edited since, or broken, it takes the last good text and says so. Only `caregate config
reload`, a restart, or HUP after `reconsider` put an edited file in force.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from gateway.config.check import CatalogCheck
from gateway.config.fault import WHOLE, Fault
from gateway.config.kept import KeptText
from gateway.config.load import Loaded, Refused, load_text, read_text
from gateway.config.snapshot import Snapshot
from gateway.errors import GatewayError
from gateway.files import replace_file
from gateway.settings import Settings

LAST_GOOD = "config-last-good.yaml"
STATE = "config-in-force.json"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class State:
    """`gateway` names one life of an arbiter; `reconsider`: the next worker takes the file, if it is good."""

    gateway: str
    version: int
    digest: str
    reconsider: bool = False


class InForce:
    """The record of what is in force, for the workers of one gateway."""

    commits = True
    """What is prepared over the control socket is put in force over it."""

    def __init__(self, settings: Settings, *, environ: Mapping[str, str] | None = None, arbiter: int | None = None):
        """`arbiter` is the process id of the workers' parent, by default of this process's."""
        self._path = settings.config_path
        self._last_good = settings.data_dir / LAST_GOOD
        self._state = settings.run_dir / STATE
        self._reads = KeptText(settings.run_dir).read
        self._token_cache_size = settings.token_cache_size
        self._environ = environ
        self._gateway = life_of(os.getppid() if arbiter is None else arbiter)

    def state(self) -> State | None:
        """What the workers of this gateway run; None before the first one."""
        try:
            state = State(**json.loads(self._state.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.gateway == self._gateway else None

    def load_file(self) -> Loaded:
        """The document as it stands on disk now.

        Raises: Refused, OSError.
        """
        return self._load(self._path)

    def load(self, candidate: object) -> Loaded:
        """For a reload: the document as it stands on disk now.

        Raises: Refused, OSError.
        """
        if candidate is not None:
            raise Refused([Fault(WHOLE, "the configuration is in a file: edit it, then `caregate config reload`")])
        return self.load_file()

    def forget(self) -> None:
        """Nothing is kept of what was tried."""

    def describe(self) -> dict[str, str]:
        """Where the configuration is from."""
        return {"source": "file"}

    def boot(self, catalog_check: CatalogCheck | None = None) -> Snapshot:
        """The configuration a new worker starts with; recorded as the one in force.

        Raises: Refused, OSError if there is none: the first worker of a gateway with a bad document, or a later one
        without a last good one.
        Yields to the hub: in `catalog_check`.
        """
        state = self.state()
        loaded = self._boot_first(catalog_check) if state is None else self._boot_again(state, catalog_check)
        version = 1 if state is None else state.version
        if state is not None and state.reconsider and loaded.snapshot.digest != state.digest:
            version += 1
        snapshot = replace(loaded.snapshot, version=version)
        self.record(snapshot, loaded.raw)
        return snapshot

    def catch_up(self, current: Snapshot) -> Snapshot | None:
        """The configuration that was put in force while this worker started, if it is another one than its own."""
        state = self.state()
        if state is None or (state.version, state.digest) == (current.version, current.digest):
            return None
        if state.digest == current.digest:
            return replace(current, version=state.version)
        in_force = replace(state, reconsider=False)
        return replace(self._boot_again(in_force, None).snapshot, version=state.version)

    def record(self, snapshot: Snapshot, raw: bytes) -> None:
        """Note that a configuration is in force. Blocks: fsync.

        Raises: OSError.
        """
        replace_file(self._last_good, raw)
        state = State(self._gateway, snapshot.version, snapshot.digest)
        replace_file(self._state, json.dumps(asdict(state)).encode())

    def reconsider(self) -> None:
        """Let the next worker take the document's file again, if it is good; called in the arbiter at HUP."""
        state = self.state()
        if state is not None:
            replace_file(self._state, json.dumps(asdict(replace(state, reconsider=True))).encode())

    def _boot_first(self, catalog_check: CatalogCheck | None) -> Loaded:
        loaded = self.load_file()
        if catalog_check is None:
            return loaded
        try:
            faults = catalog_check(loaded.snapshot.document)
        except GatewayError as error:
            # NOTE: a gateway starts without its database; routes to functions answer 503 until it is there.
            log.warning("the functions of the configuration could not be checked", reason=error.code)
            return loaded
        if faults:
            raise Refused(faults)
        return loaded

    def _boot_again(self, state: State, catalog_check: CatalogCheck | None) -> Loaded:
        try:
            loaded = self.load_file()
            if state.reconsider and loaded.snapshot.digest != state.digest:
                _check_edited(loaded, catalog_check)
        except (Refused, OSError) as error:
            log.error("the configuration file is refused; starting with the last good one", faults=_faults(error))
            return self._load(self._last_good)
        if loaded.snapshot.digest == state.digest or state.reconsider:
            return loaded
        log.warning(
            "the configuration file is not the one in force; starting with the one in force", in_force=state.digest
        )
        try:
            return self._load(self._last_good)
        except (Refused, OSError) as error:
            log.error("the last good configuration is gone; starting with the file", faults=_faults(error))
            return loaded

    def _load(self, path: Path) -> Loaded:
        # NOTE: references of the last good text are relative to the document's own directory, not to the copy's.
        return load_text(
            read_text(path),
            self._path.parent,
            self._environ,
            token_cache_size=self._token_cache_size,
            reads=self._reads,
        )


def _check_edited(loaded: Loaded, catalog_check: CatalogCheck | None) -> None:
    """Check an edited document against the portal database.

    Raises: Refused, also where the database does not answer: what is in force was checked, so it stays.
    Yields to the hub: in `catalog_check`.
    """
    if catalog_check is None:
        return
    try:
        faults = catalog_check(loaded.snapshot.document)
    except GatewayError as error:
        faults = [Fault(WHOLE, f"the functions cannot be checked: {error.code}")]
    if faults:
        raise Refused(faults)


def _faults(error: Refused | OSError) -> list[str]:
    return error.faults if isinstance(error, Refused) else [f"cannot be read: {error.strerror}"]


def life_of(pid: int) -> str:
    """Names a process beyond the reuse of its id.

    Source: proc(5): field 22 of /proc/PID/stat is its start time.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return str(pid)
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}"
