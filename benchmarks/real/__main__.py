"""What training adds on real videos: phase errors of trained encoders and of controls without training.

    python -m benchmarks.real FOLDER
    python -m benchmarks.real FOLDER --recipe scl --recipe contrastive --seeds 2
    python -m benchmarks.real FOLDER --grid

FOLDER holds a clone of a public repository of exercise videos, under any name:

    git clone https://github.com/calimiro-ai/WorkoutTracker FOLDER/WorkoutTracker

Features, embeddings and results-fields.json are kept in --out; called again, the command goes on there. A run takes
about 45 s of one core, and so do the features of ten clips. Markdown goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.real.report import markdown
from benchmarks.real.videos import ACTIONS, Video, find_videos, phases, same_places
from carl_ray.data.features import FeatureCache
from carl_ray.errors import UserError, one_line_errors
from carl_ray.machine import single_threaded
from carl_ray.options import OptionParser, nearest

Measured = dict[str, dict[str, dict[str, float]]]
"""Scores by variant, action and measure."""
_FEWER = 1
"""Seeds of recipes that are neither main ones nor named."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """The videos with what all recipes share."""

    videos: list[Video]
    caches: dict[str, FeatureCache]
    """By name, as `recipes.FEATURES`."""
    features: dict[str, dict[str, np.ndarray]]
    """Of the clean frames, by the same name and video."""
    phases: dict[str, np.ndarray]
    fold: np.ndarray
    """Of each video."""
    unlabelled: list[Video]
    """Videos that have no phases."""

    def ids(self, fold: int, *, tested: bool, action: str | None = None) -> list[str]:
        """Ids of the videos that a fold is tested or trained on, of one action or of all."""
        return [
            video.video_id
            for video, own in zip(self.videos, self.fold == fold, strict=True)
            if own == tested and action in (None, video.action)
        ]


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        options = _parse(arguments)
        with single_threaded():
            _run(options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    from benchmarks.real.recipes import RECIPES

    unnamed = ", ".join(name for name, recipe in RECIPES.items() if recipe.only_named)
    parser = OptionParser(
        prog="python -m benchmarks.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="clones of the repositories")
    parser.add_argument(
        "--recipe", action="append", metavar="NAME", help=f"of {', '.join(RECIPES)} [all but {unnamed}]"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="of the main recipes and of those named [5]"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="[FOLDER/real-benchmark]")
    parser.add_argument(
        "--grid",
        action="store_true",
        help="instead, variance times temperature with one seed, then the two best of each objective with others",
    )
    parser.add_argument("--no-training", action="store_true", help="the table of what was trained so far")
    options = parser.parse_args(arguments)
    for name in options.recipe or ():
        if name not in RECIPES:
            raise UserError(f"unknown recipe {name!r}{nearest(name, list(RECIPES))} ({', '.join(RECIPES)})")
    if options.grid and options.recipe:
        raise UserError("--grid has recipes of its own: leave out --recipe")
    if options.seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {options.seeds}")
    return options


def _run(options: argparse.Namespace) -> None:
    from benchmarks.real import grid
    from benchmarks.real.recipes import GLOBAL_FEATURES, GRID, RECIPES, untrained_controls

    out = options.out or options.folder / "real-benchmark"
    corpus = read_corpus(options.folder, out)
    results = Results(out / "results-fields.json")

    def add(name: str, seed: int) -> None:
        for fold in (0, 1):
            file = out / "embeddings-fields" / f"{name}-{fold}-{seed}.npz"
            if file.exists() or not options.no_training:
                results.add(f"{name}|{fold}|{seed}", partial(trained, corpus, name, fold, seed, file))

    if options.grid:
        for name in GRID:
            add(name, 0)
        for seed in range(1, options.seeds + 1):
            for name in chain(*grid.best_points(results.found)):
                add(name, seed)
        print(grid.markdown(results.found, options.seeds))
        return
    for fold in (0, 1):
        for kind, features in corpus.features.items():
            for name, embeddings in untrained_controls(features, corpus.ids(fold, tested=False)).items():
                title = f"{name}, of whole frames" if kind == GLOBAL_FEATURES else name
                results.add(f"{title}|{fold}|0", partial(measure, corpus, {"": embeddings}, fold))
    for seed in range(options.seeds):
        for name in options.recipe or RECIPES:
            recipe = RECIPES[name]
            if options.recipe or (not recipe.only_named and (recipe.is_main or seed < _FEWER)):
                add(name, seed)
    print(markdown(results.found, corpus.videos, corpus.fold))


def read_corpus(folder: Path, out: Path) -> Corpus:
    """Videos of a folder, features, phases and folds; features are kept in folders in `out`."""
    from benchmarks.real.features import cache
    from benchmarks.real.protocol import folds, scenes
    from benchmarks.real.recipes import FEATURES, GLOBAL_FEATURES
    from benchmarks.real.training import clean_features

    found = find_videos(folder)
    videos, unlabelled = ([v for v in found if v.is_labelled == wanted] for wanted in (True, False))
    caches = {name: cache(videos, str(out / f"features-{name}"), config) for name, config in FEATURES.items()}
    features = {name: clean_features(made, videos) for name, made in caches.items()}
    means = {name: array.mean(axis=0) for name, array in features[GLOBAL_FEATURES].items()}
    stride = FEATURES[GLOBAL_FEATURES].data.frame_stride
    known = {
        video.video_id: phases(
            video.starts, np.arange(len(features[GLOBAL_FEATURES][video.video_id])) * stride
        )
        for video in videos
    }
    places = scenes(np.stack([means[video.video_id] for video in videos]), same_places(videos))
    fold = folds(places, [video.action for video in videos])
    return Corpus(videos, caches, features, known, fold, unlabelled)


def trained(corpus: Corpus, name: str, fold: int, seed: int, file: Path) -> Measured:
    """Scores of a recipe that sees the videos of the other fold; its embeddings are kept."""
    from benchmarks.real.features import cache
    from benchmarks.real.recipes import FEATURES, GRID, RECIPES, variants
    from benchmarks.real.training import embed, train

    recipe = (RECIPES | GRID)[name]
    features = corpus.features[recipe.features]
    if not file.exists():
        config, held = recipe.config(), corpus.caches[recipe.features]
        config = replace(config, training=replace(config.training, seed=seed))
        ids = corpus.ids(fold, tested=False)
        seen = [video for video in corpus.videos if video.video_id in ids]
        if recipe.unlabelled:
            seen += of_other_places(corpus, fold)
            cache(seen, held.uri, FEATURES[recipe.features])
        encoder = train(config, held, seen, recipe.num_steps)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **cast("dict[str, Any]", embed(encoder, config, features)))
    with np.load(file) as embedded:
        made = variants(dict(embedded), features, corpus.ids(fold, tested=False))
    return measure(corpus, made, fold)


def of_other_places(corpus: Corpus, fold: int) -> list[Video]:
    """Videos without labels from places that the test videos of a fold do not show."""
    own = {at for group in same_places(corpus.unlabelled) for at in group}
    (home,) = {int(corpus.fold[at]) for group in same_places(corpus.videos) for at in group}
    return [video for at, video in enumerate(corpus.unlabelled) if (fold == home) != (at in own)]


def measure(corpus: Corpus, embeddings: Mapping[str, Mapping[str, np.ndarray]], fold: int) -> Measured:
    """Scores of several embeddings on a fold, by name and action."""
    from benchmarks.real.protocol import score

    return {
        name: {
            action: asdict(
                score(
                    arrays,
                    corpus.phases,
                    corpus.ids(fold, tested=True, action=action),
                    corpus.ids(fold, tested=False, action=action),
                )
            )
            for action in ACTIONS
        }
        for name, arrays in embeddings.items()
    }


class Results:
    """Scores by `recipe|fold|seed`, in a file that grows with each.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Measured] = {}
        if path.exists():
            self.found = json.loads(path.read_text())

    def add(self, key: str, make: Callable[[], Measured]) -> None:
        """Make and keep what is missing."""
        if key not in self.found:
            print(key, file=sys.stderr, flush=True)
            self.found[key] = make()
            self._path.write_text(json.dumps(self.found, indent=1))


if __name__ == "__main__":
    main()
