"""Embedded videos for tests, and what commands say when they fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin

ORIGIN = Origin("/run/checkpoints/step-00000002", "0" * 64, "demo", 2, 8, 16, "resized", has_untrained=False)


def embedded(video_id: str, embeddings: Any, **fields: Any) -> EmbeddedVideo:
    """A video with these embeddings; its timestamps are the numbers of its frames."""
    array = np.asarray(embeddings)
    known = {"uri": f"/videos/{video_id}", "timestamps": np.arange(len(array), dtype=np.float64)}
    return EmbeddedVideo(video_id=video_id, embeddings=array, **(known | fields))


def failure(
    capsys: pytest.CaptureFixture[str],
    command: Any,
    *arguments: object,
    status: int = 2,
    several: bool = False,
) -> str:
    """The error of a command that fails: one line, unless it may have several."""
    with pytest.raises(SystemExit) as left:
        command.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert left.value.code == status and error.count("carl_ray: ") == 1 and "Traceback" not in error, error
    said = error[error.index("carl_ray: ") :]
    assert several or said.count("\n") == 1, error
    return said
