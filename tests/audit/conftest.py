"""A trail that is known to the last byte, in a real database and in files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import orjson
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import genesis, link
from gateway.audit.checkpoint import FIRST_PREVIOUS, ChainHead, Checkpoint, Sealed, digest, encode, merkle_root, seal
from gateway.audit.columns import COLUMNS, row
from gateway.audit.event import AuditEvent, decode
from gateway.audit.event import encode as encode_event

BEGAN_MS = 1_767_225_600_000


def event(n: int, at_ms: int, **changes: object) -> bytes:
    values = {
        "kind": "access", "phase": "outcome", "request_id": f"r-{n}", "subject": f"s-{n % 7}",
        "patient": f"pat\t\\{n % 5}", "status": 200, **changes,
    }  # fmt: skip
    return encode_event(AuditEvent(v=1, at_ms=at_ms, duration_us=n, outcome="allowed", rule="allowed", **values))


@dataclass
class Written:
    """Chains and checkpoints as the gateway writes them: one record a second, one checkpoint a minute."""

    dsn: str
    folder: Path
    key: Ed25519PrivateKey
    chains: dict[str, list[tuple[int, bytes, bytes]]] = field(default_factory=dict)
    sealed: list[Sealed] = field(default_factory=list)
    now_ms: int = BEGAN_MS
    began_ms: int = BEGAN_MS

    def add(self, chain: str, count: int, step_ms: int = 1000) -> None:
        records = self.chains.setdefault(chain, [])
        head = records[-1][1] if records else genesis(chain)
        for _ in range(count):
            self.now_ms += step_ms
            sequence = len(records) + 1
            canonical = event(sequence, self.now_ms)
            head = link(head, sequence, canonical)
            records.append((sequence, head, canonical))

    def seal(self) -> None:
        heads = tuple(
            ChainHead(chain, records[-1][0], records[-1][1].hex(), self.now_ms)
            for chain, records in sorted(self.chains.items())
        )
        self.now_ms += 10
        previous = digest(self.sealed[-1].checkpoint) if self.sealed else FIRST_PREVIOUS
        checkpoint = Checkpoint(
            v=1, source="5" * 16, node="n", number=len(self.sealed) + 1, at_ms=self.now_ms, covers_ms=self.now_ms,
            previous=previous, heads=heads, root=merkle_root(heads),
        )  # fmt: skip
        self.sealed.append(seal(checkpoint, self.key))

    def store(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection, connection.cursor() as cursor:
            # PERF: TRUNCATE makes the files of every month and index anew: a second and a half.
            cursor.execute("DELETE FROM audit.event; DELETE FROM audit.checkpoint")
            with cursor.copy(f"COPY audit.event ({', '.join(COLUMNS)}) FROM STDIN") as copy:
                for chain, records in self.chains.items():
                    for record in records:
                        copy.write(row(chain, *record))
            for sealed in self.sealed:
                number = orjson.loads(sealed.checkpoint)["number"]
                cursor.execute(
                    "INSERT INTO audit.checkpoint (source, number, checkpoint, signature) VALUES (%s, %s, %s, %s)",
                    ("5" * 16, number, sealed.checkpoint, sealed.signature),
                )
        (self.folder / "outside").mkdir(exist_ok=True)
        (self.folder / "outside" / "2026-01.ndjson").write_bytes(b"".join(encode(one) + b"\n" for one in self.sealed))

    def rewrite(self, chain: str, sequence: int, **changes: object) -> None:
        """As the owner of the database would: change a record, and make every hash behind it fit again."""
        records = self.chains[chain]
        head = records[sequence - 2][1] if sequence > 1 else genesis(chain)
        for at in range(sequence - 1, len(records)):
            number, _, canonical = records[at]
            if number == sequence:
                canonical = encode_event(msgspec.structs.replace(decode(canonical), **changes))
            head = link(head, number, canonical)
            records[at] = (number, head, canonical)


@pytest.fixture
def written(postgres, tmp_path) -> Written:
    """Two chains of 60 and 30 records, checkpoints after every 20 and 10, and 5 records behind the last."""
    key = Ed25519PrivateKey.generate()
    written = Written(postgres.admin_dsn, tmp_path, key)
    for _ in range(3):
        written.add("a" * 16, 20)
        written.add("b" * 16, 10)
        written.seal()
    written.add("a" * 16, 5)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "audit.pub").write_bytes(public)
    os.environ.pop("CAREGATE_DATA_DIR", None)
    written.store()
    return written
