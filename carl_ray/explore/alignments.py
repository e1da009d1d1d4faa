"""Alignment of several videos with one of them, and propagation of labels, for the page.

    server ─ function, arguments ▶ `answer` in a process of its own ─ value or error ▶ server

torch would take half of the server's memory.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from carl_ray.data.child import MEMORY, Array, BadVideoError, Child, Values, open_channel
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.intervals import Interval, intervals

Ends = Literal["tied", "open", "repetitions"]
_MOST_COMPARED = 10
_CONTENT = Array("|u1", (range(1, 1 << 30),))
_CLIPS_SECONDS = 600.0


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
        UserError: a video cannot be read, or the ends are open and the videos have nothing in common.
    """
    path = _path(embeddings[0], embeddings[1], ends)
    if len(path) == 0:
        raise UserError("the two videos have nothing in common")
    (one, first), (two, second) = files
    files_and_path = {
        "names": (one, two),
        "lengths": [*map(len, embeddings)],
        "second": second,
        "path": path.tolist(),
    }
    child = Child("from carl_ray.explore.alignments import answer_clips; answer_clips()")
    try:
        (fields,) = child.ask(
            first, files_and_path, {"content": _CONTENT}, seconds=_CLIPS_SECONDS, memory=MEMORY
        )
    except BadVideoError as error:
        raise UserError(str(error)) from None
    finally:
        child.close()
    return fields["content"].tobytes()


def answer_clips() -> None:
    """Main function of the child process that decodes two videos and encodes them side by side."""
    serve = open_channel("aligning")
    from carl_ray.report.video import Clip, aligned_video

    def clips(
        source: bytes | str,
        names: Sequence[str],
        lengths: Sequence[int],
        second: str,
        path: Sequence[Sequence[int]],
    ) -> Values:
        one, two = (Clip(*clip) for clip in zip(names, (source, second), lengths, strict=True))
        yield {"content": np.frombuffer(aligned_video(one, two, np.array(path)), np.uint8)}

    serve(clips)


class Agreement(NamedTuple):
    """How well labelled videos label each other: shares of their labelled frames that are right."""

    propagated: float | None
    """None where no video has another one of its action."""
    straight_line: float | None
    """The control: the labels of the others at the same relative position, by majority."""


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


def agreement(sources: Sequence[EmbeddedVideo]) -> Agreement:
    """Label each of the first ten labelled videos from the others, and by a straight line in time."""
    from carl_ray.evaluation.propagation import propagate_names, sources_for

    right, straight, total = 0, 0, 0
    for video in sources[:_MOST_COMPARED]:
        alike = [source for source in sources_for(video, sources) if source is not video]
        if not alike:
            continue
        own, found = _names(video), propagate_names(alike, video).labels
        others = [_names(source) for source in alike]
        for frame, name in enumerate(own):
            if name:
                votes = Counter(labels[frame * len(labels) // len(own)] for labels in others)
                right += found[frame] == name
                straight += votes.most_common(1)[0][0] == name
                total += 1
    return Agreement(right / total, straight / total) if total else Agreement(None, None)


def _names(video: EmbeddedVideo) -> list[str]:
    return [video.phase_name(phase) or "" for phase in video.phases.tolist()]


def answer(questions: Connection) -> None:
    """Answer questions, a function with its arguments each, until the connection ends: value and error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle.
    with suppress(EOFError):
        while True:
            task, arguments = questions.recv()
            try:
                questions.send((task(*arguments), None))
            except UserError as error:
                questions.send((None, error))
            except Exception as error:  # One answer fails, not the page.
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                questions.send((None, RunError(f"{task.__name__}: {reason}")))
