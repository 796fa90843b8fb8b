"""What the gateway knows of one request, as a compiled record: it is made for each and read by every step.

PERF: `policy_rs256` of `make bench`: a dataclass of as many fields costs ten times as much to make.
"""

cimport cython


@cython.final
cdef class Principal:
    """Who calls, as a verified token says. Fields: see gateway.context.

    PERF: `policy_rs256_unique` of `make bench`: a frozen dataclass of as many fields costs 2 us to make.
    """

    def __init__(
        self, str subject not None, str issuer not None, str audience not None, str role not None,
        frozenset permissions not None, str token_id not None, str key_id not None, double expires_at_s,
        dict claims not None, dict grants=None, scopes=None,
    ):
        self.subject, self.issuer, self.audience, self.role = subject, issuer, audience, role
        self.permissions, self.token_id, self.key_id = permissions, token_id, key_id
        self.expires_at_s, self.claims = expires_at_s, claims
        self.grants = {} if grants is None else grants
        self.scopes = scopes

    def __repr__(self):
        return f"Principal(subject={self.subject!r}, audience={self.audience!r}, role={self.role!r})"


@cython.final
@cython.freelist(256)
cdef class RequestContext:
    """One request from its first byte to its audit row; lives on `req.context`. Fields: see gateway.context."""

    def __cinit__(self):
        self.params, self.limits_taken, self.limit_headers, self.also = {}, [], (), ()
        self.agent = self.trace = self.shadow = self.purpose = ""
        self.rule = self.method = self.path = self.query = self.client_address = ""
        self.deadline_ns = self.upstream_ns = self.queue_ns = self.unit_ns = 0

    def __init__(
        self, str id not None, started_ns, str method not None="", str path not None="", str query not None="",
        str client_address not None="", snapshot=None, **more
    ):
        """Shapes: `more` is any of the other fields by name."""
        self.id, self.started_ns, self.method, self.path, self.query = id, started_ns, method, path, query
        self.client_address, self.snapshot = client_address, snapshot
        for name, value in more.items():
            setattr(self, name, value)

    def __repr__(self):
        return f"RequestContext(id={self.id!r}, method={self.method!r}, rule={self.rule!r})"
