"""Alignment of several videos with one of them, and propagation of labels, for the page.

    server ─ task, arguments ▶ `answer` in a child process (carl_ray.data.child) ─ JSON, or bytes of a video ▶ server

torch would take half of the server's memory. Embeddings are not sent: the process maps the same file of vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from carl_ray.data.child import Values, open_channel
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.intervals import Interval, intervals
from carl_ray.machine import single_threaded

Ends = Literal["tied", "open", "repetitions"]


class Follower(NamedTuple):
    """A video that follows another one."""

    frames: Int64[np.ndarray, " N"]
    """The frame to show with each frame of the other video."""
    shared: tuple[int, int]
    """First frame of the other video that has a partner, and the one after the last; equal where none has."""
    similarity: float | None
    """Mean cosine of partners; None without any."""


def follow(
    leader: Float[np.ndarray, "N width"], others: Sequence[Float[np.ndarray, "_ width"]], ends: Ends
) -> list[Follower]:
    """Align videos with a leading one.

    Args:
        leader: Embeddings of the video that keeps its pace.
        others: Those of the videos that follow.
        ends: `open`: frames at the ends of either video may be without partner; the follower stands still there.
            `repetitions`: the first repetition with the first, and so on.

    Raises:
        UserError: a video does not repeat, where repetitions are to be aligned.
        ValueError: a video has no frames, or an embedding is not finite.
    """
    from carl_ray.evaluation.frames import unit_frames
    from carl_ray.report.video import partners, same_relative_position

    found = []
    for other in others:
        path = _path(leader, other, ends)
        if len(path) == 0:
            found.append(Follower(same_relative_position(len(leader), len(other)), (0, 0), None))
            continue
        first, second = unit_frames([leader, other])
        cosines = (first[path[:, 0]] * second[path[:, 1]]).sum(1)
        shared = (int(path[0, 0]), int(path[-1, 0]) + 1)
        found.append(Follower(partners(path, len(leader)), shared, float(cosines.mean())))
    return found


def _path(
    leader: Float[np.ndarray, "N width"], other: Float[np.ndarray, "M width"], ends: Ends
) -> Int64[np.ndarray, "steps 2"]:
    from carl_ray.evaluation.warping import align_pair, align_repetitions

    if ends != "repetitions":
        return align_pair(leader, other, open_ends=ends == "open")
    from carl_ray.evaluation.repetitions import find_repetitions

    found = find_repetitions(leader), find_repetitions(other)
    if min(map(len, found)) < 2:
        counts = f"{len(found[0])} and {len(found[1])}"
        raise UserError(f"expected videos that repeat, found {counts} repetitions: align them as a whole")
    return align_repetitions(leader, other, found)


def aligned_clips(
    files: Sequence[tuple[str, str]], embeddings: Sequence[Float[np.ndarray, "_ width"]], ends: Ends
) -> bytes:
    """Two videos side by side in step, as `align` writes them.

    Args:
        files: Name and URI of each.
        embeddings: Of their frames.
        ends: As for `follow`.

    Raises:
        DecodeError: a video cannot be read.
        UserError: the ends are open and the videos have nothing in common.
    """
    from carl_ray.report.video import Clip, aligned_video

    path = _path(embeddings[0], embeddings[1], ends)
    if len(path) == 0:
        raise UserError("the two videos have nothing in common")
    one, two = (Clip(*file, len(frames)) for file, frames in zip(files, embeddings, strict=True))
    return aligned_video(one, two, path)


def propagate_intervals(
    sources: Sequence[EmbeddedVideo], targets: Sequence[EmbeddedVideo]
) -> list[list[Interval] | None]:
    """Intervals of each target from the labelled videos of its action; None where there are none of it."""
    from carl_ray.evaluation.propagation import propagate_names, sources_for

    found: list[list[Interval] | None] = []
    for video in targets:
        alike = sources_for(video, sources)
        usable = alike and len(video) and video.seconds is not None
        found.append(intervals(propagate_names(alike, video)) if usable else None)
    return found


Place = tuple[str, int, int]
"""Of the embeddings of a video: file, first row, the one after the last."""


def described(video: EmbeddedVideo, place: Place) -> dict[str, Any]:
    """A video as JSON, without its embeddings."""
    return {
        "video_id": video.video_id,
        "uri": video.uri,
        "label": video.label,
        "fps": video.fps,
        "frame_times": None if video.frame_times is None else video.frame_times.tolist(),
        "frame_labels": None if video.frame_labels is None else video.frame_labels.tolist(),
        "phase_names": video.phase_names,
        "place": place,
    }


def _video(fields: Mapping[str, Any]) -> EmbeddedVideo:
    given = dict(fields)
    embeddings = _vectors(given.pop("place"))
    for name, dtype in (("frame_times", np.float64), ("frame_labels", np.int32)):
        given[name] = None if given[name] is None else np.array(given[name], dtype)
    return EmbeddedVideo(
        **given, embeddings=embeddings, timestamps=np.arange(len(embeddings), dtype=np.float64)
    )


def _vectors(place: Place) -> Float[np.ndarray, "frames width"]:
    path, start, stop = place
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[start:stop])


def _follow(places: Sequence[Place], ends: Ends) -> list[dict[str, Any]]:
    leader, *others = map(_vectors, places)
    return [{**f._asdict(), "frames": f.frames.tolist()} for f in follow(leader, others, ends)]


def _aligned(files: Sequence[tuple[str, str]], places: Sequence[Place], ends: Ends) -> bytes:
    return aligned_clips(files, [*map(_vectors, places)], ends)


def _propagate(
    sources: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]
) -> list[list[Interval] | None]:
    return propagate_intervals([*map(_video, sources)], [*map(_video, targets)])


def _agreement(sources: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    from carl_ray.evaluation.propagation import agreement

    return agreement([*map(_video, sources)])


_TASKS: dict[str, Callable[..., object]] = {
    "follow": _follow,
    "aligned": _aligned,
    "propagate": _propagate,
    "agreement": _agreement,
}


def answer() -> None:
    """Main function of the child process."""
    serve = open_channel("aligning")
    # Before memory is limited and time is measured: OpenBLAS waits for memory that it does not get.
    import carl_ray.evaluation.propagation
    import carl_ray.report.video  # noqa: F401
    from carl_ray.data.video_file import DecodeError

    def answers(source: str, task: str, **arguments: Any) -> Values:
        try:
            found = _TASKS[task](**arguments)
        except (UserError, DecodeError):  # It refuses its arguments, or a video of them.
            raise
        except MemoryError:
            raise RunError(f"{task}: it takes more memory than there is, or than it may") from None
        except Exception as error:  # A failure of the program, which the server notes.
            raise RunError(f"{task}: {type(error).__name__}: {' '.join(str(error).split())}") from None
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        yield {"content": np.frombuffer(content, np.uint8)}

    with single_threaded():
        serve(answers)
