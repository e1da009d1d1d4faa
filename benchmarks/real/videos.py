"""Videos of exercises and the starts of their repetitions, in a clone of a public repository.

    FOLDER/NAME/data/raw/ACTION/*.mp4, FOLDER/NAME/data/labels/ACTION/*.csv    calimiro-ai/WorkoutTracker

The clone may have any NAME. A file of labels has a row a frame, with `label` 1 where a repetition starts.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from carl_ray.errors import UserError

ACTIONS = ("pull-ups", "push-ups", "squats")
TESTED = ACTIONS[:2]
"""Squats have one repetition a clip and three scenes: they are trained on, and reported apart."""
REPOSITORY = "calimiro-ai/WorkoutTracker"
_LEFT_OUT = "videoplayback"
"""Prefix of files whose labels drift or are missing, or that are longer than all others of their action together."""
_SAME_PLACE = {
    "pull-ups": (5, 6, 7, 8, 9, 10, 11, 13),
    "push-ups": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14),
    "squats": (17, 18, 19),
}
"""Numbers of the clips of each action that show one person in one place, from different sides: seen by eye."""
_SUFFIXES = (".mp4", ".mov")


@dataclass(frozen=True, eq=False)
class Video:
    """A video of one action."""

    video_id: str
    path: Path
    action: str
    num_frames: int
    starts: Int64[np.ndarray, " repetitions"]
    """First frames of its repetitions; a phase needs two."""

    @property
    def is_labelled(self) -> bool:
        """Whether any of its frames has a phase."""
        return len(self.starts) > 1


def find_videos(folder: Path) -> list[Video]:
    """The videos of all actions below a folder, with and without labels.

    Raises:
        UserError: the repositories are not there.
    """
    roots = sorted(path.parent for path in folder.glob("*/data/raw") if (path.parent / "labels").is_dir())
    if not roots:
        raise UserError(
            f"{folder}: expected a clone of the exercise videos, found none: git clone https://github.com/{REPOSITORY} "
            f"{folder / REPOSITORY.partition('/')[2]}"
        )
    found = [
        _video(path, action, roots[0] / "labels" / action / f"{path.stem}.csv")
        for action in ACTIONS
        for path in sorted((roots[0] / "raw" / action).iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.stem.startswith(_LEFT_OUT)
    ]
    return [video for video in found if video is not None]


def same_places(videos: Sequence[Video]) -> list[list[int]]:
    """Positions of the videos that show one place from different sides, a list an action."""
    names = {
        action: {f"{action.rstrip('s')}_{number}" for number in held} for action, held in _SAME_PLACE.items()
    }
    groups = [[at for at, video in enumerate(videos) if video.path.stem in held] for held in names.values()]
    return [group for group in groups if group]


def _video(path: Path, action: str, labels: Path | None) -> Video | None:
    """A video with its labels; None where the file holds none."""
    from carl_ray.data.decode import DecodeError, probe_video

    try:
        num_frames = probe_video(str(path)).num_frames
    except DecodeError:
        return None
    starts = read_starts(labels) if labels is not None and labels.exists() else np.zeros(0, np.int64)
    return Video(f"{action}/{path.name}", path, action, num_frames, starts)


def read_starts(path: Path) -> Int64[np.ndarray, " repetitions"]:
    """Frames at which a repetition starts, from a file of labels."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([int(float(row["frame"])) for row in rows if float(row["label"] or 0)], np.int64)


def phases(starts: Sequence[int] | np.ndarray, frames: np.ndarray) -> Float[np.ndarray, " frames"]:
    """Share of the time between two starts of repetitions at each frame; NaN before the first and from the last on.

    Args:
        starts: Ascending frames.
        frames: Numbers of frames.
    """
    given = np.asarray(starts, float)
    shares = np.interp(frames, given, np.arange(len(given)), left=np.nan, right=np.nan) % 1.0
    return np.where(frames < given[-1], shares, np.nan)
