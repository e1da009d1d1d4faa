"""The compiled part of the augmentation, compiled.c, where it was built. No Ray and no torch here.

It is optional: wheels have it, and an installation from source builds it where there is a C compiler. Without it
tensor operations compute the same bytes, several times slower, so machines with and without it may share a run.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Int32, Int64, UInt8

_VERSION = 2  # as in compiled.c: another one for any change of its functions
_MOST_TAPS = 256  # as in compiled.c
_BYTES = np.ctypeslib.ndpointer(np.uint8, flags="C_CONTIGUOUS")
_OUTPUT = np.ctypeslib.ndpointer(np.uint8, flags=("C_CONTIGUOUS", "WRITEABLE"))


@cache
def library() -> ctypes.CDLL | None:
    """The library; None where it was not built, or not for this machine or this version."""
    # Jobs run in a copy of a checkout without built files, on nodes where the package is installed.
    folders = [Path(__file__).parent, *(Path(entry, "carl_ray/data") for entry in sys.path)]
    for path in filter(Path.is_file, (folder / "_compiled.abi3.so" for folder in folders)):
        with suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(str(path.resolve()))
            if loaded.carl_version() == _VERSION:
                return _declared(loaded)
    return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its arguments."""
    int32, int64, numbers = ctypes.c_int32, ctypes.c_int64, np.ctypeslib.ndpointer
    loaded.carl_jitter.argtypes = [_BYTES, _OUTPUT, int64, int64, ctypes.c_char_p, numbers(np.float64), int32]
    loaded.carl_jitter.restype = None
    side: list[Any] = [numbers(np.int32), numbers(np.int16), int32, int32]
    loaded.carl_resize.argtypes = [
        ctypes.c_void_p, numbers(np.int64), int64, int64, int64, int64, *side, *side, int64, _OUTPUT
    ]  # fmt: skip
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


def resize(
    frames: UInt8[np.ndarray, "n height width 3"],
    places: Int64[np.ndarray, " taken"],
    flip: bool,
    output: UInt8[np.ndarray, "taken size size 3"],
) -> bool:
    """Resize frames, bilinear and antialiased, then mirror; return False where the library cannot.

    Args:
        frames: Pixels of a row are contiguous, as in a crop of whole frames.
        places: Indices of the frames to take.
        flip: Mirror left and right.
        output: Contiguous, apart from `frames`.

    Raises:
        IndexError: there is no frame at one of the places.
        MemoryError: there is no memory for the intermediate rows of one frame.
    """
    loaded = library()
    count, height, width, _ = frames.shape
    size = output.shape[1]
    if loaded is None or frames.dtype != np.uint8 or frames.strides[2:] != (3, 1):
        return False
    if len(places) and not 0 <= places.min() <= places.max() < count:
        raise IndexError(f"frames {places.min()} to {places.max()} of {count}")
    across, down = _weights(width, size), _weights(height, size)
    if max(across[1].shape[1], down[1].shape[1]) > _MOST_TAPS:
        return False
    sides = [
        (
            np.ascontiguousarray(starts[::step]),
            np.ascontiguousarray(weights[::step]),
            weights.shape[1],
            precision,
        )
        for (starts, weights, precision), step in ((across, -1 if flip else 1), (down, 1))
    ]
    offsets = places.astype(np.int64) * frames.strides[0]
    whole = frames.ctypes.data, offsets, len(places), frames.strides[1], height, width
    if not loaded.carl_resize(*whole, *sides[0], *sides[1], size, output):
        raise MemoryError
    return True


def _weights(
    length: int, size: int
) -> tuple[Int32[np.ndarray, " size"], Int16[np.ndarray, "size taps"], int]:
    """First pixel, weights and precision in bits of each output of a side, as torch computes them for bytes."""
    scale = length / size
    support = max(scale, 1.0)
    centers = scale * (np.arange(size) + 0.5)
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + support + 0.5).astype(np.int64), length) - starts
    taps = -(-int(counts.max()) // 2) * 2
    places = np.arange(taps)
    distances = np.abs((places + starts[:, None] - centers[:, None] + 0.5) * (1 / support))
    weights = np.where(places < counts[:, None], np.maximum(1 - distances, 0), 0.0)
    # One by one from the left: the order of the sum decides its last bit.
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    most = float(weights.max())
    precision = next(bits for bits in range(23) if bits == 22 or int(0.5 + most * 2 ** (bits + 1)) >= 2**15)
    return starts.astype(np.int32), (0.5 + weights * 2**precision).astype(np.int16), precision
