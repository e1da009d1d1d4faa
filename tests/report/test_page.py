"""`carl_ray.report.page`: the page says what the document says, whatever the data hold, and needs no other file."""

from __future__ import annotations

import base64
import copy
import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray.data.decode import probe_video
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.report import actions
from carl_ray.report.page import write_report
from carl_ray.report.video import Clip
from tests.embedded import ORIGIN, embedded

CHECKPOINT = "s3://bucket/run/checkpoints/step-00001234?endpoint_override=http://host:9"
TODAY = datetime.date(2026, 3, 4)
LOG = [{"step": 0, "validation_loss": 7.0}, {"step": 10, "loss": 6.0, "learning_rate": 1e-3}]
VOID = {"meta", "img", "br", "link", "input", "hr", "source"}
METRICS = [
    *("phase_classification_10", "phase_classification_50", "phase_classification", "phase_progression"),
    *("kendalls_tau", "average_precision_at_5", "average_precision_at_10", "average_precision_at_15"),
    "alignment_error",
]


class Page(HTMLParser):
    """A page taken apart; fails where tags are not closed in order."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.table: list[list[str]] = []
        self.tables: dict[str | None, list[list[str]]] = {}
        """Those in an element with a label."""
        self.text = ""
        self.feed(content.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "div":
            self.table = self.tables[dict(attributes).get("aria-label")] = []
        if tag == "tr":
            self.cells.append([])
            self.table.append(self.cells[-1])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] = " ".join(f"{self.cells[-1][-1]} {data}".split())

    @property
    def words(self) -> str:
        """The text, whatever its line breaks."""
        return " ".join(self.text.split())

    def sources(self) -> list[str]:
        return [
            value
            for _, attributes in self.tags
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "poster", "data", "action") and value
        ]


def video(
    name: str,
    uri: str,
    *,
    label: str | None = "jump",
    num_frames: int = 24,
    seed: int = 0,
    labelled: bool = True,
) -> EmbeddedVideo:
    rng = np.random.default_rng(seed)
    progress = np.linspace(0, 1, num_frames) ** rng.uniform(0.5, 2)
    embeddings = np.stack([np.cos(progress * 3), np.sin(progress * 3), progress], 1)
    known = {
        "frame_labels": np.minimum(progress * 3, 2).astype(np.int32),
        "progress": progress.astype(np.float32),
    }
    return embedded(
        name,
        (embeddings + rng.normal(size=embeddings.shape) * 0.01).astype(np.float32),
        **{"uri": uri, "split": "test", "label": label, "fps": 30.0, **(known if labelled else {})},
        untrained=rng.normal(size=(num_frames, 3)).astype(np.float32),
    )


def metrics_of(videos: Sequence[EmbeddedVideo], *, defined: bool = True) -> dict[str, Any]:
    """A document whose numbers all differ."""
    number = iter(range(1, 10_000))

    def entries() -> dict[str, Any]:
        values = [0.1 + next(number) / 1000 for _ in METRICS]
        return {
            name: {
                "value": value if defined else None,
                "low": value - 0.05 if defined else None,
                "high": value + 0.07 if defined else None,
                "left_out": {"undefined_pairs": 17 if name == "kendalls_tau" else 0},
            }
            for name, value in zip(METRICS, values, strict=True)
        }

    def variants() -> dict[str, Any]:
        return {variant: entries() for variant in ("trained", "untrained", "positions", "chance")}

    extent = {"videos": len(videos), "frames": sum(map(len, videos)), "labelled_frames": 321}
    return {
        "protocol": "phases",
        "stride": 2,
        "seed": 0,
        "bootstrap": {"draws": 1000, "level": 0.95, "unit": "test video"},
        "origin": {**vars(ORIGIN), "checkpoint": CHECKPOINT, "preset": "penn_action", "step": 1234},
        "train": {"videos": 1258, "frames": 77777, "labelled_frames": 66666},
        "test": extent,
        **variants(),
        "actions": {
            label: {"train_videos": 9, "test_videos": 8, "num_phases": 3, **variants()}
            for label in sorted({video.label or "no label" for video in videos})
        },
    }


@pytest.fixture(scope="module")
def files(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [str(make_video(folder / f"{i}.mp4", 24, gop=6)) for i in range(3)]


@pytest.fixture(scope="module")
def videos(files: list[str]) -> list[EmbeddedVideo]:
    found = [video(f"jump-{i}", uri, seed=i) for i, uri in enumerate(files)]
    return [*found, *(video(f"kick-{i}", uri, label="kick", seed=9 + i) for i, uri in enumerate(files))]


def written(
    folder: Path,
    videos: Sequence[EmbeddedVideo],
    metrics: dict[str, Any],
    train: Sequence[EmbeddedVideo] = (),
    **options: Any,
) -> bytes:
    settings: dict[str, Any] = {"log": LOG, "today": TODAY} | options
    write_report(str(folder / "report.html"), metrics, train, videos, **settings)
    return (folder / "report.html").read_bytes()


@pytest.fixture(scope="module")
def whole(
    videos: list[EmbeddedVideo], tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, dict[str, Any]]:
    metrics = metrics_of(videos)
    return written(tmp_path_factory.mktemp("report"), videos, metrics), metrics


def test_the_numbers_are_the_documents(whole: tuple[bytes, dict[str, Any]]) -> None:
    content, metrics = whole
    page = Page(content)
    shown = {row[0]: row[1:] for row in page.cells}
    titles = {
        "phase_classification": "phase classification (%)",
        "phase_progression": "phase progression (R²)",
        "kendalls_tau": "Kendall's tau",
        "average_precision_at_15": "AP@15 (%)",
        "alignment_error": "alignment error (lower is better)",
    }
    for name, title in titles.items():
        factor, digits = (100, 1) if "(%)" in title else (1, 3)
        for place, variant in enumerate(("trained", "untrained", "positions", "chance")):
            entry = metrics[variant][name]
            value, low, high = (f"{factor * entry[key]:.{digits}f}" for key in ("value", "low", "high"))
            assert shown[title][place].startswith(f"{value} {low} to {high}"), (name, variant)
    for action in ("jump", "kick"):
        row = shown[f"{action} 8 test videos, 3 phases"]
        for place, name in enumerate(("phase_classification", "phase_progression", "kendalls_tau")):
            factor, digits = (100, 1) if name == "phase_classification" else (1, 3)
            for variant in ("trained", "untrained", "positions", "chance"):
                value = metrics["actions"][action][variant][name]["value"]
                assert f"{factor * value:.{digits}f}" in row[place]
    for text in ("1,234 steps", "2026-03-04", "6 test videos", "144 frames", "321 of them", "1,258 videos"):
        assert text in page.text
    assert "Kendall's tau: 17 undefined pairs" in page.text
    assert "These videos do not show that training was worth it: phase classification is 10.3 %" in page.text
    assert page.text.index("Videos in step") < page.text.index("Metrics and controls")
    assert "one of every 2 frames" in page.text


def test_it_needs_no_other_file(whole: tuple[bytes, dict[str, Any]]) -> None:
    content, _ = whole
    page = Page(content)
    anchors = {attributes.get("id") for _, attributes in page.tags}
    for source in page.sources():
        assert source.startswith("data:") or source[1:] in anchors, source[:80]
    assert not any(tag in ("script", "link", "iframe", "object", "base") for tag, _ in page.tags)
    assert "@import" not in content.decode() and "url(" not in content.decode()
    # A movie for each action, the curves, two matrices and two maps for each action, and the frames.
    kinds = [source.partition(";")[0] for source in page.sources() if source.startswith("data:")]
    assert kinds.count("data:video/mp4") == 2
    assert kinds.count("data:image/svg+xml") == 2
    assert kinds.count("data:image/png") == 8
    assert kinds.count("data:image/jpeg") == 2 * 3 * 3
    for source in page.sources():
        if source.startswith("data:image/svg"):
            svg = base64.b64decode(source.partition(",")[2]).decode()
            links = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
            assert all((first or second).startswith("#") for first, second in links)
        if source.startswith("data:video"):
            assert probe_video(base64.b64decode(source.partition(",")[2]), verify=True).num_frames == 24


def test_pictures_have_text_alternatives(whole: tuple[bytes, dict[str, Any]]) -> None:
    page = Page(whole[0])
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "video")
    assert ("html", {"lang": "en"}) in page.tags


def test_equal_input_gives_equal_bytes(
    whole: tuple[bytes, dict[str, Any]], videos: list[EmbeddedVideo], tmp_path: Path
) -> None:
    assert written(tmp_path, videos[::-1], whole[1]) == whole[0]


def test_any_name_is_shown_as_it_is(files: list[str], tmp_path: Path) -> None:
    name = "<script>alert('1')</script>\"><b>$x^2$ &amp; 動画 двойка \x1b[31m\n{{ 7 * 7 }}{% raw %}"
    hostile = [video(f"{i}{name}", uri, label=name, seed=i) for i, uri in enumerate(files)]
    metrics = metrics_of(hostile)
    metrics["actions"]["another"] = copy.deepcopy(metrics["actions"][name])
    for field in ("checkpoint", "preset"):
        metrics["origin"][field] = name
    page = Page(written(tmp_path, hostile, metrics))
    shown = "".join(character if character.isprintable() else "?" for character in name)
    assert page.text.count(shown) >= 8
    assert not any(tag == "script" for tag, _ in page.tags)


def test_a_missing_file_becomes_a_sentence(videos: list[EmbeddedVideo], tmp_path: Path) -> None:
    gone = [replace(videos[0], uri=str(tmp_path / "gone.mp4")), *videos[1:3]]
    page = Page(written(tmp_path, gone, metrics_of(gone)))
    assert "There is no movie of this pair" in page.text and "no such file" in page.text
    assert page.text.count("file not readable") == 3
    assert sum(source.startswith("data:image/jpeg") for source in page.sources()) == 3 * 2
    assert sum(source.startswith("data:image/png") for source in page.sources()) == 4


def test_without_labels_the_rest_is_there(files: list[str], tmp_path: Path) -> None:
    bare = [
        replace(video(f"{i}", uri, label=None, labelled=False, seed=i), fps=None, untrained=None)
        for i, uri in enumerate(files)
    ]
    metrics = metrics_of(bare) | {"untrained": None, "not_run": {"retrieval": "frame labels"}}
    for entry in (metrics, *metrics["actions"].values()):
        for variant in ("trained", "positions", "chance"):
            entry[variant] = {"kendalls_tau": entry[variant]["kendalls_tau"]}
        entry["untrained"] = None
    page = Page(written(tmp_path, bare, metrics, log=None))
    assert "Not measured without frame labels: AP@5." in page.text
    assert "cannot be said without frame labels" in page.text
    assert "undefined" not in page.text.replace("undefined pairs", "") and "nan" not in page.text.lower()
    assert "These embeddings lack the untrained encoder" in page.text
    assert "there are no curves" in page.text
    assert "✓ same phase" not in page.text and "✗ other phase" not in page.text
    assert "Phases over time" not in page.text
    kinds = [source.partition(";")[0] for source in page.sources() if source.startswith("data:")]
    assert kinds.count("data:video/mp4") == 1
    assert kinds.count("data:image/png") == 2


def test_title_warnings_and_phase_names(videos: list[EmbeddedVideo], tmp_path: Path) -> None:
    names = ["reach", "<b>lift</b>", "put back"]
    named = [replace(found, phase_names=names) for found in videos[:3]]
    metrics = metrics_of(named) | {"warnings": ["2 of 3 test videos are copies."]}
    page = Page(written(tmp_path, named, metrics, [replace(videos[3], label="jump")], title="My <squats>"))
    assert ("li", {}) in page.tags and "2 of 3 test videos are copies." in page.text
    assert page.text.count("My <squats>") == 2
    for name in names:
        assert page.text.count(name) > 3
    bands = [attributes["title"] for tag, attributes in page.tags if tag == "i" and "title" in attributes]
    assert bands and all(str(title).startswith(tuple(names)) and " s" in str(title) for title in bands)
    targets = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "href" in attributes]
    assert "#frames-1-3-2" in targets


@pytest.mark.parametrize("are_named", [True, False])
def test_a_phase_has_one_colour_and_one_name(
    videos: list[EmbeddedVideo], tmp_path: Path, are_named: bool
) -> None:
    """Also where only a training video has the last one of more than six phases, or only it has names."""
    names, labels = [f"step {letter}" for letter in "abcdefghi"], np.repeat(np.arange(9, dtype=np.int32), 3)
    fitted = replace(video("train", videos[0].uri, num_frames=27), frame_labels=labels, phase_names=names)
    known = {"frame_labels": labels[:24], "phase_names": names if are_named else None}
    held = [replace(found, **known) for found in videos[:2]]
    content = written(tmp_path, held, metrics_of(held), [fitted]).decode()
    for name in names:
        shown = re.findall(rf'background:(#\w+)"></i>{name}<', content)
        shown += re.findall(rf'background:(#\w+);[^>]*title="{name}:', content)
        assert shown and len(set(shown)) == 1, name
    assert "</i>phase " not in content


def test_one_video(videos: list[EmbeddedVideo], tmp_path: Path) -> None:
    page = Page(written(tmp_path, videos[:1], metrics_of(videos[:1])))
    assert "Only one test video: nothing to align" in page.text
    assert "By action" not in page.text and "1 test video " in page.text and "1 videos" not in page.text
    assert not any(tag == "video" for tag, _ in page.tags)


def test_videos_of_a_frame_or_none(files: list[str], tmp_path: Path) -> None:
    short = [video(str(i), files[0], num_frames=1, seed=i) for i in range(2)]
    page = Page(written(tmp_path, short, metrics_of(short)))
    assert "Too few frames for a map" in page.text
    empty = [video("empty", files[0], num_frames=0)]
    assert "nothing to show" in Page(written(tmp_path, empty, metrics_of(empty))).text


def test_a_large_movie_lies_beside(
    videos: list[EmbeddedVideo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "_MOST_EMBEDDED_BYTES", 100)
    page = Page(written(tmp_path, videos[:2], metrics_of(videos[:2])))
    assert [source for source in page.sources() if source.endswith(".mp4")] == ["aligned-1.mp4"]
    assert probe_video(str(tmp_path / "aligned-1.mp4"), verify=True).num_frames == 24


def test_long_videos_are_aligned_by_every_few_frames(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "_MOST_PAIR_FRAMES", 10)
    uri = str(make_video(tmp_path / "a.mp4", 55))
    long = [video(str(i), uri, num_frames=55, seed=3) for i in range(2)]
    paths, movie = [], actions.aligned_video

    def record(first: Clip, second: Clip, path: np.ndarray) -> bytes:
        paths.append(path.tolist())
        return movie(first, second, path)

    monkeypatch.setattr(actions, "aligned_video", record)
    page = Page(written(tmp_path, long, metrics_of(long)))
    # The same video twice: the path is the diagonal, of all frames.
    assert paths == [[[frame, frame] for frame in range(0, 55, 6)]]
    assert any(tag == "video" for tag, _ in page.tags)


def test_pooled_tasks(videos: list[EmbeddedVideo], tmp_path: Path) -> None:
    metrics = metrics_of(videos[:3])
    for variant in ("trained", "untrained", "positions", "chance"):
        metrics[variant] = {
            name: {"value": 0.4175, "low": 0.4, "high": 0.43, "left_out": {}}
            for name in ("linear_probe_10", "linear_probe_50", "linear_probe")
        }
    metrics["actions"] = {"all classes": {**metrics["actions"]["jump"], "trained": metrics["trained"]}}
    page = Page(written(tmp_path, videos[:3], metrics))
    rows = {row[0]: row[1:] for row in page.cells}
    assert rows["linear probe (%)"][0].startswith("41.8")
    assert "Kendall" not in page.text
