"""The policy steps of a request in one pass, as far as nothing unusual turns up; the rest is the middleware's.

A request goes through context, limits of its address, identity, routing, limits of caller and route, authorization. For
most requests each step is a look-up in what an earlier request of the same caller has worked out. `Lane.enter` does those
steps and says how many; the first that needs thought (a refusal, an unseen token, a preflight, a query) is left to the
middleware of that step, which finds the request as if the middleware before it had run.

CPU only: clocks, tables and what is worked out at first sight are handed in.

PERF: `policy_rs256` of `make bench`: the same steps as five middleware methods and a router cost four times as much.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp

from fastpath.bucket cimport BucketTable, Taken, tokens_left
from fastpath.cells cimport Cells
from fastpath.context cimport Principal, RequestContext
from fastpath.primitives cimport fetch
from fastpath.remembered cimport Digest
from fastpath.token cimport Verified, Verifier

from fastpath.token import TokenError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const unsigned char* PyUnicode_1BYTE_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

cdef enum:
    MAX_CHARGES = 8
    MAX_ADDRESSES = 65536

BEGUN = 1
"""The context is made and the request counted."""
CHARGED_ADDRESS = 2
NO_PREFLIGHT = 3
IDENTIFIED = 4
ROUTED = 5
CHARGED = 6
AUTHORIZED = 7


@cython.final
cdef class Rule:
    """A limit with what is derived from it once.

    Its buckets' keys begin with `prefix`, which names its figures too: a rule that a reload changed starts new buckets.
    Units: `interval_ns` nanoseconds a token. Shapes: `opening` begins the RateLimit field, `policy_field` is the whole
    RateLimit-Policy field.
    """

    def __init__(self, limit, str prefix not None, uint64_t number, int64_t interval_ns, int64_t burst,
                 str opening not None, str policy not None):
        self.limit, self.prefix, self.number = limit, prefix, number
        self.interval_ns, self.burst, self.opening, self.policy = interval_ns, burst, opening, policy
        self.policy_field = ("RateLimit-Policy", policy)
        self.of_caller = limit.per == "principal"
        self.shadow = getattr(limit, "shadow", False)


# PERF: `policy_rs256_unique` of `make bench`: nothing here leads back to it, and the collector need not walk every caller.
@cython.final
@cython.no_gc
cdef class Charge:
    """A rule and the bucket to take from: `key` is None where it depends on the request."""

    cdef readonly Rule rule
    cdef readonly object key
    cdef uint64_t bucket

    def __init__(self, Rule rule not None, key):
        self.rule, self.key = rule, key
        self.bucket = 0 if key is None else key


# PERF: `policy_rs256_unique` of `make bench`: nothing here leads back to it, and the collector need not walk every caller.
@cython.final
@cython.no_gc
cdef class Grant:
    """A principal's standing on one route, worked out at its first request there.

    Shapes: `decision` is None where path parameters have a say; `charges` is a tuple of Charge, None until it is known;
    `resource`, `responders` and `takes_fields` are the route's endpoint. `plain`: an allowed request has nothing else to
    pass; `hidden`: the route may have to look to this caller as if it did not exist; `told`: a POST's body may say whom it
    is about; `line`, `event`: its part of a
    log line, of an audit event; `claims`: what row-level security sees of the principal, None until the portal was asked.
    """

    def __init__(self, route, decision):
        self.route, self.decision, self.responders = route, decision, {}

    cdef int look_for_one(self) except -1:
        """Note the charge if it is the only one, which saves looking through the tuple."""
        cdef Charge charge
        self.looked = True
        if len(self.charges) == 1:
            charge = self.charges[0]
            if charge.key is not None and not charge.rule.shadow:
                self.one, self.bucket = charge.rule, charge.bucket
        return 0


cdef struct Take:
    # One token taken for a request; `rule` is borrowed from the charge.
    PyObject* rule
    uint64_t key
    uint64_t left
    uint64_t full_at


cdef struct Purse:
    int64_t now_ns
    int count
    Take takes[MAX_CHARGES]


@cython.final
cdef class Lane:
    """The common way of requests through the policy of one snapshot; a worker makes one for each snapshot.

    Shapes: `policy` works out what is new here: `address_charges(snapshot)`, `client_address(env, snapshot)`,
    `trace(field)`, `bucket(rule, ctx)`, `identify(ctx, env)`, `refused(ctx, token, error)`, `scopes(ceiling, claims)`,
    `grant(ctx)`, `decide(ctx)` and `decode(text)`.
    `in_flight` is the cell that counts requests begun; who finishes a request takes it back.
    Units: `clock_s` seconds since 1970, `clock_ns` monotonic nanoseconds.
    Holds: the buckets of up to 65,536 addresses.
    """

    cdef readonly object snapshot
    cdef object _trace, _client_address, _bucket, _identify, _refused, _scopes, _grant, _decide, _decode, _match
    cdef object _clock_s, _clock_ns
    cdef BucketTable _buckets
    cdef Verifier _verifier
    cdef Cells _cells
    cdef Py_ssize_t _in_flight
    cdef tuple _reserved, _address_charges
    cdef dict _addresses, _shared, _roles
    cdef bint _behind_proxies

    def __init__(
        self, policy, snapshot, BucketTable buckets not None, Cells cells not None, Py_ssize_t in_flight,
        tuple reserved not None, clock_s, clock_ns,
    ):
        self._cells, self._in_flight = cells, in_flight
        self.snapshot, self._buckets, self._reserved = snapshot, buckets, reserved
        self._clock_s, self._clock_ns = clock_s, clock_ns
        self._trace = policy.trace
        self._client_address, self._bucket, self._identify = policy.client_address, policy.bucket, policy.identify
        self._refused, self._scopes, self._roles = policy.refused, policy.scopes, snapshot.roles
        self._grant, self._decide, self._decode = policy.grant, policy.decide, policy.decode
        self._match, self._verifier = snapshot.routes.match, snapshot.verifier
        self._address_charges = policy.address_charges(snapshot)
        self._addresses = {}
        self._shared = {}
        self._behind_proxies = bool(snapshot.trusted_proxies)

    def enter(self, dict env not None, target not None):
        """Begin a request; `target.gateway` becomes its context. How many steps are done: BEGUN to AUTHORIZED.

        Raises: what `identify`, `refused` and `grant` of the policy raise; the context is there by then.
        """
        cdef RequestContext ctx = self._begin(env)
        cdef Verified verified
        cdef Purse purse
        target.gateway = ctx
        purse.count = 0
        purse.now_ns = self._clock_ns()
        if self._address_charges and not self._take_of_address(ctx, &purse):
            return BEGUN
        if ctx.method == "OPTIONS":
            return self._stop(ctx, &purse, CHARGED_ADDRESS)
        if ctx.path.startswith(self._reserved):
            return self._stop(ctx, &purse, NO_PREFLIGHT)
        verified = self._bearer(ctx, env, &purse)
        if verified is None:
            self._note(ctx, &purse)
            verified = self._identify(ctx, env)
            if ctx.principal is None:
                return IDENTIFIED
        if not self._find(ctx, verified):
            return self._stop(ctx, &purse, IDENTIFIED)
        if not self._take_of_grant(ctx, &purse):
            return self._stop(ctx, &purse, ROUTED)
        if not self._may(ctx, env):
            return self._stop(ctx, &purse, CHARGED)
        if purse.count:
            ctx.limit_headers = _limit_headers(&purse)
        return AUTHORIZED

    cdef RequestContext _begin(self, dict env):
        cdef RequestContext ctx = RequestContext.__new__(RequestContext)
        ctx.id = env["caregate.request_id"]
        ctx.started_ns = env["caregate.started_ns"]
        ctx.method = env["REQUEST_METHOD"]
        ctx.path = env["caregate.path"]
        ctx.query = env["QUERY_STRING"]
        ctx.client_address = self._client_address(env, self.snapshot) if self._behind_proxies else env["caregate.peer"]
        ctx.snapshot = self.snapshot
        if "HTTP_TRACEPARENT" in env:
            self._trace(ctx, env)
        self._cells.plus(self._in_flight, 1.0)
        return ctx

    # --- identity and routing

    cdef Verified _bearer(self, RequestContext ctx, dict env, Purse* purse):
        """What the bearer token says, whose principal is the caller; None if it comes in another than the plain form."""
        cdef str value = env.get("HTTP_AUTHORIZATION")
        cdef const unsigned char* text
        cdef Py_ssize_t size
        cdef Digest digest
        cdef Verified verified
        # SEC: only a field that came once, in its plain form, without a query that may carry a token too.
        if value is None or ctx.query or env["caregate.duplicate"] or not PyUnicode_IS_COMPACT_ASCII(value):
            return None
        text = PyUnicode_1BYTE_DATA(value)
        size = PyUnicode_GET_LENGTH(value) - 7
        if size < 1 or memcmp(text, b"Bearer ", 7) != 0:
            return None
        text += 7
        verified = self._verifier.hit_text(text, size, &digest, self._clock_s())
        if verified is None:
            verified = self._unseen(ctx, text, size, &digest, purse)
            if verified is None:
                return None
        if verified.principal is None:
            verified.principal = caller_of(self._roles, verified, self._scopes)
        # PERF: `scale` of `make bench`: of 100,000 callers nothing is near; what the next steps touch comes while these run.
        fetch(<PyObject*> verified.principal)
        fetch(<PyObject*> verified.grant)
        fetch(<const char*> <PyObject*> verified.grant + 64)
        if verified.bucket:
            self._buckets.fetch_ahead(verified.bucket)
        ctx.principal = verified.principal
        return verified

    cdef Verified _unseen(
        self, RequestContext ctx, const unsigned char* text, Py_ssize_t size, const Digest* digest, Purse* purse
    ):
        """The same of a token that is not remembered, or holds no more; None if what is there may be no token at all.

        PERF: `scale` of `make bench`: the grant is noted with the token now, so that its next request finds it there.
        Raises: what `refused` of the policy raises.
        PERF: `policy_rs256_unique` of `make bench`: in Python the way from here to a principal took 20 us.
        """
        cdef Py_ssize_t i
        for i in range(size):
            if text[i] == 32 or text[i] == 9 or text[i] == 44:  # what `bearer_token` has an answer of its own for
                return None
        self._note(ctx, purse)
        try:
            return self._verifier.verify_text(text, size, digest, self._clock_s())
        except TokenError as error:
            return self._refused(ctx, text[:size].decode("ascii"), error)

    cdef bint _find(self, RequestContext ctx, Verified verified) except -1:
        """Find the route and the caller's grant on it; False: no route, or one that shows itself to nobody else."""
        cdef object found = self._match(ctx.method, ctx.path)
        cdef dict raw
        cdef Grant grant
        if found is None:
            return False
        raw = found[1]
        ctx.route = found[0]
        if raw:
            ctx.params = {name: self._decode(value) for name, value in raw.items()}
        # PERF: `scale` of `make bench`: the last grant lies with the token; with 100,000 callers each step is a cache miss.
        grant = None if verified is None else verified.grant
        # SEC: the route itself is compared, so that a caller that met another snapshot brings nothing along from it.
        if grant is None or grant.route is not ctx.route:
            grant = ctx.principal.grants.get(ctx.route.name)
            if grant is None or grant.route is not ctx.route or not grant.looked:
                grant = self._new_grant(ctx)
            if verified is not None:
                verified.grant, verified.bucket = grant, grant.bucket
        if grant.hidden or ctx.method not in grant.responders:
            ctx.route = None
            ctx.params = {}
            return False
        ctx.grant = grant
        return True

    cdef Grant _new_grant(self, RequestContext ctx):
        """The caller's grant on the route: what all callers of the role share, and buckets of his own."""
        cdef Principal caller = ctx.principal
        # SEC: all of the caller that a decision may rest on; the claims that bindings compare are looked at each time.
        cdef tuple key = (
            ctx.route.name, caller.role, caller.audience, caller.permissions, caller.scopes, "patient" in caller.claims,
        )
        cdef Grant shared = self._shared.get(key)
        cdef Grant grant
        cdef Charge charge
        cdef list charges
        if shared is None or shared.route is not ctx.route:
            shared = self._grant(ctx)
            self._shared[key] = shared
        grant = Grant.__new__(Grant)
        grant.route, grant.decision, grant.responders = shared.route, shared.decision, shared.responders
        grant.resource, grant.takes_fields = shared.resource, shared.takes_fields
        grant.plain, grant.hidden, grant.told = shared.plain, shared.hidden, shared.told
        charges = []
        for charge in shared.charges:
            if charge.rule.of_caller:
                charge = Charge(charge.rule, self._buckets.key(charge.rule.prefix, caller.issuer, caller.subject))
            charges.append(charge)
        grant.charges = tuple(charges)
        grant.look_for_one()
        caller.grants[ctx.route.name] = grant
        return grant

    cdef bint _may(self, RequestContext ctx, dict env) except -1:
        """Does authorization let it pass, with nothing more to look at?"""
        cdef Grant grant = ctx.grant
        if ctx.query or not grant.plain or "HTTP_UPGRADE" in env or (grant.told and ctx.method == "POST"):
            return False
        if grant.decision is None:
            decision = self._decide(ctx)
            if not decision.allowed:
                return False
            ctx.rule = decision.rule
            return True
        ctx.rule = grant.decision.rule
        return grant.decision.allowed

    # --- limits

    cdef bint _take_of_address(self, RequestContext ctx, Purse* purse) except -1:
        cdef tuple keys = self._addresses.get(ctx.client_address)
        if keys is None:
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.clear()
            keys = tuple([self._bucket((<Charge> charge).rule, ctx) for charge in self._address_charges])
            self._addresses[ctx.client_address] = keys
        return self._take(ctx, self._address_charges, keys, purse)

    cdef bint _take_of_grant(self, RequestContext ctx, Purse* purse) except -1:
        cdef Grant grant = ctx.grant
        if grant.one is not None and purse.count == 0:
            return self._take_one(grant.one, grant.bucket, purse)
        return self._take(ctx, grant.charges, None, purse)

    cdef bint _take(self, RequestContext ctx, tuple charges, tuple keys, Purse* purse) except -1:
        """Take all or nothing; False: one was refused."""
        cdef int before = purse.count
        cdef Py_ssize_t i
        cdef Charge charge
        cdef uint64_t key
        for i in range(len(charges)):
            charge = charges[i]
            if keys is not None:
                key = keys[i]
            else:
                key = charge.bucket if charge.key is not None else self._bucket(charge.rule, ctx)
            if _holds(purse, key):
                continue
            if charge.rule.shadow and purse.count < MAX_CHARGES:
                if not self._take_one(charge.rule, key, purse):
                    _note_shadow(ctx, "limit:" + charge.rule.limit.name)
            elif purse.count == MAX_CHARGES or not self._take_one(charge.rule, key, purse):
                self._give_back(purse, before)
                return False
        return True

    cdef bint _take_one(self, Rule rule, uint64_t key, Purse* purse) except -1:
        cdef Taken taken
        cdef Take* take = &purse.takes[purse.count]
        if not self._buckets.take_into(key, rule.interval_ns, rule.burst, purse.now_ns, rule.number, &taken):
            return False
        take.rule = <PyObject*> rule
        take.key = key
        take.left = tokens_left(&taken, rule.interval_ns, rule.burst, purse.now_ns)
        take.full_at = taken.full_at
        purse.count += 1
        return True

    cdef int _give_back(self, Purse* purse, int before) except -1:
        cdef Take* take
        while purse.count > before:
            purse.count -= 1
            take = &purse.takes[purse.count]
            self._buckets.undo(take.key, <uint64_t> (<Rule> take.rule).interval_ns, take.full_at, (<Rule> take.rule).number)
        return 0

    cdef object _stop(self, RequestContext ctx, Purse* purse, object done):
        self._note(ctx, purse)
        return done

    cdef int _note(self, RequestContext ctx, Purse* purse) except -1:
        """Tell the middleware what was taken, so that it can give it back, and the caller how much is left."""
        cdef Take* take
        cdef int i
        if purse.count == 0:
            return 0
        ctx.limits_taken = []
        for i in range(purse.count):
            take = &purse.takes[i]
            ctx.limits_taken.append(
                (<object> take.rule, take.key, purse.now_ns, take.left, <int64_t> take.full_at - purse.now_ns)
            )
        ctx.limit_headers = _limit_headers(purse)
        return 0


def caller_of(dict roles not None, Verified verified not None, scopes):
    """Who the bearer of a token is, as a Principal. Shapes: see `Lane` for `scopes`, gateway.config.snapshot for `roles`."""
    cdef Principal caller = Principal.__new__(Principal)
    role = roles[verified.role]
    caller.subject = "" if verified.subject is None else verified.subject
    caller.issuer, caller.audience, caller.role = verified.claims["iss"], verified.audience, role.name
    caller.permissions, caller.expires_at_s, caller.claims = role.permissions, verified.expires_at_s, verified.claims
    caller.token_id = "" if verified.jti is None else verified.jti
    caller.key_id = "" if verified.key.kid is None else verified.key.kid
    caller.grants = {}
    ceiling = role.scopes
    caller.scopes = None if ceiling is None else scopes(ceiling, verified.claims)
    return caller


cdef int _note_shadow(RequestContext ctx, str rule) except -1:
    """See gateway.context.note_shadow."""
    if rule not in ctx.shadow.split(","):
        ctx.shadow = f"{ctx.shadow},{rule}" if ctx.shadow else rule
    return 0


cdef bint _holds(const Purse* purse, uint64_t key) noexcept:
    cdef int i
    for i in range(purse.count):
        if purse.takes[i].key == key:
            return True
    return False


cdef tuple _limit_headers(const Purse* purse):
    """The two response fields: every policy that was looked at, in the order they were taken."""
    cdef list states, policies
    cdef int i
    cdef Rule rule
    if purse.count == 1:
        rule = <Rule> purse.takes[0].rule
        if rule.shadow:
            return ()
        return ("RateLimit", _state(rule, purse, 0)), rule.policy_field
    states, policies = [], []
    for i in range(purse.count):
        rule = <Rule> purse.takes[i].rule
        if rule.shadow:  # a limit that only watches is nobody's to keep
            continue
        states.append(_state(rule, purse, i))
        policies.append(rule.policy)
    if not states:
        return ()
    return ("RateLimit", ", ".join(states)), ("RateLimit-Policy", ", ".join(policies))


cdef str _state(Rule rule, const Purse* purse, int i):
    """A policy's tokens left, and whole seconds until its bucket is full."""
    cdef char text[64]
    cdef uint64_t reset_ns = purse.takes[i].full_at - <uint64_t> purse.now_ns
    cdef int size = snprintf(
        text, 64, b"%llu;t=%llu", <unsigned long long> purse.takes[i].left,
        <unsigned long long> ((reset_ns + 999999999) // 1000000000),
    )
    return rule.opening + text[:size].decode("ascii")
