"""Features for temporal action localisation with G-TAD (paper, table 12).

Sources of the layout and of the resampling, read in the authors' repositories:

- G-TAD (github.com/frostinassiky/gtad, `gtad_lib/dataset.py`, commit f9afd44): an
  HDF5 file `<video name>.h5` for each video, in it the data set `<video name>`, (temporal scale, width),
  float32. Its option `--feature_path` names the folder and ends in a slash; `--feat_dim` is the width,
  `--temporal_scale` the length, 100 there.
- BSN and BMN (wzmsltw/BSN-boundary-sensitive-network, JJBOY/BMN-Boundary-Matching-Network), whose features
  G-TAD took over: `<video name>.csv` with the header f0,f1,… and a row for each of the 100 snippets.
- Their `data_process.py` resamples: the video is divided into 100 equal parts, and each gets the mean of
  three linear interpolations, at its start, its middle and its end.

G-TAD scales its annotations by a video's `feature_frame` over its `duration_frame`, since its own features
leave out the last frames. These here cover all of a video: set `feature_frame` to `duration_frame`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Float32

from carl_ray import storage
from carl_ray.data.manifest import VIDEO_SUFFIXES
from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import iterate_embeddings, read_origin
from carl_ray.evaluation.frames import unit_frames

Format = Literal["hdf5", "csv"]

SUFFIXES: dict[Format, str] = {"hdf5": ".h5", "csv": ".csv"}

_POINTS = 3  # interpolated in each part
_LONGEST_NAME = 240  # bytes: file systems take 255, and a file that is being written has a longer one
_MARKER = "export.json"


def resample(
    embeddings: Float[np.ndarray, "frames width"], length: int = 100
) -> Float32[np.ndarray, "length width"]:
    """The frames of a whole video resampled to a fixed number of snippets.

    Frame i of n stands for the time (i + 1/2) / n of the video, snippet k of m for [k / m, (k + 1) / m]. Its
    value is the mean of three linear interpolations, at the start, the middle and the end of the part of it
    that lies between the times of the first and the last frame. Snippets without such a part, at both ends of
    videos with fewer than `length` / 2 frames, repeat that frame (BSN's script leaves zeros).

    Args:
        embeddings: At least one frame.
        length: The number of snippets.

    Raises:
        ValueError: no frame, or a length below 1.
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"expected (frames, width) with at least one frame, got shape {embeddings.shape}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    last = len(embeddings) - 1
    # In units of frames, where frame i is at i.
    edges = np.clip(np.arange(length + 1) * (len(embeddings) / length) - 0.5, 0, last)
    points = np.linspace(edges[:-1], edges[1:], _POINTS, axis=1)
    before = np.floor(points).astype(np.int64)
    weight = (points - before)[..., None]
    values = embeddings.astype(np.float64)
    between = (1 - weight) * values[before] + weight * values[np.minimum(before + 1, last)]
    return between.mean(axis=1).astype(np.float32)


def video_name(video_id: str) -> str:
    """Name of a video in the exported files: last part of its id, without a video file's suffix.

    The files there are called v_<YouTube id>.mp4, and so are the videos in G-TAD's lists.
    """
    path = PurePosixPath(video_id)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def to_file(features: Float32[np.ndarray, "length width"], name: str, file_format: Format) -> bytes:
    """The content of a video's file."""
    if file_format == "csv":
        text = io.StringIO()
        header = ",".join(f"f{column}" for column in range(features.shape[1]))
        # Nine digits restore every float32.
        np.savetxt(text, features, fmt="%.9g", delimiter=",", header=header, comments="")
        return text.getvalue().encode()
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset(name, data=features)
    return content.getvalue()


def export_features(
    embeddings_uri: str,
    out: str,
    *,
    length: int = 100,
    file_format: Format = "hdf5",
    on_video: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Write resampled, normalised embeddings of each video; keep existing files.

    The frames are normalised, as for all evaluation, and then resampled.

    Args:
        embeddings_uri: Folder or part of embeddings.
        out: Path or URI of the folder for the files.
        length: The number of snippets of each video.
        file_format: HDF5 for G-TAD, CSV for BSN and BMN.
        on_video: Called with the number of videos done after each.

    Returns:
        Numbers of files written, and of files that existed already.

    Raises:
        UserError: no embeddings there, or not finite ones; two videos of one name; the folder holds files of
            other embeddings or of another length or format.
        RunError: the store refuses or fails.
    """
    if length < 1:
        raise UserError(f"--length: expected at least 1, got {length}")
    settings = {"origin": asdict(read_origin(embeddings_uri)), "length": length, "format": file_format}
    _check_settings(out, settings)
    present = set(storage.list_folder(out))
    id_of: dict[str, str] = {}
    num_written = 0
    for done, video in enumerate(iterate_embeddings(embeddings_uri), 1):
        name = video_name(video.video_id)
        if not name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
            raise UserError(f"{video.video_id!r}: its name cannot be that of a file")
        other = id_of.setdefault(name, video.video_id)
        if other != video.video_id:
            raise UserError(
                f"{video.video_id} and {other} would both be written as {name}: G-TAD knows videos by their "
                "file names alone; rename one, or export them from embeddings of their own"
            )
        file_name = f"{name}{SUFFIXES[file_format]}"
        # The name comes from data: in a URI, the part after a `?` would name another endpoint.
        uri = storage.join(out, quote(file_name) if storage.is_remote(out) else file_name)
        # Files are written atomically: each that is there is whole.
        if file_name not in present:
            try:
                frames = unit_frames([video.embeddings])[0]
                content = to_file(resample(frames, length), name, file_format)
            except ValueError as error:
                raise UserError(f"{video.video_id}: {error}") from None
            storage.write_bytes(uri, content)
            num_written += 1
        on_video(done)
    if not id_of:
        raise UserError(f"{storage.public_uri(embeddings_uri)}: it holds no embedded video")
    return num_written, len(id_of) - num_written


def _check_settings(out: str, settings: dict[str, object]) -> None:
    """Record the settings in a new folder; refuse a folder with others."""
    uri = storage.join(out, _MARKER)
    if not storage.exists(uri):
        storage.write_bytes(uri, json.dumps(settings, indent=2).encode() + b"\n")
        return
    try:
        there = json.loads(storage.read_bytes(uri))
    except ValueError:
        there = {}
    different = [key for key, value in settings.items() if there.get(key) != value]
    if different:
        raise UserError(
            f"{storage.public_uri(out)}: it holds files of another {' and '.join(different)}; name another "
            "--out, or delete that folder"
        )
