"""Path and target templates of the document: their parameters, their shape, their faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_plus

from fastpath.routes import canonical_path

_PARAM = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")


@dataclass(frozen=True, slots=True)
class Template:
    """Shapes: `params` maps each parameter to whether it takes the rest of the path; `faults` are reasons."""

    text: str
    params: dict[str, bool]
    shape: str
    """Equal for templates that match the same paths."""
    faults: tuple[str, ...]


def read_path(text: str) -> Template:
    """A controller's path: whole segments `{name}`, and `{name:path}` as the last one."""
    faults: list[str] = []
    params: dict[str, bool] = {}
    shape: list[str] = []
    segments = text.split("/")[1:]
    for index, segment in enumerate(segments):
        found = _PARAM.fullmatch(segment)
        if found is None:
            if "{" in segment or "}" in segment:
                faults.append(f"{segment} is neither a literal nor one whole {{name}} or {{name:path}}")
            shape.append(segment)
            continue
        name, rest = found[1], found[2] is not None
        if name in params:
            faults.append(f"has the parameter {name} twice")
        if rest and index != len(segments) - 1:
            faults.append(f"{segment} takes the rest of the path and must be last")
        params[name] = rest
        shape.append("{:path}" if rest else "{}")
    if not faults:
        faults.extend(_not_canonical(_PARAM.sub("x", text)))
    return Template(text, params, "/" + "/".join(shape), tuple(faults))


def read_target(text: str, params: dict[str, bool]) -> tuple[str, ...]:
    """Reasons why a target template cannot be sent on, for a route with these parameters."""
    faults = [
        f"{found[0]} is not a parameter of the path"
        for found in _PARAM.finditer(text)
        if found[1] not in params or (found[2] is not None and not params[found[1]])
    ]
    plain = _PARAM.sub("x", text)
    if "{" in plain or "}" in plain:
        faults.append("has a brace that is not part of a {name}")
    else:
        faults.extend(_not_canonical(plain, query=True))
    return tuple(faults)


def target_query_names(text: str) -> frozenset[str]:
    """Names of the query parameters that a target template sets itself."""
    _, _, query = text.partition("?")
    return frozenset(unquote_plus(part.partition("=")[0]) for part in query.split("&") if part)


def target_params(text: str) -> frozenset[str]:
    """Names of the parameters that a target template puts in."""
    return frozenset(found[1] for found in _PARAM.finditer(text))


def _not_canonical(text: str, *, query: bool = False) -> Iterator[str]:
    """What requests are refused for is refused in templates: such a route could never match."""
    try:
        path, given_query = canonical_path(text)
    except ValueError as error:
        yield f"is not a canonical path: {error}"
        return
    if given_query and not query:
        yield "has a query part"
    elif path != text.partition("?")[0]:
        yield f"is not in canonical spelling, which is {path}"
