"""gunicorn in production: what is fixed stands here, what is yours is in CAREGATE_* variables (gateway/settings.py)."""

from __future__ import annotations

import os
import warnings
from typing import Any

from gateway import shared
from gateway.settings import Settings

settings = Settings.from_environ()

# NOTE: the arbiter has imported PyJWT, whose client for key sets names SSLContext; nothing here uses that client.
warnings.filterwarnings("ignore", r"Monkey-patching ssl .*NOT patched\): \['jwt\.jwks_client [^,]*\]\.")

wsgi_app = "gateway.app:create()"
worker_class = "gateway.worker.GatewayWorker"
workers = settings.workers
worker_connections = settings.worker_connections
bind = [settings.bind] + ([settings.ops_bind] if settings.ops_bind else [])
backlog = 4096
preload_app = False  # NOTE: psycopg must be imported after gevent has patched, in each worker
reuse_port = False

max_requests = settings.max_requests
max_requests_jitter = settings.max_requests // 10
timeout = 30  # s without a sign of life from a worker's hub before the arbiter replaces it
graceful_timeout = settings.drain_grace_s
keepalive = settings.keepalive_s
http_parser = "fast"  # NOTE: "auto" changes with what is installed; our loop uses the same parser
http_protocols = "h2,h1" if settings.http2 else "h1"
http2_max_concurrent_streams = settings.http2_streams
header_map = "refuse"
limit_request_line = min(settings.max_target_bytes, 8190)
limit_request_fields = settings.max_header_fields
limit_request_field_size = settings.max_head_bytes
forwarded_allow_ips = ""  # whose X-Forwarded-For counts is policy: trusted_proxies in the configuration document
loglevel = settings.log_level
proc_name = "caregate"
control_socket_disable = True
if settings.tls_certificate:
    certfile = settings.tls_certificate
    keyfile = settings.tls_key


def on_starting(server: Any) -> None:
    """Before the first fork: refuse a bad configuration, map the shared memory, start the embedded database."""
    from gateway.boot import prepare

    os.environ.update(prepare(settings))
    shared.arbiter(settings)


def on_reload(server: Any) -> None:
    """HUP: the new workers take the configuration as it is now, if it is good; the old ones wait for them."""
    from gateway.config.inforce import InForce
    from gateway.config.load import check_file

    shared.arbiter(settings).renew()
    if settings.config_source != "file":
        return
    faults = check_file(settings.config_path)
    for fault in faults:
        server.log.error("%s: %s", settings.config_path, fault)
    if not faults:
        InForce(settings, arbiter=os.getpid()).reconsider()


def pre_fork(server: Any, worker: Any) -> None:
    """Give the worker its region of the shared memory."""
    worker.slot = shared.arbiter(settings).take_slot(worker.age)


def post_fork(server: Any, worker: Any) -> None:
    """In the worker: remember which region is its own."""
    shared.slot = worker.slot


def child_exit(server: Any, worker: Any) -> None:
    """In the arbiter, after a worker ended however it ended."""
    shared.arbiter(settings).free_slot(worker.age)


def on_exit(server: Any) -> None:
    """The arbiter ends: stop what it started."""
    from gateway.boot import clean_up

    clean_up()
