"""How long a large trail takes to verify: `python -m loadtests.audit_verify --events 1000000`, then RESULT and JSON.

Four chains with real hashes and signed checkpoints are put into a database of their own; then `caregate audit verify`
runs as anybody would run it, and once more after one record was changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import orjson
import psycopg
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import genesis, link
from gateway.audit.checkpoint import FIRST_PREVIOUS, ChainHead, Checkpoint, digest, merkle_root, seal
from gateway.audit.columns import COLUMNS, row
from gateway.audit.event import AuditEvent, encode
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from loadtests.audit_search import drop_indexes
from loadtests.interruption import interruptible

BEGAN_MS = 1_767_225_600_000
CHAINS = tuple(name * 16 for name in "abcd")
CHECKPOINTS = 200
BAR_S = 10.0
SOURCE = "5" * 16


def fill(dsn: str, events: int, key: Ed25519PrivateKey) -> None:
    """Events as a gateway writes them, an intent and an outcome for each access."""
    heads = {chain: (0, genesis(chain)) for chain in CHAINS}
    sealed, at_ms = [], BEGAN_MS
    with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        for month in range(1, 13):
            cursor.execute("SELECT audit.make_month(make_date(2026, %s, 1))", (month,))
        drop_indexes(connection)  # verification reads by the primary key alone
        with cursor.copy(f"COPY audit.event ({', '.join(COLUMNS)}) FROM STDIN") as copy:
            for n in range(events):
                at_ms += 7
                chain = CHAINS[n % len(CHAINS)]
                sequence = heads[chain][0] + 1
                canonical = _event(n, at_ms)
                heads[chain] = sequence, link(heads[chain][1], sequence, canonical)
                copy.write(row(chain, sequence, heads[chain][1], canonical))
                if (n + 1) % max(1, events // CHECKPOINTS) == 0 or n + 1 == events:
                    sealed.append(
                        _checkpoint(len(sealed) + 1, heads, at_ms, sealed[-1].checkpoint if sealed else "", key)
                    )
        for number, one in enumerate(sealed, 1):
            cursor.execute(
                "INSERT INTO audit.checkpoint (source, number, checkpoint, signature) VALUES (%s, %s, %s, %s)",
                (SOURCE, number, one.checkpoint, one.signature),
            )
        cursor.execute("VACUUM ANALYZE audit.event")


def _event(n, at_ms):
    m = n // 2
    return encode(
        AuditEvent(
            v=1, kind="access", phase="intent" if n % 2 == 0 else "outcome", at_ms=at_ms, duration_us=4000 + n % 900,
            request_id=f"0d1ad0d4-6d5c-4ab1-9d0b-{m:012x}", outcome="pending" if n % 2 == 0 else "allowed",
            rule="allowed", status=0 if n % 2 == 0 else 200, method="GET", delivery="response_started",
            unit=f"unit-{m % 500}", agent="caregate/0.1.0", patient=f"p.{m % 100_000:032x}",
            client_address=f"192.0.2.{m % 250}", route="lab-results", action="R", resource_type="Observation", phi=True,
            purpose="TREAT", issuer="https://id.example.org/staff", subject=f"user-{m % 20_000}", role="practitioner",
            audience="staff-portal", organisation="org-1", token_id=f"5f1c9f1e-6f0a-4bb0-9a0d-{m % 900:012x}",
            node="node-1", config_version=7,
        )
    )  # fmt: skip


def _checkpoint(number, heads, at_ms, before, key):
    listed = tuple(
        ChainHead(chain, sequence, head.hex(), at_ms) for chain, (sequence, head) in heads.items() if sequence
    )
    checkpoint = Checkpoint(
        v=1, source=SOURCE, node="node-1", number=number, at_ms=at_ms, covers_ms=at_ms,
        previous=digest(before) if before else FIRST_PREVIOUS, heads=listed, root=merkle_root(listed),
    )  # fmt: skip
    return seal(checkpoint, key)


def verify(dsn: str, folder: Path) -> tuple[int, str, float, float]:
    """Run the command. Shapes: exit status, last line, seconds, its seconds of CPU."""
    argv = [sys.executable, "-m", "gateway.cli.main", "audit", "verify", "--dsn", dsn, "--data-dir", str(folder)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    took_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result.returncode, result.stdout.strip(), took_s, cpu_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/tmp/caregate-audit-verify"))
    options = parser.parse_args()
    folder: Path = options.directory
    (folder / "audit").mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.chmod(0o711)
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "audit" / "checkpoint.pub").write_bytes(pem)
    postgres = EmbeddedPostgres(folder / "pg", shared_buffers="512MB")
    postgres.start()
    try:
        migrate(postgres.admin_dsn)
        fill(postgres.admin_dsn, options.events, key)
        runs = [verify(postgres.admin_dsn, folder) for _ in range(options.rounds)]
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            connection.execute(
                "UPDATE audit.event SET subject = 'x' WHERE chain = %s AND sequence = %s",
                (CHAINS[1], options.events // 8),
            )
        changed = verify(postgres.admin_dsn, folder)
    finally:
        postgres.remove()
        shutil.rmtree(folder / "audit", ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    return report(options.events, runs, changed)


def report(events: int, runs: list[tuple[int, str, float, float]], changed: tuple[int, str, float, float]) -> int:
    print(f"{'run':20}{'s':>8}{'CPU s':>8}{'us each':>9}  exit")
    for name, (status, _, took_s, cpu_s) in [
        *((f"untouched {n + 1}", run) for n, run in enumerate(runs)),
        ("changed", changed),
    ]:
        print(f"{name:20}{took_s:8.2f}{cpu_s:8.2f}{took_s / events * 1e6:9.2f}  {status}")
    best_s = sorted(run[2] for run in runs)[len(runs) // 2]
    good = all(run[0] == 0 for run in runs) and changed[0] == 1
    final = {
        "events": events, "verify_s": round(best_s, 2), "cpu_s": round(min(run[3] for run in runs), 2),
        "found_the_change": changed[0] == 1, "cores": os.cpu_count(),
    }  # fmt: skip
    print(changed[1].splitlines()[0] if changed[1] else "")
    print("RESULT " + orjson.dumps(final).decode())
    return 0 if good and best_s < BAR_S * max(1.0, events / 1_000_000) else 1


if __name__ == "__main__":
    raise SystemExit(interruptible(main))
