"""Runs the fuzz targets (`make fuzz`): over kernels built with coverage and address checks where clang is installed.

What a run finds goes to build/fuzz/found/; `--keep` minimises it, with the corpus that is there, into
tests/fuzz/corpus/. An input that breaks something is left in build/fuzz/ and ends the run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
_MAX_BYTES = 4096


def main() -> None:
    arguments = read_arguments()
    environ = instrumented() or os.environ | {"PYTHONPATH": str(ROOT)}
    names = arguments.targets or sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(fuzz, name, arguments.seconds, environ) for name in names]:
            done.result()
    if arguments.keep:
        for name in names:
            keep(name, environ)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--keep", action="store_true", help="minimise what was found into the corpus")
    parser.add_argument("targets", nargs="*", help="such as http; all if none is named")
    return parser.parse_args()


def instrumented() -> dict[str, str] | None:
    """An environment in which the kernels give coverage; None without clang."""
    clang = next(
        filter(None, (shutil.which(f"clang{version}") for version in ("", *(f"-{n}" for n in range(22, 13, -1))))), None
    )
    if clang is None:
        print("no clang: the kernels give no coverage, and inputs come from the corpus and its mutations alone")
        return None
    import atheris

    environ = os.environ | {"CC": clang, "LDSHARED": f"{clang} -shared", "CAREGATE_FUZZ_BUILD": "1"}
    command = [
        "setup.py",
        "--quiet",
        "build",
        "--build-lib",
        str(BUILD / "lib"),
        "--build-temp",
        str(BUILD / "objects"),
    ]
    subprocess.run([sys.executable, "-W", "ignore", *command], cwd=ROOT, env=environ, check=True)
    runtime = Path(atheris.path()) / "asan_with_fuzzer.so"
    return os.environ | {
        "PYTHONPATH": str(BUILD / "lib"), "LD_PRELOAD": str(runtime), "ASAN_OPTIONS": "detect_leaks=0",
    }  # fmt: skip


def fuzz(name: str, seconds: int, environ: dict[str, str]) -> None:
    """One target; its last figures are printed. Ends the run where it fails."""
    found = BUILD / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    result = run(name, [found, *filter(Path.is_dir, [corpus_of(name)])], environ, f"-max_total_time={seconds}")
    if result.returncode:
        sys.exit(result.stderr[-8000:])
    figures = re.findall(r"^#(\d+)\s+\w+ .*?cov: (\d+) ft: (\d+)", result.stderr, re.MULTILINE)
    cov = f"{figures[-1][1]} edges, {figures[-1][2]} features" if figures else "no coverage"
    runs = re.findall(r"^Done (\d+) runs", result.stderr, re.MULTILINE)
    print(f"{name}: {runs[-1] if runs else '?'} inputs in {seconds} s, {cov}, nothing broke", flush=True)


def keep(name: str, environ: dict[str, str]) -> None:
    """The smallest inputs that reach all that was reached become the corpus."""
    merged = BUILD / "merged" / name
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    # NOTE: to merge, libFuzzer starts the target itself, which is why the targets are executable.
    environ = environ | {"PATH": f"{Path(sys.executable).parent}:{environ['PATH']}"}
    corpora = filter(Path.is_dir, [corpus_of(name), BUILD / "found" / name])
    run(name, [merged, *corpora], environ, "-merge=1").check_returncode()
    shutil.rmtree(corpus_of(name), ignore_errors=True)
    shutil.copytree(merged, corpus_of(name), dirs_exist_ok=True)
    print(f"{name}: {len(list(merged.iterdir()))} inputs kept")


def corpus_of(name: str) -> Path:
    return HERE / "corpus" / name


def run(name: str, corpora: list[Path], environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / f"fuzz_{name}.py", *corpora, *options, f"-max_len={_MAX_BYTES}"]
    return subprocess.run(
        [*command, f"-artifact_prefix={BUILD}/"], cwd=ROOT, env=environ, check=False, capture_output=True, text=True,
        errors="replace",
    )  # fmt: skip


if __name__ == "__main__":
    main()
