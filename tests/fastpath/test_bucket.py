"""Token buckets against a plain model, over several processes, past capacity, and through killed owners."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.bucket import BucketTable, segment_bytes
from fastpath.remembered import siphash24

SECRET = b"0123456789abcdef"
S = 1_000_000_000
STRIPES_AT, STRIPES, STRIPE_BYTES = 64, 64, 64


def make_table(capacity: int = 1000) -> BucketTable:
    return BucketTable(mmap.mmap(-1, segment_bytes(capacity)), capacity, SECRET, create=True)


# --- the rule, against a plain model


class Model:
    """One dictionary of times; a table that never runs out of room must act like it."""

    def __init__(self) -> None:
        self.full_at: dict[int, int] = {}

    def take(self, key: int, interval: int, burst: int, now: int) -> tuple[bool, int, int, int]:
        base = max(self.full_at.get(key, 0), now)
        after = base + interval
        if after - now > interval * burst:
            return False, 0, after - now - interval * burst, base - now
        self.full_at[key] = after
        return True, (interval * burst - (after - now)) // interval, 0, after - now

    def peek(self, key: int, interval: int, burst: int, now: int) -> tuple[bool, int, int, int]:
        ahead = max(self.full_at.get(key, 0) - now, 0)
        over = ahead + interval - interval * burst
        return over <= 0, max(interval * burst - ahead, 0) // interval, max(over, 0), ahead

    def give_back(self, key: int, interval: int, taken: int, reset: int) -> bool:
        if self.full_at.get(key) != taken + reset:
            return False
        self.full_at[key] -= interval
        return True


RULES = st.tuples(st.sampled_from([1, 7, 1000, S, 3600 * S]), st.integers(1, 5))
STEPS = st.sampled_from([0, 0, 1, 3, 999, S // 2, S, 10 * S, -1, -S, 7200 * S])


@settings(max_examples=300, deadline=None)
@given(
    rules=st.lists(RULES, min_size=1, max_size=4),
    ops=st.lists(st.tuples(st.sampled_from(["take", "take", "take", "back"]), st.integers(0, 7), STEPS), max_size=60),
)
def test_acts_as_the_model(rules, ops) -> None:
    table, model = make_table(), Model()
    now, taken = 100_000 * S, []
    for op, number, step in ops:
        now += step
        interval, burst = rules[number % len(rules)]
        key = table.key("k", str(number))
        assert table.peek(key, interval, burst, now) == model.peek(key, interval, burst, now)
        if op == "take":
            found = table.take(key, interval, burst, now)
            assert found == model.take(key, interval, burst, now)
            if found[0]:
                taken.append((key, interval, now, found[3]))
        elif taken:
            undo = taken.pop(number % len(taken))
            assert table.give_back(*undo) == model.give_back(*undo)


def test_burst_then_one_each_interval() -> None:
    table = make_table()
    key = table.key("a")
    assert [table.take(key, S, 3, 50 * S) for _ in range(4)] == [
        (True, 2, 0, S), (True, 1, 0, 2 * S), (True, 0, 0, 3 * S), (False, 0, S, 3 * S),
    ]  # fmt: skip
    assert table.take(key, S, 3, 51 * S - 1) == (False, 0, 1, 2 * S + 1)
    assert table.take(key, S, 3, 51 * S) == (True, 0, 0, 3 * S)
    assert table.take(key, S, 3, 1000 * S) == (True, 2, 0, S)


def test_a_look_takes_nothing_and_says_what_a_take_would() -> None:
    """Also past capacity, where keys without a slot share one bucket."""
    table = make_table(1)
    for number in range(200):
        key, now = table.key(str(number)), 50 * S + number
        looks = [table.peek(key, S, 2, now) for _ in range(3)]
        assert len(set(looks)) == 1
        assert table.take(key, S, 2, now)[0] == looks[0][0]
    assert table.stats()["overflow_takes"] > 0


def test_a_refusal_costs_nothing() -> None:
    table = make_table()
    key = table.key("a")
    table.take(key, S, 1, 0)
    assert all(table.take(key, S, 1, now) == (False, 0, S - now, S - now) for now in range(0, S, S // 50))
    assert table.take(key, S, 1, S)[0]


def test_give_back_undoes_the_last_take_exactly() -> None:
    table = make_table()
    key = table.key("a")
    first, second = table.take(key, S, 2, 5 * S), table.take(key, S, 2, 5 * S)
    assert table.give_back(key, S, 5 * S, second[3]) is True
    assert table.give_back(key, S, 5 * S, second[3]) is False
    assert table.give_back(key, S, 5 * S, first[3]) is True
    assert [table.take(key, S, 2, 5 * S)[0] for _ in range(3)] == [True, True, False]


def test_give_back_of_an_unknown_key_changes_nothing() -> None:
    table = make_table()
    assert table.give_back(table.key("never"), S, 5 * S, S) is False
    assert table.stats()["used"] == 0


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    keys=st.integers(1, 60),
    burst=st.integers(1, 4),
    steps=st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 11, 40, -1, -7, -50]), min_size=50, max_size=300),
)
def test_no_window_admits_more_than_configured(seed, keys, burst, steps) -> None:
    """With 16 slots for 60 keys, evictions, the overflow, undone takes and a clock that steps back."""
    table, rng, interval, now = make_table(1), random.Random(seed), 10, 100_000
    admitted: dict[int, list[int]] = {}
    for step in steps:
        now += step
        key = rng.randrange(keys)
        hashed = table.key(str(key))
        ok, _, _, reset = table.take(hashed, interval, burst, now)
        if ok and rng.random() < 0.2:
            table.give_back(hashed, interval, now, reset)
        elif ok:
            admitted.setdefault(key, []).append(now)
    for times in admitted.values():
        for i in range(len(times)):
            for j in range(i, len(times)):
                assert (j - i + 1) * interval <= interval * burst + max(times[i : j + 1]) - times[i], times


# --- bounds


BAD_TAKES = [
    ("no interval", (0, 1, 1)),
    ("no burst", (1, 0, 1)),
    ("span too long", (2**61, 2, 1)),
    ("before zero", (1, 1, -1)),
    ("time too far", (1, 1, 2**62 + 1)),
]


@pytest.mark.parametrize("arguments", [c[1] for c in BAD_TAKES], ids=[c[0] for c in BAD_TAKES])
def test_take_refuses(arguments) -> None:
    with pytest.raises(ValueError, match="out of range"):
        make_table().take(1, *arguments)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (5, 1, 4), (5, -1, 9)], ids=["interval", "reset", "time"])
def test_give_back_refuses(arguments) -> None:
    with pytest.raises(ValueError, match="not what a take answered"):
        make_table().give_back(1, *arguments)


def test_extreme_rule() -> None:
    table = make_table()
    assert table.take(0, 2**61, 1, 2**62) == (True, 0, 0, 2**61)
    assert table.take(0, 2**61, 1, 2**62)[0] is False
    assert table.take(2**64 - 1, 1, 2**61, 0) == (True, 2**61 - 1, 0, 1)


def test_the_segment() -> None:
    memory = mmap.mmap(-1, segment_bytes(100))
    with pytest.raises(ValueError, match="no table"):
        BucketTable(memory, 100, SECRET, create=False)
    one = BucketTable(memory, 100, SECRET, create=True)
    other = BucketTable(memory, 100, SECRET, create=False)
    assert one.key("x") == other.key("x")
    assert [table.take(one.key("x"), S, 2, 0)[0] for table in (one, other, one)] == [True, True, False]
    with pytest.raises(ValueError, match="no table"):
        BucketTable(memory, 99, SECRET, create=False)
    with pytest.raises(ValueError, match="smaller"):
        BucketTable(memory, 100_000, SECRET, create=True)
    with pytest.raises(ValueError, match="aligned"):
        BucketTable(memoryview(memory)[16:], 1, SECRET, create=True)
    with pytest.raises(ValueError, match="secret"):
        BucketTable(memory, 100, b"short", create=True)
    with pytest.raises(BufferError):
        BucketTable(memoryview(bytes(segment_bytes(1))), 1, SECRET, create=True)
    with pytest.raises(ValueError, match="capacity"):
        segment_bytes(0)


def test_memory_is_bounded() -> None:
    assert segment_bytes(100_000) < 4 << 20


# --- keys


def test_keys_are_told_apart() -> None:
    table = make_table()
    same = [("a", "bc"), ("ab", "c"), ("abc",), ("", "abc"), ("abc", ""), (), ("",), ("x" * 600,), ("x" * 599, "x")]
    assert len({table.key(*parts) for parts in same}) == len(same)
    assert table.key("é") == table.key("é".encode())
    assert table.key("x" * 505, "y") == table.key(b"x" * 505, b"y")
    assert make_table().key("a") == table.key("a")
    memory = mmap.mmap(-1, segment_bytes(1))
    assert BucketTable(memory, 1, b"another secret of 16", create=True).key("a") != table.key("a")
    with pytest.raises(TypeError):
        table.key(1)


@pytest.mark.parametrize("size", [*range(500, 516), 1000])
def test_long_keys_hash_as_short_ones_do(size) -> None:
    memory = mmap.mmap(-1, segment_bytes(1))
    table = BucketTable(memory, 1, SECRET, create=True)
    text = b"z" * size
    digest = hashlib.blake2b(SECRET, digest_size=16, person=b"caregate-bucket").digest()
    assert table.key(text) == siphash24(digest, struct.pack("<I", size) + text)


# --- capacity


def test_holds_its_capacity() -> None:
    table = make_table(100_000)
    keys = [table.key("address", str(i)) for i in range(100_000)]
    assert all(table.take(key, 3600 * S, 1, S)[0] for key in keys)
    assert not any(table.take(key, 3600 * S, 1, 2 * S)[0] for key in keys)
    assert {name: table.stats()[name] for name in ("used", "evictions", "overflow_takes", "contended")} == {
        "used": 100_000, "evictions": 0, "overflow_takes": 0, "contended": 0,
    }  # fmt: skip


def test_a_flood_of_addresses_frees_nobody() -> None:
    table = make_table(1000)
    limited = [table.key("limited", str(i)) for i in range(200)]
    for key in limited:
        assert [table.take(key, 3600 * S, 2, S)[0] for _ in range(3)] == [True, True, False]
    admitted = sum(table.take(table.key("flood", str(i)), 3600 * S, 2, S + i)[0] for i in range(200_000))
    assert admitted <= table.stats()["slots"] - len(limited) + 2
    assert not any(table.take(key, 3600 * S, 2, 2 * S)[0] for key in limited)
    assert table.stats()["evictions"] == 0


def fill(table: BucketTable, now: int) -> None:
    """Leave no room: every slot gets a bucket that is full again only in an hour."""
    for i in range(1000):
        # A rule each, or one that had to use its overflow would be refused the slots that are left.
        table.take(table.key("filler", str(i)), 3600 * S, 1, now, 1000 + i)
        if table.stats()["used"] == table.stats()["slots"]:
            return
    pytest.fail("the table did not fill")


def test_past_capacity_a_rule_shares_one_bucket() -> None:
    table = make_table(1)
    fill(table, S)
    now = 2 * S
    newcomers = [table.key("new", str(i)) for i in range(10)]
    assert sum(table.take(key, S, 3, now, 5)[0] for key in newcomers) == 3
    assert sum(table.take(key, S, 3, now, 6)[0] for key in newcomers) == 3, "another rule has its own"
    assert table.take(newcomers[0], S, 3, now, 5) == (False, 0, S, 3 * S)
    assert table.take(newcomers[1], S, 3, now + S, 5)[0]


def test_give_back_to_the_overflow() -> None:
    table = make_table(1)
    fill(table, S)
    key = table.key("new")
    _, _, _, reset = table.take(key, S, 1, 2 * S, 5)
    assert table.give_back(key, S, 2 * S, reset, 5) is True
    assert table.give_back(key, S, 2 * S, reset, 5) is False
    assert table.take(key, S, 1, 2 * S, 5)[0]


def test_a_key_that_leaves_the_overflow_brings_its_debt() -> None:
    table = make_table(1)
    fill(table, S)
    key = table.key("new")
    now = 3602 * S - 1
    full = table.stats()["overflow_takes"]
    early = S + 1
    assert table.take(key, 3601 * S, 1, early, 5)[0], "from the overflow"
    assert table.stats()["overflow_takes"] == full + 1
    assert not table.take(key, 3601 * S, 1, now, 5)[0], "there is room now, but the token was lent before"
    assert table.take(key, 3601 * S, 1, early + 3601 * S, 5)[0]


def test_the_bucket_that_is_full_for_longest_is_evicted() -> None:
    table = make_table(1)
    slots, keys = table.stats()["slots"], []
    while table.stats()["used"] < slots:
        keys.append(table.key(str(len(keys))))
        assert table.take(keys[-1], S, 1, len(keys))[0]
    assert len(keys) == slots
    assert table.take(table.key("late"), S, 1, 10 * S)[0]
    assert table.stats()["evictions"] == 1
    assert table.stats()["used"] == slots
    # Only a bucket that still has its slot can be given a token back. Of two sets of eight, the oldest of one is gone.
    gone = [i for i, key in enumerate(keys) if not table.give_back(key, S, i + 1, S)]
    assert len(gone) == 1
    assert gone[0] < slots // 2 - 1


def test_an_evicted_bucket_is_not_refilled_by_a_clock_that_steps_back() -> None:
    table = make_table(1)
    key = table.key("a")
    assert table.take(key, S, 1, S)[0]
    for i in range(200):
        table.take(table.key(str(i)), S, 1, 100 * S + i)
    assert table.stats()["evictions"] > 0
    assert not table.take(key, S, 1, S + S // 2)[0]


# --- several processes


def children(count: int, work: Callable[[int], bytes]) -> list[tuple[int, int]]:
    """Fork; each child writes what `work(index)` returns. Shapes: [(pid, read end)]."""
    started = []
    for index in range(count):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                with os.fdopen(write, "wb") as out:
                    out.write(work(index))
            finally:
                os._exit(0)
        os.close(write)
        started.append((pid, read))
    return started


def results(started: list[tuple[int, int]]) -> Iterator[bytes]:
    for pid, read in started:
        with os.fdopen(read, "rb") as end:
            data = end.read()
        os.waitpid(pid, 0)
        yield data


def counts_of(data: bytes) -> Counter[int]:
    return Counter(dict(struct.iter_unpack("<II", data)))


def packed(counts: Counter[int]) -> bytes:
    return b"".join(struct.pack("<II", key, n) for key, n in counts.items())


@pytest.mark.parametrize(
    ("capacity", "keys"), [(1000, 1), (1000, 50), (1, 60)], ids=["one key", "many", "past capacity"]
)
def test_four_processes_never_admit_more(capacity, keys) -> None:
    table = make_table(capacity)
    interval, burst = 2_000_000, 5
    started_ns = time.monotonic_ns()

    def hammer(index: int) -> bytes:
        rng, counts = random.Random(index), Counter()
        while time.monotonic_ns() - started_ns < 250_000_000:
            key = rng.randrange(keys)
            now = time.monotonic_ns()
            ok, _, _, reset = table.take(table.key(str(key)), interval, burst, now)
            if ok and rng.random() < 0.3:
                table.give_back(table.key(str(key)), interval, now, reset)
            elif ok:
                counts[key] += 1
        return packed(counts)

    total: Counter[int] = Counter()
    for data in results(children(4, hammer)):
        total += counts_of(data)
    allowed = burst + (time.monotonic_ns() - started_ns) // interval
    assert sum(total.values()) > burst
    assert max(total.values()) <= allowed
    if keys == 1:
        assert total[0] > (burst + 250_000_000 // interval) // 2, "and not much less either"


def test_four_processes_give_a_key_one_bucket() -> None:
    """All race for the first take of the same new keys, in the same order."""
    table = make_table(20_000)
    gate, opened = os.pipe()
    keys = [table.key("new", str(i)) for i in range(20_000)]

    def race(index: int) -> bytes:
        os.close(opened)
        os.read(gate, 1)
        return packed(Counter({i: 1 for i, key in enumerate(keys) if table.take(key, 3600 * S, 2, S)[0]}))

    started = children(4, race)
    os.close(gate)
    os.close(opened)
    total: Counter[int] = Counter()
    for data in results(started):
        total += counts_of(data)
    assert max(total.values()) == 2
    assert sum(total.values()) >= 2 * len(keys) - table.stats()["contended"]


def test_survives_processes_killed_at_any_moment() -> None:
    table = make_table(2000)
    rng = random.Random(3)
    for turn in range(25):

        def hammer(index: int, turn: int = turn) -> bytes:
            for i in range(10_000_000):
                table.take(table.key(str(turn), str(index & 1), str(i % 100_000)), 1000, 2, time.monotonic_ns())
            return b""

        started = children(2, hammer)
        time.sleep(rng.uniform(0.002, 0.009))
        for pid, _ in started:
            os.kill(pid, signal.SIGKILL)
        assert list(results(started)) == [b"", b""]
        now, before = time.monotonic_ns(), table.stats()["contended"]
        for i in range(300):
            assert table.take(table.key("after", str(turn), str(i)), 1, 1, now)[3] > 0
        assert table.stats()["contended"] == before, "no lock stays with the dead"


# --- locks whose owner is gone, and whose owner is not

LIBC = ctypes.CDLL(None)


def lock_all(memory: mmap.mmap) -> None:
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + STRIPES_AT
    for i in range(STRIPES):
        assert LIBC.pthread_mutex_lock(ctypes.c_void_p(start + i * STRIPE_BYTES)) == 0


@pytest.fixture
def held() -> Iterator[tuple[BucketTable, Callable[[], None]]]:
    """A table whose locks another process holds, and what kills that process. "known" has taken one of three."""
    memory = mmap.mmap(-1, segment_bytes(100))
    table = BucketTable(memory, 100, SECRET, create=True)
    assert table.take(table.key("known"), S, 3, 0)[0]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock_all(memory)
        os.write(write, b"x")
        signal.pause()
    alive = [pid]

    def kill() -> None:
        while alive:
            os.kill(alive[0], signal.SIGKILL)
            os.waitpid(alive.pop(), 0)

    try:
        assert os.read(read, 1) == b"x"
        yield table, kill
    finally:
        kill()
        os.close(read)
        os.close(write)


def test_a_dead_owner_holds_nothing(held) -> None:
    table, kill = held
    kill()
    for i in range(100):
        assert [table.take(table.key(str(i)), S, 2, 0)[0] for _ in range(3)] == [True, True, False]
    assert table.stats()["contended"] == 0


def test_an_owner_that_stopped_makes_new_keys_refused_and_no_other(held) -> None:
    table, kill = held
    assert table.take(table.key("known"), S, 3, 0)[0]
    assert table.take(table.key("new"), S, 3, 0) == (False, 0, S, S)
    assert table.stats()["contended"] == 1
    kill()
    assert table.take(table.key("new"), S, 3, 0)[0]
