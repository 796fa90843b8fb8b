"""Whole answers of one turn of the hub leave together, in order, and none is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from fastpath.loop import Loop, Outbox
from fastpath.responses import Response

BODY = b"x" * 100


class Plain(Loop):
    """A connection that notes what goes out in several pieces."""

    sent_many: list[Any]
    rest_fails: type[Exception] | None = None

    def _send_many(self, pieces: Sequence[bytes]) -> None:
        self.sent_many.append(pieces)

    def _send_on(self, rest: memoryview) -> None:
        if self.rest_fails is not None:
            raise self.rest_fails

    def _answer_failed(self, environ: dict[str, Any], error: BaseException) -> None:
        assert isinstance(error, ConnectionResetError)


class Turn:
    """A hub whose turn ends when the test says so, and the connections on it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.at_end: list[Callable[[], object]] = []
        self.sent: list[tuple[int, bytes]] = []
        self.takes = 1 << 20
        """What a socket takes at once; below 0 it is broken."""
        self.sent_many: list[Any] = []
        self.resumed: list[int] = []
        self.observed = False
        self.failures: list[str] = []
        self.outbox = Outbox(self.at_end.append, lambda: self.now_ns)

    def connection(self, number: int, result: Callable[[], Any] = lambda: [BODY]) -> Loop:
        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            start_response("200 OK", [])
            return result()

        def send(piece: bytes) -> int:
            if self.takes < 0:
                raise ConnectionResetError
            self.sent.append((number, bytes(piece[: self.takes])))
            return min(self.takes, len(piece))

        loop = Plain(
            SimpleNamespace(
                deadlines=None, application=application, reader=None, ids=None, outbox=self.outbox,
                limits=SimpleNamespace(keepalive_ns=1), observed=self.observed,
                failed=self.failures.append,
            ),
            SimpleNamespace(fileno=lambda: 1),
            SimpleNamespace(recv=None, send=send),
            SimpleNamespace(loop=SimpleNamespace(io=lambda *_: None, run_callback=self.at_end.append)),
            SimpleNamespace(switch=lambda: self.resumed.append(number)),
            {}, clock=lambda: self.now_ns, tick_ns=1,
        )  # fmt: skip
        loop._unread = b""
        loop.sent_many = self.sent_many
        return loop

    def end(self) -> None:
        while self.at_end:
            self.at_end.pop(0)()


@pytest.fixture
def turn() -> Turn:
    return Turn()


def answer(loop: Loop, *, keep_alive: bool = True, told: Callable[[bool], object] | None = None) -> None:
    response: Response = loop.response
    response.begin(b"", False, False, keep_alive)
    loop.answer({} if told is None else {"caregate.told": told})


def order(turn: Turn) -> list[int]:
    return [number for number, _ in turn.sent]


def test_answers_leave_when_the_turn_ends_in_their_order(turn: Turn) -> None:
    for number in (3, 1, 2):
        answer(turn.connection(number))
    assert turn.sent == []
    turn.end()
    assert order(turn) == [3, 1, 2]
    assert all(piece.startswith(b"HTTP/1.1 200 OK\r\n") and piece.endswith(BODY) for _, piece in turn.sent)


def test_sixteen_answers_do_not_wait_for_the_end(turn: Turn) -> None:
    for number in range(16):
        assert turn.sent == []
        answer(turn.connection(number))
    assert order(turn) == list(range(16))
    answer(turn.connection(16))
    turn.end()
    assert order(turn) == list(range(17))


def test_an_answer_waits_half_a_millisecond_at_most_while_others_come(turn: Turn) -> None:
    answer(turn.connection(1))
    turn.now_ns = 500_000
    answer(turn.connection(2))
    assert turn.sent == []
    turn.now_ns = 500_001
    answer(turn.connection(3))
    assert order(turn) == [1, 2, 3]


def generator() -> Any:
    yield BODY


@pytest.mark.parametrize(
    ("set_up", "result", "keep_alive"),
    [
        pytest.param({"_unread": b"GET / HTTP/1.1\r\n"}, lambda: [BODY], True, id="a request waits behind it"),
        pytest.param({}, lambda: [BODY], False, id="the connection ends"),
        pytest.param({}, generator, True, id="an iterator, whose end somebody may wait for"),
        pytest.param({}, lambda: [b"x" * 20_000], True, id="a large body"),
    ],
)
def test_what_does_not_wait(turn: Turn, set_up: dict[str, Any], result: Callable[[], Any], keep_alive: bool) -> None:
    loop = turn.connection(1, result)
    for name, value in set_up.items():
        setattr(loop, name, value)
    answer(loop, keep_alive=keep_alive)
    assert turn.sent or turn.sent_many
    assert turn.at_end == []


def test_hooks_and_the_access_log_of_the_server_see_an_answer_that_was_sent(turn: Turn) -> None:
    turn.observed = True
    answer(turn.connection(1))
    assert order(turn) == [1]


def test_what_the_socket_does_not_take_is_the_greenlets(turn: Turn) -> None:
    loop = turn.connection(1)
    turn.takes = 10
    answer(loop)
    loop._waiting = True
    turn.end()
    assert turn.resumed == [1]
    assert [piece for _, piece in turn.sent] == [b"HTTP/1.1 2"]


def test_a_broken_connection_is_no_matter_of_the_others(turn: Turn) -> None:
    answer(turn.connection(1))
    turn.takes = -1
    turn.end()
    turn.takes = 1 << 20
    answer(turn.connection(2))
    turn.end()
    assert order(turn) == [2]


def test_an_answer_that_waits_leaves_before_its_connection_ends_and_only_once(turn: Turn) -> None:
    loop = turn.connection(1)
    answer(loop)
    loop._leave()
    turn.end()
    assert order(turn) == [1]


def test_what_is_sent_behind_a_waiting_answer_stays_behind_it(turn: Turn) -> None:
    loop = turn.connection(1)
    answer(loop)
    loop.send((b"second",))
    turn.end()
    [(_, first), (_, second)] = turn.sent
    assert (first[-len(BODY) :], second) == (BODY, b"second")


# --- who wants to know whether all of it was sent


def test_it_is_told_when_the_answer_has_left(turn: Turn) -> None:
    told: list[bool] = []
    answer(turn.connection(1), told=told.append)
    assert told == []
    turn.end()
    assert told == [True]
    turn.end()
    assert told == [True]


def test_it_is_told_at_once_of_an_answer_that_does_not_wait(turn: Turn) -> None:
    told: list[bool] = []
    answer(turn.connection(1), keep_alive=False, told=told.append)
    assert told == [True]


def test_it_is_told_that_the_connection_is_broken(turn: Turn) -> None:
    told: list[bool] = []
    loop = turn.connection(1)
    answer(loop, told=told.append)
    turn.takes = -1
    turn.end()
    assert told == [False]
    answer(loop, keep_alive=False, told=told.append)
    assert told == [False, False]


@pytest.mark.parametrize("error", [None, ConnectionResetError])
def test_it_is_told_when_the_rest_has_left_too(turn: Turn, error: type[Exception] | None) -> None:
    told: list[bool] = []
    loop = turn.connection(1)
    loop.rest_fails = error
    turn.takes = 10
    answer(loop, told=told.append)
    turn.end()
    assert told == []
    turn.takes = 1 << 20
    if error is None:
        loop.send((b"second",))
    else:
        with pytest.raises(error):
            loop.send((b"second",))
    assert told == [error is None]


def test_it_is_told_when_the_connection_ends_before_the_rest_has_left(turn: Turn) -> None:
    told: list[bool] = []
    loop = turn.connection(1)
    turn.takes = 10
    answer(loop, told=told.append)
    loop._leave()
    assert told == [False]


def test_whoever_is_told_harms_nobody(turn: Turn) -> None:
    answer(turn.connection(1), told=lambda whole: 1 / 0)
    answer(turn.connection(2))
    turn.end()
    assert order(turn) == [1, 2]
    assert len(turn.failures) == 1
