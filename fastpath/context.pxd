"""The request's context as kernels see it."""


cdef class Principal:
    cdef readonly str subject
    cdef readonly str issuer
    cdef readonly str audience
    cdef readonly str role
    cdef readonly frozenset permissions
    cdef readonly str token_id
    cdef readonly str key_id
    cdef readonly double expires_at_s
    cdef readonly dict claims
    cdef readonly dict grants
    cdef readonly object scopes


cdef class RequestContext:
    cdef public str id
    cdef public object started_ns
    cdef public str method
    cdef public str path
    cdef public str query
    cdef public str client_address
    cdef public object snapshot
    cdef public object principal
    cdef public object route
    cdef public dict params
    cdef public object deadline_ns
    cdef public tuple limit_headers
    cdef public list limits_taken
    cdef public object error
    cdef public str unit
    cdef public str agent
    cdef public str trace
    cdef public object span
    cdef public object delivery
    cdef public object relay_source
    cdef public object upstream_ns
    cdef public object queue_ns
    cdef public object unit_ns
    cdef public object grant
    cdef public str rule
    cdef public str shadow
    cdef public str purpose
    cdef public tuple told
    cdef public tuple also
    cdef public bint intent_recorded
    cdef public bint keyed
