"""Which scopes a grant carries: of those asked for, what the role may have. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gateway.errors import TokenRequestRefused
from gateway.rbac.scopes import Ceiling, read_ceiling, read_scope

MAX_CHARS: Final = 4_096
_SCOPE = re.compile(r"[!#-\[\]-~]+( [!#-\[\]-~]+)*\Z")


def is_scope(text: str) -> bool:
    """Is it written as scopes are? Source: RFC 6749, 3.3."""
    return len(text) <= MAX_CHARS and _SCOPE.match(text) is not None


def granted_scope(most: tuple[str, ...] | None, asked: str | None, *, within: str | None = None) -> str:
    """The scopes to grant, "" for a role that has none.

    Shapes: `most` are the role's scopes, None if it has none; `asked` None: all that there are; `within` is what was
    granted before and is not to be exceeded.
    Raises: TokenRequestRefused (invalid_scope) where nothing that was asked for can be granted.
    """
    if most is None:
        if asked is not None:
            # SEC: a narrower scope that nobody enforces would be a promise not kept.
            raise _refused("Scopes are not granted to this role; a token has the role's permissions")
        return ""
    if asked is not None and not is_scope(asked):
        raise _refused("scope is not as RFC 6749 has it")
    before = within.split() if within is not None else None
    wanted = asked.split(" ") if asked is not None else before if before is not None else most
    ceilings = [read_ceiling(most)] + ([read_ceiling(before)] if before is not None else [])
    found = list(dict.fromkeys(text for text in wanted if _may_have(ceilings, text)))
    if asked is not None and not found:
        raise _refused("None of these scopes can be granted")
    return " ".join(found)


def _may_have(ceilings: Iterable[Ceiling], text: str) -> bool:
    found = read_scope(text)
    if found is None:
        return False
    context, mask = found
    return all(mask & getattr(ceiling, context) == mask for ceiling in ceilings)


def _refused(detail: str) -> TokenRequestRefused:
    return TokenRequestRefused("invalid_scope", detail)
