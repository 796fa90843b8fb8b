"""The bench: what it reports, and one short run of it against the baseline. Nothing here judges a figure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests.bench import __main__ as bench
from loadtests.bench import rows as rows_module
from loadtests.bench import run, servers
from loadtests.bench.audit_rows import audit_rows
from loadtests.bench.peers import configs
from loadtests.bench.policy import Portal, make_keys
from loadtests.bench.report import LIMITS, OVERHEADS, Figure, as_document, judge, plot, remarks, table
from loadtests.bench.row import Contender, Row
from loadtests.bench.rows import Rows

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ("row", "server", "cpu_us", "rps", "p50_ms", "p99_ms")
BAR = ("bar", "ratio", "limit", "met")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """The rows of a run that nothing has been started for."""
    monkeypatch.chdir(tmp_path)
    return Rows(tmp_path, Portal("", "postgresql://postgres@/caregate?host=%2Ftmp%2Fpg", 1))


def _figure(row: str, server: str, cpu_us: float = 10.0, rps: float = 100.0) -> Figure:
    return Figure(row, server, cpu_us, rps, 1.0, 2.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio", "met"),
    [(6.0, 10.0, 0.6, True), (6.1, 10.0, 0.61, False), (5.9, 10.0, 0.59, True)],
    ids=["at the limit", "above", "below"],
)
def test_cpu_must_be_at_most_the_limit(ours, theirs, ratio, met):
    row = "policy_rs256_unique"
    (bar,) = judge([_figure(row, "caregate", ours), _figure(row, "envoy-cached", theirs)])
    assert (bar.ratio, bar.limit, bar.met) == (ratio, 0.6, met)


@pytest.mark.parametrize(("many", "met"), [(90.0, True), (89.0, False)], ids=["at the limit", "below"])
def test_throughput_must_be_at_least_the_limit(many, met):
    (bar,) = judge([_figure("scale", "caregate", rps=100.0), _figure("scale", "caregate-10k-100k", rps=many)])
    assert bar.met is met


def test_a_bar_needs_both_of_its_figures():
    assert judge([_figure("policy_rs256", "caregate")]) == []


def test_every_bar_has_its_contenders(rows):
    names = {(row.name, contender.name) for row in rows.all() for contender in row.contenders}
    missing = [
        (row, server)
        for row, ours, peer, *_ in (*LIMITS, *OVERHEADS)
        for server in (ours, peer)
        if (row, server) not in names
    ]
    assert missing == []


def test_the_trail_is_all_that_the_durable_route_has_more(rows, tmp_path):
    plain, durable = (rows.ours._document(tmp_path, 0, phi) for phi in (False, True))
    assert {name for name in ("policy", "relay") if durable["controllers"][name].pop("phi")} == {"policy", "relay"}
    assert {name for name in ("policy", "relay") if plain["controllers"][name].pop("phi")} == set()
    assert durable == plain


@pytest.mark.parametrize(("number", "of"), [(0, "audit"), (1, "open")])
def test_the_durable_rows_have_each_route_without_the_trail_and_with_it(monkeypatch, number, of):
    asked = []

    class Ours:
        agent = None

        def start(self, name, **options):
            asked.append((name.removeprefix(f"caregate-{of}-"), options["phi"], "LD_PRELOAD" in options["environment"]))
            return SimpleNamespace(folders=[])

    monkeypatch.setattr("loadtests.bench.audit_rows.build_shim", lambda: "/nowhere/shim.so")
    row = audit_rows(Ours(), lambda: None)[number]
    for contender in row.contenders:
        (folder,) = contender.start().folders
        shutil.rmtree(folder)
    assert asked == [
        ("none", False, True), ("durable", True, True), ("relay-none", False, True), ("relay-durable", True, True),
    ]  # fmt: skip
    paths = [contender.path for contender in row.contenders]
    assert paths[0] == paths[1] != paths[2] == paths[3]


def test_what_a_durable_event_costs_is_a_difference():
    none, durable = _figure("audit_durable", "caregate", 20.0), _figure("audit_durable", "caregate-durable", 28.5)
    cpu, p99 = judge([none, durable])
    assert (cpu.ratio, cpu.limit, cpu.met) == (8.5, 8.0, False)
    assert (p99.ratio, p99.limit, p99.met) == (0.0, 3.0, True)


def test_the_document_is_a_flat_list_and_the_plot_well_formed():
    figures = [_figure("scale", "caregate"), _figure("scale", "caregate-10k-100k"), _figure("workers_2", "caregate-2")]
    document = json.loads(json.dumps(as_document(figures, judge(figures))))
    assert [sorted(entry) for entry in document] == [sorted(FIGURE)] * 3 + [sorted(BAR)]
    assert ElementTree.fromstring(plot(figures)).tag.endswith("svg")
    assert "caregate-10k-100k" in table(figures, judge(figures))
    assert "the second worker had what was left" in remarks(figures)[0]


def test_a_row_that_there_is_not_is_named(rows):
    with pytest.raises(LookupError, match="no such row: nothing; there are policy_rs256, "):
        bench._chosen(rows.all(), ["nothing", "scale"])
    assert [row.name for row in bench._chosen(rows.all(), ["scale", "policy_hs256"])] == ["policy_hs256", "scale"]


def test_a_peer_that_cannot_be_had_is_left_out_and_named(rows, capsys):
    def missing() -> servers.Server:
        raise servers.Missing("no such package")

    row = Row("row", "rs256", (Contender("peer", missing, "/policy"),))
    assert run.measure(rows, row, 1, 1) == []
    assert "row: left out: peer: no such package" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize("wrong", [False, True], ids=["right answers", "wrong answers"])
def test_a_short_run(tmp_path, wrong):
    """The gateway beside the baseline, which needs nothing that has to be installed."""
    code = SCRIPT.replace("WRONG", repr(wrong))
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    if wrong:
        assert "WrongAnswer: policy: stock-gunicorn answers" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert [figure["server"] for figure in figures] == [
        "caregate",
        "caregate-logged",
        "caregate-durable",
        "stock-gunicorn",
    ]
    assert all(figure["cpu_us"] > 0 and figure["rps"] > 0 and figure["p50_ms"] > 0 for figure in figures)


SCRIPT = """
import dataclasses, json, os, sys
from pathlib import Path
from types import SimpleNamespace
from loadtests.bench.database import portal_database
from loadtests.bench.report import as_document
from loadtests.bench.row import Contender, Row
from loadtests.bench.rows import Rows
from loadtests.bench.run import measure
run = Path(sys.argv[1])
with portal_database(run / "postgres") as portal:
    rows = Rows(run, portal)
    path = "/policy"
    durable = next(row for row in rows.all() if row.name == "audit_durable").contenders[1]
    row = Row("policy", "rs256", (
        Contender("caregate", lambda: rows.ours.start("caregate", bare=True), path),
        Contender("caregate-logged", lambda: rows.ours.start("caregate-logged"), path),
        durable,
        Contender("stock-gunicorn", lambda: rows.peers.stock("RS256", "stock-gunicorn"), path),
    ))
    if WRONG:
        rows.wrong_role = lambda contender, kind: rows.tokens(kind).open().readline().strip()
        row = dataclasses.replace(row, contenders=row.contenders[3:])
    print(json.dumps(as_document(measure(rows, row, 1, 1), [])))
"""


def test_envoy_limits_each_caller_as_the_others_do() -> None:
    text = configs.envoy(make_keys(), "RS256", 1, 2, 3, 50_000)
    limit = text[text.index("http_filters:") :]
    assert "path: [{key: claims}, {key: sub}]" in limit
    assert "- entries: [{key: caller}]" in limit
    assert "max_dynamic_descriptors: 200000" in limit
    assert "jwt_cache_size: 50000" in text


def test_tokens_used_once_are_more_than_any_cache_holds() -> None:
    assert rows_module.TOKENS["unique"].count >= 2 * rows_module._SMALL_CACHE
