"""`carl_ray.report.sweep_page`: numbers, comparisons and figures of a sweep's document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from carl_ray.report import sweep_page
from carl_ray.report.sweep_figures import epoch_plot, parameter_plots
from carl_ray.report.sweep_page import (
    difference,
    ordered_trials,
    value_text,
    verdict_lines,
    write_sweep_page,
)
from tests.report.test_page import Page

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
        shares = {"untrained": 0.62, "positions": 0.61, "chance": 0.23}
        metrics = {
            "trained": {
                "phase_classification": summary(mean, values=seeds),
                "alignment_error": summary(0.03, 0.005),
            }
        } | {
            control: {"phase_classification": summary(share), "alignment_error": summary(0.12)}
            for control, share in shares.items()
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


def written(folder: Path, document: Mapping[str, Any], *, figures: bool = False) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        if not figures:  # they take seconds
            for name in ("parameter_plots", "epoch_plot"):
                patch.setattr(sweep_page, name, lambda document, numbers: None)
        write_sweep_page(str(folder / "sweep.html"), document)
    return Page((folder / "sweep.html").read_bytes())


def test_the_table_has_every_trial_best_first_and_failed_last(tmp_path: Path) -> None:
    page = written(tmp_path, whole())
    header, *rows = page.tables["Table of all trials"]
    assert [row[-1] for row in rows] == ["b", "a", "d", "n", "s", "u", "f"]
    by_id = {row[-1]: dict(zip(header, row, strict=True)) for row in rows}
    best, score = by_id["b"], "phase classification (%)"
    assert best["Trial"] == "1 (best)" and by_id["a"]["Trial"] == "2 (base)"
    assert [best[name] for name in PARAMETERS] == ["0.05", "0.2", "even"]
    shown = (best[score], best["untrained"], best["chance"])
    assert shown == ("92.0 [91.0, 93.0]", "62.0 [61.0, 63.0]", "23.0 [22.0, 24.0]")
    assert [best[name] for name in ("Status", "Epochs", "Time")] == ["done", "20", "0:01:40"]
    assert best["alignment error (lower is better)"] == "0.030 [0.025, 0.035]"
    assert best["Checkpoint"] == "s3://bucket/b/step-20"
    against = [by_id[name]["against the best"] for name in "badsf"]
    assert against == ["", "≈ not distinguishable", "▼ worse", "", ""]
    assert by_id["s"][score].endswith("at epoch 7") and by_id["n"][score] == "undefined"
    assert by_id["f"]["Status"] == "failed: the batch does not fit"
    assert by_id["f"][score] == by_id["f"]["Checkpoint"] == "–"
    for text in (
        "Sweep all, preset demo",
        "7 trials: 4 done, 1 stopped, 1 unfinished, 1 failed",
        "random, 20 epochs at most, 3 seeds a trial; measured after epoch 7, 20",
        "0:11:40",
        "python tuning/sweep.py all",
        "Student’s t over the 3 seeds",
        "optimistic",
    ):
        assert text in page.words
    one_seed = written(tmp_path, whole() | {"intervals": "videos", "seeds": 1}).words
    assert "bootstrap over validation videos. Each trial was trained once" in one_seed
    assert "Student" not in one_seed


def test_it_needs_no_other_file_and_is_reproducible(tmp_path: Path) -> None:
    page = written(tmp_path, whole(), figures=True)
    content = (tmp_path / "sweep.html").read_bytes()
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 and all(source.startswith("data:image/png;base64,") for source in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert b"@import" not in content and b"url(" not in content and b"http" not in content
    written(tmp_path, whole(), figures=True)
    assert (tmp_path / "sweep.html").read_bytes() == content


@pytest.mark.parametrize("change", [{}, {"parameters": {"views.sampling": PARAMETERS["views.sampling"]}}])
def test_figures_draw_any_kind_of_value(change: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    document = whole() | change
    document["trials"][2]["values"] = {}  # a missing value is the default
    document["trials"][5]["rungs"][0]["score"] = None
    numbers = {trial["id"]: number for number, trial in enumerate(ordered_trials(document), 1)}
    for picture in (parameter_plots(document, numbers), epoch_plot(document, numbers)):
        assert picture is not None and picture.content.startswith(b"\x89PNG")
    assert not recwarn.list


def test_the_best_and_the_base_are_compared_by_paired_seeds() -> None:
    document = whole()
    # Differences of 0.5, 1.5 and 2.5 points: Student's t with two degrees of freedom has 4.303 standard errors.
    assert verdict_lines(document)[0] == (
        "The best trial and the base cannot be distinguished: paired difference 1.5 [−1.0, 4.0], ahead with 3 of 3 "
        "seeds."
    )


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (trial("a", 0.8), "better than the base: paired difference 12.0 [9.5, 14.5], ahead with 3 of 3"),
        (trial("a", 0.99), "The base has the best score"),
        (trial("a", 0.95, status="stopped"), "the base has no score to compare (stopped)"),
        (trial("a", None), "the base has no score to compare (done)"),
        (trial("c", 0.8, 0.5, 0.2, "even"), "the base is not in the sweep"),
        (
            trial("a", 0.8, score={**summary(0.8), "values": [0.8]}, metrics=None),
            "than the base, by intervals",
        ),
        (
            trial("a", 0.8, score={"mean": 0.8, "low": None, "high": None, "values": [0.8]}, metrics=None),
            "Unknown whether the best trial is better than the base (an interval is missing)",
        ),
    ],
)
def test_the_best_against_the_base(tmp_path: Path, base: dict[str, Any], said: str) -> None:
    document = sweep(trial("b", 0.92, 0.05, 0.2, "even"), base)
    assert said in verdict_lines(document)[0]
    assert said in written(tmp_path, document).words


def test_what_seeds_do_to_both_trials_cancels_out() -> None:
    """Seeds that are 10 points apart, and a trial that is one point ahead with each of them."""
    scores = {"mean": 0.8, "low": 0.55, "high": 1.0, "values": [0.7, 0.8, 0.9]}
    others = {"mean": 0.79, "low": 0.54, "high": 1.0, "values": [0.691, 0.79, 0.889]}
    verdict, found = difference("kendalls_tau", scores, others)
    assert verdict == "better" and found and found["mean"] == pytest.approx(0.01)
    assert difference("kendalls_tau", others, scores)[0] == "worse"
    assert difference("alignment_error", others, scores)[0] == "better"
    assert difference("kendalls_tau", scores, {**others, "values": [0.79]}) == ("overlap", None)


def test_the_batch_that_follows_from_t_is_shown(tmp_path: Path) -> None:
    assert "are not separated" not in written(tmp_path, whole()).words
    trials = [trial("a", 0.9), trial("b", 0.92, 0.05, 0.2, "even", batch_size=4, steps=480)]
    page = written(tmp_path, sweep(*trials))
    header, *rows = page.tables["Table of all trials"]
    assert [dict(zip(header, row, strict=True))["Batch size"] for row in rows] == ["4", "8"]
    assert [dict(zip(header, row, strict=True))["Steps"] for row in rows] == ["480", "240"]
    assert "the effects of T, batch size and number of updates are not separated" in page.words


def test_lower_is_better() -> None:
    trials = [trial("a", 0.9), trial("b", 0.9, 0.5, 0.2, "even"), trial("c", 0.9, 0.7, 0.2, "even")]
    for entry, error in zip(trials, (0.05, 0.02, 0.08), strict=True):
        entry["metrics"]["trained"]["alignment_error"] = entry["score"] = summary(error, 0.001)
    document = sweep(*trials, metric="alignment_error", higher_is_better=False)
    assert [trial["id"] for trial in ordered_trials(document)] == ["b", "a", "c"]
    assert verdict_lines(document)[0].startswith("The best trial is better than the base")


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (
            [],
            ["The sweep has no trial yet.", "0 trials.", "No plot: no parameter", "No plot: no trial has a"],
        ),
        (
            [trial("f", None, 0.3, 0.2, "even", status="failed"), trial("a", None, status="failed")],
            ["No trial is done with a defined score", "Failed trials: 2", "No plot: no trial has a score"],
        ),
        (
            [trial("s", 0.8, status="stopped"), trial("u", 0.7, 0.3, 0.2, "even", status="unfinished")],
            ["No trial is done with a defined score", "Unfinished trials: 1"],
        ),
        ([trial("a", None)], ["No trial is done with a defined score", "1 trial: 1 done"]),
        ([trial("a", 0.9)], ["The base has the best score"]),
    ],
)
def test_little_to_show(tmp_path: Path, trials: list[dict[str, Any]], said: list[str]) -> None:
    page = written(tmp_path, sweep(*trials), figures=len(trials) != 1)
    for text in said:
        assert text in page.words
    assert "nan" not in page.words.lower() and "None" not in page.words


def test_any_text_is_shown_as_it_is(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    name = "<script>alert('1')</script>\"><b>$x^2$ &amp; 動画 \x1b[31m\n{{ 7 * 7 }}{% raw %}"
    document = sweep(
        trial("a", 0.9, 0.1, 0.2, name, id=name, reason=name, checkpoint=name, is_default=True),
        trial("f", None, 0.1, 0.2, name * 3, status="failed", reason=name),
        **dict.fromkeys(("space", "preset", "search", "command", "date", "machine"), name),
        parameters={**PARAMETERS, f"views.{name}": {"log": False, "default": name}},
    )
    page = written(tmp_path, document, figures=True)
    shown = " ".join("".join(c if c.isprintable() else "?" for c in name).split())
    assert page.words.count(shown) > 10
    assert "script" not in [tag for tag, _ in page.tags]
    assert not [str(warning.message) for warning in recwarn.list]


def test_texts() -> None:
    values = [None, True, 0.1 + 0.2, 1e-5, -2, 10.0, "even", "a\nb", [1]]
    texts = ["–", "true", "0.3", "1e−05", "−2", "10", "even", "a?b", "[1]"]
    assert [value_text(value) for value in values] == texts
