"""Looking at rules, some beside each other: most of it is waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from gateway.conformance.kit import Kit
from gateway.conformance.peer import Broken
from gateway.conformance.rules import RULES


def verdicts(names: Sequence[str], kits: Sequence[Kit]) -> Iterator[tuple[str, str]]:
    """(rule, how it is broken or an empty text), in the order of the names; a rule at a time for each kit.

    Raises: OSError if the agent cannot be run. Holds: the kits, which it closes.
    """
    free: SimpleQueue[Kit] = SimpleQueue()
    for kit in kits:
        free.put(kit)
    pool = ThreadPoolExecutor(len(kits))
    try:
        # What takes a minute begins first.
        looks = {name: pool.submit(_look, name, free) for name in sorted(names, key=lambda name: not RULES[name].slow)}
        for name in names:
            yield name, looks[name].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for kit in kits:
            kit.close()
        pool.shutdown()


def _look(name: str, free: SimpleQueue[Kit]) -> str:
    kit = free.get()
    try:
        RULES[name].look(kit)
    except Broken as error:
        kit.spent()
        return str(error)
    finally:
        free.put(kit)
    return ""
