"""Which tokens are revoked: by their id, session, subject, unit, or the moment before which they were issued.

A verifier looks a token up here when it is new, and again after `epoch` has grown: as long as nothing is revoked, a token
that is remembered costs one comparison of numbers. CPU only: the caller hands in the time.
"""

cimport cython
from libc.stdint cimport uint64_t

KINDS = ("jti", "session", "subject", "unit", "before")
cdef tuple _KINDS = KINDS


cdef bint _any_covers(dict rules, str issuer, str audience, str role, double issued_s) except -1:
    """SEC: a token that does not say when it was issued was issued before any moment."""
    for scope, (before_s, _) in rules.items():
        if (
            issued_s < <double> before_s
            and (scope[0] is None or scope[0] == issuer)
            and (scope[1] is None or scope[1] == audience)
            and (scope[2] is None or scope[2] == role)
        ):
            return True
    return False


@cython.final
cdef class Revoked:
    """What is revoked. Grows by `revoke`, and shrinks only by `forget`.

    Shapes: `jtis` maps the id of a token to the time until which it must be kept; a rule is (kind, value, before_s,
    until_s, issuer, audience, role), where None as issuer, audience or role means any.
    """

    def __init__(self):
        self.epoch = 1
        self.jtis, self._sessions = {}, {}
        self._subjects, self._units, self._everything = {}, {}, {}

    def revoke(self, str kind not None, str value not None, double before_s, double until_s, issuer=None, audience=None,
               role=None):
        """Refuse a token (its jti), the tokens of a session (their sid), or those issued before `before_s` of a subject,
        that name a unit, or all. Of two revocations of the same the later moments count.

        Units: `before_s`, `until_s` (after which the revocation need not be kept) seconds since 1970.
        Raises: ValueError for another kind.
        """
        if kind == "jti":
            self.jtis[value] = max(until_s, self.jtis.get(value, until_s))
        elif kind == "session":
            self._sessions[value] = max(until_s, self._sessions.get(value, until_s))
        elif kind in _KINDS:
            rules = self._rules(kind).setdefault("" if kind == "before" else value, {})
            known = rules.get((issuer, audience, role), (before_s, until_s))
            rules[(issuer, audience, role)] = max(before_s, known[0]), max(until_s, known[1])
        else:
            raise ValueError(f"revoked is a {', '.join(_KINDS)}")
        self.epoch += 1

    cdef dict _rules(self, str kind):
        return self._subjects if kind == "subject" else self._units if kind == "unit" else self._everything

    def forget(self, double now_s):
        """Drops what covers no token any more that has not expired anyway."""
        for ended in (self.jtis, self._sessions):
            for value in [value for value, until_s in ended.items() if until_s <= now_s]:
                del ended[value]
        for ruled in (self._subjects, self._units, self._everything):
            for value, rules in list(ruled.items()):
                for scope in [scope for scope, (_, until_s) in rules.items() if until_s <= now_s]:
                    del rules[scope]
                if not rules:
                    del ruled[value]

    def rules(self):
        """All of it but the ids of tokens, as rules."""
        found = [("session", value, 0.0, until_s, None, None, None) for value, until_s in self._sessions.items()]
        for kind in ("subject", "unit", "before"):
            for value, rules in self._rules(kind).items():
                found += [(kind, value, before_s, until_s, *scope) for scope, (before_s, until_s) in rules.items()]
        return found

    cpdef bint refuses(self, dict claims, str jti, str subject, str audience, str role, double issued_s) except -1:
        """Is the token revoked that says this? Units: `issued_s` seconds since 1970, -1 if it does not say.

        A unit's rule covers the tokens whose `units` name it, and those the unit signs itself.
        """
        if jti is not None and jti in self.jtis:
            return True
        if self._sessions:
            sid = claims.get("sid")
            if type(sid) is str and sid in self._sessions:
                return True
        if not (self._subjects or self._units or self._everything):
            return False
        cdef str issuer = None
        value = claims.get("iss")
        if type(value) is str:
            issuer = value
        if self._everything and _any_covers(self._everything[""], issuer, audience, role, issued_s):
            return True
        rules = self._subjects.get(subject)
        if rules is not None and _any_covers(rules, issuer, audience, role, issued_s):
            return True
        return self._units and self._names_revoked_unit(claims, issuer, audience, role, issued_s)

    cdef bint _names_revoked_unit(self, dict claims, str issuer, str audience, str role, double issued_s) except -1:
        units = claims.get("units")
        for unit in (issuer, *units) if type(units) is list else (issuer, units):
            rules = self._units.get(unit) if type(unit) is str else None
            if rules is not None and _any_covers(rules, issuer, audience, role, issued_s):
                return True
        return False
