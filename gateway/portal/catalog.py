"""The configuration's functions against the database: what is refused before it serves, and how to call the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gateway.config.fault import WHOLE, Fault, step
from gateway.config.model import Document, Function
from gateway.errors import InternalError
from gateway.portal.consent import PARAMETERS
from gateway.portal.values import JSON, Kind, kind_of
from gateway.store.functions import FunctionRow, RelationRow, RoleRow, load_catalog
from gateway.store.pool import Database

_JSON_TYPES = ("json", "jsonb")
_CONSENT_ARGUMENTS = dict.fromkeys(PARAMETERS, "claim:sub")


@dataclass(frozen=True, slots=True)
class Parameter:
    """`type_name` as SQL writes it; `kind` reads one value, or one member if `array`."""

    name: str
    type_name: str
    kind: Kind
    array: bool
    has_default: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """A portal function that may be called; one that `changes_nothing` may be called again if its answer is lost."""

    name: str
    parameters: Mapping[str, Parameter]
    changes_nothing: bool = False


@dataclass(slots=True)
class Catalog:
    """Signatures by the functions' names."""

    signatures: dict[str, Signature] = field(default_factory=dict)

    def merge(self, other: Catalog) -> None:
        """Take over another's signatures; what requests under way still use stays."""
        self.signatures = {**self.signatures, **other.signatures}


def check_functions(document: Document, database: Database) -> tuple[Catalog, list[Fault]]:
    """Check every function controller of a document, the tables behind them and the gateway's own role.

    Raises: DatabaseUnavailable.
    Yields to the hub: while the database answers.
    """
    wanted = {
        step(step("controllers", name), "function"): controller.function
        for name, controller in document.controllers.items()
        if controller.function is not None
    }
    asked = {
        step(step("controllers", name), "consent"): Function(name=consent.function, arguments=_CONSENT_ARGUMENTS)
        for name, controller in document.controllers.items()
        if (consent := controller.consent) is not None and consent.function is not None
    }
    if not wanted and not asked:
        return Catalog(), []
    names = sorted({function.name for function in (*wanted.values(), *asked.values())})
    rows, relations, role = _load(database, names)
    catalog = Catalog({row.name: _signature(row) for row in rows})
    faults = [*_role_faults(role), *(fault for relation in relations for fault in _relation_faults(relation))]
    for path, function in wanted.items():
        found = [row for row in rows if row.name == function.name]
        faults += _function_faults(path, function, found, catalog)
    for path, function in asked.items():
        found = [row for row in rows if row.name == function.name]
        about = {fault.reason for fault in _function_faults(path, function, found, catalog)}
        faults += [Fault(step(path, "function"), reason) for reason in sorted(about)]
    return catalog, faults


def load_signature(name: str, database: Database) -> Signature:
    """One function, for a configuration that was taken over while the database was away.

    Raises: DatabaseUnavailable; InternalError if the function may not be called.
    Yields to the hub: while the database answers.
    """
    rows, relations, role = _load(database, [name])
    unsafe = [*_role_faults(role), *(fault for relation in relations for fault in _relation_faults(relation))]
    if unsafe or len(rows) != 1 or any(_row_reasons(rows[0])):
        raise InternalError()
    return _signature(rows[0])


def _load(database: Database, names: list[str]) -> tuple[list[FunctionRow], list[RelationRow], RoleRow]:
    schemas = sorted({name.partition(".")[0] for name in names})
    return load_catalog(database, names, schemas)


def _signature(row: FunctionRow) -> Signature:
    first_default = len(row.argument_types) - row.defaults
    columns = zip(row.argument_names, row.argument_types, row.argument_bases, row.element_bases, strict=False)
    return Signature(
        row.name,
        {
            name: Parameter(name, type_name, kind_of(element or base), bool(element), index >= first_default)
            for index, (name, type_name, base, element) in enumerate(columns)
        },
        changes_nothing=not row.volatile,
    )


# --- the second lock


def _role_faults(role: RoleRow) -> Iterator[Fault]:
    if role.superuser or role.bypasses_row_security:
        yield Fault(WHOLE, f"the gateway's database role {role.name} can go around row-level security")


def _relation_faults(relation: RelationRow) -> Iterator[Fault]:
    what = f"the database's {relation.name}"
    if relation.ownable:
        yield Fault(WHOLE, f"{what}: the gateway's role owns it, or can become its owner")
    if relation.kind in ("r", "p") and not (relation.row_security and relation.forced):
        yield Fault(WHOLE, f"{what}: the table needs ENABLE and FORCE ROW LEVEL SECURITY")
    if relation.kind == "v" and not relation.security_invoker:
        yield Fault(WHOLE, f"{what}: the view needs security_invoker=true, or it reads with its owner's rights")
    if relation.kind in ("m", "f"):
        yield Fault(WHOLE, f"{what}: row-level security does not cover a materialized view or foreign table")


# --- one function


def _function_faults(path: str, function: Function, found: list[FunctionRow], catalog: Catalog) -> list[Fault]:
    name_path = step(path, "name")
    if not found:
        return [Fault(name_path, "the database has no such function")]
    if len(found) > 1:
        return [Fault(name_path, "the function is overloaded: give it a name of its own")]
    row = found[0]
    faults = [Fault(name_path, reason) for reason in _row_reasons(row)]
    if not faults:
        faults += _argument_faults(step(path, "arguments"), function, catalog.signatures[row.name])
    return faults


def _row_reasons(row: FunctionRow) -> Iterator[str]:
    if row.kind != "f":
        yield "it is not an ordinary function"
    if row.security_definer:
        yield "the function is SECURITY DEFINER and would go around row-level security"
    if row.returns not in _JSON_TYPES or row.returns_set:
        yield "the function must return one json or jsonb"
    if not row.plain_arguments or row.variadic or "" in row.argument_names:
        yield "the function must have named IN arguments only"
    if not (row.executable and row.usable_schema):
        yield "the gateway's database role may not execute the function"


def _argument_faults(path: str, function: Function, signature: Signature) -> Iterator[Fault]:
    for name, source in function.arguments.items():
        parameter = signature.parameters.get(name)
        if parameter is None:
            yield Fault(step(path, name), "the function has no such argument")
            continue
        for reason in _source_reasons(source, parameter):
            yield Fault(step(path, name), reason)
    for name in _missing(function.arguments, signature.parameters.values()):
        yield Fault(path, f"the function's argument {name} has no default and is not given")


def _source_reasons(source: str, parameter: Parameter) -> Iterator[str]:
    optional = source.endswith("?")
    origin, _, name = source.removesuffix("?").partition(":")
    if optional and not parameter.has_default:
        yield "it is optional here, but the function has no default for it"
    if origin in ("path", "query") and parameter.array:
        yield f"an array ({parameter.type_name}) cannot come from the {origin}"
    if origin == "body" and not name and (parameter.kind is not JSON or parameter.array):
        yield f"the whole body goes into json or jsonb, not {parameter.type_name}"


def _missing(given: Mapping[str, str], parameters: Iterable[Parameter]) -> list[str]:
    return [p.name for p in parameters if not p.has_default and p.name not in given]
