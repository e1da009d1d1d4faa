"""Keypoints of every frame of the videos of a manifest, resumable.

    URIs (one lazy task) ─ decode and estimate (actor pool, CPUs; one video at a time) ─▶ driver ─▶ parts of a folder

The driver writes a part every few minutes. Called again, it adds the videos that are missing. Videos that could not
be read are listed in bad_videos.jsonl in the folder. torch and Ray are imported lazily: mistakes and complete folders
are reported without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from carl_ray import storage
from carl_ray.config import Config, DataConfig
from carl_ray.data.guard import BadVideoError, FrameReader
from carl_ray.data.keypoint_table import add_keypoints, read_keypoint_table
from carl_ray.data.pose_estimator import BlazePose, PoseEstimator, interpolated
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.corpus import EmbeddingSettings, read_videos
from carl_ray.evaluation.part_writer import EmbeddingResult, PartWriter, write_rows
from carl_ray.lease import hold, refuse_if_held

_SHORT_SIDE = 480
"""Pixels of the frames that are estimated on, at most: the networks see 224 x 224 and 256 x 256 of them."""
_CHUNK_FRAMES = 16
_RETRIES = 2
_ACTOR_BYTES = 3 * 2**29


@dataclass
class PoseResult(EmbeddingResult):
    """What a call of `estimate_poses` did."""

    num_with_person: int = 0
    """Frames with a person, of the videos done now."""
    without_person: list[str] = field(default_factory=list)
    """Ids of the videos done now in which there is nobody."""


def estimate_poses(
    manifest: str,
    out: str,
    settings: EmbeddingSettings | None = None,
    *,
    every: int = 1,
    splits: Sequence[str] | None = None,
    make_estimator: Callable[[], PoseEstimator] = BlazePose,
) -> PoseResult:
    """Estimate the keypoints of the videos of a manifest that a folder lacks.

    Uses the Ray cluster that this process is connected to, or connects as `carl_ray.session.connect`, but only where
    videos are missing. Progress goes to standard error.

    Args:
        manifest: URI of the manifest.
        out: URI of the folder, new or begun by the same estimator.
        settings: Workers; None: the defaults.
        every: Estimate every so many frames, interpolate between them.
        splits: Only videos of these splits; those without one count as "train".
        make_estimator: Called here and in each actor.

    Raises:
        UserError: the manifest is missing or malformed, the estimator is not installed, `out` is something else
            or of another estimator, or another process writes to it.
        RunError: storage failed, or no video could be read.
    """
    settings = settings or EmbeddingSettings()
    videos = read_videos(manifest, splits)
    estimator = make_estimator()
    version = estimator.version if every == 1 else f"{estimator.version}, every {every} frames"
    origin = (estimator.name, version)
    missing = _missing(videos, origin, out)
    if missing.num_rows == 0:
        return PoseResult(videos.num_rows, False)
    refuse_if_held(out)
    from carl_ray.evaluation import extraction
    from carl_ray.session import connect

    with connect(), hold(out) as (lease, _):
        missing = _missing(videos, origin, out)
        result = PoseResult(videos.num_rows - missing.num_rows, False)
        extraction.check_resources(settings)

        def write(taken: list[tuple[pa.Table, int, list[np.ndarray]]]) -> None:
            rows = pa.concat_tables(listed.slice(index, 1) for listed, index, _ in taken)
            keypoints = [arrays[0] for _, _, arrays in taken]
            for video_id, found in zip(rows.column("video_id").to_pylist(), keypoints, strict=True):
                with_person = int(found.any(axis=1).sum())
                result.num_with_person += with_person
                result.without_person += [] if with_person else [video_id]
            add_keypoints(out, rows, keypoints, *origin)

        arguments = (lambda: PoseExtractor(make_estimator(), every), _RETRIES)
        found = extraction.rows_of_actors(
            extraction.ExtractingActor, arguments, missing, settings, np.float16, actor_bytes=_ACTOR_BYTES
        )
        write_rows(found, missing, result, PartWriter(out, lease, write), "estimated")
    if missing.num_rows and not result.num_embedded:
        raise RunError(
            "none of {} videos could be read; {}: {}".format(missing.num_rows, *result.bad_videos[0])
        )
    return result


def _missing(videos: pa.Table, origin: tuple[str, str], out: str) -> pa.Table:
    """The videos that a folder lacks; `UserError` where it is of another estimator."""
    columns = ["video_id", "content_hash", "estimator", "estimator_version"]
    table = read_keypoint_table(out, columns)
    rows = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    if others := sorted({row[2:] for row in rows} - {origin}):
        raise UserError(
            f"{storage.public_uri(out)}: its keypoints are of {' '.join(others[0])}, but {' '.join(origin)} was asked "
            "for; name another --out, or delete it"
        )
    there = {row[:2] for row in rows}
    keys = zip(*(videos.column(name).to_pylist() for name in columns[:2]), strict=True)
    return videos.filter(pa.array([key not in there for key in keys]))


class PoseExtractor:
    """Keypoints of all frames of videos, which a child process decodes.

    Args:
        estimator: What finds them.
        every: In every so many frames; between them they are interpolated.
    """

    def __init__(self, estimator: PoseEstimator, every: int = 1) -> None:
        self._estimator, self._every = estimator, every
        self._config = Config(preset="poses", data=DataConfig(frame_stride=every))
        self._reader = FrameReader()

    def embed(
        self, videos: Sequence[tuple[bytes | str, int]]
    ) -> Iterator[list[np.ndarray] | BadVideoError | RunError]:
        """The float16 array (frames, 51) of each video, or why there is none.

        Args:
            videos: Content, path or URI; number of frames.
        """
        for source, num_frames in videos:
            try:
                chunks = self._reader.read(
                    source,
                    num_frames,
                    self._config,
                    chunk_frames=_CHUNK_FRAMES,
                    short_side=_SHORT_SIDE,
                    whole=True,
                )
                frames = (frame for chunk in chunks for frame in chunk)
                found = np.nan_to_num(np.stack([*self._estimator.track(frames)]), posinf=0, neginf=0)
                whole = interpolated(found, num_frames, self._every)
                yield [whole.reshape(num_frames, -1).astype(np.float16)]
            except (BadVideoError, RunError) as error:
                yield error
            except Exception as error:  # An estimator that fails at one video does not end the others.
                yield BadVideoError(f"estimating failed ({type(error).__name__}: {error})")
