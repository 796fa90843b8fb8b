"""`make autobahn`: Autobahn's fuzzing client, cases 1 to 7 and 10, against the relay's WebSocket class.

It runs under Python 2.7 alone (PyPI: autobahntestsuite); `PYTHON2=` names the interpreter, else the usual names are
tried. Progress is Autobahn's own; then a line for every case that is not right, and RESULT with JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES = [*(f"{group}.*" for group in range(1, 8)), "10.*"]
GOOD = {"OK", "INFORMATIONAL", "NON-STRICT"}
NAMES = ["python2.7", "pypy", "pypy2", "python2"]


def find_python2() -> str | None:
    """An interpreter that has the test suite."""
    for name in [os.environ.get("PYTHON2", ""), *NAMES]:
        path = shutil.which(name) if name else None
        if path and subprocess.run([path, "-c", "import autobahntestsuite"], capture_output=True).returncode == 0:
            return path
    return None


def fuzz(python2: str, directory: Path) -> dict[str, Any]:
    """Run the client against an echo server of ours; its index of cases."""
    echo = Path(__file__).with_name("echo_server.py")
    server = subprocess.Popen([sys.executable, str(echo), "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split()[-1]
        spec = {
            "outdir": str(directory / "reports"),
            "servers": [{"agent": "caregate", "url": f"ws://127.0.0.1:{port}"}],
            "cases": CASES,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (directory / "spec.json").write_text(json.dumps(spec))
        wstest = "from autobahntestsuite.wstest import run; run()"
        command = [python2, "-c", wstest, "-m", "fuzzingclient", "-s", str(directory / "spec.json")]
        subprocess.run(command, cwd=directory, check=True)
    finally:
        server.terminate()
        server.wait()
    return dict(json.loads((directory / "reports" / "index.json").read_text())["caregate"])


def main() -> int:
    python2 = find_python2()
    if python2 is None:
        print(
            "not run: Autobahn's fuzzing client needs Python 2.7 with the package autobahntestsuite; none was found "
            f"(looked for {', '.join(NAMES)}; PYTHON2= names another). Its cases' equivalents run in `make test`: "
            "tests/autobahn/test_cases.py."
        )
        return 1
    with tempfile.TemporaryDirectory() as directory:
        cases = fuzz(python2, Path(directory))
    bad = {name: case for name, case in cases.items() if not {case["behavior"], case["behaviorClose"]} <= GOOD}
    for name, case in sorted(bad.items()):
        print(f"{name}: {case['behavior']}, close {case['behaviorClose']}")
    print("RESULT " + json.dumps({"cases": len(cases), "bad": len(bad)}))
    return 1 if bad or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
