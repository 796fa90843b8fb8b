"""The ledger: its verdict rule by rule, its disk, and a small run that does find a gateway which answers too early."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import textwrap

import pytest

from loadtests.ledger import outage
from loadtests.ledger.__main__ import largest_step_s, parse_options, play, table, write_key
from loadtests.ledger.disk import Disk, build_shim
from loadtests.ledger.plot import CUT, Plot
from loadtests.ledger.rig import LedgerPlatform
from loadtests.ledger.verdict import WRITTEN_S, Asked, Kept, judge, read_ledger

WITHHELD = {"status": 503, "code": "audit-outcome-unavailable"}
CUT_S = 100.0


def asked(kind="phi-portal", status=200, trace="t1", at_s=CUT_S - 1, code="-"):
    return Asked(trace, kind, f"r-{trace}" if status else "", status, code, at_s)


def kept(phase="outcome", status=200, trace="t1", outcome="allowed", rule="allowed", sequence=1, phi=True):
    canonical = f"{trace} {phase} {rule} {sequence}"
    return Kept("c" * 16, sequence, phase, f"r-{trace}", trace, outcome, rule, status, phi, canonical)


INTENT, OUTCOME = kept("intent", 0, outcome="pending", sequence=1), kept(sequence=2)
COMPLETION = kept("completion", trace="t1", outcome="complete", sequence=3)
NEW_OUTCOME = kept(status=503, outcome="failed", rule="audit-outcome-unavailable", sequence=3)
CASES = [
    ("all there", [asked()], [INTENT, OUTCOME, COMPLETION], None, {}),
    ("answered, nothing kept", [asked()], [], None, {"lost": 1}),
    ("answered, the outcome is missing", [asked()], [INTENT], None, {"lost": 1, "orphan": 1}),
    ("broken, nothing kept", [asked(status=0)], [], None, {}),
    ("broken, all kept", [asked(status=0)], [INTENT, OUTCOME, COMPLETION], None, {}),
    ("broken, only the intent", [asked(status=0)], [INTENT], None, {}),
    ("withheld, nothing kept", [asked(**WITHHELD)], [INTENT], None, {}),
    ("withheld, its outcome kept", [asked(**WITHHELD)], [INTENT, OUTCOME], None, {}),
    ("withheld, both kept", [asked(**WITHHELD)], [INTENT, OUTCOME, NEW_OUTCOME], None, {}),
    ("withheld twice", [asked(**WITHHELD)], [INTENT, NEW_OUTCOME, NEW_OUTCOME], None, {"double": 2}),
    ("nobody asked", [], [INTENT, OUTCOME], None, {"ghost": 1}),
    ("a unit's dial was refused", [], [kept(status=401, outcome="refused", rule="token:unit", phi=False)], None, {}),
    ("another status", [asked(status=502)], [INTENT, OUTCOME], None, {"ghost": 1}),
    ("no intent", [asked()], [OUTCOME], None, {"orphan": 1}),
    ("the intent after the outcome", [asked()], [kept(sequence=1), INTENT], None, {"orphan": 1}),
    ("a refusal has none", [asked(status=404)], [kept(status=404, outcome="refused", rule="binding")], None, {}),
    ("a written route has none", [asked("written-relay")], [kept(phi=False)], None, {}),
    ("completion alone", [asked(status=0)], [COMPLETION], None, {"orphan": 1}),
    ("outcome twice", [asked()], [INTENT, OUTCOME, kept(sequence=3)], None, {"double": 1}),
    ("the same bytes twice", [asked()], [INTENT, OUTCOME, OUTCOME], None, {"double": 2}),
    ("power lost, synced", [asked()], [], CUT_S, {"lost": 1}),
    ("power lost, just written", [asked("written-relay")], [], CUT_S, {}),
    ("power lost, long written", [asked("written-relay", at_s=CUT_S - WRITTEN_S - 1)], [], CUT_S, {"lost": 1}),
]


@pytest.mark.parametrize(("ledger", "trail", "cut_s", "found"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_verdict(ledger, trail, cut_s, found):
    verdict = judge({one.trace: one for one in ledger}, trail, cut_s)
    assert {name: count for name, count in verdict.counts().items() if count} == found
    assert verdict.passed is (not found)


def test_a_ledger_is_read_back():
    lines = ["asked t1 phi-portal", "answered t1 r-t1 200 - 99.0 1.5", "asked t2 phi-portal", "broken t2", "asked t3 x"]
    found = read_ledger(lines)
    assert (found["t1"].at_s, found["t1"].took_ms, found["t1"].status) == (99.0, 1.5, 200)
    assert [found[name].status for name in ("t2", "t3")] == [0, 0]


def test_the_largest_step_of_a_clock():
    moments = [("a", 1_000), ("a", 601_000), ("a", 590_000), ("b", 1)]
    events = [Kept(chain, 1, "", "", "", "", "", 0, False, f'{{"at_ms":{at}}}') for chain, at in moments]
    assert largest_step_s(events) == 600


DISK_CASES = [
    ("synced", "write('a', b'one'); sync('a'); sync('.')", {"a": b"one"}),
    ("not synced", "write('a', b'one'); sync('.')", {"a": b""}),
    ("its name not synced", "write('a', b'one'); sync('a')", {}),
    ("more written since", "write('a', b'one'); sync('a'); sync('.'); write('a', b'more')", {"a": b"one"}),
    ("removed since", "write('a', b'one'); sync('a'); sync('.'); os.unlink('a')", {"a": b"one"}),
    (
        "renamed, folder not synced",
        "write('a', b'one'); sync('a'); sync('.'); os.rename('a', 'b')",
        {"a": b"one"},
    ),
    ("renamed and synced", "write('a', b'one'); sync('a'); os.rename('a', 'b'); sync('.')", {"b": b"one"}),
    (
        "a sync failed, the next does not write it",
        "write('a', b'one'); fails(); sync('a'); works(); sync('a'); sync('.')",
        {"a": b"\0\0\0"},
    ),
    (
        "a sync failed, it was written again",
        "write('a', b'one'); fails(); sync('a'); works(); again('a', b'one'); sync('a'); sync('.')",
        {"a": b"one"},
    ),
    (
        "a disk that lies",
        "write('a', b'one'); sync('a'); sync('.'); lies(); write('a', b'2'); sync('a')",
        {"a": b"one"},
    ),
]
PROGRAM = """
import os
def write(name, content):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, content)
def again(name, content):
    os.pwrite(os.open(name, os.O_RDWR), content, 0)
def sync(name):
    try:
        os.fsync(os.open(name, os.O_RDONLY if os.path.isdir(name) else os.O_WRONLY))
    except OSError as error:
        assert error.errno == 5 and failing
failing = False
def control(text):
    with open(os.environ["CAREGATE_TEST_SHIM_CONTROL"], "w") as file:
        file.write(text)
def fails():
    global failing
    failing = True
    control("0 1000 0")
def works():
    control("0 0 0")
def lies():
    control("0 0 1")
"""


@pytest.mark.parametrize(("deeds", "left"), [c[1:] for c in DISK_CASES], ids=[c[0] for c in DISK_CASES])
def test_the_disk_keeps_what_was_synced(tmp_path, deeds, left):
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder, tmp_path)
    environment = {**os.environ, **disk.environment(), "LD_PRELOAD": str(build_shim())}
    argv = [sys.executable, "-c", textwrap.dedent(PROGRAM) + deeds]
    subprocess.run(argv, cwd=folder, env=environment, check=True)
    disk.lose_power()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == left


HEARS = """
one, other = (os.open("a", os.O_RDWR | os.O_CREAT) for _ in range(2))
os.write(one, b"x")
os.fsync(one)
os.fsync(other)
def heard(fd):
    try:
        os.fsync(fd)
    except OSError as error:
        return error.errno
    return 0
fails()
first = heard(one)
works()
assert (first, heard(one), heard(other), heard(other)) == (5, 0, 5, 0)
"""


def test_each_opening_of_a_file_hears_of_an_error_once(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    environment = {**os.environ, **Disk(folder, tmp_path).environment(), "LD_PRELOAD": str(build_shim())}
    argv = [sys.executable, "-c", textwrap.dedent(PROGRAM) + HEARS]
    subprocess.run(argv, cwd=folder, env=environment, check=True)


@pytest.mark.integration
def test_an_outage_of_postgresql_loses_nothing(tmp_path):
    """A few seconds of `make outage`; how fast answers were is for a quiet machine to say."""
    platform = LedgerPlatform(tmp_path, 1, tell=lambda text: None)
    options = argparse.Namespace(seconds=2.0, around=1.5, callers=6, pause=0.02)
    try:
        write_key(tmp_path)
        platform.start()
        found = outage.play(platform, options, lambda text: None)
    finally:
        platform.stop()
    assert found.verdict.counts() == {"lost": 0, "ghost": 0, "orphan": 0, "double": 0}
    assert not found.broken_chain
    assert found.backlog > 20, "events waited while it was away"
    assert {one.code for one in found.asked.values()} >= {"-", "database-unavailable"}


def outage_of(there_ms, away_ms):
    moments = {"began_s": 0.0, "left_s": 100.0, "back_s": 200.0, "settled_s": 210.0, "arrived_s": 300.0}
    answers = [asked("phi-relay", at_s=at_s) for at_s in (50, 250, 150, 205)]
    for one, took_ms in zip(answers, (there_ms, there_ms, away_ms, 9_999), strict=True):
        one.took_ms = took_ms
    answers.append(asked("phi-portal", at_s=150))
    answers[-1].took_ms = 9_999
    return outage.Outage(
        **moments, asked=dict(enumerate(answers)), verdict=judge({}, []), broken_chain="", backlog=0
    )  # fmt: skip


@pytest.mark.parametrize(("away_ms", "passed"), [(9.0, True), (10.9, True), (11.1, False)])
def test_an_outage_that_slows_answers_does_not_pass(away_ms, passed):
    assert outage_of(10.0, away_ms).passed is passed


@pytest.mark.integration
def test_an_answer_that_comes_too_early_is_found(tmp_path):
    """A loss of power under load: nothing is lost, unless the gateway does not wait for its disk."""
    slow = [(0.6, "fsync takes 1.5 s", lambda p: p.disk.behave(delay_ms=1_500))]
    plot = Plot("power cut", CUT, slow)
    argv = ["--seconds", "1", "--callers", "8", "--arrival"]
    platform = LedgerPlatform(tmp_path, 1, tell=lambda text: None)
    try:
        write_key(tmp_path)
        platform.start()
        honest = play(platform, 1, plot, parse_options([*argv, "20"]))
        early = play(platform, 2, plot, parse_options([*argv, "1", "--early"]))
    finally:
        platform.stop()
    found = [*honest.verdict.lost, *honest.verdict.orphan, honest.broken_chain]
    assert honest.passed, "\n".join(table([honest]) + found)
    assert honest.answered > 20
    assert early.verdict.lost
    assert not early.broken_chain
    log = (platform.logs / "gateway-02.log").read_text()
    assert '"level":"critical"' in log
    assert "CAREGATE_TEST_EARLY_ANSWER=1" in log
