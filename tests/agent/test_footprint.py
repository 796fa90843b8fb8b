"""What a running agent costs: resident memory over ws and wss, with a ledger, and CPU while nothing happens.

CI watches one idle stretch of three seconds; `CAREGATE_TEST_IDLE_SECONDS=60` a whole minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from gevent.subprocess import Popen

ROOT = Path(__file__).resolve().parents[2]
MAX_RESIDENT_KB = 40_000_000 // 1024
MAX_IDLE_PERCENT = 0.2
IDLE_S = float(os.environ.get("CAREGATE_TEST_IDLE_SECONDS", "3"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

CONFIG = """\
gateway = "{url}"
unit = "linden-clinic"
key = "{key}"
connections = 2
health_file = "health.json"
{more}
[[service]]
target = "http://127.0.0.1:{port}"
allow = ["* /*"]
"""


@pytest.fixture
def start(rig, read, serve, key_file, tmp_path):
    """Run the command with a file, over the scheme; the gateway's ends of its connections."""
    started = []

    def begin(scheme, ledger):
        rig.service.handler = lambda number, sock: [sock.sendall(OK) for _ in iter(lambda: read(sock), b"")]
        gateway, ca = serve.loopback() if scheme == "wss" else (rig.gateway, None)
        more = (f'ca = "{ca}"\n' if ca else "") + ('state_dir = "state"\n' if ledger else "")
        (tmp_path / "state").mkdir()
        path = tmp_path / "agent.toml"
        url = f"{scheme}://127.0.0.1:{gateway.port}"
        path.write_text(CONFIG.format(url=url, key=key_file, port=rig.service.port, more=more))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(
            Popen(
                [sys.executable, "-m", "gateway.cli.main", "agent", "--config", str(path)],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.DEVNULL,
            )
        )
        return started[-1], [gateway.accept(20), gateway.accept(20)]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def resident_kb(process):
    return int(Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0])


def cpu_s(process):
    """Of all its threads, to the nanosecond: /proc/PID/stat counts in hundredths of a second, 0.3 % of the stretch."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@pytest.mark.parametrize("ledger", [False, True], ids=["", "ledger"])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_memory(start, scheme, ledger, capsys):
    process, peers = start(scheme, ledger)
    for number in range(20):
        for peer in peers:
            peer.answer(peer.request())
            peer.answer(peer.request("POST", body=b"x" * 1000, idempotency=f"{number}"))
    used_kb = resident_kb(process)
    with capsys.disabled():
        print(f"\nagent over {scheme}, two connections, ledger {ledger}: {used_kb / 1024:.1f} MiB resident")
    assert used_kb <= MAX_RESIDENT_KB


def started_s(process):
    """What it took to start; on a busy machine that goes on for a while."""
    for _ in range(20):
        before_s = cpu_s(process)
        gevent.sleep(0.3)
        if cpu_s(process) == before_s > 0:
            break
    return cpu_s(process)


def test_idle_cpu(start, capsys):
    process, _ = start("wss", True)
    before_s = started_s(process)
    gevent.sleep(IDLE_S)
    percent = (cpu_s(process) - before_s) / IDLE_S * 100
    with capsys.disabled():
        print(f"\nidle agent, two connections: {percent:.3f} % of a core over {IDLE_S:g} s")
    assert percent <= MAX_IDLE_PERCENT
