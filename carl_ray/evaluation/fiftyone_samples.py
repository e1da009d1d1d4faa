"""Embedded videos as samples of a FiftyOne dataset (extra `carl_ray[fiftyone]`).

video_id, label, tags (the split), phases (an interval each), embedding (the mean of the frames, unit length)
frames: number from 1, phase, embedding (unit length)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from carl_ray import storage
from carl_ray.address import parse
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Embeddings
from carl_ray.evaluation.frames import unit_frames

if TYPE_CHECKING:
    import fiftyone as fo


def export_samples(
    embeddings: Embeddings, name: str, on_video: Callable[[int], None] = lambda done: None
) -> int:
    """Write all videos into a new persistent dataset of FiftyOne's database; return their number.

    Raises:
        UserError: there is a dataset of this name; a video is not a local file, a member of a shard or not embedded
            with finite values; or the extra is not installed. No dataset is left behind.
        RunError: the database fails.
    """
    try:
        import fiftyone as fo
    except ImportError:
        raise UserError("--format fiftyone needs its package: pip install 'carl_ray[fiftyone]'") from None
    number = 0

    def samples() -> Iterator[fo.Sample]:
        nonlocal number
        for number, video in enumerate(embeddings, 1):
            yield sample_of(video)
            on_video(number)

    try:
        if fo.dataset_exists(name):
            raise UserError(
                f"FiftyOne has a dataset {name!r} already: choose another name, or delete it there"
            )
        dataset = fo.Dataset(name)
        try:
            dataset.add_samples(samples(), progress=False)
            dataset.persistent = True
        except BaseException:
            dataset.delete()
            raise
    except UserError:
        raise
    except Exception as error:  # MongoDB's driver and FiftyOne have no common class of errors.
        raise RunError(f"FiftyOne dataset {name!r}: {' '.join(str(error).split())[:300]}") from None
    return number


def sample_of(video: EmbeddedVideo) -> fo.Sample:
    """A video with its labels and embeddings, not in a dataset yet."""
    import fiftyone as fo

    place = parse(video.uri)
    if storage.is_remote(video.uri) or place.byte_offset is not None:
        raise UserError(f"{storage.public_uri(video.uri)}: FiftyOne opens whole files of this machine alone")
    first = 1 + (place.start_frame or 0)  # FiftyOne counts from 1, in the whole file.
    try:
        frames, whole = unit_frames([video.embeddings, video.embeddings.mean(0, keepdims=True)])
    except ValueError as error:
        raise UserError(f"{video.video_id}: {error}") from None
    phases = video.phases
    starts = np.flatnonzero(np.diff(phases, prepend=phases[0] + 1))
    detections = [
        fo.TemporalDetection(
            label=video.phase_name(int(phases[start])), support=[first + int(start), first + int(end) - 1]
        )
        for start, end in zip(starts, [*starts[1:], len(phases)], strict=True)
        if phases[start] >= 0
    ]
    sample = fo.Sample(
        filepath=storage.resolve(place.file)[1],
        tags=[video.split or "train"],
        video_id=video.video_id,
        label=None if video.label is None else fo.Classification(label=video.label),
        phases=fo.TemporalDetections(detections=detections),
        embedding=whole[0].astype(np.float32),
    )
    for frame, (phase, vector) in enumerate(zip(phases.tolist(), frames, strict=True), first):
        shown = None if phase < 0 else fo.Classification(label=video.phase_name(phase))
        sample.frames[frame] = fo.Frame(phase=shown, embedding=vector.astype(np.float32))
    return sample
