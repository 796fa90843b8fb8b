"""The compiled kernels in `fastpath/` and their compiler directives; the rest is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("CAREGATE_DEBUG_BUILD") == "1"
"""Line tracing for profilers (`make debug`): slower by an order of magnitude, never for production."""

FUZZ = os.environ.get("CAREGATE_FUZZ_BUILD") == "1"
"""Coverage and address checks for fuzzers (`make fuzz`): needs clang, and a process that brings their runtime."""

DIRECTIVES = {
    "language_level": 3,
    "binding": False,
    "embedsignature": True,
    "boundscheck": True,
    "wraparound": False,
    "cdivision": True,
    "profile": DEBUG,
    "linetrace": DEBUG,
}

SANITIZERS = ["-g", "-fsanitize=address,fuzzer-no-link"] if FUZZ else []

extensions = [
    Extension(
        f"fastpath.{source.stem}",
        [str(source)],
        extra_compile_args=["-O2" if not DEBUG else "-O0", "-Wall", "-Wextra", "-Wno-unused-parameter", *SANITIZERS],
        extra_link_args=SANITIZERS,
        define_macros=[("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
    )
    for source in sorted(Path("fastpath").glob("*.pyx"))
]

setup(ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, annotate=DEBUG, nthreads=os.cpu_count() or 1))
