from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol, final

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

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

class LengthMismatch(RuntimeError): ...

class Sink(Protocol):
    """Where a response's bytes go: the connection."""

    def send(self, pieces: Sequence[bytes]) -> None:
        """All of the pieces, in one system call where the socket takes them.

        Raises: OSError; DeadlinePassed if the client stops reading.
        Yields to the hub: if the socket's buffer is full.
        """

class Response:
    date: bytes
    http10: bool
    head_only: bool
    keep_alive: bool
    status: str
    fields: list[tuple[str, str]]
    head_sent: bool
    framing: int
    sent: int
    def __init__(self, sink: Sink) -> None: ...
    def begin(self, date: bytes, http10: bool, head_only: bool, keep_alive: bool) -> None: ...
    def detach(self) -> None: ...
    def start_response(
        self, status: str, fields: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]: ...
    def send(self, result: Iterable[bytes]) -> None: ...
    def write(self, piece: bytes) -> None: ...

def complete(
    resp: object,
    method: str,
    media_type: str | None,
    start_response: Callable[..., object],
    status_line: Callable[[int], str],
) -> list[bytes] | None: ...

@final
class RequestIds:
    def __init__(self, entropy: Callable[[int], bytes]) -> None: ...
    def next(self) -> str: ...
