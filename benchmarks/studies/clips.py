"""The systems of clips, their ablations and their controls on rendered scenes, three seeds each.

    python -m benchmarks.studies.clips [--preset clips_demo] [--seeds 3] [--steps 300] [--row NAME …]
        [--world static] [--out rows.jsonl]

Every row trains the preset with changes, on decoded frames in memory, and measures vectors of videos (mean of ten
clips): accuracy of logistic regression, and of the nearest training video, on action, pair (the action without its
direction) and scene; of csvr_demo those of each stream and of both, the error of predicted poses of the test videos as
a part of that of their mean pose, and the loss of context matching as a part of that of guessing. In the world `tint`
each video has a colour cast of its own, there is no colour augmentation, and R² of a ridge regression of the cast is
measured, and whether an information term halves it and keeps the action of the same row in the world `static` (in the
same --out); in `pan` the camera moves. The direction of time is no column: every action is there backwards, too, so a
clip and its reversal are as likely. Markdown goes to standard output, mean ± deviation over the seeds; a row takes two
to five minutes a seed on one core, and --out keeps finished ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser, number

# Two clips and one instead of two and one twice as long: as many frames a step, from more videos.
_CONTRAST = {
    "objective.name": "clip_contrast",
    "objective.hidden_width": "128",
    "objective.projection_width": "64",
    "training.global_batch_size": "48",
}
_SUPERVISED = {
    "objective.name": "clip_classes",
    "objective.dropout": "0",
    "training.global_batch_size": "96",
}
_ALONE = dict.fromkeys((f"objective.{part}_weight" for part in ("pose", "context", "generation")), "0")
_PLAIN = {"objective.information_weight": "0", "objective.order_weight": "0"}
REGIONS: dict[str, dict[str, str]] = {
    "untrained": {"steps": "0"},
    "untrained, batch norm adapted": {"steps": "0", "adapt": "1"},
    "untrained, differences": {"steps": "0", "model.clip_input": "difference"},
    "colour mean and deviation, 4 x 4": {"steps": "0", "low_level": "1"},
    "clip InfoNCE": _CONTRAST,
    "regions": {},
    "regions without order": {"objective.order_weight": "0"},
    "regions without information": {"objective.information_weight": "0"},
    "regions, adversary": {"objective.information": "adversary", "objective.information_on": "clip"},
    "region contrast alone": _PLAIN,
    "region contrast, hard targets": _PLAIN | {"objective.targets": "hard"},
    "region contrast, local clips alone": _PLAIN | {"objective.whole_view": "false"},
    "region contrast, all own negatives": _PLAIN | {"objective.own_negatives": "all"},
    "clip InfoNCE, differences": _CONTRAST | {"model.clip_input": "difference"},
    "regions, differences": {"model.clip_input": "difference"},
    "supervised": _SUPERVISED,
    "supervised, differences": _SUPERVISED | {"model.clip_input": "difference"},
}
CSVR: dict[str, dict[str, str]] = {
    "untrained": {"steps": "0"},
    "untrained, batch norm adapted": {"steps": "0", "adapt": "1"},
    "CSVR": {},
    "CSVR, poses of another video": {"poses": "other"},
    "poses alone": _ALONE | {"objective.pose_weight": "1"},
    "poses alone, of another video": _ALONE | {"objective.pose_weight": "1", "poses": "other"},
    "poses alone, from frames": _ALONE | {"objective.pose_weight": "1", "model.clip_input": "rgb"},
    "context alone": _ALONE | {"objective.context_weight": "1"},
    "generation alone": _ALONE | {"objective.generation_weight": "1"},
    "without poses": {"objective.pose_weight": "0"},
    "without context": {"objective.context_weight": "0"},
    "without generation": {"objective.generation_weight": "0"},
    "without critics": {"objective.pose_critic_weight": "0", "objective.clip_critic_weight": "0"},
    "one backbone for both streams": {"model.clip_streams": "shared"},
}
"""Changes of the preset by the row's name; `steps`, `adapt`, `low_level` and `poses` are this command's own."""
_ROWS = {"clips_demo": REGIONS, "csvr_demo": CSVR}

_MEASURES = ("action", "pair", "scene")
_CLAIMED = ("cast R²", "linear action")
_MOST_LOST = 0.05
"""Of the action, with casts and an information term."""
_NO_COLOR = {
    "augment.jitter_probability": "0",
    "augment.grayscale_probability": "0",
    "augment.blur_probability": "0",
}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m benchmarks.studies.clips",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        count = number(int, at_least=1)
        parser.add_argument("--seeds", type=count, default=3)
        parser.add_argument("--steps", type=count, default=300, help="of each training [300]")
        parser.add_argument("--preset", choices=list(_ROWS), default="clips_demo")
        parser.add_argument("--row", action="append", metavar="NAME", help="only these rows")
        parser.add_argument("--world", choices=["static", "tint", "pan"], default="static")
        parser.add_argument(
            "--out", type=Path, metavar="FILE", help="of finished rows, which are not run again"
        )
        options = parser.parse_args(arguments)
        rows = _ROWS[options.preset]
        if not set(options.row or ()) <= set(rows):
            raise UserError(f"--row: expected one of {', '.join(rows)}")
        _print_table(options)


def _print_table(options: argparse.Namespace) -> None:
    # Lazy import: --help answers at once.
    from benchmarks.studies.scene_clips import load_world, measure

    rows, is_tinted = _ROWS[options.preset], options.world == "tint"
    tinted: dict[str, dict[str, float]] = {}
    done: dict[str, dict[str, dict[str, float]]] = {}
    if options.out is not None and options.out.exists():
        done = dict(json.loads(line) for line in options.out.read_text().splitlines())
    world = None
    names = [f"{how} {what}" for how in ("linear", "R@1") for what in _MEASURES]
    names += ["cast R²"] * is_tinted
    names += ["pose error", "context loss"] * (options.preset == "csvr_demo")
    print(f"| row | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name in options.row or rows:
        found = []
        for seed in range(options.seeds):
            key = _key(options.preset, name, seed, options.steps, options.world)
            if key not in done:
                world = world or load_world(options.world)
                changes = (_NO_COLOR if is_tinted else {}) | rows[name]
                done[key] = measure(world, options.preset, changes, seed, options.steps)
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps([key, done[key]]) + "\n")
            found.append(done[key])
        if is_tinted and "" in found[0]:
            tinted[name] = {key: sum(one[""][key] for one in found) / len(found) for key in _CLAIMED}
        for vector in found[0]:
            cells = [
                _cell([one[vector][column] for one in found if column in one[vector]]) for column in names
            ]
            shown = f"{name}, {vector}" if vector else name
            print(f"| {shown} ({len(found)}) | {' | '.join(cells)} |", flush=True)
    plain: dict[str, float] = {}
    for name in tinted:
        keys = [_key(options.preset, name, seed, options.steps, "static") for seed in range(options.seeds)]
        if all(key in done for key in keys):
            plain[name] = sum(done[key][""][_CLAIMED[1]] for key in keys) / len(keys)
    print("\n".join(claims(tinted, plain)))


def _key(preset: str, name: str, seed: int, num_steps: int, world: str) -> str:
    """What a measurement is found by in --out: with the row's settings, which may be others one day."""
    return json.dumps([preset, name, _ROWS[preset][name], seed, num_steps, world])


def claims(tinted: Mapping[str, Mapping[str, float]], plain: Mapping[str, float]) -> list[str]:
    """Whether rows with an information term halve the R² of the cast without it, and keep the action.

    Args:
        tinted: R² of the cast and linear accuracy on the action, by the row's name.
        plain: Linear accuracy on the action of the same rows without casts.
    """
    cast, action = _CLAIMED
    without = tinted.get("regions without information")
    found = []
    for name in ("regions", "regions without order", "regions, adversary"):
        if without is None or name not in tinted:
            continue
        half, row = without[cast] / 2, tinted[name]
        kept = name in plain and row[action] >= plain[name] - _MOST_LOST
        than = f"{plain[name]:.2f}" if name in plain else "that in the world static, which is not in --out"
        verdict = "holds" if row[cast] <= half and kept else "FAILS"
        if row[cast] <= half and name not in plain:
            verdict = "is undecided"
        found.append(
            f"claim {verdict}: {name} leaves R² {row[cast]:.2f} of the cast, "
            f"half of {without[cast]:.2f} without information is {half:.2f}; action {row[action]:.2f}, at most "
            f"{_MOST_LOST} below {than}"
        )
    return found


def _cell(values: Sequence[float]) -> str:
    import numpy as np

    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
