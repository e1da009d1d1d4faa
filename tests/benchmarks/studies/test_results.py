"""`benchmarks.studies.results`: means, deviations and orderings are those of the runs, the failing ones too."""

from __future__ import annotations

import json
import statistics

import pytest

from benchmarks.paper_tables import Row, Table
from benchmarks.studies.results import markdown, table_document

TABLE = Table(
    "A table",
    (
        Row("a", {"model.num_layers": "1"}, {"accuracy": "90", "alignment_error": "2"}),
        Row("b", {}, {"accuracy": "80", "alignment_error": "3"}),
        Row("c"),
        Row("d", reads={"accuracy": "alignment_error"}),
    ),
    ("accuracy", "alignment_error"),
    "b",
    "A note.",
)


def metrics(accuracy: float | None, error: float) -> dict:
    return {"accuracy": {"value": accuracy}, "alignment_error": {"value": error}}


def run(accuracy: float | None, error: float) -> dict:
    controls = {"untrained": metrics(0.4, 9.0), "positions": metrics(0.3, 8.0), "chance": metrics(0.2, 7.0)}
    return {"trained": metrics(accuracy, error), **controls}


@pytest.fixture
def document() -> dict:
    return table_document(
        TABLE,
        {
            "a": [run(0.7, 0.5), run(0.8, 0.1), run(0.9, 0.3)],
            "b": [run(0.6, 0.2), run(0.7, 0.2), run(0.6, 0.4)],
            "c": [run(None, 0.1), run(0.9, 0.1), run(None, 0.1)],
            "d": [run(0.1, 0.5), None, None],
        },
    )


def test_means_and_deviations(document: dict) -> None:
    a, _, c, d = document["rows"]
    assert a["metrics"]["accuracy"]["values"] == [0.7, 0.8, 0.9]
    assert a["metrics"]["accuracy"]["mean"] == pytest.approx(0.8)
    assert a["metrics"]["accuracy"]["deviation"] == pytest.approx(statistics.stdev([0.7, 0.8, 0.9]))
    assert c["metrics"]["accuracy"] == {"values": [None, 0.9, None], "mean": 0.9, "deviation": None}
    # A run that is not there yet, and a row that is read from another metric.
    assert d["metrics"]["accuracy"] == {"values": [0.5, None, None], "mean": 0.5, "deviation": None}
    assert d["metrics"]["alignment_error"]["values"] == [None] * 3
    assert document["controls"]["positions"]["alignment_error"]["mean"] == 8.0
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_orderings(document: dict) -> None:
    found = {(o["row"], o["metric"]): o for o in document["orderings"]}
    assert set(found) == {(row, metric) for row in "acd" for metric in TABLE.metrics}
    # The paper's a is better in accuracy, and ours in every seed: b is better in none of them.
    accuracy = found["a", "accuracy"]
    assert (accuracy["better"], accuracy["paper"], accuracy["verdict"]) == (0, False, "undecided")
    # Mean -1/6, deviation .115, t(2) = 4.303.
    assert accuracy["interval"] == pytest.approx([-0.4535, 0.1202], abs=1e-3)
    assert accuracy["differences"] == pytest.approx([-0.1, -0.1, -0.3])
    # The paper's a has the lower error too; ours in one seed of three.
    error = found["a", "alignment_error"]
    assert error["differences"] == pytest.approx([0.3, -0.1, -0.1])
    assert (error["better"], error["paper"], error["verdict"]) == (1, False, "undecided")
    # Nothing is said where the paper says nothing; undefined values are no pairs.
    assert (found["c", "accuracy"]["better"], found["c", "accuracy"]["verdict"]) == (0, None)
    assert len(found["c", "accuracy"]["differences"]) == 1


@pytest.mark.parametrize(("a", "verdict"), [(0.9, "holds"), (0.1, "does not hold"), (0.5, "undecided")])
def test_a_verdict_is_of_an_interval_with_one_sign(a: float, verdict: str) -> None:
    table = table_document(
        TABLE, {name: [run((a if name == "a" else 0.5) + k / 100, 0.5) for k in range(3)] for name in "abcd"}
    )
    accuracy = next(o for o in table["orderings"] if (o["row"], o["metric"]) == ("a", "accuracy"))
    assert accuracy["verdict"] == verdict


def test_ties_and_few_seeds_decide_nothing() -> None:
    same = table_document(TABLE, {name: [run(0.5, 0.5)] * 3 for name in "abcd"})
    accuracy = next(o for o in same["orderings"] if (o["row"], o["metric"]) == ("a", "accuracy"))
    assert (accuracy["better"], accuracy["worse"], accuracy["verdict"]) == (0, 0, "undecided")
    few = table_document(TABLE, {name: [run(0.9 if name == "a" else 0.5, 0.5)] * 2 for name in "abcd"})
    accuracy = next(o for o in few["orderings"] if (o["row"], o["metric"]) == ("a", "accuracy"))
    assert (accuracy["worse"], accuracy["verdict"]) == (2, None)


def test_the_page_says_what_does_not_hold(document: dict) -> None:
    about = {"command": "study 1", "date": "today", "machine": "one", "code": "ab", "seeds": 3, "epochs": 4}
    text = markdown({**document, **about})
    assert "`study 1`, today, one; code ab." in text and "Seeds: 3, each of 4 epochs." in text
    assert "| d | 0.500 | – |" in text
    assert "| a | 0.800 ± 0.100 (90) | 0.300 ± 0.200 (2) |" in text
    assert "| *positions* (of b) | 0.300 ± 0.000 | 8.000 ± 0.000 |" in text
    lines = text.splitlines()
    (accuracy,) = [line for line in lines if line.startswith("- a, accuracy")]
    (error,) = [line for line in lines if line.startswith("- a, alignment_error")]
    assert "b is better in 0 of 3 seeds" in accuracy and accuracy.endswith(
        "[-0.454, +0.120]; the paper's order: **undecided**"
    )
    assert "b is better in 1 of 3 seeds" in error and "the paper's order: **undecided**" in error
    decided = table_document(TABLE, {n: [run(0.9 if n == "a" else 0.5, 0.1)] * 3 for n in "abcd"})
    assert "**the paper's order holds**" in markdown({**decided, **about})
    assert "A note." in text
    nothing = table_document(TABLE, {"a": [run(0.7, 0.5)], "b": [run(0.6, 0.2)], "c": [None], "d": [None]})
    text = markdown({**nothing, **about})
    assert [line for line in text.splitlines() if line.endswith("not run")] == [
        "- c: not run",
        "- d: not run",
    ]
