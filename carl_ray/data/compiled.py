"""The compiled part of the augmentation, compiled.c, where it was built. No Ray and no torch here.

It is optional: wheels have it, and an installation from source builds it where there is a C compiler. Without it
tensor operations compute the same bytes, several times slower, so machines with and without it may share a run.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

_VERSION = 1  # as in compiled.c
_BYTES = np.ctypeslib.ndpointer(np.uint8, flags="C_CONTIGUOUS")


@cache
def library() -> ctypes.CDLL | None:
    """The library; None where it was not built, or not for this machine or this version."""
    # Jobs run in a copy of a checkout without built files, on nodes where the package is installed.
    folders = [Path(__file__).parent, *(Path(entry, "carl_ray/data") for entry in sys.path)]
    path = next(filter(Path.is_file, (folder / "_compiled.abi3.so" for folder in folders)), None)
    try:
        loaded = ctypes.CDLL(str(path.resolve())) if path else None
        if loaded is None or loaded.carl_version() != _VERSION:
            return None
    except (OSError, AttributeError):
        return None
    numbers, int64 = np.ctypeslib.ndpointer(np.float64), ctypes.c_int64
    loaded.carl_jitter.argtypes = [_BYTES, _BYTES, int64, int64, ctypes.c_char_p, numbers, ctypes.c_int32]
    loaded.carl_jitter.restype = None
    return loaded


def jitter(
    source: UInt8[np.ndarray, "n height width 3"],
    operations: Sequence[tuple[int, float]],
    output: UInt8[np.ndarray, "n height width 3"],
) -> bool:
    """Apply colour operations to frames; return False where the library is missing.

    Args:
        source: Contiguous.
        operations: Numbers as of `AugmentParameters.order`, 4 greyscale, each at most once, and their factors; of the
            hue its turn.
        output: Contiguous; may be `source`.
    """
    loaded = library()
    if loaded is None:
        return False
    numbers = bytes(number for number, _ in operations)
    factors = np.array([factor for _, factor in operations], np.float64)
    num_frames, height, width, _ = source.shape
    loaded.carl_jitter(source, output, num_frames, height * width, numbers, factors, len(operations))
    return True
