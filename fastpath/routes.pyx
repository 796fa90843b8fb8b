"""The route table: which route a canonical path belongs to.

Text in, decisions out: no I/O, no clock. A RouteTable never changes after it was built.
"""

import re

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Substring
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from fastpath.target import TargetRefused, TargetTooLong, canonical_path, decode_segment

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    const uint8_t* PyUnicode_1BYTE_DATA(object text)
    int __builtin_ctzll(unsigned long long bits) nogil


class RouteConflict(ValueError):
    """Two templates that match the same paths for the same method; the text names both."""


# --- templates

PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
METHOD = re.compile(r"[A-Z]{1,32}")

cdef enum:
    MAX_SEGMENTS = 64
    NONE = -1


def parse_template(str template not None):
    """The segments of a path template.

    Shapes: list of (literal, None, False), or (None, parameter name, takes the rest of the path).
    Raises: ValueError naming the template.
    """
    if not template.startswith("/"):
        raise ValueError(f"template {template!r} does not start with '/'")
    segments = template[1:].split("/")
    if len(segments) > MAX_SEGMENTS:
        raise ValueError(f"template {template!r} has more than {MAX_SEGMENTS} segments")
    parsed = [parse_segment(template, segment) for segment in segments]
    names = [name for _, name, _ in parsed if name is not None]
    if len(set(names)) != len(names):
        raise ValueError(f"template {template!r} names a parameter twice")
    if any(rest for _, _, rest in parsed[: len(parsed) - 1]):
        raise ValueError(f"template {template!r} has a :path parameter that is not its last segment")
    # A template is a path with placeholders: without them it must be one in its canonical spelling.
    literal = "/" + "/".join("p" if text is None else text for text, _, _ in parsed)
    try:
        path, query = canonical_path(literal)
    except TargetRefused as error:
        raise ValueError(f"template {template!r}: {error}") from None
    if path != literal or "?" in literal:
        raise ValueError(f"template {template!r} is not in canonical form")
    return parsed


def parse_segment(template, segment):
    """One segment as `parse_template` returns it."""
    found = PARAMETER.fullmatch(segment)
    if found:
        return None, found[1], found[2] is not None
    if "{" in segment or "}" in segment:
        raise ValueError(f"template {template!r}: {{name}} or {{name:path}} must be a whole segment")
    return segment, None, False


# --- the table

cdef struct Edge:
    # A literal child of `parent`; child 0 (no node's child) marks an empty place.
    uint64_t hash
    int32_t parent
    int32_t child
    uint32_t offset
    uint32_t length

cdef struct Node:
    # Ids of what may follow: a child for any one segment, a leaf that takes the rest, the leaf of a path ending here.
    # PERF: bench_fastpath routes; an only literal child is kept here, which saves its look-up in the table of edges.
    int32_t parameter
    int32_t rest
    int32_t leaf
    int32_t literals
    Edge only

cdef struct Leaf:
    # Bit i of `parameters`: segment i is one. The objects are borrowed from the table's tuples.
    uint64_t parameters
    bint rest
    PyObject* value
    PyObject* names

cdef struct Split:
    # The first segments of a path; hashes only of those that can be a literal.
    const uint8_t* text
    int count
    int32_t start[MAX_SEGMENTS + 1]
    int32_t length[MAX_SEGMENTS + 1]
    uint64_t hash[MAX_SEGMENTS + 1]


cdef inline uint64_t hash_bytes(const uint8_t* text, Py_ssize_t size) noexcept nogil:
    # NOTE: not keyed: whoever could choose the table's literals writes the configuration, and a caller's segment that
    # collides costs him one run of a half-empty table.
    cdef uint64_t h = 0x9E3779B97F4A7C15ULL ^ <uint64_t>size, word
    while size >= 8:
        memcpy(&word, text, 8)
        h = (h ^ word) * 0xFF51AFD7ED558CCDULL
        h ^= h >> 32
        text += 8
        size -= 8
    if size:
        word = 0
        memcpy(&word, text, <size_t>size)
        h = (h ^ word) * 0xFF51AFD7ED558CCDULL
        h ^= h >> 32
    return h


cdef inline uint64_t place_of(uint64_t hash, int32_t parent) noexcept nogil:
    cdef uint64_t h = (hash ^ <uint64_t>parent) * 0xC4CEB9FE1A85EC53ULL
    return h ^ (h >> 29)


cdef class _Draft:
    """A table while it is built: a trie a method, its literal edges in one dictionary."""

    cdef list nodes, leaves, values
    cdef dict roots, edges

    def __init__(self):
        self.roots = {}
        self.edges = {}
        self.nodes = [[NONE, NONE, NONE, 0]]
        self.leaves = []
        self.values = []

    cdef int node(self):
        self.nodes.append([NONE, NONE, NONE, 0])
        return <int>len(self.nodes) - 1

    cdef int literal_child(self, int parent, bytes text):
        if (parent, text) not in self.edges:
            self.nodes[parent][3] += 1
            self.edges[parent, text] = self.node()
        return self.edges[parent, text]

    cdef int parameter_child(self, int parent):
        if self.nodes[parent][0] == NONE:
            self.nodes[parent][0] = self.node()
        return self.nodes[parent][0]

    def add(self, method, template, value):
        """Raises: ValueError, RouteConflict."""
        if not isinstance(method, str) or not METHOD.fullmatch(method):
            raise ValueError(f"route {template!r}: the method must be upper case letters")
        parsed = parse_template(template)
        if method not in self.roots:
            self.roots[method] = self.node()
        cdef int node = self.roots[method]
        slot = 2
        for literal, _, rest in parsed:
            if rest:
                slot = 1
            elif literal is None:
                node = self.parameter_child(node)
            else:
                node = self.literal_child(node, literal.encode("ascii"))
        if self.nodes[node][slot] != NONE:
            other = self.leaves[self.nodes[node][slot]][0]
            raise RouteConflict(f"{method} {template!r} conflicts with {other!r}: both match the same paths")
        self.nodes[node][slot] = len(self.leaves)
        self.leaves.append((template, parsed))
        self.values.append(value)


# NOTE: leaves borrow from `values` and `names`; tuples, and this, keep those whole while a collector takes a cycle apart.
@cython.no_gc_clear
cdef class RouteTable:
    """Which route serves a method and a path; immutable.

    The most exact route of the method wins, whatever order the routes came in: from the left, a literal segment before
    `{name}` before `{name:path}`. If the more exact start leads nowhere, the next is tried. A parameter is never empty,
    and `/a/` is another path than `/a`.

    A match costs a hash look-up a segment, however many routes there are. Where templates overlap it may try several
    branches of the method's trie, each node once at most: the configuration bounds the work of the worst path, and
    neither its length (segments deeper than the deepest template are not looked at) nor the caller can raise it.
    """

    cdef Node* nodes
    cdef Edge* edges
    cdef Leaf* leaves
    cdef uint64_t edge_mask
    cdef bytes literals
    cdef const uint8_t* literal_text
    cdef Py_ssize_t longest_literal
    cdef int depth
    cdef dict roots
    cdef tuple values, names, methods

    def __cinit__(self, routes):
        """Shapes: `routes` yields (method, template, value).

        Raises: RouteConflict for two templates of one shape and method, ValueError for a bad template or method.
        """
        cdef _Draft draft = _Draft()
        for method, template, value in routes:
            draft.add(method, template, value)
        self.roots = draft.roots
        self.methods = tuple(sorted(draft.roots))
        self.values = tuple(draft.values)
        self.store_nodes(draft)
        self.store_edges(draft)
        self.store_leaves(draft)

    def __dealloc__(self):
        PyMem_Free(self.nodes)
        PyMem_Free(self.edges)
        PyMem_Free(self.leaves)

    cdef int store_nodes(self, _Draft draft) except -1:
        self.nodes = <Node*>allocate(len(draft.nodes) * sizeof(Node))
        for i, (parameter, rest, leaf, literals) in enumerate(draft.nodes):
            self.nodes[<Py_ssize_t>i] = Node(parameter, rest, leaf, literals, Edge(0, 0, 0, 0, 0))
        return 0

    cdef int store_edges(self, _Draft draft) except -1:
        cdef Py_ssize_t places = 2, offset = 0
        cdef bytes text
        while places < 2 * len(draft.edges):
            places *= 2
        self.edge_mask = <uint64_t>(places - 1)
        self.edges = <Edge*>allocate(places * sizeof(Edge))
        # Equal texts are stored once: the blob stays small and hot when thousands of routes repeat them.
        offsets = {}
        for _, text in draft.edges:
            if text not in offsets:
                offsets[text] = offset
                offset += len(text)
                self.longest_literal = max(self.longest_literal, len(text))
        self.literals = b"".join(offsets)
        self.literal_text = <const uint8_t*>PyBytes_AS_STRING(self.literals)
        for (parent, text), child in draft.edges.items():
            self.store_edge(parent, text, child, offsets[text])
        return 0

    cdef int store_edge(self, int32_t parent, bytes text, int32_t child, uint32_t offset) except -1:
        cdef uint64_t hash = hash_bytes(<const uint8_t*>PyBytes_AS_STRING(text), len(text))
        cdef uint64_t place = place_of(hash, parent) & self.edge_mask
        cdef Edge edge = Edge(hash, parent, child, offset, <uint32_t>len(text))
        if self.nodes[parent].literals == 1:
            self.nodes[parent].only = edge
            return 0
        while self.edges[place].child:
            place = (place + 1) & self.edge_mask
        self.edges[place] = edge
        return 0

    cdef int store_leaves(self, _Draft draft) except -1:
        cdef Py_ssize_t i
        cdef uint64_t parameters
        shared = {}
        every = []
        self.leaves = <Leaf*>allocate(len(draft.leaves) * sizeof(Leaf))
        for i, (_, parsed) in enumerate(draft.leaves):
            self.depth = max(self.depth, <int>len(parsed))
            names = tuple([name for _, name, _ in parsed if name is not None])
            names = shared.setdefault(names, names)
            every.append(names)
            parameters = sum([1 << at for at, (_, name, _) in enumerate(parsed) if name is not None])
            rest = parsed[len(parsed) - 1][2]
            self.leaves[i] = Leaf(parameters, rest, <PyObject*>self.values[i], <PyObject*>names)
        self.names = tuple(every)
        return 0

    @classmethod
    def __class_getitem__(cls, item):
        return cls

    def __len__(self):
        return len(self.values)

    def match(self, str method not None, str path not None):
        """The value and the raw parameters of the route that serves `method` on a canonical raw path, or None."""
        cdef Split split
        cdef int leaf
        root = self.roots.get(method)
        if root is None or not self.split(path, &split):
            return None
        leaf = self.descend(&split, <int32_t>root, 0)
        if leaf == NONE:
            return None
        return <object>self.leaves[leaf].value, self.parameters(&split, leaf, path)

    def allowed(self, str path not None):
        """The methods that have a route for a canonical raw path, sorted."""
        cdef Split split
        if not self.split(path, &split):
            return ()
        return tuple([m for m in self.methods if self.descend(&split, <int32_t>self.roots[m], 0) != NONE])

    cdef bint split(self, str path, Split* split):
        """Cut a path into segments, one more at most than the deepest template has; False: not a path."""
        cdef const uint8_t* text
        cdef const uint8_t* slash
        cdef Py_ssize_t size = PyUnicode_GET_LENGTH(path), start = 1, end = 0
        cdef int i = 0
        if size == 0 or size > 0x7FFFFFFF or not PyUnicode_IS_ASCII(path):
            return False
        text = PyUnicode_1BYTE_DATA(path)
        if text[0] != c"/":
            return False
        split.text = text
        while end < size and i <= self.depth:
            slash = <const uint8_t*>memchr(text + start, c"/", <size_t>(size - start))
            end = size if slash is NULL else slash - text
            split.start[i] = <int32_t>start
            split.length[i] = <int32_t>(end - start)
            if end - start <= self.longest_literal:
                split.hash[i] = hash_bytes(text + start, end - start)
            i += 1
            start = end + 1
        split.count = i
        return True

    cdef int descend(self, const Split* split, int32_t at, int i) noexcept:
        """The leaf of the most exact route from node `at` on, segments from `i` on; recursion is as deep as templates."""
        cdef const Node* node = &self.nodes[at]
        cdef int32_t child
        cdef int leaf
        if i == split.count:
            return node.leaf
        if node.literals and split.length[i] <= self.longest_literal:
            child = self.literal_child(split, at, i)
            if child:
                leaf = self.descend(split, child, i + 1)
                if leaf != NONE:
                    return leaf
        if split.length[i] == 0:
            return NONE
        if node.parameter != NONE:
            leaf = self.descend(split, node.parameter, i + 1)
            if leaf != NONE:
                return leaf
        return node.rest

    cdef inline int32_t literal_child(self, const Split* split, int32_t parent, int i) noexcept:
        cdef uint64_t place
        cdef const Edge* edge
        if self.nodes[parent].literals == 1:
            edge = &self.nodes[parent].only
            return edge.child if self.is_segment(edge, split, i) else 0
        place = place_of(split.hash[i], parent) & self.edge_mask
        edge = &self.edges[place]
        while edge.child:
            if edge.parent == parent and self.is_segment(edge, split, i):
                return edge.child
            place = (place + 1) & self.edge_mask
            edge = &self.edges[place]
        return 0

    cdef inline bint is_segment(self, const Edge* edge, const Split* split, int i) noexcept:
        return (
            edge.hash == split.hash[i]
            and edge.length == <uint32_t>split.length[i]
            and not memcmp(self.literal_text + edge.offset, split.text + split.start[i], edge.length)
        )

    cdef dict parameters(self, const Split* split, int leaf, str path):
        cdef const Leaf* found = &self.leaves[leaf]
        cdef tuple names = <tuple>found.names
        cdef uint64_t left = found.parameters
        cdef Py_ssize_t start, end
        cdef int position
        params = {}
        for name in names:
            position = __builtin_ctzll(left)
            left &= left - 1
            start = split.start[position]
            end = start + split.length[position]
            if found.rest and not left:
                end = PyUnicode_GET_LENGTH(path)
            params[name] = PyUnicode_Substring(path, start, end)
        return params


cdef void* allocate(size_t size) except NULL:
    cdef void* memory = PyMem_Malloc(size or 1)
    if memory is NULL:
        raise MemoryError()
    memset(memory, 0, size)
    return memory
