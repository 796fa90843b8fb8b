"""The rows: who is measured side by side, on which path, with which tokens."""

from __future__ import annotations

from pathlib import Path

from loadtests.bench.audit_rows import audit_rows
from loadtests.bench.ours import Caregate
from loadtests.bench.policy import PATIENT, Keys, Portal, TokenKind, make_keys, write_tokens, wrong_role_token
from loadtests.bench.relay_rows import relay_rows
from loadtests.bench.row import POLICY_BODY, Contender, Row
from loadtests.bench.servers import BOTH_CPUS, Peers, free_port

WORK = Path(".caregate/bench")
UPSTREAM_BODIES = {"small": POLICY_BODY, "64k": b"x" * 65_536, "1m": b"x" * 1_048_576}
TOKENS = {
    "rs256": TokenKind("RS256", 1),
    "hs256": TokenKind("HS256", 1),
    "unique": TokenKind("RS256", 100_000),
    "hs256_10": TokenKind("HS256", 10),
    "hs256_100k": TokenKind("HS256", 100_000),
}
_CACHE = 200_000
"""Tokens that everyone may remember, where tokens are repeated."""
_SMALL_CACHE = 50_000
"""Half of the tokens of the row where each is used once: what comes round again is forgotten."""


class Rows:
    """One run's keys, tokens and servers, and the rows made of them."""

    def __init__(self, run: Path, portal: Portal) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        run.chmod(0o755)
        self._run = run
        self.keys: Keys = make_keys()
        upstream_port = free_port()
        self.upstream_port = upstream_port
        self.peers = Peers(self.keys, WORK.resolve(), run, upstream_port, portal)
        self.ours = Caregate(self.keys, run, upstream_port, portal)

    def all(self) -> list[Row]:
        """Every row; each contender starts with the row and stops after it."""
        return [
            self._policy_rs256(),
            self._policy_unique(),
            self._policy_hs256(),
            *(self._upstream(size, body) for size, body in UPSTREAM_BODIES.items()),
            *relay_rows(self.ours, self.peers, lambda: self.tokens("rs256"), _CACHE),
            *audit_rows(self.ours, lambda: self.tokens("rs256")),
            self._portal(),
            self._scale(),
            self._workers(),
        ]

    def tokens(self, kind: str) -> Path:
        """The token file of a kind, made when first needed."""
        path = self._run / f"tokens-{kind}" / "tokens"
        if not path.exists():
            path.parent.mkdir()
            write_tokens(self.keys, path, TOKENS[kind])
        return path

    def wrong_role(self, contender: Contender, kind: str) -> str:
        """A token that is good in all but its role.

        NOTE: Caregate's keys belong to roles, so there it is another role's own token; a peer reads the claim.
        """
        return wrong_role_token(self.keys, TOKENS[kind].algorithm, own_key=contender.name.startswith("caregate"))

    def _policy_rs256(self) -> Row:
        ours, peers = self.ours, self.peers
        return Row("policy_rs256", "rs256", (
            Contender("caregate", lambda: ours.start("caregate", bare=True), "/policy"),
            Contender("envoy-cached", lambda: peers.envoy("RS256", _CACHE, "envoy-cached"), "/policy"),
            Contender("haproxy", lambda: peers.haproxy("RS256", "haproxy"), "/policy"),
            Contender("fastify-cached", lambda: peers.fastify("RS256", "fastify-cached"), "/policy"),
            Contender("stock-gunicorn", lambda: peers.stock("RS256", "stock-gunicorn"), "/policy"),
            Contender("caregate-logged", lambda: ours.start("caregate-logged"), "/policy"),
        ))  # fmt: skip

    def _policy_unique(self) -> Row:
        ours, peers = self.ours, self.peers
        return Row("policy_rs256_unique", "unique", (
            Contender("caregate", lambda: ours.start("caregate-unique", bare=True, cache=_SMALL_CACHE), "/policy"),
            Contender("envoy-cached", lambda: peers.envoy("RS256", _SMALL_CACHE, "envoy-unique"), "/policy"),
        ))  # fmt: skip

    def _policy_hs256(self) -> Row:
        ours, peers = self.ours, self.peers
        return Row("policy_hs256", "hs256", (
            Contender("caregate", lambda: ours.start("caregate-hs", bare=True), "/policy"),
            Contender("envoy", lambda: peers.envoy("HS256", 0, "envoy-hs"), "/policy"),
            Contender("haproxy", lambda: peers.haproxy("HS256", "haproxy-hs"), "/policy"),
            Contender("fastify", lambda: peers.fastify("HS256", "fastify-hs"), "/policy"),
        ))  # fmt: skip

    def _upstream(self, size: str, body: bytes) -> Row:
        path, name, ours, peers = f"/up/{size}", f"-up-{size}", self.ours, self.peers
        return Row(f"upstream_{size}", "rs256", (
            Contender("caregate", lambda: ours.start("caregate" + name, bare=True), path, body),
            Contender("caregate-logged", lambda: ours.start("caregate-logged" + name), path, body),
            Contender("envoy-cached", lambda: peers.envoy("RS256", _CACHE, "envoy" + name), path, body),
            Contender("haproxy", lambda: peers.haproxy("RS256", "haproxy" + name), path, body),
            Contender("fastify-cached", lambda: peers.fastify("RS256", "fastify" + name), path, body),
        ))  # fmt: skip

    def _portal(self) -> Row:
        """Ours sets the claims for row-level security; the peer reads as the superuser, without any."""
        ours, peers, path = self.ours, self.peers, f"/portal/{PATIENT}"
        return Row("portal_read", "rs256", (
            Contender("caregate", lambda: ours.start("caregate-portal", bare=True), path, None),
            Contender("fastify-pg", lambda: peers.fastify("RS256", "fastify-pg", **peers.postgres()), path, None),
        ))  # fmt: skip

    def _scale(self) -> Row:
        ours = self.ours
        return Row("scale", "hs256_10", (
            Contender("caregate", lambda: ours.start("caregate-few", routes=10, bare=True, cache=_CACHE), "/policy"),
            Contender("caregate-10k-100k",
                      lambda: ours.start("caregate-many", routes=10_000, bare=True, cache=_CACHE), "/policy",
                      tokens="hs256_100k", warm_requests=100_000),
        ))  # fmt: skip

    def _workers(self) -> Row:
        ours = self.ours
        return Row("workers_2", "rs256", (
            Contender("caregate", lambda: ours.start("caregate-one", bare=True), "/policy"),
            Contender("caregate-2", lambda: ours.start("caregate-two", workers=2, cpu=BOTH_CPUS, bare=True), "/policy"),
        ))  # fmt: skip
