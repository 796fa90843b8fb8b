"""No two platforms are given the same ports, though neither of them listens yet."""

from __future__ import annotations

import subprocess
import sys

from loadtests.demo import free_base_port


def test_ports_that_were_given_are_not_given_again():
    ports = [free_base_port() for _ in range(3)]
    assert len(set(ports)) == 3


def test_another_process_is_given_others():
    mine = free_base_port()
    # The pid decides where the search begins: here both begin at the same place.
    begin = f"import os; os.getpid = lambda: {(mine - 12_200) // 40}"
    code = f"{begin}\nfrom loadtests.demo import free_base_port\nprint(free_base_port())"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(theirs) != mine
