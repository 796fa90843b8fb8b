"""How several processes share one run (`make test`): each takes files, or the whole of a folder with one platform."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

ONE_PLATFORM = ("tests/integration/relay/", "tests/integration/units/", "tests/integration/")
"""Folders whose tests share a platform that takes seconds to start; the first that fits counts."""
FIRST = (*ONE_PLATFORM, "tests/loadtests/")
"""What waits longest begins first, so that no process is left with it alone at the end."""


class ByPlatform(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in ONE_PLATFORM if nodeid.startswith(folder)), nodeid.partition("::")[0])


def turn(nodeid: str) -> int:
    """When its turn is among the others."""
    return next((number for number, folder in enumerate(FIRST) if nodeid.startswith(folder)), len(FIRST))
