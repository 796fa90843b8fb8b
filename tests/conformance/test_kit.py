"""The conformance kit on our own agent, and on a small one whose broken rules it must find."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.conformance.kit import Kit
from gateway.conformance.peer import Broken
from gateway.conformance.rules import RULES
from gateway.conformance.verdicts import verdicts

ROOT = Path(__file__).parents[2]
OF_AGENT = ["agent", "--gateway", "{gateway}", "--unit", "{unit}", "--key", "{key}", "--target", "{target}",
            "--connections", "1"]  # fmt: skip
OWN = [sys.executable, "-m", "gateway.cli.main", *OF_AGENT]
IMPATIENT = "import sys; from gateway.agent import link; from gateway.cli.main import main; limits = link.Limits; " \
    "link.Limits = lambda **given: limits(**given, sync_s=1.0, stall_s=1.0); sys.exit(main(sys.argv[1:]))"  # fmt: skip
SMALL = [sys.executable, str(Path(__file__).with_name("small_agent.py"))]


def conformance(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "conformance", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_our_own_agent_keeps_every_rule():
    run = conformance("--quick", "--agent", *OWN)
    assert "BROKEN" not in run.stdout, run.stdout
    assert run.returncode == 0, run.stdout + run.stderr
    said = [line.split()[1] for line in run.stdout.splitlines()[:-1]]
    assert said == [name for name in RULES if not RULES[name].slow]


def test_and_those_that_take_a_minute():
    """With a second for each."""
    slow = [option for name in RULES if RULES[name].slow for option in ("--rule", name)]
    run = conformance(*slow, "--agent", sys.executable, "-c", IMPATIENT, *OF_AGENT)
    assert run.stdout.endswith("2 of 2 rules are kept\n"), run.stdout + run.stderr


BROKEN = {
    "handshake": "another request line",
    "token": "no fresh jti",
    "hello": "the first message is not HELLO",
    "token-renewal": "no Token in time",
    "refused": "after 401 Unauthorized it dials again",
    "retry-after": "it dials before that",
    "get": "a field of the request is missing",
    "ack": "no Ack in time",
    "at-once": "no ResponseFrame in time",
    "bodiless": "has a body",
    "fragments": "the connection ended",
    "body-up": "no Window in time",
    "conn-credit": "no Window in time",
    "window": "more than the credit was sent",
    "conn-window": "more than the credit was sent",
    "stall": "RESET says 10",
    "max-streams": "came instead of RESET",
    "max-frame": "2048 were agreed",
    "hold": "it ran before GO",
    "cancel": "stays open",
    "unreachable": "RESET says",
    "garbage": "RESET says dispatched: false",
    "deadline": "no Reset in time",
    "unknown-type": "the connection ended",
    "bad-field": "no Reset or GoAway in time",
    "ping": "no Pong in time",
    "own-ping": "no Ping in time",
    "silence": "it is not ended",
    "sync": "is not reset",
    "own-sync": "SYNC lists other streams",
    "drain": "the agent does not connect",
    "retry": "it dials before that",
    "again": "the agent does not connect",
    "close": "the answer says 1000",
}
"""Rule -> what the kit says of an agent whose BREAK it is."""
VIOLATIONS = [name for name in RULES if name not in BROKEN]
"""Found in one that heeds no violation."""


class Redialled(Kit):
    """The same process dials again where the kit would start another one: the small agent is none the worse for it."""

    def fresh(self, **welcome):
        if self._process is None or self.listener.refusal:
            return super().fresh(**welcome)
        self.listener.welcome = welcome
        self.listener.drop()
        self._peer = None
        return self.listener.next()


def small(broken=""):
    return Redialled(["env", f"PYTHONPATH={ROOT}", f"BREAK={broken}", *SMALL])


def faults(broken, names):
    return dict(verdicts(names, [small(broken)]))


@pytest.fixture(scope="module")
def found():
    """What the kit says of each broken rule; many at a time, since most of it is waiting."""
    looks = [(name, [name]) for name in BROKEN] + [("violations", VIOLATIONS[i::5]) for i in range(5)]
    with ThreadPoolExecutor(12) as pool:
        return {name: fault for said in pool.map(lambda look: faults(*look), looks) for name, fault in said.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_found(found, name):
    assert BROKEN.get(name, "no GoAway in time") in found[name]


def test_the_small_agent_keeps_them_otherwise():
    assert dict(verdicts(list(RULES), [small() for _ in range(4)])) == dict.fromkeys(RULES, "")


def test_a_verdict_and_the_status():
    run = conformance("--rule", "token", "--rule", "get", "--jobs", "1", "--agent", *SMALL, BREAK="token")
    assert run.returncode == 1, run.stdout
    said = run.stdout.splitlines()
    assert said[0].startswith("BROKEN  token             no fresh jti")
    assert said[2].startswith("kept    get")
    assert said[3] == "1 of 2 rules are kept"


def test_a_kit_that_is_closed_starts_nothing():
    kit = small()
    kit.close()
    with pytest.raises(Broken):
        kit.fresh()


@pytest.mark.parametrize(
    "options",
    [["--rule", "no-such", "--agent", "true"], [], ["--jobs", "0", "--agent", "true"], ["--agent", "/no/such"]],
    ids=["unknown rule", "no agent", "no jobs", "no such agent"],
)
def test_arguments(options):
    assert conformance(*options).returncode == 2
