"""Requests with an idempotency key, through a real link: run once, whatever happens to the caller."""

from __future__ import annotations

import gevent
import pytest

from gateway.agent.link import ROOM_BYTES
from gateway.agent.settings import LedgerSettings
from gateway.relay import events as ev
from gateway.relay.frames import ResetCode

CREATED = b"HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nmade!"
KEY = {"idempotency": "d" * 64}


@pytest.fixture
def counted(rig, read, tmp_path):
    """A service that counts what it is asked, and says when; answers when it may."""

    class Service:
        requests = []
        may_answer = gevent.event.Event()
        answer = CREATED

    service = Service()
    service.requests = []
    service.may_answer = gevent.event.Event()
    service.may_answer.set()

    def serve(number, sock):
        while request := read(sock):
            service.requests.append(request)
            service.may_answer.wait(5)
            sock.sendall(service.answer)

    rig.service.handler = serve
    rig.connect(ledger=LedgerSettings(tmp_path, answer_max_bytes=100_000))
    return service


def refused(peer):
    aborted = peer.expect(ev.StreamAborted)
    return aborted.code, aborted.reason


def post(peer, body=b"one", target="/x", **more):
    return peer.request("POST", target, body, **KEY, **more)


def fields_of(head):
    return dict(head.response.fields)


def test_caps(rig, counted):
    assert rig.gateway.peers[0].hello.caps == ["ledger"]


def test_without_a_ledger_nothing_is_announced_and_everything_runs(rig, read):
    rig.service.handler = lambda number, sock: (read(sock), sock.sendall(CREATED))
    peer = rig.connect()
    assert peer.hello.caps == []
    for _ in range(2):
        assert "idempotent-replayed" not in fields_of(peer.answer(post(peer))[0])
    assert rig.service.connections == 2


def test_the_repeat_gets_the_kept_answer(rig, counted):
    counted.answer = CREATED.replace(b"\r\n", b"\r\nLocation: http://127.0.0.1:%d/x/7\r\n" % rig.service.port, 1)
    peer = rig.gateway.peers[0]
    first, body = peer.answer(post(peer))
    assert (first.response.status, body) == (201, b"made!")
    again, body = peer.answer(post(peer))
    assert (again.response.status, body, again.response.length) == (201, b"made!", 5)
    assert fields_of(again) == {**fields_of(first), "idempotent-replayed": "true"}
    assert fields_of(again)["location"] == "/x/7"
    assert len(counted.requests) == 1


def test_the_repeat_may_come_in_pieces_and_held(rig, counted):
    peer = rig.gateway.peers[0]
    peer.answer(post(peer, bytes(300_000)))
    stream = post(peer, end=False, body=bytes(100_000), length=300_000, hold=True)
    gevent.sleep(0.01)
    peer.nothing(ev.StreamAborted)
    peer.session.send_go(stream)
    peer.data(stream, bytes(100_000))
    peer.data(stream, bytes(100_000), True)
    assert peer.answer(stream)[1] == b"made!"
    assert len(counted.requests) == 1


@pytest.mark.parametrize(
    "other", [{"body": b"two"}, {"body": b""}, {"target": "/y"}, {"body": b"one", "target": "/x?z"}], ids=str
)
def test_another_request_under_the_key(rig, counted, other):
    peer = rig.gateway.peers[0]
    peer.answer(post(peer))
    post(peer, **other)
    assert refused(peer) == (ResetCode.REFUSED, "idempotency-key-reused")
    assert len(counted.requests) == 1


def test_while_the_first_runs(rig, counted):
    peer = rig.gateway.peers[0]
    counted.may_answer.clear()
    stream = post(peer)
    rig.wait_for(lambda: counted.requests)
    post(peer)
    assert refused(peer) == (ResetCode.REFUSED, "idempotency-in-progress")
    counted.may_answer.set()
    assert peer.answer(stream)[1] == b"made!"
    assert len(counted.requests) == 1


@pytest.mark.parametrize("how", ["cancelled", "link lost"])
def test_an_answer_nobody_waits_for_is_kept_for_the_repeat(rig, counted, how):
    peer = rig.gateway.peers[0]
    counted.may_answer.clear()
    stream = post(peer)
    rig.wait_for(lambda: counted.requests)
    if how == "cancelled":
        peer.session.reset(stream, ResetCode.CANCEL)
        peer.flush()
    else:
        peer.close()
        peer = rig.gateway.accept()
    rig.wait_for(lambda: rig.agent.services.detached)
    counted.may_answer.set()
    rig.wait_for(lambda: not rig.agent.services.detached)
    head, body = peer.answer(post(peer))
    assert (body, fields_of(head)["idempotent-replayed"]) == (b"made!", "true")
    assert len(counted.requests) == 1


def test_an_upload_that_broke_off_is_not_run_again(rig, counted):
    peer = rig.gateway.peers[0]
    stream = post(peer, end=False, body=b"half", length=8)
    peer.expect(ev.Acked)
    peer.session.reset(stream, ResetCode.CANCEL)
    peer.flush()
    rig.wait_for(lambda: not rig.agent.services._services[0].running)
    post(peer, body=b"half-way")
    assert refused(peer) == (ResetCode.REFUSED, "outcome-unknown")


def test_a_held_request_that_is_cancelled_leaves_no_trace(rig, counted):
    peer = rig.gateway.peers[0]
    stream = post(peer, hold=True)
    rig.wait_for(lambda: rig.service.connections)
    peer.session.reset(stream, ResetCode.CANCEL)
    peer.flush()
    rig.wait_for(lambda: not rig.agent.services._services[0].running)
    assert counted.requests == []
    assert peer.answer(post(peer))[1] == b"made!"
    assert len(counted.requests) == 1


def test_a_service_that_is_not_there_leaves_no_trace(rig, counted):
    peer = rig.gateway.peers[0]
    rig.service.stop()
    post(peer)
    assert refused(peer)[0] == ResetCode.UPSTREAM_CONNECT
    post(peer)
    assert refused(peer)[0] == ResetCode.UPSTREAM_CONNECT


def test_no_answer_in_time_is_an_unknown_outcome(rig, counted):
    peer = rig.gateway.peers[0]
    counted.may_answer.clear()
    post(peer, deadline_ms=500)
    assert refused(peer)[0] == ResetCode.UPSTREAM_TIMEOUT
    post(peer)
    assert refused(peer) == (ResetCode.REFUSED, "outcome-unknown")
    assert len(counted.requests) == 1


def test_a_large_answer_is_passed_on_and_not_kept(rig, counted):
    peer = rig.gateway.peers[0]
    counted.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 150000\r\n\r\n" + bytes(150_000)
    assert len(peer.answer(post(peer))[1]) == 150_000
    post(peer)
    assert refused(peer) == (ResetCode.REFUSED, "idempotency-answer-not-kept")
    assert len(counted.requests) == 1


@pytest.mark.parametrize("how", ["cancelled", "link lost"])
def test_a_large_answer_nobody_waits_for_leaves_its_place(rig, counted, how):
    peer = rig.gateway.peers[0]
    peer.auto_consume = False
    counted.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000)
    stream = post(peer)
    peer.expect(ev.ResponseReceived)
    rig.wait_for(lambda: rig.unsent(stream) >= ROOM_BYTES)
    if how == "cancelled":
        peer.session.reset(stream, ResetCode.CANCEL)
        peer.flush()
    else:
        peer.close()
    rig.wait_for(lambda: not rig.agent.services._services[0].running)
    rig.wait_for(lambda: not rig.agent.services.detached)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
        pytest.param(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", id="500"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", id="chunked"
        ),
    ],
)
def test_every_answer_is_kept(rig, counted, answer):
    peer = rig.gateway.peers[0]
    counted.answer = answer
    first, body = peer.answer(post(peer))
    again, same = peer.answer(post(peer))
    assert (again.response.status, same) == (first.response.status, body)
    assert len(counted.requests) == 1


def test_the_answer_leaves_only_when_it_is_on_the_disk(rig, counted, monkeypatch):
    peer, order = rig.gateway.peers[0], []
    ledger = rig.agent.services.ledger
    real = ledger.do

    def do(operation):
        found = real(operation)
        order.append("disk")
        return found

    monkeypatch.setattr(ledger, "do", do)
    counted.may_answer.clear()
    stream = post(peer)
    rig.wait_for(lambda: counted.requests)
    assert order == ["disk", "disk"]  # looked up, intended
    monkeypatch.setattr(ledger, "do", lambda operation: (gevent.sleep(0.03), do(operation))[1])
    counted.may_answer.set()
    gevent.sleep(0.01)
    peer.nothing(ev.ResponseReceived)
    peer.answer(stream)


def test_what_cannot_be_kept_is_answered_and_never_run_again(rig, counted, monkeypatch):
    peer = rig.gateway.peers[0]
    store = rig.agent.services.ledger._store
    monkeypatch.setattr(type(store), "keep", lambda *_: 1 / 0)
    assert peer.answer(post(peer))[1] == b"made!"
    post(peer)
    assert refused(peer) == (ResetCode.REFUSED, "outcome-unknown")
    assert [line for line in rig.lines if line["event"] == "answer_not_kept"]


def test_an_unusable_ledger_refuses_keys_and_nothing_else(rig, read, tmp_path):
    rig.service.handler = lambda number, sock: (read(sock), sock.sendall(CREATED))
    (tmp_path / "ledger.sqlite").write_bytes(b"x" * 5000)
    (tmp_path / "ledger.key").write_bytes(bytes(32))
    peer = rig.connect(ledger=LedgerSettings(tmp_path))
    assert peer.hello.caps == []
    post(peer)
    assert refused(peer) == (ResetCode.REFUSED, "idempotency-unavailable")
    assert peer.answer(peer.request("POST", body=b"x"))[1] == b"made!"
    assert rig.service.connections == 1


def test_stopping_waits_for_an_answer_that_only_the_ledger_wants(rig, counted):
    peer = rig.gateway.peers[0]
    counted.may_answer.clear()
    stream = post(peer)
    rig.wait_for(lambda: counted.requests)
    peer.session.reset(stream, ResetCode.CANCEL)
    peer.flush()
    rig.wait_for(lambda: rig.agent.services.detached)
    done = gevent.spawn(rig.agent.drain, 3)
    gevent.sleep(0.01)
    assert not done.ready()
    counted.may_answer.set()
    assert done.get(timeout=3) is True
