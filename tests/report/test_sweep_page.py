"""`carl_ray.report.sweep_page`: the page says what the document says and no more, and draws it in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from carl_ray.report import sweep_page
from carl_ray.report.axes import axis_of, value_text
from carl_ray.report.sweep_page import verdict_lines, write_sweep_page
from carl_ray.report.sweep_paper import label_free_line, paper_table
from carl_ray.report.sweep_plots import parallel_coordinates, parameter_plot, rung_plot
from carl_ray.report.sweep_trials import difference, duration_text, read_trials, score_colors

VOID = {"meta", "br", "wbr", "img", "link"}
PARAMETERS = {
    "objective.temperature": {"log": True, "default": 0.1},
    "views.min_overlap": {"log": True, "default": 0.2},
    "views.sampling": {"log": False, "default": "random"},
}


def summary(
    mean: float | None, spread: float = 0.01, values: Sequence[float | None] | None = None
) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "low": None, "high": None, "values": [None, None, None]}
    values = [mean - spread / 2, mean, mean + spread / 2] if values is None else values
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "values": list(values)}


def trial(
    name: str, mean: float | None, *values: Any, status: str = "done", **changes: Any
) -> dict[str, Any]:
    epochs = {"done": 20, "stopped": 7, "unfinished": 7, "failed": 0}[status]
    metrics = None
    if epochs:
        # What the base's seeds do is no help to the others: the differences between trials vary, too.
        seeds = None if values or mean is None else [mean + 0.005, mean, mean - 0.005]
        metrics = {
            "trained": {
                "phase_classification": summary(mean, values=seeds),
                "alignment_error": summary(0.03, 0.005),
            },
            "untrained": {"phase_classification": summary(0.62), "alignment_error": summary(0.12)},
            "positions": {"phase_classification": summary(0.61), "alignment_error": summary(0.12)},
            "chance": {"phase_classification": summary(0.23), "alignment_error": summary(0.12)},
        }
    return {
        "id": name,
        "status": status,
        "reason": "the batch does not fit" if status == "failed" else None,
        "values": dict(zip(PARAMETERS, values or (0.1, 0.2, "random"), strict=True)),
        "is_default": not values,
        "batch_size": 8,
        "epochs": epochs,
        "steps": 12 * epochs or None,
        "seconds": 100.0,
        "checkpoint": f"s3://bucket/{name}/step-20" if epochs else None,
        "score": metrics and metrics["trained"]["phase_classification"],
        "rungs": [{"epoch": epoch, "score": mean} for epoch in (7, 20) if epoch <= epochs],
        "metrics": metrics,
        **changes,
    }


def sweep(*trials: dict[str, Any], **changes: Any) -> dict[str, Any]:
    lower = not changes.get("higher_is_better", True)
    done = [
        trial
        for trial in trials
        if trial["status"] == "done" and trial["score"] is not None and trial["score"]["mean"] is not None
    ]
    best = sorted(done, key=lambda trial: trial["score"]["mean"] * (1 if lower else -1))
    return {
        "space": "all",
        "preset": "demo",
        "search": "random",
        "command": "python tuning/sweep.py all",
        "date": "2026-03-04",
        "machine": "x86_64, 2 CPUs",
        "metric": "phase_classification",
        "higher_is_better": True,
        "seeds": 3,
        "epochs": 20,
        "rungs": [7, 20],
        "intervals": "seeds",
        "parameters": PARAMETERS,
        "trials": list(trials),
        "best": best[0]["id"] if best else None,
        "label_free": {
            "name": "cycle",
            "against": "phase_classification",
            "rank_correlation": 0.874,
            "num_trials": 5,
            "least_trials": 5,
        },
        "tables": [],
        **changes,
    }


def whole() -> dict[str, Any]:
    """Of every kind one; `b` is the best and `a` the base, and their intervals overlap."""
    return sweep(
        trial("f", None, 1.0, 0.0, "even", status="failed"),
        trial("a", 0.905),
        trial("d", 0.80, 0.01, 1.0, "even"),
        trial("s", 0.93, 0.3, 0.5, "even", status="stopped"),
        trial("u", 0.85, 0.3, 0.2, "even", status="unfinished"),
        trial("b", 0.92, 0.05, 0.2, "even"),
        trial("n", None, 0.5, 0.2, "even"),
    )


@dataclass
class Element:
    """A tag with what is inside."""

    tag: str
    attributes: Mapping[str, str | None]
    children: list[Element] = field(default_factory=list)
    text: str = ""
    """Of itself and all that is inside."""

    def all(self, tag: str) -> list[Element]:
        found = [self] if self.tag == tag else []
        return found + [inner for child in self.children for inner in child.all(tag)]

    def has(self, name: str) -> bool:
        return name in (self.attributes.get("class") or "").split()


class Page(HTMLParser):
    """A page as a tree; fails where tags are not closed in order."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(content.decode())
        self.close()
        assert self.open == [self.root]
        self.text = " ".join(self.root.text.split())
        (self.main,) = self.root.all("main")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attributes))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def rows(self, label: str) -> list[list[str]]:
        """The cells of the table in the region with this label."""
        (region,) = [div for div in self.root.all("div") if div.attributes.get("aria-label") == label]
        return [
            [" ".join(cell.text.split()) for cell in row.children if cell.tag in ("th", "td")]
            for row in region.all("tr")
        ]

    def plot(self, label: str) -> Element:
        (found,) = [
            svg for svg in self.root.all("svg") if (svg.attributes.get("aria-label") or "").startswith(label)
        ]
        return found


def written(folder: Path, document: Mapping[str, Any]) -> Page:
    write_sweep_page(str(folder / "sweep.html"), document)
    return Page((folder / "sweep.html").read_bytes())


def test_the_table_has_every_trial_best_first_and_failed_last(tmp_path: Path) -> None:
    page = written(tmp_path, whole())
    header, *rows = page.rows("Table of all trials")
    assert [row[-1] for row in rows] == ["b", "a", "d", "n", "s", "u", "f"]
    by_id = {row[-1]: dict(zip(header, row, strict=True)) for row in rows}
    best = by_id["b"]
    assert best["Trial"] == "1 best" and by_id["a"]["Trial"] == "2 base"
    assert best["phase classification (%)"] == "92.0 91.0 to 93.0"
    assert (best["temperature"], best["min_overlap"], best["sampling"]) == ("0.05", "0.2", "even")
    assert (best["untrained"], best["chance"]) == ("62.0 61.0 to 63.0", "23.0 22.0 to 24.0")
    assert (best["Status"], best["Epochs"], best["Time"]) == ("done", "20", "1 min 40 s")
    assert best["Checkpoint"] == "s3://bucket/b/step-20"
    assert by_id["s"]["phase classification (%)"].endswith("at epoch 7")
    assert by_id["n"]["phase classification (%)"] == "undefined"
    assert by_id["f"]["Status"] == "failed the batch does not fit"
    assert by_id["f"]["phase classification (%)"] == by_id["f"]["Checkpoint"] == "–"
    for text in (
        "Sweep all, preset demo",
        "7 trials: 4 done, 1 stopped, 1 unfinished, 1 failed",
        "2026-03-04",
    ):
        assert text in page.text
    for text in (
        "random, 20 epochs at most, 3 seeds",
        "after epoch 7 and 20",
        "11 min 40 s",
        "python tuning",
    ):
        assert text in page.text


def test_it_needs_no_other_file_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    write_sweep_page(str(tmp_path / "sweep.html"), whole())
    content = (tmp_path / "sweep.html").read_bytes()
    page = Page(content)
    anchors = {element.attributes.get("id") for element in _every(page.root)}
    links = [link.attributes["href"] or "" for link in page.root.all("a")]
    assert len(links) > 7 * 2 and all(link[0] == "#" and link[1:] in anchors for link in links)
    assert not any(page.root.all(tag) for tag in ("script", "link", "img", "iframe", "object"))
    assert b"@import" not in content and b"url(" not in content and b"http" not in content
    write_sweep_page(str(tmp_path / "again.html"), whole())
    assert (tmp_path / "again.html").read_bytes() == content


def _every(element: Element) -> list[Element]:
    return [element, *(inner for child in element.children for inner in _every(child))]


def test_the_plots_draw_each_trial_once_and_name_it(tmp_path: Path) -> None:
    page = written(tmp_path, whole())
    lines = page.plot("A line for each trial").all("a")
    drawn = {line.attributes["href"]: line for line in lines}
    assert len(lines) == len(drawn) == 7
    assert drawn["#trial-1"].has("is-best") and "Trial 1 (best): temperature 0.05" in drawn["#trial-1"].text
    assert drawn["#trial-2"].has("is-base") and "92.0" in drawn["#trial-1"].text
    assert lines[-1] is drawn["#trial-1"]  # above all others
    kinds = {number: line.attributes["class"] for number, line in drawn.items()}
    assert kinds["#trial-7"] == "trial failed" and kinds["#trial-5"] == "trial stopped"
    assert kinds["#trial-4"] == "trial undefined" and kinds["#trial-3"] == "trial compares"
    assert "style" in drawn["#trial-3"].attributes and "style" not in drawn["#trial-5"].attributes
    slots = page.plot("A line for each trial").text
    assert all(word in slots for word in ("stopped", "unfinished", "failed", "undefined"))
    for name in PARAMETERS:
        dots = page.plot(f"Score against {name}").all("a")
        assert sorted(dot.attributes["href"] or "" for dot in dots) == ["#trial-1", "#trial-2", "#trial-3"]
    epochs = page.plot("Score against epoch").all("a")
    assert len(epochs) == 5  # not the failed and the undefined one


def test_parallel_coordinates_place_values() -> None:
    document = whole()
    plot = parallel_coordinates(document, read_trials(document))
    assert plot is not None
    temperature, overlap, sampling = plot.axes
    assert (temperature.log, overlap.log, sampling.log) == (
        True,
        False,
        False,
    )  # an overlap of 0 has no logarithm
    assert [tick.label for tick in sampling.ticks] == ["even", "random"]
    points = {line.trial.id: line.parts[0] for line in plot.lines}
    assert {len(part) for part in points.values()} == {4}
    height = plot.bottom - plot.top
    # 0.1 is half way between 0.01 and 1 in logarithms.
    assert points["a"][0] == (temperature.x, pytest.approx(plot.bottom - height / 2, abs=0.1))
    assert points["f"][0] == (temperature.x, plot.top) and points["f"][1] == (overlap.x, plot.bottom)
    assert points["b"][3] == (plot.score.x, plot.top) and points["d"][3] == (plot.score.x, plot.bottom)
    assert points["a"][3][1] == pytest.approx(plot.top + height * (0.92 - 0.905) / 0.12, abs=0.1)
    ends = {name: points[name][3][1] for name in "nsuf"}
    assert len(set(ends.values())) == 4 and min(ends.values()) > plot.bottom
    assert max(ends.values()) < plot.height


def test_a_parameters_plot_shows_intervals_and_the_base() -> None:
    document = whole()
    plot = parameter_plot(document, read_trials(document), "objective.temperature")
    assert plot is not None and plot.log and plot.band is not None
    dots = {dot.trial.id: dot for dot in plot.dots}
    assert set(dots) == {"a", "b", "d"}
    assert dots["d"].x < dots["b"].x < dots["a"].x == plot.default_x
    assert dots["d"].y > dots["a"].y > dots["b"].y
    for dot in dots.values():
        assert dot.whisker is not None and dot.whisker[0] < dot.y < dot.whisker[1] and len(dot.caps) == 2
    assert dots["a"].whisker == (plot.band[0], pytest.approx(plot.band[0] + plot.band[1]))
    assert [tick.label for tick in plot.x_ticks] == ["0.01", "0.05", "0.1"]  # what was tried


def test_trials_with_one_value_stand_side_by_side() -> None:
    document = sweep(*(trial(f"t{i}", 0.8 + i / 100, 0.1, 0.2, "even") for i in range(9)))
    plot = parameter_plot(document, read_trials(document), "views.sampling")
    assert plot is not None
    xs = sorted(dot.x for dot in plot.dots)
    assert len(set(xs)) == 9
    assert plot.frame.left < xs[0] and xs[-1] < plot.frame.right and xs[-1] - xs[0] < 40


def test_wide_intervals_do_not_squash_the_points() -> None:
    trials = [trial(f"t{i}", 0.9 + i / 100, 0.1 + i, 0.2, "even") for i in range(3)]
    for entry in trials:
        entry["score"] = summary(entry["score"]["mean"], 5.0)
    document = sweep(*trials)
    plot = parameter_plot(document, read_trials(document), "objective.temperature")
    assert plot is not None
    ys = [dot.y for dot in plot.dots]
    assert max(ys) - min(ys) > (plot.frame.bottom - plot.frame.top) / 4
    for dot in plot.dots:
        assert dot.whisker is not None and dot.caps == ()  # cut off, without the bar of an end
        assert plot.frame.top <= dot.whisker[0] and dot.whisker[1] <= plot.frame.bottom


def test_rungs_are_lines_with_gaps() -> None:
    broken = trial("x", 0.9, 0.1, 0.2, "even")
    broken["rungs"] = [{"epoch": e, "score": s} for e, s in ((2, 0.5), (4, None), (6, 0.7), (20, 0.9))]
    document = sweep(
        broken, trial("s", 0.6, 0.1, 0.2, "even", rungs=[{"epoch": 2, "score": 0.6}]), rungs=[2, 4, 6, 20]
    )
    plot = rung_plot(document, read_trials(document))
    assert plot is not None
    parts = {line.trial.id: line.parts for line in plot.lines}
    assert [len(part) for part in parts["x"]] == [1, 2] and [len(part) for part in parts["s"]] == [1]
    (start,), ((middle, _), (end, top)) = parts["x"]
    left, right = start[0], end
    assert middle == pytest.approx(left + (right - left) * 4 / 18, abs=0.1) and top < start[1]
    assert [tick.label for tick in plot.x_ticks] == ["2", "4", "6", "20"]


def test_the_best_and_the_base_are_compared_seed_by_seed(tmp_path: Path) -> None:
    document = whole()
    lines = verdict_lines(document)
    # Differences of 0.5, 1.5 and 2.5 points: Student's t with two degrees of freedom has 4.303 standard errors.
    assert lines[0] == (
        "The best trial and the base cannot be told apart: seed by seed they differ by 1.5 (−1.0 to 4.0)."
    )
    assert "The best trial is ahead of the base with 3 of 3 seeds." in lines
    assert "Of the 2 other trials done, 1 cannot be told from the best one, seed by seed." in lines
    assert "1 trial failed: the reasons are at the end of the table." in lines
    page = written(tmp_path, document)
    rows = {row[0]: row[1:] for row in page.rows("Table of the best trial and the base")}
    assert rows[""] == ["best: trial 1", "base: trial 2", "best against base"]
    assert rows["objective.temperature"] == ["0.05", "0.1", "differs"]
    assert rows["views.min_overlap"] == ["0.2", "0.2", ""]
    assert rows["phase classification (%)"] == [
        "92.0 91.0 to 93.0",
        "90.5 89.5 to 91.5",
        "≈ cannot be told apart",
    ]
    assert "optimistic" in page.text and "test it once on the test videos" in page.text


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            trial("a", 0.8),
            "The best trial is better than the base: seed by seed they differ by 12.0 (9.5 to 14.5).",
        ),
        (trial("a", 0.99), "The base itself has the best score"),
        (trial("a", 0.95, status="stopped"), "The base has no score to compare (stopped)"),
        (trial("a", None), "The base has no score to compare (done)"),
        (trial("a", None, status="failed"), "The base has no score to compare (failed)"),
        (trial("c", 0.8, 0.5, 0.2, "even"), "The base is not in the sweep"),
        (
            trial("a", 0.8, score={"mean": 0.8, "low": None, "high": None, "values": [0.8]}),
            "cannot be said: an interval is missing",
        ),
    ],
)
def test_the_best_against_the_base(tmp_path: Path, base: dict[str, Any], said: str) -> None:
    document = sweep(trial("b", 0.92, 0.05, 0.2, "even"), base)
    assert said in verdict_lines(document)[0]
    assert said in written(tmp_path, document).text


def test_what_seeds_do_to_both_trials_cancels_out() -> None:
    """Seeds that are 10 points apart, and a trial that is one point ahead with each of them."""
    scores = {"mean": 0.8, "low": 0.55, "high": 1.0, "values": [0.7, 0.8, 0.9]}
    others = {"mean": 0.79, "low": 0.54, "high": 1.0, "values": [0.691, 0.79, 0.889]}
    found = difference(scores, others, lower_is_better=False)
    assert found.verdict == "better" and found.mean == pytest.approx(0.01)
    assert difference(others, scores, lower_is_better=False).verdict == "worse"
    assert difference(others, scores, lower_is_better=True).verdict == "better"
    unpaired = {**others, "values": [0.79]}
    assert difference(scores, unpaired, lower_is_better=False).verdict == "overlap"


def test_one_seed_is_compared_by_intervals() -> None:
    trials = [trial("a", 0.905), trial("b", 0.92, 0.05, 0.2, "even")]
    for entry in trials:
        entry["score"] = {**entry["score"], "values": [entry["score"]["mean"]]}
    lines = verdict_lines(sweep(*trials, seeds=1, intervals="videos"))
    assert lines[:2] == [
        "The best trial and the base cannot be told apart: their intervals overlap.",
        "Of the 1 other trial done, 1 cannot be told from the best one, by intervals over the videos that overlap.",
    ]


def test_the_batch_that_follows_from_t_is_shown(tmp_path: Path) -> None:
    assert "Videos a step" not in written(tmp_path, whole()).text
    trials = [trial("a", 0.9), trial("b", 0.92, 0.05, 0.2, "even", batch_size=4, steps=480)]
    page = written(tmp_path, sweep(*trials))
    header, *rows = page.rows("Table of all trials")
    assert [dict(zip(header, row, strict=True))["Videos a step"] for row in rows] == ["4", "8"]
    assert [dict(zip(header, row, strict=True))["Steps"] for row in rows] == ["480", "240"]
    assert "what T does cannot be told here from what the batch and the number of updates do" in page.text


def test_lower_is_better(tmp_path: Path) -> None:
    trials = [trial("a", 0.9), trial("b", 0.9, 0.5, 0.2, "even"), trial("c", 0.9, 0.7, 0.2, "even")]
    for entry, error in zip(trials, (0.05, 0.02, 0.08), strict=True):
        entry["metrics"]["trained"]["alignment_error"] = entry["score"] = summary(error, 0.001)
    document = sweep(*trials, metric="alignment_error", higher_is_better=False)
    assert document["best"] == "b"
    shown = read_trials(document)
    assert [entry.id for entry in shown] == ["b", "a", "c"]
    assert (shown[0].light, shown[0].dark) == score_colors(1) and shown[2].light == score_colors(0)[0]
    assert verdict_lines(document)[0].startswith("The best trial is better than the base")
    page = written(tmp_path, document)
    rows = {row[0]: row[1:] for row in page.rows("Table of the best trial and the base")}
    assert rows["alignment error (lower is better)"][-1] == "▲ better"
    assert "lower is better" in page.text


def test_colours_keep_their_distance_from_the_ground() -> None:
    def luminance(color: str) -> float:
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = zip(*(score_colors(step / 10) for step in range(11)), strict=True)
    assert [luminance(c) for c in light] == sorted((luminance(c) for c in light), reverse=True)
    assert [luminance(c) for c in dark] == sorted(luminance(c) for c in dark)
    assert 1.05 / (luminance(light[0]) + 0.05) > 2.9
    assert (luminance(dark[0]) + 0.05) / (luminance("#17191c") + 0.05) > 2.9


def paper_entry(*rows: tuple[str, str, str | None]) -> dict[str, Any]:
    return {
        "table": "9",
        "title": "Temperature",
        "metrics": ["phase_classification", "alignment_error"],
        "note": "Other videos.",
        "rows": [
            {"name": name, "trial": id_, "paper": {} if number is None else {"phase_classification": number}}
            for name, id_, number in rows
        ],
    }


def test_the_papers_numbers_stand_beside_ours(tmp_path: Path) -> None:
    table = paper_entry(
        ("one", "a", "93.07"),
        ("two", "b", "92.95"),
        ("three", "d", "91.57"),
        ("four", "s", "91"),
        ("five", "b", None),
    )
    document = {**whole(), "tables": [table]}
    page = written(tmp_path, document)
    rows = {row[0]: row[1:] for row in page.rows("Table 9 of the paper with our numbers")}
    assert rows["one"][0] == "90.5 89.5 to 91.5 paper 93.07"
    assert rows["four stopped"] == ["– paper 91", "–"]  # a score at an earlier epoch is none of this table
    assert rows["five"][0] == "92.0 91.0 to 93.0"
    (finding,) = paper_table(table, document["trials"]).findings
    assert finding == (
        "phase classification: the paper’s best row is one; the best of ours is two, but the two cannot be told "
        "apart. Rank correlation (Spearman) with the paper 0.50 over 3 rows."
    )
    assert finding in page.text and "Other videos." in page.text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("x", "a", "90"), ("y", "b", "91"), ("z", "d", "80")], "row, y, is the best of ours too. Rank"),
        ([("x", "a", "90"), ("y", "b", "91"), ("z", "d", "80")], "with the paper 1.00 over 3 rows"),
        (
            [("x", "a", "80"), ("y", "b", "70"), ("z", "d", "90")],
            "ours is y, and the two can be told apart",
        ),
        ([("x", "a", "80"), ("y", "b", "70"), ("z", "d", "90")], "with the paper −1.00 over 3 rows"),
        ([("x", "a", "90"), ("y", "b", "90"), ("z", "d", "80")], "row, x and y, is the best of ours too"),
        ([("x", "a", "80"), ("y", "b", "70"), ("z", "f", "90")], "row, z, has no number of ours"),
        ([("x", "a", "80"), ("y", "b", "90")], "A rank correlation of 2 rows says nothing"),
        ([("x", "a", "80"), ("y", "b", "80"), ("z", "d", "80")], "undefined: all 3 rows are equal"),
        ([("x", "a", "80"), ("y", "n", "90")], "the paper’s best row is y; too few rows of ours (1)"),
        ([("x", "gone", "80")], "too few rows of ours (0)"),
    ],
)
def test_findings_about_the_papers_order(rows: list[tuple[str, str, str]], said: str) -> None:
    (finding,) = paper_table(paper_entry(*rows), whole()["trials"]).findings
    assert said in finding


def test_the_papers_best_row_is_the_least_error() -> None:
    trials = [trial("a", 0.9), trial("b", 0.9, 0.5, 0.2, "even")]
    for entry, error in zip(trials, (0.05, 0.02), strict=True):
        entry["metrics"]["trained"]["alignment_error"] = summary(error, 0.001)
    table = paper_entry(("one", "a", None), ("two", "b", None))
    for row, number in zip(table["rows"], (".02", ".01"), strict=True):
        row["paper"] = {"alignment_error": number}
    (finding,) = paper_table(table, trials).findings
    assert "best row, two, is the best of ours too" in finding


def test_a_table_without_numbers_of_the_paper(tmp_path: Path) -> None:
    table = paper_entry(("one", "a", None), ("two", "gone", None))
    assert paper_table(table, whole()["trials"]).findings == ()
    page = written(tmp_path, {**whole(), "tables": [table]})
    assert "The paper has no number for these rows." in page.text
    assert page.rows("Table 9 of the paper with our numbers")[2][0] == "two not in the sweep"


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ([], ["The sweep has no trial yet.", "0 trials.", "nothing to draw: the sweep has no trial"]),
        (
            [trial("f", None, 0.3, 0.2, "even", status="failed"), trial("a", None, status="failed")],
            [
                "No trial is done",
                "2 trials failed",
                "so there is nothing to draw",
                "No trial has a score at any",
            ],
        ),
        (
            [trial("s", 0.8, status="stopped"), trial("u", 0.7, 0.3, 0.2, "even", status="unfinished")],
            ["No trial is done", "Trials that are not finished: 1", "Here that is true of all"],
        ),
        (
            [trial("a", None)],
            ["Trials that are done: 1; none of them has a defined score", "1 trial: 1 done"],
        ),
        ([trial("a", 0.9)], ["The base itself has the best score", "the only trial to compare"]),
        (
            [trial("a", 0.9), trial("b", 0.9, 0.1, 0.2, "even")],
            ["The base itself has the best score", "Of the 1 other trial done, 1 cannot be told"],
        ),
    ],
)
def test_little_to_show(tmp_path: Path, trials: list[dict[str, Any]], said: list[str]) -> None:
    page = written(tmp_path, sweep(*trials, label_free=None))
    for text in said:
        assert text in page.text
    assert "nan" not in page.text.lower() and "None" not in page.text


def test_one_parameter_or_none(tmp_path: Path) -> None:
    one = {"views.sampling": PARAMETERS["views.sampling"]}
    document = whole() | {"parameters": one}
    document["trials"][0]["values"] = {}  # not named: the default
    page = written(tmp_path, document)
    assert len(page.plot("A line for each trial").all("a")) == 7
    assert {row[-1]: row for row in page.rows("Table of all trials")}["f"][3] == "random"
    page = written(tmp_path, whole() | {"parameters": {}})
    assert "nothing to draw: the sweep has no parameter" in page.text


def test_any_text_is_shown_as_it_is(tmp_path: Path) -> None:
    name = "<script>alert('1')</script>\"><b>$x^2$ &amp; 動画 \x1b[31m\n{{ 7 * 7 }}{% raw %}"
    document = sweep(
        trial("a", 0.9, 0.1, 0.2, name, id=name, reason=name, checkpoint=name, is_default=True),
        trial("f", None, 0.1, 0.2, name * 3, status="failed", reason=name),
        **dict.fromkeys(("space", "preset", "search", "command", "date", "machine"), name),
        parameters={**PARAMETERS, f"views.{name}": {"log": False, "default": name}},
    )
    page = written(tmp_path, document)
    shown = " ".join("".join(c if c.isprintable() else "?" for c in name).split())
    assert page.text.count(shown) > 10
    assert not page.root.all("script") and not page.main.all("script")


def test_the_note_says_what_intervals_are_of(tmp_path: Path) -> None:
    assert "Student’s t over the 3 seeds" in written(tmp_path, whole()).text
    page = written(tmp_path, whole() | {"intervals": "videos", "seeds": 1})
    assert "bootstrap intervals over validation videos" in page.text and "Student" not in page.text
    assert "Seed by seed" not in page.text
    assert "Trials that were stopped early were measured at an earlier epoch" in page.text


def test_the_label_free_score() -> None:
    document = whole()
    assert "0.87" in label_free_line(document) and "5 trials" in label_free_line(document)
    assert "like phase classification" in label_free_line(document)
    document["label_free"] |= {"rank_correlation": None, "against": "linear_probe"}
    assert "with linear probe is undefined over 5 trials done" in label_free_line(document)
    document["label_free"] |= {"num_trials": 4}
    assert "4 trials done are too few for a rank correlation" in label_free_line(document)
    assert "could not be held" in label_free_line(whole() | {"label_free": None})


def test_axes_of_numbers_and_words() -> None:
    log = axis_of([0.01, 1.0], log=True)
    assert log.place(0.1) == pytest.approx(0.5) and log.place(0.01) == 0
    assert not axis_of([0, 1], log=True).log
    assert axis_of([3.0]).place(3.0) == 0.5
    mixed = axis_of([0.5, "auto", 10, None, True, 2])
    assert mixed.words == ("0.5", "2", "10", "auto", "none", "true")
    assert mixed.place(10) == pytest.approx(2.5 / 6) and mixed.place(None) == pytest.approx(4.5 / 6)
    assert axis_of([1.0, math.inf]).words == ("1", "inf")


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0.01, 1, True), (0.03, 0.9, True), (0.9, 1.1, True), (1e-9, 1e9, True), (0, 1, False), (-3, 1e4, False),
     (0.901, 0.9012, False), (0.3, 3, True)],
)  # fmt: skip
@pytest.mark.parametrize("gap", [0.065, 0.15])
def test_ticks_are_round_inside_and_apart(low: float, high: float, log: bool, gap: float) -> None:
    axis = axis_of([low, high], log=log)
    ticks = axis.ticks(gap=gap)
    assert len(ticks) >= 2
    assert all(0 <= tick.at <= 1 for tick in ticks)
    assert all(second.at - first.at >= gap for first, second in pairwise(ticks))
    for tick in ticks:
        assert axis.place(float(tick.label.replace("−", "-"))) == pytest.approx(tick.at, abs=1e-3)
        assert len(tick.label) <= 7
    many = [low + (high - low) * i / 50 for i in range(51)]
    assert axis.ticks(many, gap=gap) == ticks  # too close to be labelled one by one


def test_texts() -> None:
    values = [None, True, 0.1 + 0.2, 1e-5, -2, 10.0, "even", "a\nb", [1]]
    assert [value_text(v) for v in values] == [
        "none",
        "true",
        "0.3",
        "1e−05",
        "−2",
        "10",
        "even",
        "a?b",
        "[1]",
    ]
    assert [duration_text(s) for s in (0.2, 59.6, 181.2, 7260)] == [
        "0 s",
        "1 min 0 s",
        "3 min 1 s",
        "2 h 1 min",
    ]


def test_the_pages_of_this_package_share_their_style(tmp_path: Path) -> None:
    style = (Path(sweep_page.__file__).parent / "base.css.jinja").read_text().split("\n", 1)[1].strip()
    write_sweep_page(str(tmp_path / "sweep.html"), whole())
    assert style in (tmp_path / "sweep.html").read_text()
