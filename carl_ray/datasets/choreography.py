"""Choreography: rendered videos with known phases, the default data set.

    python -m carl_ray.datasets.choreography FOLDER

An articulated figure performs one of four actions; an action is a few phases (sub-actions), each leading from
one key pose to the next. Body, colors, background, camera, tempo, phase lengths and the idle time before and
after the action differ from video to video: neither the position in a video nor its colors tell the phase.
The videos are H.264 files with B-frames; the ground truth (phase and progress of every frame) is in `labels.parquet`.
docs/data.md defines it and says what the data set can and cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from carl_ray.data.randomness import sample_generator
from carl_ray.datasets.figure import perform
from carl_ray.datasets.rendered import (
    FRAMES_PER_SECOND,
    RenderConfig,
    Renderer,
    encode,
    rendering_command,
)
from carl_ray.datasets.timeline import ACTIONS, sample_timeline

LABELS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # path inside the folder, "train/lift-003.mp4"
        pa.field("label", pa.string(), nullable=False),  # name of the action
        pa.field("frame_labels", pa.list_(pa.int32()), nullable=False),  # phase of a frame; -1: none
        pa.field("progress", pa.list_(pa.float32()), nullable=False),  # place among the key poses, 0 to 1
    ]
)


@dataclass(frozen=True, kw_only=True)
class ChoreographyConfig(RenderConfig):
    """Options of the rendered videos. The same config always gives the same frames and labels."""

    num_train: int = 96
    num_validation: int = 24
    num_test: int = 32
    size: int = 96


def video_ids(config: ChoreographyConfig) -> dict[str, str]:
    """Action of every video, by its id (the path inside the folder)."""
    names = list(ACTIONS)
    return {
        f"{split}/{names[i % len(names)]}-{i // len(names):03d}.mp4": names[i % len(names)]
        for split, count in config.num_videos.items()
        for i in range(count)
    }


def _render_video(folder: Path, config: ChoreographyConfig, video_id: str, name: str) -> dict[str, object]:
    """Render and encode one video; return its row of the labels."""
    action = ACTIONS[name]
    rng = sample_generator(config.seed, 0, video_id, 0)
    timeline = sample_timeline(len(action.phases), rng)
    frames = perform(
        action.poses,
        timeline.progress,
        has_bar=action.has_bar,
        size=config.size,
        frames_per_second=FRAMES_PER_SECOND,
        rng=rng,
    )
    encode(frames, folder / video_id)
    return {
        "video_id": video_id,
        "label": name,
        "frame_labels": timeline.frame_labels.tolist(),
        "progress": timeline.progress.tolist(),
    }


def _with_phase_names(labels: pa.Table) -> pa.Table:
    names = [list(ACTIONS[action].phases) for action in labels.column("label").to_pylist()]
    return labels.append_column("phase_names", pa.array(names, pa.list_(pa.string())))


# One core draws and encodes some 2,000 frames of 96 pixels a second: seconds for the default set.
RENDERER = Renderer(
    "choreography", 1, LABELS_SCHEMA, ChoreographyConfig(), video_ids, _render_video, _with_phase_names
)
default_folder, is_rendered, render = RENDERER.default_folder, RENDERER.is_rendered, RENDERER.render
ensure_rendered, read_labels = RENDERER.ensure_rendered, RENDERER.read_labels


def main(arguments: list[str] | None = None) -> None:
    """Render into a folder; options are the fields of `ChoreographyConfig`."""
    description = "Renders choreographed videos with known phases."
    rendering_command(RENDERER, description, arguments)


if __name__ == "__main__":
    main()
