"""report.html: one self-contained file with metrics and pictures.

What cannot be drawn (no labels, no second video of an action, a missing video file) is replaced by a sentence. Text
from data is escaped by the template.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from carl_ray import storage
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.report import figures, tables
from carl_ray.report.actions import draw_action

_MOST_ACTIONS = 4  # with pictures


def write_report(
    out_uri: str,
    metrics: Mapping[str, Any],
    test_videos: Sequence[EmbeddedVideo],
    *,
    log: Sequence[Mapping[str, Any]] | None,
    objective: str | None = None,
    today: datetime.date | None = None,
) -> None:
    """Write the page, deterministically but for the date.

    Movies too large to be embedded are written to the same folder as `aligned-1.mp4` and so on.

    Args:
        out_uri: The HTML file.
        metrics: The document of metrics.json (`carl_ray.evaluation.protocol.evaluate`).
        test_videos: The measured videos; their files are read for the pictures.
        log: Lines of the run's metrics.jsonl; None where there is no log.
        objective: Name of the run's objective; None where it is unknown.
        today: The date in the heading; None: today in UTC.

    Raises:
        RunError: the store refuses, fails or is full.
    """
    by_action: dict[str, list[EmbeddedVideo]] = {}
    for video in sorted(test_videos, key=lambda video: video.video_id):
        if len(video):
            by_action.setdefault(video.label or "videos without a label", []).append(video)
    # Actions with at least two videos first, which have all the pictures.
    names = sorted(by_action, key=lambda name: (len(by_action[name]) < 2, name))[:_MOST_ACTIONS]
    actions = []
    for number, name in enumerate(names, start=1):
        movie_name = f"aligned-{number}.mp4"
        pictures, movie = draw_action(name, by_action[name], movie_name)
        actions.append(pictures)
        if movie is not None:
            storage.write_bytes(storage.join(storage.parent(out_uri), movie_name), movie)
    page = template("page.html.jinja").render(
        metrics=metrics,
        origin=metrics["origin"],
        objective=objective,
        date=(today or datetime.datetime.now(datetime.UTC).date()).isoformat(),
        level=f"{100 * metrics['bootstrap']['level']:g} %",
        variants=["trained", *(control for control in tables.CONTROLS if metrics.get(control) is not None)],
        rows=tables.metric_rows(metrics, tables.metric_names(metrics)),
        summary=tables.summary(metrics),
        not_run=tables.not_run_lines(metrics),
        left_out=tables.left_out_lines(metrics),
        action_rows={
            action: tables.metric_rows(entry, tables.action_metric_names(metrics))
            for action, entry in metrics["actions"].items()
        },
        action_titles=[tables.title_of(name) for name in tables.action_metric_names(metrics)],
        curves=figures.training_curves(log or [], objective),
        actions=actions,
        num_actions=len(by_action),
    )
    storage.write_bytes(out_uri, page.encode())


def template(name: str) -> Any:
    """A template of this folder, with autoescaping."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment.get_template(name)
