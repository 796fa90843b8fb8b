"""One relayed request, between a scripted gateway and a scripted local service on real sockets."""

from __future__ import annotations

from gateway.relay import events as ev


def test_small_get(rig, read):
    seen = []

    def serve(number, sock):
        while request := read(sock):
            seen.append(request)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi")

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request("GET", "/a/b?c=d", fields=[("accept", "text/plain")])
    head, body = peer.answer(stream)
    assert (head.response.status, head.response.fields, body) == (200, [("content-type", "text/plain")], b"hi")
    assert [type(event) for event in peer.log] == [ev.HelloReceived, ev.Acked, ev.ResponseReceived]
    assert seen[0].startswith(b"GET /a/b?c=d HTTP/1.1\r\nhost: 127.0.0.1:")
