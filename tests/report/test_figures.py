"""`carl_ray.report.figures`: pictures that show their data, and equal ones for equal data."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from carl_ray.report.figures import (
    NO_PHASE_COLOR,
    Picture,
    frame_map,
    phase_colors,
    similarity_matrix,
    training_curves,
)

LOG: list[dict[str, Any]] = [
    {"step": 0, "validation_loss": 7.0},
    {"step": 10, "loss": 6.0, "learning_rate": 1e-3},
    {"step": 20, "loss": None, "learning_rate": 5e-4},
    {"step": 30, "loss": 4.0, "learning_rate": 0.0},
    {"step": 30, "validation_loss": 5.0},
]


def pixels(picture: Picture) -> np.ndarray:
    assert picture.mime == "image/png"
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)


def share_of(image: np.ndarray, color: str, tolerance: int = 6) -> float:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(image - wanted).max(axis=2) <= tolerance).mean())


def drawn_lines(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    lines: dict[str, np.ndarray] = {}
    plot = Axes.plot

    def record(self: Axes, *args: Any, **options: Any) -> Any:
        lines[options.get("label", "")] = np.array(args[:2])
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", record)
    return lines


def test_curves_hold_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn_lines(monkeypatch)
    losses, rate = training_curves(LOG)
    assert losses.mime == rate.mime == "image/svg+xml"
    np.testing.assert_array_equal(lines["training videos"], [[10, 20, 30], [6, np.nan, 4]])
    np.testing.assert_array_equal(lines["validation videos"], [[0, 30], [7, 5]])
    ElementTree.fromstring(losses.content)
    np.testing.assert_array_equal(lines[""], [[10, 20, 30], [1e-3, 5e-4, 0]])


def test_the_axis_names_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, text, **options: labels.append(text))
    for objective in ("scl", "tcc", None):
        training_curves(LOG[:1], objective)
    assert labels == ["loss (scl)", "loss (tcc)", "loss"]


def test_no_curves_without_a_log() -> None:
    assert training_curves([]) == []
    assert len(training_curves([{"step": 0, "validation_loss": 7.0}])) == 1


def test_equal_data_gives_equal_bytes() -> None:
    rng = np.random.default_rng(0)
    frames, phases = rng.normal(size=(40, 8)), np.arange(40) // 10
    path = np.array([(i, i) for i in range(40)])
    for draw in (
        lambda: training_curves(LOG)[0],
        lambda: similarity_matrix(frames, frames, path),
        lambda: frame_map(frames, phases, 4),
    ):
        first, second = draw(), draw()
        assert first is not None and first == second
    content = training_curves(LOG)[0]
    assert content is not None and not re.search(rb"\d{4}-\d\d-\d\dT", content.content)


def test_phases_have_colours_of_their_own() -> None:
    for count in (0, 1, 6, 7, 99):
        colors = phase_colors(count)
        assert len(set(colors)) == count
        assert NO_PHASE_COLOR.lower() not in [color.lower() for color in colors]
    assert phase_colors(3) == phase_colors(6)[:3]


def test_the_matrix_is_bright_where_frames_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}
    imshow = Axes.imshow

    def record(self: Axes, matrix: np.ndarray, **options: Any) -> Any:
        shown.update(matrix=matrix, **options)
        return imshow(self, matrix, **options)

    monkeypatch.setattr(Axes, "imshow", record)
    lines = drawn_lines(monkeypatch)
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    path = np.array([(0, 0), (1, 1), (5, 8)])
    similarity_matrix(first, second, path, seconds_per_frame=(0.5, None))
    for i in range(6):
        for j in range(9):
            cosine = first[i] @ second[j] / np.linalg.norm(first[i]) / np.linalg.norm(second[j])
            assert shown["matrix"][i, j] == pytest.approx(cosine)
    # Left, right, bottom, top: seconds down, frames across.
    assert shown["extent"] == (0, 9, 3.0, 0)
    np.testing.assert_allclose(lines[""], [[0.5, 1.5, 8.5], [0.25, 0.75, 2.75]])


def test_the_matrix_shows_phases_on_both_axes() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    path = np.array([(i, i) for i in range(30)])
    only_first, only_second = np.repeat([0, -1], 15), np.repeat([1, 2], 15)
    bare = pixels(similarity_matrix(first, second, path))
    image = pixels(similarity_matrix(first, second, path, phases=(only_first, only_second), num_phases=3))
    for color in (*phase_colors(3), NO_PHASE_COLOR):
        assert share_of(bare, color) < 0.001 < 0.004 < share_of(image, color), color


def test_constant_frames_make_a_matrix() -> None:
    frames = np.ones((5, 3))
    similarity_matrix(frames, frames, np.array([(i, i) for i in range(5)]))


def test_the_map_keeps_groups_together_and_colours_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    scatter = Axes.scatter

    def record(self: Axes, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
        drawn.update(points=np.column_stack([x, y]), colors=np.array(options["c"]))
        return scatter(self, x, y, **options)

    monkeypatch.setattr(Axes, "scatter", record)
    rng = np.random.default_rng(3)
    phases = np.repeat([-1, 0, 1], 30)
    centers = np.eye(3)[phases + 1] * 10
    frame_map(centers + rng.normal(size=(90, 3)) * 0.1, phases, 2)
    # Frames without a phase come first, the others in their order.
    assert (
        drawn["colors"].tolist()
        == [NO_PHASE_COLOR] * 30 + [phase_colors(2)[0]] * 30 + [phase_colors(2)[1]] * 30
    )
    groups = drawn["points"].reshape(3, 30, 2)
    within = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    means = groups.mean(1)
    between = min(np.linalg.norm(means[i] - means[j]) for i in range(3) for j in range(i))
    assert between > 2 * within


@pytest.mark.parametrize(
    "embeddings", [np.ones((20, 4)), np.zeros((20, 4)), np.eye(20)[:, :1] + 1, np.eye(8)]
)
def test_maps_of_degenerate_frames(embeddings: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame_map(embeddings, np.zeros(len(embeddings), int), 1)
