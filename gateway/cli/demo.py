"""`caregate demo`: the demo platform, its story, and its units' switches."""

from __future__ import annotations

import argparse
import os
import selectors
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import unixsocket
from gateway.cli.said import positive, reason
from gateway.demo import CONTROL

if TYPE_CHECKING:
    from gateway.demo.platform import Platform


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("demo", help="run the demo platform, play its story")
    parser.add_argument("--dir", type=Path, default=Path(".caregate/demo"), help="where it keeps its data")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    run = actions.add_parser("run", help="start it, print what to try, run until Ctrl-C")
    run.add_argument("--port", type=int, default=8080)
    run.add_argument("--workers", type=positive, default=2)
    actions.add_parser("play", help="play the story against the running platform and check every answer")
    actions.add_parser("code", help="the one-time code of this moment, for accounts of the demo that need one")
    unit = actions.add_parser("unit", help="stop or start a unit's agent")
    unit.add_argument("verb", choices=["stop", "start"])
    unit.add_argument("unit")
    parser.set_defaults(run=_dispatch)


def _dispatch(options: argparse.Namespace) -> int:
    if options.action == "play":
        return _play(options.dir)
    if options.action == "code":
        return _code(options.dir)
    if options.action == "unit":
        return _ask(options.dir, f"{options.verb} {options.unit}")
    if options.action is None:
        options.port, options.workers = 8080, 2
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from gateway.demo.platform import DemoError, Platform

    if not 1024 <= options.port <= 64_500:
        print(f"caregate demo: --port {options.port}: takes 1024 to 64500", file=sys.stderr)
        return 2
    platform = Platform(
        options.dir, options.port, options.workers, tell=lambda text: print(f"  {text} ...", flush=True)
    )
    stopping = _Stop()
    try:
        print("Caregate demo starts", flush=True)
        platform.start()
        _tell_story(platform)
        _serve(platform)
    except (DemoError, OSError) as error:
        print(f"caregate demo: {reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        stopping.ignore()
        if platform.started():
            print("\nstopping ...", flush=True)
        platform.stop()
    print("stopped; the data stays in", os.path.relpath(platform.directory))
    return 0


class _Stop:
    """SIGTERM and SIGHUP end the platform as Ctrl-C does."""

    def __init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._raise)
        signal.signal(signal.SIGINT, self._raise)

    def _raise(self, *_: object) -> None:
        raise KeyboardInterrupt

    def ignore(self) -> None:
        """A second Ctrl-C does not cut the stop short."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _tell_story(platform: Platform) -> None:
    from gateway.demo import logins, story

    base = f"http://127.0.0.1:{platform.ports.gateway}"
    print("\nTry it, in another terminal (each line says what it must answer):\n")
    for name, token in platform.tokens.items():
        print(f"export {name}={token}")
    print(f"\n# Valid for an hour; always fresh:  . {shlex.quote(os.path.relpath(platform.directory / 'tokens.env'))}")
    story.print_story(base, print)
    if platform.logins is not None:
        logins.print_logins(base, platform.logins, print)
    print("\nAll of it at once:  .venv/bin/caregate demo play")
    print(f"Console:            http://127.0.0.1:{platform.ports.ops}/console")
    print(f"Metrics:            curl -s http://127.0.0.1:{platform.ports.ops}/metrics")
    print(f"Status:             curl -s http://127.0.0.1:{platform.ports.ops}/status")
    print(f"Logs:               {os.path.relpath(platform.logs)}/")
    print(f"\nCaregate is ready on {base}; Ctrl-C stops everything.", flush=True)


def _serve(platform: Platform) -> None:
    """Carry out what `caregate demo unit ...` asks for, and watch the children, until a signal."""
    from gateway.demo.platform import DemoError

    path = platform.directory / CONTROL
    port = platform.directory / "port"
    port.write_text(str(platform.ports.gateway))
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
        unixsocket.bind(server, path, 4)
        selector.register(server, selectors.EVENT_READ)
        try:
            while True:
                if selector.select(timeout=1.0):
                    _answer(server, platform)
                platform.renew_tokens()
                if dead := platform.dead():
                    raise DemoError(f"{', '.join(dead)} ended: see {os.path.relpath(platform.logs)}/")
        finally:
            path.unlink(missing_ok=True)
            port.unlink(missing_ok=True)


def _answer(server: socket.socket, platform: Platform) -> None:
    from gateway.demo.platform import DemoError

    connection, _ = server.accept()
    with connection:
        connection.settimeout(2)
        try:
            verb, _, unit = connection.recv(256).decode("utf-8", "replace").strip().partition(" ")
            try:
                platform.act(verb, unit)
                answer = "ok"
            except DemoError as error:
                answer = str(error)
            connection.sendall(answer.encode())
        except OSError:
            return


def _ask(directory: Path, command: str) -> int:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(40)
            unixsocket.connect(client, directory / CONTROL)
            client.sendall(command.encode())
            answer = client.recv(4096).decode()
    except OSError:
        print(f"caregate demo: no demo runs in {directory}: start it with `make run`", file=sys.stderr)
        return 1
    if answer != "ok":
        print(f"caregate demo: {answer}", file=sys.stderr)
        return 1
    print(f"{command}: done")
    return 0


def _code(directory: Path) -> int:
    from gateway.demo.accounts import code_now

    try:
        print(code_now(directory))
    except OSError:
        print(f"caregate demo: no demo was run in {directory}: start it with `make run`", file=sys.stderr)
        return 1
    return 0


def _play(directory: Path) -> int:
    from gateway.demo import story

    try:
        port = int((directory / "port").read_text())
        lines = (directory / "tokens.env").read_text().splitlines()
    except (OSError, ValueError):
        print(f"caregate demo: no demo runs in {directory}: start it with `make run`", file=sys.stderr)
        return 1
    tokens = {line.split()[1].partition("=")[0]: line.partition("='")[2].rstrip("'") for line in lines}

    def act(verb: str, unit: str) -> None:
        if _ask(directory, f"{verb} {unit}"):
            raise SystemExit(1)

    def tell(outcome: story.Outcome) -> None:
        mark = "ok  " if outcome.ok else "FAIL"
        print(f"{mark} {outcome.status}  {outcome.step.title}", flush=True)

    try:
        outcomes = story.play(port, tokens, act, tell)
    except OSError as error:
        print(f"caregate demo: the gateway on port {port} does not answer ({error.strerror})", file=sys.stderr)
        return 1
    return 0 if all(outcome.ok for outcome in outcomes) else 1
