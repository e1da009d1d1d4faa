"""`carl_ray.report.tables`: numbers as the document has them, and verdicts that intervals allow."""

from __future__ import annotations

from typing import Any

import pytest

from carl_ray.report.tables import (
    action_metric_names,
    compare,
    left_out_lines,
    metric_names,
    metric_rows,
    metrics_text,
    summary,
)


def entry(value: float | None, low: float | None, high: float | None, **left_out: int) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "left_out": left_out}


def document(metric: str, *ends: tuple[float | None, ...] | None) -> dict[str, Any]:
    """One metric of the trained encoder, then of the controls: value, low and high; None: not evaluated."""
    variants = ("trained", "untrained", "positions", "chance")
    return {
        v: None if found is None else {metric: entry(*found)}
        for v, found in zip(variants, ends, strict=False)
    }


@pytest.mark.parametrize(
    ("trained", "control", "higher_wins", "lower_wins"),
    [
        ((0.8, 0.9), (0.5, 0.7), "better", "worse"),
        ((0.5, 0.7), (0.8, 0.9), "worse", "better"),
        ((0.5, 0.8), (0.7, 0.9), "overlap", "overlap"),
        ((0.5, 0.7), (0.7, 0.9), "overlap", "overlap"),
        ((None, None), (0.7, 0.9), "unknown", "unknown"),
        ((0.7, 0.9), (None, None), "unknown", "unknown"),
    ],
)
def test_a_verdict_needs_intervals_apart(
    trained: tuple[float, float], control: tuple[float, float], higher_wins: str, lower_wins: str
) -> None:
    entries = [entry(0.6, *ends) for ends in (trained, control)]
    assert compare(*entries) == higher_wins
    assert compare(*entries, lower_is_better=True) == lower_wins


def test_rows_hold_the_numbers() -> None:
    ends = (0.92344, 0.9, 0.94), (0.5, 0.45, 0.91), (0.3, 0.2, 0.4), (None, None, None)
    (row,) = metric_rows(document("phase_classification", *ends), ["phase_classification"])
    cells = {name: cell for name, cell in row.cells.items() if cell is not None}
    assert {name: (cell.value, cell.interval, cell.verdict) for name, cell in cells.items()} == {
        "trained": ("92.3", "90.0 to 94.0", "unknown"),
        "untrained": ("50.0", "45.0 to 91.0", "overlap"),
        "positions": ("30.0", "20.0 to 40.0", "better"),
        "chance": ("undefined", "", "unknown"),
    }
    assert row.title == "phase classification (%)"


def test_only_the_alignment_error_is_better_when_lower() -> None:
    for metric, verdict in (("alignment_error", "better"), ("kendalls_tau", "worse")):
        (row,) = metric_rows(document(metric, (-0.1, -0.15, 0.01), *[(0.2, 0.15, 0.3)] * 3), [metric])
        trained, untrained = row.cells["trained"], row.cells["untrained"]
        assert trained is not None and untrained is not None
        assert untrained.verdict == verdict
        assert trained.verdict == ("better" if verdict == "better" else "unknown")
        assert (trained.value, trained.interval) == ("−0.100", "−0.150 to 0.010")


def test_a_control_that_was_not_evaluated_is_no_win_and_no_loss() -> None:
    ends = (0.9, 0.8, 0.95), None, (0.5, 0.4, 0.6), (0.0, -0.1, 0.1)
    (row,) = metric_rows(document("kendalls_tau", *ends), ["kendalls_tau"])
    assert row.cells["untrained"] is None
    assert row.cells["trained"] is not None and row.cells["trained"].verdict == "better"


def test_metrics_come_in_one_order_and_unknown_ones_last() -> None:
    found = metric_names({"trained": dict.fromkeys(["a_new_one", "kendalls_tau", "phase_classification"])})
    assert found == ["phase_classification", "kendalls_tau", "a_new_one"]
    assert action_metric_names({"trained": dict.fromkeys(found)}) == found[:2]


@pytest.mark.parametrize(("value", "shown"), [(-339176.0, "< −1"), (-0.4, "−0.400")])
def test_a_negative_r_squared_is_no_win(value: float, shown: str) -> None:
    ends = (value, value, value), (-500000.0, -500001.0, -499999.0), (-2.0, -3.0, -0.5), None
    (row,) = metric_rows(document("phase_progression", *ends), ["phase_progression"])
    assert row.note == "below 0: worse than predicting the mean"
    cells = {name: cell for name, cell in row.cells.items() if cell is not None}
    assert {cell.verdict for cell in cells.values()} == {"unknown"}
    assert cells["trained"].value == shown
    assert str(cells["positions"]) == "< −1 [< −1, −0.500]"


def test_metrics_that_need_one_order_are_no_win_where_a_phase_comes_back() -> None:
    for name in ("phase_progression", "kendalls_tau", "alignment_error", "average_precision_at_5"):
        ends = [(0.8, 0.8, 0.9), (0.1, 0.1, 0.2)][:: -1 if name == "alignment_error" else 1]
        metrics = document(name, ends[0], *[ends[1]] * 3)
        (row,) = metric_rows(metrics | {"videos_with_returning_phases": 2}, [name])
        trained_cell = row.cells["trained"]
        assert trained_cell is not None
        meaningful = name == "average_precision_at_5"
        assert trained_cell.verdict == ("better" if meaningful else "unknown")
        assert row.note == (
            "" if meaningful else "not meaningful: a phase comes back in 2 of the test videos"
        )
        (row,) = metric_rows(metrics | {"videos_with_returning_phases": 0}, [name])
        assert row.cells["trained"] is not None and row.cells["trained"].verdict == "better"


def test_shares_of_the_labels_that_take_the_same_videos_are_one_row() -> None:
    names = [
        f"{base}{suffix}"
        for base in ("phase_classification", "linear_probe")
        for suffix in ("", "_50", "_10")
    ]
    metrics: dict[str, Any] = {"trained": dict.fromkeys(names), "fitted_videos": {"_10": 1, "_50": 1, "": 2}}
    assert metric_names(metrics) == [name for name in names if not name.endswith("_10")]
    metrics["fitted_videos"] = {"_10": 1, "_50": 1, "": 1}
    assert metric_names(metrics) == ["phase_classification", "linear_probe"]
    metrics["fitted_videos"] = {"_10": 1, "_50": 4, "": 8}
    assert metric_names(metrics) == names


def test_what_was_left_out() -> None:
    metrics = {
        "trained": {
            "kendalls_tau": entry(1, 1, 1, undefined_pairs=4, nothing=0),
            "phase_classification_10": entry(1, 1, 1, videos_without_labels=1234),
            "alignment_error": entry(1, 1, 1, undefined_pairs=1),
        },
        "untrained": None,
        "positions": {
            "kendalls_tau": entry(1, 1, 1, undefined_pairs=0, nothing=0),
            "phase_classification_10": entry(1, 1, 1, videos_without_labels=1234),
        },
        "chance": {},
    }
    assert left_out_lines(metrics) == [
        "phase classification, 10 % of the labels: 1,234 videos without labels",
        "Kendall's tau: 4 (trained), 0 (positions) undefined pairs",
        "alignment error: 1 undefined pair",
    ]


def test_equal_numbers_are_no_win() -> None:
    """Intervals apart by less than what is shown, such as R² 1.000 beside 1.000."""
    ends = (0.9999, 0.9998, 0.99995), (0.9996, 0.9995, 0.9997), (0.5, 0.4, 0.6)
    (row,) = metric_rows(document("phase_progression", *ends), ["phase_progression"])
    verdicts = {name: cell.verdict for name, cell in row.cells.items() if cell is not None}
    assert verdicts == {"trained": "unknown", "untrained": "overlap", "positions": "better"}


@pytest.mark.parametrize(
    ("untrained", "said"),
    [
        (
            (0.5, 0.4, 0.6),
            "Training was worth it: phase classification is 70.0 % with the encoder and 60.0 %",
        ),
        (
            (0.66, 0.6, 0.72),
            "These videos do not show that training was worth it: phase classification is 70",
        ),
        ((0.9, 0.85, 0.95), "Training was not worth it: phase classification is 70.0 % with the encoder and"),
        ((0.9, None, None), "Too few test videos to say whether training was worth it: phase classification"),
    ],
)
def test_the_summary_is_of_the_best_control(untrained: tuple[Any, ...], said: str) -> None:
    metrics = {
        "trained": {"kendalls_tau": entry(1, 1, 1), "phase_classification": entry(0.7, 0.68, 0.75)},
        "untrained": {"kendalls_tau": entry(0, 0, 0), "phase_classification": entry(*untrained)},
        "positions": {"kendalls_tau": entry(0, 0, 0), "phase_classification": entry(0.6, 0.55, 0.65)},
    }
    found = summary(metrics)
    assert found.startswith(said)
    assert f"the best control ({'untrained' if untrained[0] > 0.6 else 'positions'})" in found
    assert metrics_text(metrics).splitlines()[-1] == found


def test_the_summary_weighs_all_metrics_that_decide() -> None:
    better, overlap, worse = ((0.7, 0.68, 0.75), (0.6, 0.5, 0.7), (0.3, 0.2, 0.4))
    control = entry(0.55, 0.5, 0.6)
    names = ("phase_classification", "average_precision_at_5")
    for classification, retrieval, said in (
        (overlap, better, "Training was worth it: AP@5 is 70.0 %"),
        (better, worse, "Training was not worth it: AP@5 is 30.0 %"),
    ):
        trained = dict(zip(names, (entry(*classification), entry(*retrieval)), strict=True))
        metrics = {"trained": trained, "chance": dict.fromkeys(names, control)}
        assert summary(metrics).startswith(said)
        assert ("phase classification shows no difference" in summary(metrics)) is (classification == overlap)
    assert summary({**metrics, "origin": {"step": 0}}).startswith(
        "Without training: phase classification is 70.0 %"
    )


@pytest.mark.parametrize("count", [6, 10])
def test_a_handful_of_labelled_videos_decides_nothing(count: int) -> None:
    metrics = document("phase_classification", (0.7, 0.68, 0.72), (0.5, 0.48, 0.52))
    found = summary({**metrics, "test": {"videos": 17, "labelled_videos": count}})
    few = "Too few test videos with labels to say whether training was worth it (6, expected at least 10): phase"
    assert found.startswith(few if count == 6 else "Training was worth it: ")


def test_the_summary_without_labels_claims_nothing() -> None:
    metrics: dict[str, Any] = {
        variant: {"kendalls_tau": entry(value, value, value), "label_free": entry(value, None, None)}
        for variant, value in (("trained", 0.9), ("positions", 0.01))
    }
    metrics["not_run"] = {"retrieval": "frame labels", "phase_classification": "frame labels"}
    text = metrics_text(metrics)
    assert "Not measured without frame labels: AP@5, phase classification." in text
    assert text.endswith("The score without labels, higher is better: 0.900 trained, 0.010 positions.")
    assert "cannot be said without frame labels" in text
    assert summary({"trained": {}}).endswith("label a few videos to find out.")
    # The same of embeddings without training: it does not speak of one.
    text = metrics_text(metrics | {"origin": {"step": 0}})
    assert text.split()[0] == "encoder" and " trained" not in text
    assert "How good the embeddings are cannot be said without frame labels" in text
