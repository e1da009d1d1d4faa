"""Random generators that depend only on (run seed, epoch, video, view).

A sample is therefore the same whichever worker makes it, in whatever order, and after any retries.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np

from carl_ray.objectives.views import CROPS

COPY_EPOCH = -2
"""Epoch of the draws of a video's fixed copies, whose number takes the place of the view; -1 is the validation's."""


class ViewNumber(IntEnum):
    """Purpose of a draw; the last part of the key of its generator."""

    SHARED = 0
    """Crops and frames of both views (`carl_ray.data.views`), whose crops must overlap."""
    FIRST = 1
    """The spatial augmentation of the first view (`carl_ray.data.augment`)."""
    SECOND = 2
    """The spatial augmentation of the second view."""


def view_key(view: str, number: int) -> int | str:
    """Last part of the key of a named view's generator: a `ViewNumber`, or the one after for each further clip."""
    return number if view == CROPS else f"{view}/{number}"


def sample_seed(seed: int, epoch: int, video_id: str, view: int | str) -> int:
    """A seed in [0, 2**63) from the four values, the same on every machine.

    Args:
        seed: Seed of the run.
        epoch: Epoch of the run, from 0.
        video_id: `video_id` of the manifest.
        view: As from `view_key`.
    """
    # Neither integers nor names of views hold a colon, and the id comes last: no two keys have the same text.
    key = f"{int(seed)}:{int(epoch)}:{view if isinstance(view, str) else int(view)}:{video_id}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample_generator(seed: int, epoch: int, video_id: str, view: int | str) -> np.random.Generator:
    """A new generator (PCG64) seeded with `sample_seed` of the same arguments."""
    return np.random.Generator(np.random.PCG64(sample_seed(seed, epoch, video_id, view)))
