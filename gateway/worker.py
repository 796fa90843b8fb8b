"""GatewayWorker: gunicorn's process model around our own connection loop.

The arbiter, signals, reload, limits, TLS settings, the access log and the hooks are gunicorn's. What happens on a
connection is in gateway.http1; nothing of it is gevent.pywsgi.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent import get_hub
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import sock as gunicorn_sock
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker

import fastpath
from fastpath.http import HeadReader
from fastpath.loop import Outbox
from fastpath.responses import RequestIds, Response
from fastpath.routes import canonical_path
from gateway import crashes, shared
from gateway.errors import GraceEnded
from gateway.http1.connection import Connection
from gateway.http1.deadlines import TICK_NS, DeadlinePassed, Deadlines
from gateway.http1.limits import SECOND_NS, Limits
from gateway.http1.proxy import ProxyLineError, parse_proxy_line
from gateway.http1.response import FileWrapper
from gateway.http1.tls import TlsConnection, harden, shake_hands
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.http2.connection import Http2Connection

# PERF: `worker_ms_per_dial` of `make fleet`: each greenlet would note the stack of the one that spawned it.
gevent.config.track_greenlet_tree = False

fastpath.require("http", "chunks", "responses", "routes", "loop")

_NOTIFY_S = 1.0
_POLL_S = 0.1
_CUT_S = 1.5
"""The last part of the grace: for accounting and answering what is cut off."""
_TURN_S = 30.0
"""How long a worker that has served its `max_requests` goes on at most, until all others accept connections."""
_SUCCESSORS_S = 15.0
"""How long a worker that HUP replaces goes on at most, until the new ones accept connections."""


class GatewayWorker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker with its connection loop replaced.

    The application may have five attributes beside being callable: `settings`; `refused(environ, error, status)` for
    requests answered before it ran; `ready()` once when the worker accepts connections; `drain()` once when it stops
    accepting; `stop()` once at the end.
    Implements gateway.http1.connection.Service.
    """

    def init_process(self) -> None:
        """Patch, load the application and run, which super() does.

        NOTE: until gunicorn sets a worker's handlers the arbiter's are inherited, and they would swallow a signal: a
        worker that is told to stop while it boots would be waited for in vain.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.handle_exit)
        self.connections: set[Connection | Http2Connection] = set()
        self.draining = False
        self.leaving = False
        self.spent_s = 0.0
        super().init_process()

    # --- the worker's life

    alive: bool

    def run(self) -> None:
        self._prepare()
        servers = [self._listen(listener) for listener in self.sockets]
        self._call("ready")
        shared.is_accepting()
        self._run_until_told()
        self._await_successors()
        self._drain(servers)

    def _prepare(self) -> None:
        crashes.adopt()
        settings = getattr(self.wsgi, "settings", None)
        self.settings = settings if isinstance(settings, Settings) else Settings.from_environ()
        self.limits = Limits.from_settings(self.settings)
        self.application = self.wsgi
        self.reader = HeadReader(
            canonical_path, self.limits.max_target_bytes, self.limits.max_head_bytes, self.limits.max_fields
        )
        self.ids = RequestIds(os.urandom)
        self.deadlines = Deadlines(time.monotonic_ns())
        self.outbox = Outbox(get_hub().loop.run_callback, time.monotonic_ns)
        self.keep_alive = self.cfg.keepalive > 0
        self._before = _hook(self.cfg, "pre_request")
        self._after = _hook(self.cfg, "post_request")
        self._logs_access = _logs_access(self.log)
        self.observed = self._logs_access or self._before is not None or self._after is not None
        self._http2 = _http2(self) if self.cfg.is_ssl and "h2" in self.cfg.http_protocols else None
        protocols = ("http/1.1",) if self._http2 is None else ("h2", "http/1.1")
        self._tls = harden(gunicorn_sock.ssl_context(self.cfg), protocols) if self.cfg.is_ssl else None
        self._date_s = 0
        self._tick()
        self._timer = get_hub().loop.timer(TICK_NS / SECOND_NS, TICK_NS / SECOND_NS)
        self._timer.start(self._tick)

    def _tick(self) -> None:
        """Called from the hub twenty times a second: the Date field and the deadlines."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self.date = f"Date: {util.http_date(now_s)}\r\n".encode("ascii")
        self.deadlines.advance(time.monotonic_ns())

    def _listen(self, listener: Any) -> StreamServer:
        listener.setblocking(1)
        handle = partial(self.handle, listener, self._listener_environ(listener))
        server = StreamServer(listener, handle=handle, spawn=Pool(self.worker_connections))
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _run_until_told(self) -> None:
        """Yields to the hub: until a signal ends the worker, or its turn to leave after `max_requests`.

        NOTE: all at once they would find no sibling for their units, and those nobody to dial.
        """
        notified = 0.0
        while self.alive:
            now = time.monotonic()
            if now - notified >= _NOTIFY_S:
                self.notify()
                notified = now
            if self.spent_s and (now - self.spent_s > _TURN_S or shared.takes_leave(self.cfg.workers - 1)):
                self.alive = False
            else:
                gevent.sleep(_POLL_S)

    def _await_successors(self) -> None:
        """Replaced by HUP, go on until the new workers accept connections: nobody has to wait for one.

        NOTE: the arbiter kills nobody then, so the grace begins afterwards.
        Yields to the hub: for _SUCCESSORS_S at most.
        """
        limit_s = time.monotonic() + _SUCCESSORS_S
        while shared.is_superseded() and shared.successors() < self.cfg.workers and time.monotonic() < limit_s:
            self.notify()
            gevent.sleep(_POLL_S)
        self.leaving = True

    def _drain(self, servers: list[StreamServer]) -> None:
        """Stop accepting, let the application say goodbye, wait for what runs, then end the rest.

        For `drain_linger_s` the connections that there are get their answers, each with `Connection: close`, so that no
        request fails that is on its way; then idle ones are closed.
        """
        grace_s = self.cfg.graceful_timeout
        # NOTE: the arbiter kills at the end of the grace; what is cut off must be accounted for before that.
        end_s = time.monotonic() + grace_s - min(_CUT_S, grace_s / 3)
        linger_end_s = time.monotonic() + min(self.settings.drain_linger_s, grace_s)
        shared.is_leaving()
        for server in servers:
            server.close()
        for connection in list(self.connections):
            connection.leave()
        goodbye = self._say_goodbye()
        while (self.connections or not goodbye.ready()) and time.monotonic() < end_s:
            if time.monotonic() >= linger_end_s:
                self.draining = True
                self._close_idle()
            self.notify()
            gevent.sleep(_POLL_S)
        if self.connections:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
            self._interrupt(grace_s)
        self._call("stop")
        for server in servers:
            server.stop(timeout=1)

    def _interrupt(self, grace_s: float) -> None:
        """Have what still runs end with an error that is accounted for.

        Yields to the hub: until that is done, within half of the time that is left.
        """
        running = [connection for connection in self.connections if not connection.upgraded]
        for connection in running:
            connection.interrupt()
        end = time.monotonic() + min(_CUT_S, grace_s / 3) / 2
        while any(connection in self.connections for connection in running) and time.monotonic() < end:
            gevent.sleep(_POLL_S / 10)

    def _say_goodbye(self) -> gevent.Greenlet[..., None]:
        """Let the application leave, beside what it still serves; the greenlet ends when it has."""
        goodbye = gevent.spawn(self._call, "drain")
        gevent.sleep(0)
        return goodbye

    def _call(self, name: str) -> None:
        """One of the application's moments, if it has it."""
        moment = getattr(self.wsgi, name, None)
        if moment is not None:
            moment()

    def _close_idle(self) -> None:
        # NOTE: `expire` switches to the connection's greenlet, which only the hub gets control back from.
        for connection in self.connections:
            if connection.idle:
                get_hub().loop.run_callback(connection.expire)

    # --- one connection

    def handle(self, listener: Any, base: dict[str, Any], sock: Any, address: Any) -> None:
        """Serve an accepted socket until its end.

        Yields to the hub: yes.
        """
        try:
            self._serve(listener, dict(base), sock, address)
        except (OSError, DeadlinePassed, GraceEnded, gevent.GreenletExit):
            pass
        except Exception:
            self.log.exception("Error on a connection")
        finally:
            util.close(sock)

    def _serve(self, listener: Any, base: dict[str, Any], sock: Any, address: Any) -> None:
        peer, port = "", 0
        if isinstance(address, tuple):  # a unix socket's is text
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer, port = address[0], address[1]
        unread = b""
        if self.cfg.proxy_protocol != "off" and self._may_speak_for_others(peer):
            peer, port, unread = self._read_proxy_line(sock, peer, port)
        base["caregate.peer"] = base["REMOTE_ADDR"] = peer
        base["REMOTE_PORT"] = str(port)
        if self._tls is None:
            self._converse(Connection(self, sock, base), unread)
            return
        encrypted = shake_hands(self._tls, sock, self.limits.head_ns)
        try:
            if self._http2 is not None and encrypted.selected_alpn_protocol() == "h2":
                self._converse(self._http2(encrypted, base), b"")
            else:
                self._converse(TlsConnection(self, encrypted, base), b"")
        finally:
            util.close(encrypted)

    def _converse(self, connection: Connection | Http2Connection, unread: bytes) -> None:
        self.connections.add(connection)
        try:
            connection.serve(unread)
        finally:
            self.connections.discard(connection)

    def _may_speak_for_others(self, peer: str) -> bool:
        """May this peer name another address by the PROXY protocol?"""
        if not peer or "*" in self.cfg.proxy_allow_ips:
            return True
        address = ipaddress.ip_address(peer.partition("%")[0])
        return any(address in network for network in self.cfg.proxy_allow_networks())

    def _read_proxy_line(self, sock: Any, peer: str, port: int) -> tuple[str, int, bytes]:
        """Who the balancer in front speaks for, and the bytes after its line.

        Raises: OSError where the line is missing or malformed: the connection ends without a word.
        """
        data = b""
        # NOTE: under TLS the bytes after the line belong to the handshake, so none may be read beyond it.
        step = 1 if self.cfg.is_ssl else 4096
        with gevent.Timeout(self.limits.head_ns / SECOND_NS, DeadlinePassed):
            while True:
                piece = sock.recv(step)
                if not piece:
                    raise ConnectionAbortedError
                data += piece
                try:
                    line = parse_proxy_line(data, self.cfg.proxy_protocol)
                except ProxyLineError as error:
                    raise ConnectionAbortedError from error
                if line is not None:
                    return line.address or peer, line.port or port, data[line.size :]

    def _listener_environ(self, listener: Any) -> dict[str, Any]:
        """The part of the environ that every request of a listener shares, with the request's own keys as
        placeholders so that the copy need not grow."""
        name = listener.getsockname()
        host, port = (name[0], name[1]) if isinstance(name, tuple) else ("localhost", 80)
        environ: dict[str, Any] = dict.fromkeys(_REQUEST_KEYS)
        environ.update(
            {
                "SCRIPT_NAME": "",
                "SERVER_NAME": host,
                "SERVER_PORT": str(port),
                "SERVER_SOFTWARE": "caregate",
                "caregate.listener": "ops" if _is_address(name, self.settings.ops_bind) else "public",
                "wsgi.errors": sys.stderr,
                "wsgi.file_wrapper": FileWrapper,
                "wsgi.input_terminated": True,
                "wsgi.multiprocess": self.cfg.workers > 1,
                "wsgi.multithread": True,
                "wsgi.run_once": False,
                "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
                "wsgi.version": (1, 0),
            }
        )
        return environ

    # --- what connections ask of their worker

    def count(self) -> bool:
        """Count a request; False from the last one of `max_requests` on, and once the worker leaves."""
        self.nr += 1
        if self.nr >= self.max_requests and not self.spent_s:
            self.log.info("Autorestarting worker after %d requests.", self.nr)
            self.spent_s = time.monotonic()
        return not self.leaving and self.nr < self.max_requests

    def before(self, environ: dict[str, Any]) -> None:
        if self._before is not None:
            self._before(self, Exchange(environ, None))

    def after(self, environ: dict[str, Any], response: Response, started_ns: int) -> None:
        exchange = Exchange(environ, response)
        if self._logs_access and response.status:
            elapsed = timedelta(microseconds=(time.monotonic_ns() - started_ns) // 1000)
            self.log.access(exchange, exchange, environ, elapsed)
        if self._after is not None:
            try:
                self._after(self, exchange, environ, exchange)
            except Exception:
                self.log.exception("Exception in post_request hook")

    def failed(self, message: str) -> None:
        self.log.exception(message)


class Exchange:
    """A request with its response as gunicorn's hooks and access log see them."""

    def __init__(self, environ: dict[str, Any], response: Response | None) -> None:
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        self.uri: str = environ["RAW_URI"]
        self.query: str = environ["QUERY_STRING"]
        self.status = response.status if response is not None else ""
        self.sent = response.sent if response is not None else 0
        self.headers: list[tuple[str, str]] = [
            (key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")
        ]


_REQUEST_KEYS = (
    "PATH_INFO",
    "QUERY_STRING",
    "RAW_URI",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "REQUEST_METHOD",
    "SERVER_PROTOCOL",
    "caregate.content_length",
    "caregate.duplicate",
    "caregate.path",
    "caregate.peer",
    "caregate.request_id",
    "caregate.socket",
    "caregate.started_ns",
    "caregate.watch",
    "wsgi.input",
)


def _http2(worker: GatewayWorker) -> Callable[[Any, dict[str, Any]], Http2Connection]:
    """What makes connections of a socket and the environ's common part; h2 is only needed where it is switched on."""
    from gateway.http2.connection import Http2Connection, offer_of

    cfg = worker.cfg
    offer = offer_of(worker, cfg.http2_max_concurrent_streams, cfg.http2_initial_window_size, cfg.http2_max_frame_size)
    return lambda sock, base: Http2Connection(worker, sock, base, offer)


def _hook(cfg: Any, name: str) -> Callable[..., None] | None:
    """A server hook if the operator has set one; gunicorn's own default only logs."""
    setting = cfg.settings[name]
    hook: Callable[..., None] = setting.get()
    return None if hook is type(setting).default or hook is setting.default else hook


def _logs_access(log: Any) -> bool:
    """Does anything listen to access records: a log, or a logger of another class (statsd)?"""
    return bool(log.access_log_enabled) or type(log).access is not Logger.access


def _is_address(name: Any, bind: str) -> bool:
    """Is `name`, of a listening socket, what `bind` says: host:port or unix:path?"""
    if not bind:
        return False
    if not isinstance(name, tuple):
        return bind.removeprefix("unix:") == (name.decode() if isinstance(name, bytes) else name)
    host, _, port = bind.rpartition(":")
    if not port.isdigit() or int(port) != name[1]:
        return False
    host = host.strip("[]")
    return host == name[0] or name[0] in {info[4][0] for info in socket.getaddrinfo(host, int(port))}
