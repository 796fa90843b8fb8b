from typing import Any

Fields = list[tuple[str, str]]

class FieldNames:
    def __init__(self, removed: frozenset[str], beginnings: tuple[str, ...]) -> None: ...

def encode_request_head(
    names: FieldNames,
    environ: dict[str, Any],
    request_id: str,
    method: str,
    target: str,
    length: int | None,
    traceparent: str | None,
    idempotency: str | None,
    context: str | None,
) -> tuple[bytes, bytes] | None: ...
def decode_answer(
    message: bytes, max_bytes: int
) -> tuple[int] | tuple[int, int, Fields, int | None, int, bytes, bool] | None: ...
def decode_request(
    message: bytes, max_bytes: int
) -> (
    tuple[
        int,
        tuple[str, str, str, Fields, int | None, int, str | None, str | None, bool, str | None],
        bytes,
        bool,
    ]
    | None
): ...
