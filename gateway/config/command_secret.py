"""A secret that a command prints: no shell, a bounded time, a bounded size.

NOTE: it runs where a configuration is loaded: in a thread of gevent's pool, in the arbiter, in a command. So it waits
with the system's own poll and not with gevent's, and reaps its child itself.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from gevent.monkey import get_original

TIMEOUT_VARIABLE: Final = "CAREGATE_EXEC_TIMEOUT_MS"
COMMANDS_VARIABLE: Final = "CAREGATE_EXEC_COMMANDS"
DEFAULT_TIMEOUT_MS: Final = 5_000
MAX_ARGUMENTS: Final = 64
_KEPT_FROM_IT: Final = "CAREGATE_SECRET_"
_poll: Any = get_original("select", "poll")
_POLLIN: Final = 1


class CommandFailed(ValueError):
    """It gave no secret; the message shows nothing that it printed."""


def read_argv(text: str, environ: Mapping[str, str]) -> list[str]:
    """The command of a reference, `["/path/of/program", "argument"]`, if it may be run.

    SEC: whoever may write the configuration could run anything as the gateway. A document in the database is written
    over the network, so there only programs count that the gateway's environment names.
    Raises: CommandFailed.
    """
    try:
        argv = json.loads(text)
    except (ValueError, RecursionError):
        argv = None
    if not isinstance(argv, list) or not argv or len(argv) > MAX_ARGUMENTS or not all(isinstance(a, str) for a in argv):
        raise CommandFailed('is not a command: exec:["/path/of/program", "argument"]')
    if not argv[0].startswith("/") or any("\0" in argument for argument in argv):
        raise CommandFailed("must name its program by an absolute path")
    named = [path for path in environ.get(COMMANDS_VARIABLE, "").split(":") if path]
    if argv[0] not in named and (named or environ.get("CAREGATE_CONFIG_SOURCE", "file") != "file"):
        raise CommandFailed(f"runs {argv[0]}, which {COMMANDS_VARIABLE} does not name")
    return list(argv)


def run_command(argv: list[str], environ: Mapping[str, str], max_bytes: int) -> bytes:
    """What the command prints. Blocks for `CAREGATE_EXEC_TIMEOUT_MS` at most.

    Raises: CommandFailed.
    """
    name = argv[0]
    _check_program(name)
    timeout_s = _timeout_ms(environ) / 1000
    readable, writable = os.pipe2(os.O_CLOEXEC)
    # NOTE: the arbiter's handler of SIGCHLD would take the child's end away from us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        try:
            pid = _spawn(argv, environ, writable, before)
        except OSError as error:
            raise CommandFailed(f"{name}: {os.strerror(error.errno or 0).lower()}") from None
        finally:
            os.close(writable)
        return _collect(pid, readable, name, time.monotonic() + timeout_s, max_bytes)
    finally:
        os.close(readable)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _spawn(argv: list[str], environ: Mapping[str, str], output: int, mask: set[int]) -> int:
    # SEC: the configuration's other secrets are none of its business.
    env = {key: value for key, value in environ.items() if not key.startswith(_KEPT_FROM_IT)}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
        return os.posix_spawn(argv[0], argv, env, file_actions=actions, setpgroup=0, setsigmask=mask)
    finally:
        os.close(null)


def _collect(pid: int, readable: int, name: str, until_s: float, max_bytes: int) -> bytes:
    """Its output and its end, whichever way it ends."""
    ended = os.pidfd_open(pid)
    try:
        content = _read(readable, name, until_s, max_bytes)
        _wait(ended, name, until_s)
    except CommandFailed:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(ended)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise CommandFailed(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
    return content


def _read(readable: int, name: str, until_s: float, max_bytes: int) -> bytes:
    content = b""
    while True:
        _wait(readable, name, until_s)
        piece = os.read(readable, 65_536)
        if not piece:
            return content
        content += piece
        if len(content) > max_bytes:
            raise CommandFailed(f"{name} printed more than {max_bytes} bytes")


def _wait(descriptor: int, name: str, until_s: float) -> None:
    poll = _poll()
    poll.register(descriptor, _POLLIN)
    left_s = until_s - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise CommandFailed(f"{name} did not end in time ({TIMEOUT_VARIABLE})")


def _check_program(name: str) -> None:
    try:
        status = os.stat(name)
    except OSError as error:
        raise CommandFailed(f"{name}: {os.strerror(error.errno or 0).lower()}") from None
    # SEC: who may replace the program may read the secret.
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022:
        raise CommandFailed(f"{name} is not a program that only its owner may write")


def _timeout_ms(environ: Mapping[str, str]) -> int:
    text = environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT_MS)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise CommandFailed(f"{TIMEOUT_VARIABLE} is not a number of milliseconds")
    return int(text)
