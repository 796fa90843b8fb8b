from collections.abc import Callable

BODY_CHUNKED: int
BODY_TO_CLOSE: int
BODY_NONE: int

class ResponseError(ValueError): ...

def encode_response(
    status: str,
    fields: list[tuple[str, str]],
    date: bytes,
    http10: bool,
    head_only: bool,
    keep_alive: bool,
    body: bytes | None,
    body_size: int,
) -> tuple[bytes, int, bool]: ...

class RequestIds:
    def __init__(self, entropy: Callable[[int], bytes]) -> None: ...
    def next(self) -> str: ...
