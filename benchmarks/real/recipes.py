"""Recipes of training and embeddings without training that the real benchmark compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.real.protocol import centered, joined
from carl_ray import presets
from carl_ray.config import Config
from carl_ray.data.features import model_input
from carl_ray.objectives.choice import objective_options

NUM_STEPS = 300
WINDOWS = {"five": 2, "nine": 4}
"""A window holds a frame and so many on either side of it."""
_POSITION_WEIGHT = 0.5
_TRAINED_WEIGHT = 0.5
"""Of the trained part beside a window: its cosines spread further."""


@dataclass(frozen=True)
class Recipe:
    """A way of training."""

    meaning: str
    config: Callable[[], Config]
    num_steps: int = NUM_STEPS
    is_main: bool = False
    """Trained with all seeds; others with fewer."""


def _objective(name: str, **options: float) -> Config:
    return replace(presets.preset("laptop"), objective=objective_options(name, **options))


def _plain(config: Config) -> Config:
    return replace(config, model=replace(config.model, centered=False, motion="none"))


RECIPES = {
    "untrained": Recipe("net before training", lambda: _objective("scl"), num_steps=0, is_main=True),
    "scl": Recipe("SCL, variance 9", lambda: _objective("scl", variance=9.0), is_main=True),
    "contrastive": Recipe("contrastive baseline", lambda: _objective("contrastive"), is_main=True),
    "scl-36": Recipe("SCL, variance 36", lambda: _objective("scl", variance=36.0), is_main=True),
    "scl-90": Recipe("SCL, variance 90", lambda: _objective("scl", variance=90.0)),
    "tcn": Recipe("TCN, window of 15 frames", lambda: _objective("tcn", window=15.0)),
    "tcc": Recipe("TCC", lambda: _objective("tcc")),
    "weak_scl": Recipe(
        "SCL and pairs of videos of one action", lambda: _objective("weak_scl", variance=36.0)
    ),
    "scl-plain": Recipe("SCL on plain features", lambda: _plain(_objective("scl", variance=9.0))),
    "contrastive-plain": Recipe("contrastive on plain features", lambda: _plain(_objective("contrastive"))),
}
"""By the name that `--recipe` takes."""


def windows(features: Mapping[str, np.ndarray], reach: int) -> dict[str, np.ndarray]:
    """Each frame's features and those of the strides before and after it, centred in each video."""
    return {
        name: np.concatenate(
            [array[np.clip(np.arange(len(array)) + k, 0, len(array) - 1)] for k in range(-reach, reach + 1)],
            axis=1,
        )
        for name, array in centered(features).items()
    }


def untrained_controls(features: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Embeddings that nothing was trained for, by name."""
    import torch

    from carl_ray.model.temporal import frame_positions, sine_cosine_code

    model, rng = presets.preset("laptop").model, np.random.default_rng(seed)
    masks = {name: torch.ones(1, len(array), dtype=torch.bool) for name, array in features.items()}
    positions = {
        name: sine_cosine_code(frame_positions(mask, model.num_frames)[0], model.width).numpy()
        for name, mask in masks.items()
    }
    controls = {
        "chance": {name: rng.standard_normal((len(array), model.width)) for name, array in features.items()},
        "positions": positions,
        "frozen": dict(features),
    }
    moving = {
        "frozen and motion, centred": {name: model_input(array, model) for name, array in features.items()}
    }
    moving |= {
        f"window of {name} frames, centred": windows(features, reach) for name, reach in WINDOWS.items()
    }
    for name, arrays in moving.items():
        controls |= {
            name: arrays,
            f"{name}, with positions": joined(arrays, positions, weights=(1, _POSITION_WEIGHT)),
        }
    return controls


def variants(
    embeddings: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """How the embeddings of a trained encoder are compared, by name."""
    central = centered(embeddings)
    return {
        "as is": dict(embeddings),
        "centred": central,
        **{
            f"joined with a window of {name}": joined(central, windows(features, reach))
            for name, reach in WINDOWS.items()
        },
        "at weight .5 joined with a window of nine": joined(
            central, windows(features, WINDOWS["nine"]), weights=(_TRAINED_WEIGHT, 1.0)
        ),
    }
