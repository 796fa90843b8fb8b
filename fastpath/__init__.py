"""Compiled kernels of the request path: CPU only, no clock, no I/O but that of `syncer`, no import of `gateway`.

A kernel that is not built makes its import fail with the command that builds it: there is no slower fallback.
"""

import importlib.util

_KERNELS = (
    "token",
    "rsa",
    "revoked",
    "target",
    "routes",
    "bucket",
    "frames",
    "http",
    "chunks",
    "responses",
    "upstream",
    "context",
    "cells",
    "lane",
    "books",
    "events",
    "chain",
    "syncer",
    "loop",
)


def require(*names: str) -> None:
    """Fail with a clear message unless the named kernels are compiled.

    Raises: ImportError naming the missing kernels and how to build them.
    """
    missing = [name for name in names or _KERNELS if importlib.util.find_spec(f"fastpath.{name}") is None]
    if missing:
        raise ImportError(
            f"fastpath is not compiled ({', '.join(missing)} missing): run `make build`, "
            "or `python setup.py build_ext --inplace` with Cython and a C compiler"
        )
