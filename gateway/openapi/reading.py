"""An OpenAPI document of somebody else -> its operations and components; strictly, every fault named. Pure.

Source: OpenAPI Specification 3.0 and 3.1. References leave the document nowhere: only `#/components/…` is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gateway.config.fault import WHOLE, Fault, located, step
from gateway.config.source import is_mapping, read

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those that a controller may have."""
_VERSION = re.compile(r"3\.[01]\.\d+\Z")
_REFERENCE = re.compile(r"#/components/([A-Za-z]+)/([A-Za-z0-9._-]+)\Z")
_PARAM = re.compile(r"\{([^{}/]+)\}")


@dataclass(frozen=True, slots=True)
class Operation:
    """Shapes: `path` from the root of the service's address, `{name}` for parameters; `raw` as it is written, with the
    parameters of its path.
    """

    path: str
    method: str
    raw: dict[str, Any]

    @property
    def shape(self) -> str:
        """Equal for paths that differ in the names of parameters alone."""
        return _PARAM.sub("{}", self.path)

    @property
    def params(self) -> list[str]:
        """Names of the parameters in the path, in their order."""
        return _PARAM.findall(self.path)


@dataclass(frozen=True, slots=True)
class Description:
    """A document that was read. Shapes: `components` section -> name -> object."""

    operations: tuple[Operation, ...]
    components: dict[str, dict[str, Any]]


class Undescribed(ValueError):
    """A document that cannot be used; `faults` say what is wrong, and where."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


def read_description(raw: bytes) -> Description:
    """Read a document in YAML or JSON.

    Raises: Undescribed with every fault.
    """
    source = read(raw)
    faults = list(source.faults)
    data = source.data
    if not is_mapping(data):
        raise Undescribed(located(faults or [Fault(WHOLE, "must be a mapping")], source.lines))
    if not _VERSION.match(str(data.get("openapi", ""))):
        faults.append(Fault("openapi", "must be 3.0.x or 3.1.x"))
    base = _base(data, faults)
    operations = tuple(_operations(data, base, faults))
    components = _components(data, faults)
    known = {(section, name) for section, named in components.items() for name in named}
    faults += _dangling([operation.raw for operation in operations], "paths", known)
    faults += _dangling(components, "components", known)
    if faults:
        raise Undescribed(located(faults, source.lines))
    return Description(operations, components)


def references(value: object) -> Iterator[str]:
    """Every `$ref` in a value."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "$ref" and isinstance(member, str):
                yield member
            else:
                yield from references(member)
    elif isinstance(value, list):
        for member in value:
            yield from references(member)


def component_of(reference: str) -> tuple[str, str] | None:
    """Section and name of a reference into the document's components; None if it leads elsewhere."""
    found = _REFERENCE.match(reference)
    return (found[1], found[2]) if found else None


def _base(data: dict[str, Any], faults: list[Fault]) -> str:
    """The path of the first server, without a slash at its end."""
    servers = data.get("servers")
    if not servers:
        return ""
    try:
        path = urlsplit(str(servers[0]["url"])).path.rstrip("/")
    except (TypeError, KeyError, IndexError, ValueError):
        faults.append(Fault(step("servers", 0), "has no url"))
        return ""
    if "{" in path:
        faults.append(Fault(step(step("servers", 0), "url"), "has a variable in its path"))
    return path


def _operations(data: dict[str, Any], base: str, faults: list[Fault]) -> Iterator[Operation]:
    paths = data.get("paths")
    if not is_mapping(paths):
        faults.append(Fault("paths", "must be a mapping of paths to operations"))
        return
    for path, item in paths.items():
        below = step("paths", path)
        if not path.startswith("/") or not is_mapping(item):
            faults.append(Fault(below, "must begin with / and hold operations"))
            continue
        shared = item.get("parameters", [])
        for name, operation in item.items():
            if name.upper() not in METHODS or name != name.lower():
                continue
            if not is_mapping(operation):
                faults.append(Fault(step(below, name), "must be a mapping"))
                continue
            parameters = [*_listed(shared, below, faults), *_listed(operation.get("parameters", []), below, faults)]
            yield Operation(base + path, name.upper(), {**operation, "parameters": parameters})


def _listed(parameters: object, below: str, faults: list[Fault]) -> list[Any]:
    if isinstance(parameters, list) and all(is_mapping(one) for one in parameters):
        return parameters
    faults.append(Fault(step(below, "parameters"), "must be a list of parameters"))
    return []


def _components(data: dict[str, Any], faults: list[Fault]) -> dict[str, dict[str, Any]]:
    given = data.get("components", {})
    found = {name: section for name, section in given.items() if is_mapping(section)} if is_mapping(given) else {}
    if not is_mapping(given) or len(found) < len(given):
        faults.append(Fault("components", "must be a mapping of sections"))
    return found


def _dangling(value: object, where: str, known: set[tuple[str, str]]) -> list[Fault]:
    return [
        Fault(where, f"refers to {reference}, which is not in this document")
        for reference in sorted(set(references(value)))
        if component_of(reference) not in known
    ]
