"""What goes back to the system after the start: which mappings, and that the process lives on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.agent.memory import _as_in_files


def mapping(start, flags="r-xp", path="/usr/lib/libcrypto.so.3", anonymous=0, swap=0):
    return (
        f"{start:012x}-{start + 0x1000:012x} {flags} 00000000 fe:00 42    {path}\n"
        "Size:                  4 kB\nRss:                   4 kB\n"
        f"Anonymous:             {anonymous} kB\nTHPeligible:           0\nSwap:                  {swap} kB\n"
        "VmFlags: rd ex mr mw me\n"
    )


GONE = mapping(0x1000)
STAYS = {
    "relocated": mapping(0x3000, flags="r--p", anonymous=12),
    "relocated and swapped out": mapping(0x3000, flags="r--p", swap=4),
    "writable": mapping(0x3000, flags="rw-p"),
    "shared": mapping(0x3000, flags="r--s"),
    "no file": mapping(0x3000, path=""),
    "no file either": mapping(0x3000, path="[vdso]"),
}


@pytest.mark.parametrize("other", STAYS.values(), ids=STAYS)
def test_only_what_is_as_in_its_file(other):
    maps = GONE + other + mapping(0x8000, flags="r--p")
    assert list(_as_in_files(maps.encode())) == [(0x1000, 0x2000), (0x8000, 0x9000)]


PROGRAM = """
import hashlib, ssl, sqlite3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway.agent.memory import let_go

def resident_kb():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])

def work():
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    table = sqlite3.connect(":memory:").execute("SELECT 1").fetchall()
    return key.sign(b"x"), hashlib.sha256(b"x").digest(), table, len(ssl.create_default_context().get_ciphers())

first, before_kb = work(), resident_kb()
let_go()
after_kb = resident_kb()
assert work() == first
print(before_kb, after_kb)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_goes_on_with_less():
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    before_kb, after_kb = map(int, out.split())
    assert after_kb < before_kb - 4096
