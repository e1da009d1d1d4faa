"""report.html: one self-contained file with metrics and pictures.

What cannot be drawn (no labels, no second video of an action, a missing video file) is replaced by a sentence. Text
from data is escaped by the template.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from carl_ray import storage
from carl_ray.evaluation.controls import CONTROLS
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.evaluation.protocol import by_action
from carl_ray.evaluation.tasks import metric_of
from carl_ray.report import figures, tables
from carl_ray.report.actions import draw_action
from carl_ray.report.clips import clip_sheets
from carl_ray.report.timelines import legends, timelines

if TYPE_CHECKING:
    from carl_ray.report.generation import GenerationSection

_MOST_ACTIONS = 4  # with pictures
_MOST_TIMELINES = 24


def write_report(
    out_uri: str,
    metrics: Mapping[str, Any],
    train_videos: Sequence[EmbeddedVideo],
    test_videos: Sequence[EmbeddedVideo],
    *,
    log: Sequence[Mapping[str, Any]] | None,
    objective: str | None = None,
    clip_span: int | None = None,
    scenes: Mapping[str, str] | None = None,
    generation: GenerationSection | None = None,
    title: str | None = None,
    today: datetime.date | None = None,
) -> None:
    """Write the page, deterministically but for the date.

    Movies too large to be embedded are written to the same folder as `aligned-1.mp4` and so on.

    Args:
        out_uri: The HTML file.
        metrics: The document of metrics.json (`carl_ray.evaluation.protocol.evaluate`).
        train_videos: Videos that the classifier of the timelines is fitted to; their phases count for the colours.
        test_videos: The measured videos; their files are read for the pictures.
        log: Lines of the run's metrics.jsonl; None where there is no log.
        objective: Name of the run's objective; None where it is unknown.
        clip_span: Of an encoder of clips, frames of a video that a clip stands for.
        scenes: As for `clip_sheets`.
        generation: What a run of `csvr` makes for test videos; None: no such section.
        title: Title of the page; None: preset and steps.
        today: The date in the heading; None: today in UTC.

    Raises:
        RunError: the store refuses, fails or is full.
    """
    shown = sorted((video for video in test_videos if len(video)), key=lambda video: video.video_id)
    groups = by_action(train_videos, shown)
    # Actions with at least two videos first, which have all the pictures.
    names = sorted(groups, key=lambda name: (len(groups[name][1]) < 2, name))[:_MOST_ACTIONS]
    folder = storage.parent(out_uri)
    actions = [
        draw_action(name, *groups[name], folder, f"aligned-{number}.mp4")
        for number, name in enumerate(names, 1)
    ]
    # Where the classifier was fitted for the table, it is fitted again for the timelines.
    lines = timelines(train_videos, test_videos) if "phase_classification" in metrics["trained"] else []
    origin = metrics["origin"]
    if title is None and origin["step"]:
        title = f"CARL, preset {origin['preset']}, after {tables.counted(origin['step'], 'steps')}"
    page = template("page.html.jinja").render(
        metrics=metrics,
        title=title or "An encoder without training",
        origin=origin,
        objective=objective,
        date=(today or datetime.datetime.now(datetime.UTC).date()).isoformat(),
        encoder=tables.shown_name(metrics, "trained"),
        level=f"{100 * metrics['bootstrap']['level']:g} %",
        controls={name: CONTROLS[name].meaning for name in CONTROLS if metrics.get(name) is not None},
        rows=tables.metric_rows(metrics, tables.metric_names(metrics)),
        summary=tables.summary(metrics),
        warnings=metrics.get("warnings", []),
        not_run=tables.not_run_lines(metrics),
        left_out=tables.left_out_lines(metrics),
        action_rows={
            action: tables.metric_rows(entry, tables.action_metric_names(metrics))
            for action, entry in metrics["actions"].items()
        },
        action_titles=[metric_of(name, metrics).title for name in tables.action_metric_names(metrics)],
        curves=figures.training_curves(log or [], objective),
        actions=actions,
        num_actions=len(groups),
        timelines=lines[:_MOST_TIMELINES],
        num_timelines=len(lines),
        legends=legends(lines),
        clips=clip_sheets(train_videos, test_videos, clip_span, scenes) if clip_span else [],
        generation=generation,
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
    environment.filters |= {"printable": printable, "counted": tables.counted}
    return environment.get_template(name)
