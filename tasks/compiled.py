"""Functions that numba compiles."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """`function` compiled by numba at its first call, and kept on disk where there is a folder to keep it in.

    Kept code is made again when the file of `function` changes, and only then: it may call none of another file.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)
