"""Keypoints of the person in a video: where they come from, and their coordinates in a view. No Ray, no torch here.

Legend: S frames of a video, T frames of a clip, 17 joints in COCO's order, each x, y and a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float16, Float32

from carl_ray.data.views import ViewIndices
from carl_ray.errors import UserError, note

KEYPOINTS = "keypoints"
"""Column of a manifest: the values of every frame, of which NaN is no joint; null: not known."""
_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_JOINTS = ("nose", *(f"{side}_{part}" for part in _PAIRS for side in ("left", "right")))
NUM_JOINTS = len(COCO_JOINTS)
LEAST_SCORE = 0.5
"""A joint with a lower score is not valid."""
_MIRRORED = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
"""Of each joint the one on the other side."""
_BEYOND = 0.1
"""How far outside a view, as a part of it, a joint is still valid."""


def check_keypoints(videos: pa.Table, source: str, kind: str = "training") -> pa.Table:
    """The videos with `KEYPOINTS` as float16, null where nobody is in the video, and a hash, `keypoints_digest`.

    Says how many have none.

    Args:
        videos: Columns `video_id`, `num_frames` and `KEYPOINTS`.
        source: Name of their manifest.
        kind: Which videos of the manifest; of others than `training` most may have none.

    Raises:
        UserError: more than half of them have none; or a video has another number of values than its frames need.
    """
    try:
        column = videos.column(KEYPOINTS).cast(pa.list_(pa.float16()))
    except pa.ArrowException as error:
        raise UserError(f"{source}: expected lists of numbers as {KEYPOINTS} ({error})") from None
    rows: list[np.ndarray | None] = []
    for row, found in enumerate(column):
        values = None if found.values is None else found.values.to_numpy(zero_copy_only=False)
        num_frames = videos.column("num_frames")[row].as_py()
        if values is not None and len(values) != num_frames * NUM_JOINTS * 3:
            raise UserError(
                f"{source}: video {videos.column('video_id')[row].as_py()!r} has {len(values)} values of {KEYPOINTS}: "
                f"expected {num_frames} frames x {NUM_JOINTS} joints x (x, y, score)"
            )
        rows.append(values)
    digests = [keypoints_digest(values) for values in rows]
    rows = [values if digest else None for values, digest in zip(rows, digests, strict=True)]
    place = videos.schema.get_field_index(KEYPOINTS)
    videos = videos.set_column(place, KEYPOINTS, pa.array(rows, column.type))
    return with_digests(videos, digests, source, kind)


def keypoints_digest(values: Float16[np.ndarray, " values"] | None) -> str | None:
    """Hash of the keypoints of a video; None where it has none, or no valid joint in any frame."""
    if values is None or not (values[2::3] >= LEAST_SCORE).any():
        return None
    return blake2b(values.tobytes(), digest_size=8).hexdigest()


def with_digests(videos: pa.Table, digests: list[str | None], source: str, kind: str) -> pa.Table:
    """The videos with the column `keypoints_digest`; says how many have none. Arguments as `check_keypoints`."""
    missing = digests.count(None)
    said = f"{missing} of {len(digests)} {kind} videos have no keypoints of a person"
    if missing > len(digests) / 2 and kind == "training":
        raise UserError(
            f"{source}: {said}, which the objective needs; `carl-ray poses MANIFEST --out FOLDER` estimates them, "
            "and --data.keypoints FOLDER names them"
        )
    if missing:
        note(said)
    return videos.append_column("keypoints_digest", pa.array(digests, pa.string()))


def video_keypoints(row: pa.Table) -> Float16[np.ndarray, "frames 17 3"] | None:
    """The keypoints of every frame of a video; None where it has none.

    Args:
        row: Of a table of videos, with `KEYPOINTS`.
    """
    values = row.column(KEYPOINTS)[0].values
    return None if values is None else values.to_numpy().reshape(-1, NUM_JOINTS, 3)


def keypoints_in_view(
    keypoints: Float[np.ndarray, "frames 17 3"] | None,
    clips: Sequence[ViewIndices],
    boxes: Float[np.ndarray, "n 4"],
    flips: Bool[np.ndarray, " n"],
) -> Float32[np.ndarray, "n time 17 3"]:
    """Keypoints at the frames of clips in view coordinates: x, y, and 1 where they are valid, else three zeros.

    Valid are those with a score of at least 0.5 that lie within the view, or outside by at most a tenth of it.

    Args:
        keypoints: Of every frame of the video, x and y as parts of the frame; None: none is valid.
        clips: The frames of the n clips.
        boxes: Left, top, right and bottom of each clip, as parts of the frame.
        flips: Which are mirrored: left and right joints are exchanged.
    """
    mask = np.stack([clip.frame_mask for clip in clips])
    if keypoints is None:
        return np.zeros((*mask.shape, NUM_JOINTS, 3), np.float32)
    found = np.stack([keypoints[clip.frame_indices] for clip in clips]).astype(np.float64)
    found[flips] = found[flips][:, :, _MIRRORED]
    corner, extent = boxes[:, None, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    places = (found[..., :2] - corner) / extent
    places[flips, ..., 0] = 1 - places[flips, ..., 0]
    # Comparisons with NaN are false.
    valid = ((places >= -_BEYOND) & (places <= 1 + _BEYOND)).all(-1) & mask[..., None]
    valid &= (found[..., 2] >= LEAST_SCORE) & (found[..., 2] < np.inf)
    return np.concatenate([np.where(valid[..., None], places, 0), valid[..., None]], -1).astype(np.float32)
