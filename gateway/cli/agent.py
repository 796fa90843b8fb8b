"""`caregate agent`: relay a unit's local HTTP services to the gateway.

Runs with the base dependencies alone. The agent itself is imported when it runs, so a bad argument is answered at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.cli.help_text import HelpText

if TYPE_CHECKING:
    from gateway.agent.settings import AgentSettings

LOG_LEVELS = ("debug", "info", "warning", "error")
EXIT_USAGE = 2
UNIT_FILE = "caregate-agent.service"
UNIT_FILE_COMMAND = "/opt/caregate/bin/caregate"
EXAMPLE = """examples:
  caregate agent --config /etc/caregate/agent.toml
  caregate agent --gateway wss://gateway.example --unit linden-clinic --key linden-clinic.key \\
      --target http://127.0.0.1:9102 --allow 'GET /fhir/*' --allow 'POST /fhir/Observation'
"""
_NEEDED = ("gateway", "unit", "key", "target")
_WITHOUT_FILE = (*_NEEDED, "kid", "allow", "context_key", "ca", "connections", "grace", "state_dir", "health_file")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "agent",
        help="relay a unit's local HTTP services to the gateway",
        description="Dials out to the gateway and relays what it asks for to the unit's local HTTP services.",
        epilog=EXAMPLE,
        formatter_class=HelpText,
    )
    parser.add_argument("--version", action="version", version=f"caregate-agent {__version__}")
    parser.add_argument("--config", metavar="FILE", help="agent.toml, instead of the options below (docs/agent.md)")
    parser.add_argument("--check", action="store_true", help="check the configuration and end")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="default info")
    _add_options(parser)
    parser.set_defaults(run=run)
    unit_file = subparsers.add_parser(
        "agent systemd-unit", help="print a systemd unit for the agent", formatter_class=HelpText
    )
    unit_file.add_argument("--executable", metavar="PATH", help="the caregate command; default: the one that runs")
    unit_file.set_defaults(run=print_systemd_unit)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """What is said on the command line when there is no file."""
    parser.add_argument("--gateway", metavar="URL", help="https://HOST (or wss://); http:// for a test")
    parser.add_argument("--unit", metavar="ID", help="this unit's id at the gateway")
    parser.add_argument("--key", metavar="FILE", help="private key, PEM: Ed25519, P-256, P-384 or RSA")
    parser.add_argument("--kid", help="the key's id at the gateway; default: the unit's id")
    parser.add_argument("--target", metavar="URL", help="the local HTTP service")
    parser.add_argument(
        "--allow",
        action="append",
        metavar="'METHOD /path/*'",
        help="local paths that may be asked for, repeatable; a final * is any rest; default: all, with a warning",
    )
    parser.add_argument("--context-key", metavar="FILE", help="refuse requests without a valid x-caregate-context")
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust instead of the system's, PEM")
    parser.add_argument("--connections", type=int, metavar="N", help="1 to 4, default 2")
    parser.add_argument("--grace", type=float, metavar="S", help="seconds for open requests at the end, default 30")
    parser.add_argument("--state-dir", metavar="DIR", help="keep idempotency keys here; without it none are kept")
    parser.add_argument("--health-file", metavar="FILE", help="write how the agent is, for a watchdog")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, then finish what is open. 2: an argument or the file is wrong."""
    settings = _from_file(options) if options.config else _from_options(options)
    if settings is None:
        return EXIT_USAGE
    if options.check:
        return 0
    from gateway.agent.process import serve

    try:
        return serve(settings)
    except OSError as error:
        return _complain(f"{settings.log_file}: {error.strerror}")


def _complain(text: str) -> int:
    print(f"caregate agent: {text}", file=sys.stderr)
    return EXIT_USAGE


def _from_file(options: argparse.Namespace) -> AgentSettings | None:
    from dataclasses import replace

    from gateway.agent.config_file import load_config
    from gateway.agent.toml_table import BadConfig

    given = [name for name in _WITHOUT_FILE if getattr(options, name) is not None]
    if given:
        _complain(f"--{given[0].replace('_', '-')} cannot be given beside --config")
        return None
    try:
        settings = load_config(Path(options.config))
    except BadConfig as error:
        for fault in error.faults:
            _complain(f"{options.config}: {fault}")
        return None
    return settings if options.log_level is None else replace(settings, log_level=options.log_level)


def _from_options(options: argparse.Namespace) -> AgentSettings | None:
    from gateway.agent.settings import BadSettings, parse_settings

    missing = [f"--{name}" for name in _NEEDED if getattr(options, name) is None]
    if missing:
        _complain(f"{', '.join(missing)} missing (or --config FILE)")
        return None
    try:
        return parse_settings(
            gateway=options.gateway,
            unit=options.unit,
            key=options.key,
            target=options.target,
            allow=options.allow,
            kid=options.kid,
            connections=2 if options.connections is None else options.connections,
            context_key=options.context_key,
            ca=options.ca,
            grace_s=30.0 if options.grace is None else options.grace,
            state_dir=options.state_dir,
            health_file=options.health_file,
            log_level=options.log_level or "info",
        )
    except BadSettings as error:
        _complain(str(error))
        return None


def print_systemd_unit(options: argparse.Namespace) -> int:
    """The unit file that is shipped, with the path of this installation's command."""
    # PERF: these two take 2 MB, which an agent that runs need not hold.
    import shutil
    from importlib.resources import files

    command = options.executable or shutil.which(sys.argv[0]) or UNIT_FILE_COMMAND
    text = files("gateway.agent").joinpath(UNIT_FILE).read_text(encoding="utf-8")
    print(text.replace(UNIT_FILE_COMMAND, str(Path(command).absolute())), end="")
    return 0
