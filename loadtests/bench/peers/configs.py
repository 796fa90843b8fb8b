"""The peers' configuration files, written from the one policy."""

from __future__ import annotations

from loadtests.bench.policy import AUDIENCE, ISSUER, ROLES, Keys

# NOTE: the limit is each caller's, as everybody's here: a bucket is made for every subject that a token names.
ENVOY = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          generate_request_id: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{path: /policy}}
                direct_response: {{status: 200, body: {{inline_string: '{{"ok":true}}'}}}}
                response_headers_to_add: [{{header: {{key: content-type, value: application/json}}}}]
              - match: {{prefix: /up/}}
                route: {{cluster: upstream, timeout: 10s}}
          http_filters:
          - name: envoy.filters.http.jwt_authn
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              providers:
                bench:
                  issuer: {issuer}
                  audiences: [{audience}]
                  payload_in_metadata: claims
                  {cache}
                  local_jwks: {{inline_string: '{jwks}'}}
              rules: [{{match: {{prefix: /}}, requires: {{provider_name: bench}}}}]
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  member:
                    permissions: [{{any: true}}]
                    principals:
                    - metadata:
                        filter: envoy.filters.http.jwt_authn
                        path: [{{key: claims}}, {{key: role}}]
                        value: {{string_match: {{exact: {role}}}}}
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: limit
              token_bucket: {{max_tokens: 100000000, tokens_per_fill: 100000000, fill_interval: 1s}}
              rate_limits:
              - actions:
                - metadata:
                    descriptor_key: caller
                    source: DYNAMIC
                    metadata_key: {{key: envoy.filters.http.jwt_authn, path: [{{key: claims}}, {{key: sub}}]}}
              descriptors:
              - entries: [{{key: caller}}]
                token_bucket: {{max_tokens: 100000000, tokens_per_fill: 100000000, fill_interval: 1s}}
              max_dynamic_descriptors: 200000
              filter_enabled: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
              filter_enforced: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: upstream
    connect_timeout: 1s
    type: STATIC
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""

HAPROXY = """
global
    nbthread 1
    log stdout format raw local0 emerg
    tune.bufsize 32768
defaults
    mode http
    timeout client 30s
    timeout server 30s
    timeout connect 1s
    http-reuse always
frontend bench
    bind 127.0.0.1:{port}
    stick-table type string len 64 size 200k expire 60s store http_req_rate(1s)
    http-request set-var(txn.bearer) http_auth_bearer
    http-request deny deny_status 401 unless {{ var(txn.bearer),jwt_header_query('$.alg') -m str {alg} }}
    http-request deny deny_status 401 unless {{ var(txn.bearer),jwt_payload_query('$.iss') -m str {issuer} }}
    http-request deny deny_status 401 unless {{ var(txn.bearer),jwt_payload_query('$.aud') -m str {audience} }}
    http-request set-var(txn.exp) var(txn.bearer),jwt_payload_query('$.exp','int')
    http-request set-var(txn.now) date()
    http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}
    http-request deny deny_status 401 unless {{ var(txn.bearer),jwt_verify({alg},"{key}") -m int 1 }}
    http-request deny deny_status 403 unless {{ var(txn.bearer),jwt_payload_query('$.role') -m str {role} }}
    http-request track-sc0 var(txn.bearer),jwt_payload_query('$.sub')
    http-request deny deny_status 429 if {{ sc0_http_req_rate gt 100000000 }}
    http-request return status 200 content-type application/json string '{{"ok":true}}' if {{ path /policy }}
    default_backend upstream
backend upstream
    server one 127.0.0.1:{upstream}
"""

TCP = """
global
    nbthread 1
    log stdout format raw local0 emerg
defaults
    mode tcp
    timeout client 30s
    timeout server 30s
    timeout connect 1s
listen bench
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{service}
"""

NGINX = """
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; default_type application/json;
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{ listen 127.0.0.1:{port}; root {directory}/www; }}
}}
"""

_CACHE = "jwt_cache_config: {jwt_cache_size: %d}"


def envoy(keys: Keys, algorithm: str, port: int, admin: int, upstream: int, cache: int) -> str:
    """Units: `cache` tokens that Envoy remembers, 0: none."""
    jwks, role = keys.jwks_rsa if algorithm == "RS256" else keys.jwks_hmac, ROLES[algorithm]
    return ENVOY.format(
        port=port, admin=admin, upstream=upstream, issuer=ISSUER, audience=AUDIENCE, jwks=jwks, role=role,
        cache=_CACHE % cache if cache else "",
    )  # fmt: skip


def haproxy(algorithm: str, key: str, port: int, upstream: int) -> str:
    """Shapes: `key` is the public key's file for RS256, the secret itself for HS256."""
    return HAPROXY.format(
        port=port,
        upstream=upstream,
        alg=algorithm,
        key=key,
        issuer=ISSUER,
        audience=AUDIENCE,
        role=ROLES[algorithm],
    )


def tcp(port: int, service: int) -> str:
    """Bytes passed on, unread."""
    return TCP.format(port=port, service=service)


def nginx(directory: str, port: int) -> str:
    """The plain HTTP service that all proxies proxy to."""
    return NGINX.format(directory=directory, port=port)
