from typing import Any, final

KINDS: tuple[str, ...]

Rule = tuple[str, str, float, float, str | None, str | None, str | None]

@final
class Revoked:
    @property
    def epoch(self) -> int: ...
    @property
    def jtis(self) -> dict[str, float]: ...
    def revoke(
        self,
        kind: str,
        value: str,
        before_s: float,
        until_s: float,
        issuer: str | None = None,
        audience: str | None = None,
        role: str | None = None,
    ) -> None: ...
    def forget(self, now_s: float) -> None: ...
    def rules(self) -> list[Rule]: ...
    def refuses(
        self,
        claims: dict[str, Any],
        jti: str | None,
        subject: str | None,
        audience: str | None,
        role: str | None,
        issued_s: float,
    ) -> bool: ...
