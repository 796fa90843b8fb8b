"""A secret that a command prints: no shell, a bounded time, a bounded size.

NOTE: it runs where a configuration is loaded: in a thread of gevent's pool, in the arbiter, in a command. So it waits
with the system's own poll and not with gevent's.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
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
_SAID_FD: Final = 3
_MAX_STATUS_BYTES: Final = 256
_poll: Any = get_original("select", "poll")
# NOTE: gevent's own watch the child by the loop of the main thread, and fail in any other.
_posix_spawn: Any = get_original("os", "posix_spawn")
_waitpid: Any = get_original("os", "waitpid")
_POLLIN: Final = 1


class CommandFailed(ValueError):
    """It gave no secret; the message shows nothing that it printed."""


def read_argv(text: str, environ: Mapping[str, str], *, sent: bool = False) -> list[str]:
    """The command of a reference, `["/path/of/program", "argument"]`, if it may be run.

    SEC: whoever may write the configuration could run anything as the gateway. A document in the database is written
    over the network, as is one that was `sent` to be checked, so there only programs count that the gateway's
    environment names.
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
    if argv[0] not in named and (named or sent or environ.get("CAREGATE_CONFIG_SOURCE", "file") != "file"):
        raise CommandFailed(f"runs {argv[0]}, which {COMMANDS_VARIABLE} does not name")
    return list(argv)


def run_command(argv: list[str], environ: Mapping[str, str], max_bytes: int) -> bytes:
    """What the command prints. Blocks for `CAREGATE_EXEC_TIMEOUT_MS` at most.

    Raises: CommandFailed.
    """
    name = argv[0]
    _check_program(name)
    until_s = time.monotonic() + _timeout_ms(environ) / 1000
    output, output_end = os.pipe2(os.O_CLOEXEC)
    said, said_end = os.pipe2(os.O_CLOEXEC)
    # NOTE: the arbiter's handler of SIGCHLD would count the child among its workers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        try:
            pid = _spawn(argv, environ, output_end, said_end, before)
        finally:
            os.close(output_end)
            os.close(said_end)
        try:
            content = _read(output, name, until_s, max_bytes)
            ended = _read(said, name, until_s, _MAX_STATUS_BYTES).decode()
        except CommandFailed:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            raise
        finally:
            with suppress(ChildProcessError):
                _waitpid(pid, 0)
    finally:
        os.close(output)
        os.close(said)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if ended != "0":
        raise CommandFailed(f"{name} {ended or 'was killed'}")
    return content


_RUNNER: Final = """
import os, sys
said = int(sys.argv[1])
try:
    pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=[(os.POSIX_SPAWN_CLOSE, said)])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended = f"ended with {code}" if code else "0"
except OSError as error:
    ended = f"could not be started: {os.strerror(error.errno).lower()}"
os.write(said, ended.encode())
"""


def _spawn(argv: list[str], environ: Mapping[str, str], output: int, said: int, mask: set[int]) -> int:
    """Start the command under a process that says how it ended.

    NOTE: to wait for a child is not ours alone: an event loop that watches children, as gevent's does once anything in
    the process used its subprocess, waits for whichever ends, and a command's status would be lost to it.
    """
    # SEC: the configuration's other secrets are none of its business.
    env = {key: value for key, value in environ.items() if not key.startswith(_KEPT_FROM_IT)}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
        actions.append((os.POSIX_SPAWN_DUP2, said, _SAID_FD))
        spawned: int = _posix_spawn(
            sys.executable, [sys.executable, "-I", "-S", "-c", _RUNNER, str(_SAID_FD), *argv], env,
            file_actions=actions, setpgroup=0, setsigmask=mask, setsigdef=[signal.SIGCHLD],
        )  # fmt: skip
        return spawned
    finally:
        os.close(null)


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
