"""The report's figures: curves, similarity matrices, maps of frames.

Each function returns an encoded picture that depends on its arguments alone, drawn without Matplotlib's global state.
No text from data is drawn.

Legend: N frames of a first video, M of a second, D width of an embedding, K phases.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from carl_ray.evaluation.frames import unit_frames

STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "carl_ray",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
"""Matplotlib's settings: no text is parsed as a formula, and ids in SVG are deterministic."""

# Okabe and Ito's palette for all kinds of colour vision, without yellow and black, which do not stand out from a white
# background and from axes.
PHASE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
NO_PHASE_COLOR = "#C4C4C4"


@dataclass(frozen=True)
class Picture:
    """An encoded picture or movie."""

    content: bytes
    mime: str

    @property
    def data_uri(self) -> str:
        """The content as part of a page."""
        return f"data:{self.mime};base64,{base64.b64encode(self.content).decode()}"


def phase_colors(num_phases: int) -> list[str]:
    """A colour for each phase, hexadecimal, the same in all figures.

    More than six phases get a scale from dark to light.
    """
    if num_phases <= len(PHASE_COLORS):
        return list(PHASE_COLORS[:num_phases])
    scale = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, num_phases))
    return [matplotlib.colors.to_hex(color) for color in scale]


def training_curves(log: Sequence[Mapping[str, Any]], objective: str | None = None) -> list[Picture]:
    """Losses, and the learning rate, over the steps of a run, as SVG.

    Args:
        log: Lines of a run's metrics.jsonl. A value that was not finite (null there) is a gap.
        objective: For the label of the losses' axis.

    Returns:
        A picture of the losses and one of the learning rate, each only if a line has such a value.
    """
    train, validation, rate = (_series(log, key) for key in ("loss", "validation_loss", "learning_rate"))
    pictures = []
    with matplotlib.rc_context(STYLE):
        if len(train) or len(validation):
            figure = Figure(figsize=(4.7, 2.8), layout="constrained")
            axes = figure.subplots()
            if len(train):
                axes.plot(*train.T, color=PHASE_COLORS[0], linewidth=1.1, label="training videos")
            if len(validation):
                axes.plot(
                    *validation.T, "o-", color=PHASE_COLORS[5], ms=3.5, lw=1.4, label="validation videos"
                )
            axes.set(xlabel="step", ylabel="loss" if objective is None else f"loss ({objective})")
            axes.legend()
            pictures.append(_svg(figure))
        if len(rate):
            figure = Figure(figsize=(4.0, 2.8), layout="constrained")
            axes = figure.subplots()
            axes.plot(*rate.T, color=PHASE_COLORS[2], linewidth=1.4)
            axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
            pictures.append(_svg(figure))
    return pictures


def similarity_matrix(
    first: Float[np.ndarray, "N D"],
    second: Float[np.ndarray, "M D"],
    path: Int[np.ndarray, "steps 2"],
    *,
    phases: tuple[Int[np.ndarray, " N"] | None, Int[np.ndarray, " M"] | None] = (None, None),
    num_phases: int = 0,
    seconds_per_frame: tuple[float | None, float | None] = (None, None),
) -> Picture:
    """Cosine similarities of the frames of two videos, with their path, as PNG.

    As in the paper's figure 6, the similarities are stretched: black is the 2nd percentile of the matrix, the brightest
    colour its maximum. Bands along the axes show the phases where they are known, thin lines their boundaries.

    Args:
        first: Embeddings, along the vertical axis.
        second: Embeddings, along the horizontal axis.
        path: Pairs of frames (of the first, of the second).
        phases: Phase of each frame, negative for none.
        num_phases: Number of phases, which selects the colours.
        seconds_per_frame: For the axes; frames where it is None.
    """
    units = unit_frames([first, second])
    similarities = units[0] @ units[1].T
    low, high = np.percentile(similarities, 2), similarities.max()
    scales = [1.0 if step is None else step for step in seconds_per_frame]
    ends = [len(unit) * scale for unit, scale in zip(units, scales, strict=True)]
    names = ["frame" if step is None else "time (s)" for step in seconds_per_frame]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.1), layout="constrained")
        axes = figure.subplots()
        axes.imshow(
            similarities,
            cmap="magma",
            vmin=low,
            vmax=max(high, low + 1e-9),
            extent=(0, ends[1], ends[0], 0),
            aspect="auto",
            interpolation="nearest",
        )
        axes.plot(
            (path[:, 1] + 0.5) * scales[1], (path[:, 0] + 0.5) * scales[0], color="#56B4E9", linewidth=1.6
        )
        axes.set(xlabel=f"right video, {names[1]}", ylabel=f"left video, {names[0]}")
        axes.spines[:].set_visible(False)
        for vertical, labels, scale in zip((True, False), phases, scales, strict=True):
            if labels is not None:
                _draw_phases(axes, labels, scale, phase_colors(num_phases), vertical=vertical)
        axes.set(xlim=(0, ends[1]), ylim=(ends[0], 0))
        return encoded_png(figure)


def _draw_phases(
    axes: Axes, labels: Int[np.ndarray, " frames"], scale: float, colors: list[str], *, vertical: bool
) -> None:
    """A band of the phases along an axis, and a line at each boundary."""
    fill, draw_line, transform = (
        (axes.fill_betweenx, axes.axhline, axes.get_yaxis_transform())
        if vertical
        else (axes.fill_between, axes.axvline, axes.get_xaxis_transform())
    )
    changes = np.flatnonzero(np.diff(labels)) + 1
    for start, stop in zip([0, *changes], [*changes, len(labels)], strict=True):
        color = colors[labels[start]] if labels[start] >= 0 else NO_PHASE_COLOR
        span = (start * scale, stop * scale)
        fill(span, 1.01, 1.045, color=color, lw=0, clip_on=False, transform=transform)
    for change in changes:
        draw_line(change * scale, color="white", linewidth=0.5, alpha=0.7)


def frame_map(
    embeddings: Float[np.ndarray, "N D"], phases: Int[np.ndarray, " N"], num_phases: int, *, seed: int = 0
) -> Picture:
    """Two-dimensional map of frames by t-SNE, coloured by phase, as PNG.

    The L2-normalised embeddings are reduced to at most 50 principal components; t-SNE is initialised with the first
    two, so that the same input gives the same map.

    Args:
        embeddings: Of at least 4 frames.
        phases: Phase of each frame, negative for none.
        num_phases: Number of phases, which selects the colours.
        seed: Of t-SNE.
    """
    colors = np.array([NO_PHASE_COLOR, *phase_colors(num_phases)])
    # Frames without a phase are drawn first, below the others.
    order = np.argsort(phases >= 0, kind="stable")
    points = _flat(embeddings, seed)[order]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.8, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=10,
            c=colors[np.maximum(phases[order], -1) + 1],
            linewidths=0,
            alpha=0.85,
        )
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#cccccc")
        return encoded_png(figure)


def _flat(embeddings: Float[np.ndarray, "N D"], seed: int) -> Float[np.ndarray, "N 2"]:
    (units,) = unit_frames([embeddings])
    if units.shape[1] < 2 or np.ptp(units, axis=0).max() < 1e-9:
        return np.zeros((len(units), 2))  # all frames are equal
    components = PCA(min(50, *units.shape), svd_solver="full").fit_transform(units)
    start = components[:, :2] / np.std(components[:, 0]) * 1e-4
    perplexity = min(30.0, (len(units) - 1) / 3)
    return TSNE(perplexity=perplexity, init=start, max_iter=500, random_state=seed, n_jobs=1).fit_transform(
        components
    )


def encoded_png(figure: Figure) -> Picture:
    """The figure as PNG at 170 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return Picture(buffer.getvalue(), "image/png")


def _series(log: Iterable[Mapping[str, Any]], name: str) -> Float[np.ndarray, "lines 2"]:
    """Steps and values of the lines that have this key; NaN for null."""
    pairs = [(line["step"], np.nan if line[name] is None else line[name]) for line in log if name in line]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _svg(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(buffer.getvalue(), "image/svg+xml")
