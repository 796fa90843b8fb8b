"""The kernels of `fastpath` against their peers, in one process and one run: `python -m loadtests.bench_fastpath`.

Each `rows_*.py` beside this file has a function `rows(fast)` that gives the rows of one kernel; a new file is found by
its name.
"""
