"""Recipes of training and embeddings without training that the real benchmark compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.real.protocol import centered, joined
from carl_ray import presets
from carl_ray.config import Config
from carl_ray.data.features import model_input
from carl_ray.evaluation.frozen import fit_axes, formed, frozen_config
from carl_ray.objectives.choice import objective_options

NUM_STEPS = 300
WINDOWS = {"five": 2, "nine": 4}
"""A window holds a frame and so many on either side of it."""
JOINED = "joined"
GRID_FEATURES, GLOBAL_FEATURES = "grid", "global"
_POSITION_WEIGHT = 0.5


def _global(config: Config) -> Config:
    return replace(config, model=replace(config.model, cut_stages=0, pooling="average"))


FEATURES = {GRID_FEATURES: presets.preset("laptop"), GLOBAL_FEATURES: _global(presets.preset("laptop"))}
"""Configs of the features: averages of 3 x 3 fields of a middle stage, as `laptop` has them, and of whole frames."""


@dataclass(frozen=True)
class Recipe:
    """A way of training."""

    meaning: str
    config: Callable[[], Config]
    num_steps: int = NUM_STEPS
    features: str = GRID_FEATURES
    """What it sees, of `FEATURES`."""
    unlabelled: bool = False
    """Trained on videos without labels, too."""
    is_main: bool = False
    """Trained with all seeds; others with fewer."""
    only_named: bool = False
    """Trained only where it is named."""


def _objective(name: str, **options: float) -> Config:
    return replace(presets.preset("laptop"), objective=objective_options(name, **options))


def _plain(config: Config) -> Config:
    return replace(config, model=replace(config.model, centered=False, motion="none"))


def _moving(config: Config) -> Config:
    return replace(config, model=replace(config.model, motion="window"))


RECIPES = {
    "untrained": Recipe("net before training", lambda: _objective("scl"), num_steps=0, is_main=True),
    "scl": Recipe("SCL, variance 9", lambda: _objective("scl", variance=9.0), is_main=True),
    "contrastive": Recipe("contrastive baseline", lambda: _objective("contrastive"), is_main=True),
    "scl-36": Recipe("SCL, variance 36", lambda: _objective("scl", variance=36.0)),
    "scl-90": Recipe("SCL, variance 90", lambda: _objective("scl", variance=90.0)),
    "scl-more": Recipe(
        "SCL, with unlabelled videos", lambda: _objective("scl", variance=9.0), unlabelled=True
    ),
    "scl-window": Recipe(
        "SCL on windows of nine frames", lambda: _moving(_objective("scl", variance=9.0)), only_named=True
    ),
    "tcn": Recipe("TCN, window of 15 frames", lambda: _objective("tcn", window=15.0)),
    "tcc": Recipe("TCC", lambda: _objective("tcc")),
    "weak_scl": Recipe("SCL and pairs of videos", lambda: _objective("weak_scl", variance=9.0)),
    "scl-global": Recipe(
        "SCL on averages of whole frames",
        lambda: _global(_objective("scl", variance=9.0)),
        features=GLOBAL_FEATURES,
        only_named=True,
    ),
    "contrastive-global": Recipe(
        "contrastive on averages of whole frames",
        lambda: _global(_objective("contrastive")),
        features=GLOBAL_FEATURES,
        only_named=True,
    ),
    "scl-plain": Recipe("SCL on plain features", lambda: _plain(_objective("scl", variance=9.0))),
    "contrastive-plain": Recipe("contrastive on plain features", lambda: _plain(_objective("contrastive"))),
}
"""By the name that `--recipe` takes."""

VARIANCES = (9.0, 36.0, 90.0, 225.0)
"""Of the grid, in squared frames: 1, 4, 10 and 25 squared strides of three frames."""
TEMPERATURES = (0.07, 0.1, 0.3)


def grid_name(variance: float | None, temperature: float) -> str:
    """Name of a point of the grid; without a variance, of the contrastive baseline's."""
    return f"{f'scl-{variance:g}' if variance else 'contrastive'}-at-{temperature:g}"


def _grid_recipe(variance: float | None, temperature: float) -> Recipe:
    if variance is None:
        made = partial(_objective, "contrastive", temperature=temperature)
        return Recipe(f"contrastive baseline, temperature {temperature:g}", made)
    made = partial(_objective, "scl", variance=variance, temperature=temperature)
    return Recipe(f"SCL, variance {variance:g}, temperature {temperature:g}", made)


GRID = {grid_name(v, t): _grid_recipe(v, t) for v in (None, *VARIANCES) for t in TEMPERATURES}
"""By name: variance times temperature, for `--grid`."""


def windows(arrays: Mapping[str, np.ndarray], reach: int) -> dict[str, np.ndarray]:
    """Each frame's vector and those of the strides before and after it, centred in each video."""
    return {
        name: np.concatenate(
            [array[np.clip(np.arange(len(array)) + k, 0, len(array) - 1)] for k in range(-reach, reach + 1)],
            axis=1,
        )
        for name, array in centered(arrays).items()
    }


def frozen_embeddings(features: Mapping[str, np.ndarray], train: Sequence[str]) -> dict[str, np.ndarray]:
    """Embeddings without training of `carl-ray embed --encoder frozen`.

    Args:
        features: Of all videos.
        train: Ids of those that components are fitted to.
    """
    model = frozen_config(presets.preset("laptop"), "window").model
    inputs = {name: model_input(array, model) for name, array in features.items()}
    axes = fit_axes(np.concatenate([inputs[name] for name in train]))
    return {name: array @ axes for name, array in inputs.items()}


def untrained_controls(
    features: Mapping[str, np.ndarray], train: Sequence[str], seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Embeddings that nothing was trained for, by name; arguments as `frozen_embeddings`."""
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
    moving["window of nine frames, reduced to 128"] = frozen_embeddings(features, train)
    for name, arrays in moving.items():
        with_positions = joined(arrays, positions, weights=(1, _POSITION_WEIGHT))
        controls |= {name: arrays, f"{name}, with positions": with_positions}
    return controls


def variants(
    embeddings: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], train: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """How the embeddings of a trained encoder are compared, by name.

    Args:
        embeddings: Of all videos.
        features: As `frozen_embeddings`.
        train: Likewise.
    """
    frozen = frozen_embeddings(features, train)
    return {
        "as is": dict(embeddings),
        "centred": centered(embeddings),
        "centred, window of nine": windows(embeddings, WINDOWS["nine"]),
        "joined with a window of five": joined(centered(embeddings), windows(features, WINDOWS["five"])),
        # Frames of the benchmark are strides.
        JOINED: {name: formed(array, frozen[name], "joined", 1) for name, array in embeddings.items()},
    }
