"""The commands `python -m carl_ray.embed` and `evaluate`: files whole, mistakes one clear line."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from markupsafe import escape
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from carl_ray import embed, evaluate
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.evaluation.clip_probe import even_clips
from carl_ray.evaluation.controls import VARIANTS
from carl_ray.evaluation.embeddings import EmbeddedVideo, write_part
from carl_ray.evaluation.tasks import metric_names as metrics_of_tasks
from carl_ray.evaluation.tasks import metric_of
from carl_ray.paper import PROTOCOLS
from carl_ray.report.evaluation import evaluate_embeddings, measured_splits
from carl_ray.report.tables import metric_names
from tests import embedded
from tests.embedded import failure
from tests.evaluation.test_extraction import row
from tests.evaluation.test_repetitions import video
from tests.samples import manifest_row

ORIGIN = replace(embedded.ORIGIN, preset="penn_action", has_untrained=True)


def videos(split: str, count: int, width: int = 4) -> list[EmbeddedVideo]:
    made = []
    for number in range(count):
        rng = np.random.default_rng([number, len(split)])
        labels = np.repeat([-1, 0, 1, 2], rng.integers(5, 9, 4)).astype(np.int32)
        embeddings = np.eye(width)[labels] + 0.1 * rng.random((len(labels), width))
        untrained = rng.random((len(labels), width)).astype(np.float32)
        known = {
            "split": split,
            "label": "squat",
            "frame_labels": labels,
            "fps": 25.0,
            "untrained": untrained,
        }
        made.append(embedded.embedded(f"{split}/{number}", embeddings.astype(np.float32), **known))
    return made


def test_one_folder_is_evaluated_by_its_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(tmp_path / "embeddings"), tmp_path / "out"
    write_part(folder, videos("train", 4), ORIGIN, "float16")
    write_part(folder, videos("test", 3) + videos("validation", 2), ORIGIN, "float16")
    evaluate.main(["--train", folder, "--test", folder, "--out", str(out)])
    document = json.loads((out / "metrics.json").read_text())
    assert (document["train"]["videos"], document["test"]["videos"]) == (4, 3)
    assert (document["protocol"], document["stride"]) == ("phases", 2)
    assert set(VARIANTS) <= set(document)
    printed = capsys.readouterr().out
    shown = metric_names(document)
    measured = set(metrics_of_tasks((*PROTOCOLS["phases"], "propagation")))
    assert measured >= set(shown) >= {"phase_classification", "kendalls_tau"}
    page = (out / "report.html").read_text()
    root = Path(__file__).parents[1]
    documented = (root / "README.md").read_text() + (root / "docs/results.md").read_text()
    for metric in shown:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{metric_of(metric).title}  ")]
        value = document["trained"][metric]["value"]
        scaled = (
            ""
            if value is None
            else f"{100 * value:.1f}"
            if "(%)" in metric_of(metric).title
            else f"{value:.3f}"
        )
        assert scaled.replace("-", "−") in line
        # One name in the terminal, in the report, in README and in the results.
        assert escape(metric_of(metric).title) in page
        assert metric_of(metric).words.partition(",")[0].partition("@")[0] in documented
    assert f"report:      {out}/report.html" in printed
    assert shlex.split(printed.splitlines()[-1])[:4] == ["next:", "python", "-m", "carl_ray.search"]
    assert "<html" in (out / "report.html").read_text()

    apart = tmp_path / "apart"
    write_part(str(apart / "a"), videos("train", 4), ORIGIN, "float16")
    write_part(str(apart / "b"), videos("test", 3), ORIGIN, "float16")
    arguments = ["--train", apart / "a", "--test", apart / "b/part-00000.parquet", "--out", apart]
    evaluate.main([str(argument) for argument in arguments])
    again = json.loads((apart / "metrics.json").read_text())
    assert again["trained"] == document["trained"]
    evaluate.main([*map(str, arguments), "--protocol", "finegym", "--stride", "1"])
    assert "linear_probe" in json.loads((apart / "metrics.json").read_text())["trained"]


def test_one_folder_by_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_part("E", videos("train", 4) + videos("test", 3), ORIGIN, "float16")
    Path("E/bad_videos.jsonl").write_text('{"video_id": "v", "reason": "cut off"}\n')
    for test in ("E", "E/", "./E", f"{tmp_path}/E"):
        evaluate.main(["--train", "E", "--test", test, "--out", "out"])
        document = json.loads(Path("out/metrics.json").read_text())
        found = document["train"]["videos"], document["test"]["videos"], document["not_embedded"]
        assert found == (4, 3, 1), test


def test_centered_is_centering_of_each_video(tmp_path: Path) -> None:
    """A shift of each video, as scenes have, changes plain embeddings' metrics, and no centred ones."""
    rng = np.random.default_rng(0)
    plain = videos("train", 4) + videos("test", 3)
    shifted = [replace(v, embeddings=v.embeddings + 5 * rng.standard_normal(4, np.float32)) for v in plain]
    measured = []
    for name, made, options in (
        ("a", plain, ["--centered"]),
        ("b", shifted, ["--centered"]),
        ("c", shifted, []),
    ):
        folder = str(tmp_path / name)
        write_part(folder, made, ORIGIN, "float32")
        evaluate.main(["--train", folder, "--test", folder, "--out", folder + "-out", *options])
        document = json.loads((tmp_path / f"{name}-out" / "metrics.json").read_text())
        assert document["centered"] == bool(options)
        measured.append(document["trained"]["average_precision_at_5"]["value"])
    assert measured[0] == pytest.approx(measured[1], abs=1e-6) and measured[2] < measured[0] - 0.1


@pytest.mark.parametrize("options", [[], ["--centered"]])
def test_videos_of_two_labels_are_retrieved_as_wholes(tmp_path: Path, options: list[str]) -> None:
    made = videos("train", 6) + videos("test", 4)
    made = [replace(found, label=("run", "sit")[number % 2]) for number, found in enumerate(made)]
    for found in made:
        found.embeddings[:, 0] += found.label == "run"
    write_part(str(tmp_path), made, ORIGIN, "float32")
    evaluate.main(["--train", str(tmp_path), "--test", str(tmp_path), "--out", str(tmp_path), *options])
    document = json.loads((tmp_path / "metrics.json").read_text())
    if options:  # centred embeddings have no mean
        assert "video_recall_at_1" not in document["trained"] and "recognition" not in document["not_run"]
    else:
        assert document["trained"]["video_recall_at_1"]["value"] == 1
        assert '<th scope="row">video R@1 (%)' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("validation", "measured"), [(3, 3), (1, 5)])
def test_without_test_videos_what_is_possible_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: int, measured: int
) -> None:
    folder = str(tmp_path / "embeddings")
    copies = [replace(found, content_hash="same") for found in videos("train", 4)]
    write_part(folder, copies + videos("validation", validation), ORIGIN, "float16")
    evaluate.main(["--train", folder, "--test", folder, "--out", str(tmp_path), "--title", "My <videos>"])
    document = json.loads((tmp_path / "metrics.json").read_text())
    (warning,) = document["warnings"]
    assert warning.startswith("There are no videos of the split test, so ")
    assert warning in capsys.readouterr().out
    assert document["test"]["videos"] == measured
    assert ("phase_classification" in document["trained"]) is (validation > 1)
    page = (tmp_path / "report.html").read_text()
    assert warning in page and "<h1>My &lt;videos&gt;</h1>" in page


@pytest.mark.parametrize("is_labelled", [True, False])
def test_where_no_test_video_has_a_label_the_validation_videos_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_labelled: bool
) -> None:
    folder, bare = str(tmp_path / "embeddings"), {"label": None, "frame_labels": None}
    validation = [replace(v, **({} if is_labelled else bare)) for v in videos("validation", 3)]
    tests = [replace(v, **bare) for v in videos("test", 2)]  # type: ignore[arg-type]
    write_part(folder, [*videos("train", 4), *validation, *tests], ORIGIN, "float16")
    document = evaluate_embeddings(folder, folder, str(tmp_path))
    warning = "No test video has a label, so the 3 validation videos were measured."
    assert document["warnings"] == [warning] * is_labelled
    assert document["test"]["videos"] == (3 if is_labelled else 2)

    rows = [*videos("train", 1), *validation, *tests]
    scanned = [row(tmp_path / "a.mp4", v.video_id, len(v), split=v.split, label=v.label) for v in rows]
    write_table(pa.Table.from_pylist(scanned, schema=SCHEMA), str(tmp_path / "manifest.parquet"))
    expected = ["train", "validation" if is_labelled else "test"]
    assert measured_splits(str(tmp_path / "manifest.parquet")) == expected


def test_metrics_are_computed_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[set[int]] = []
    fit = LogisticRegression.fit

    def recorded(*arguments: Any) -> LogisticRegression:
        numbers.append({pool["num_threads"] for pool in threadpool_info()})
        return fit(*arguments)

    monkeypatch.setattr(LogisticRegression, "fit", recorded)
    folder = str(tmp_path / "embeddings")
    write_part(folder, videos("train", 4) + videos("test", 3), ORIGIN, "float16")
    with threadpool_limits(2):
        evaluate_embeddings(folder, folder, str(tmp_path))
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
    assert numbers and all(found == {1} for found in numbers)


def test_what_means_nothing_is_no_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Phases that come back, too few labels for their shares, no column `progress`."""

    def repeated(split: str, count: int) -> list[EmbeddedVideo]:
        return [
            replace(
                video,
                frame_labels=np.tile(video.frame_labels, 2),
                timestamps=np.arange(2.0 * len(video)),
                embeddings=np.tile(video.embeddings, (2, 1)),
                untrained=np.tile(video.untrained, (2, 1)),
            )
            for video in videos(split, count)
        ]

    folder = str(tmp_path / "embeddings")
    run = tmp_path / "run"
    origin = replace(ORIGIN, checkpoint=str(run / "checkpoints" / "step-00000002"))
    run.mkdir()
    config = {"objective": {"name": "tcc"}, "data": {"manifest": str(run / "videos.parquet")}}
    (run / "config.json").write_text(json.dumps(config))
    rows = [manifest_row(video_id, uri=video_id, person="ann") for video_id in ("train/1", "test/2")]
    schema = SCHEMA.append(pa.field("person", pa.string()))
    write_table(pa.Table.from_pylist(rows, schema), str(run / "videos.parquet"))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    write_part(folder, [*repeated("train", 2), *repeated("test", 3)], origin, "float32")
    evaluate.main(["--train", folder, "--test", folder, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    rows = [re.split(r"  +", line) for line in printed.splitlines()]
    named = {row[0]: row for row in rows}
    for title in ("phase progression (R²)", "Kendall's tau"):
        assert named[title][-1] == "not meaningful: a phase comes back in 3 of the test videos"
    assert "Not measured without progress: alignment error." in printed
    # One of two videos is 10 % and 50 % of them.
    assert {title for title in named if title.startswith("phase classification")} == {
        "phase classification (%)",
        "phase classification, 50 % of the labels (%)",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<dt>Objective</dt><dd><code>tcc</code>" in page
    assert "such as test/2, which shows the person of train/1." in page
    assert (
        "phase classification, 10 % of the labels: no row of its own, for it takes the same videos as 50 %"
        in page
    )


def test_the_direction_of_time_is_measured_where_clips_were_embedded_backwards(tmp_path: Path) -> None:
    made = videos("train", 6) + videos("test", 4)
    made = [
        replace(
            found, backwards=even_clips(found.embeddings) + 3, untrained_backwards=even_clips(found.untrained)
        )
        for found in made
        if found.untrained is not None
    ]
    folder = str(tmp_path / "embeddings")
    write_part(folder, made, replace(ORIGIN, has_backwards=True), "float16")
    for options, values in (([], [1, 0.5]), (["--centered"], [])):
        evaluate.main(["--train", folder, "--test", folder, "--out", str(tmp_path), *options])
        document = json.loads((tmp_path / "metrics.json").read_text())
        found = [document[name].get("direction_of_time") for name in ("trained", "untrained")]
        assert [entry["value"] for entry in found if entry] == values
        shown = '<th scope="row">direction of time (%)' in (tmp_path / "report.html").read_text()
        assert shown == bool(values)


def test_mistakes_of_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, out = tmp_path / "good", tmp_path / "out"
    write_part(str(good), videos("train", 3) + videos("test", 1), ORIGIN, "float16")
    fit = tmp_path / "fit"
    write_part(str(fit), videos("train", 3), ORIGIN, "float16")
    write_part(str(tmp_path / "wide"), videos("test", 3, 6), ORIGIN, "float16")
    other = replace(ORIGIN, step=9, model_sha256="cd")
    write_part(str(tmp_path / "other"), videos("test", 3), other, "float16")
    write_part(str(tmp_path / "one"), videos("test", 1), ORIGIN, "float16")
    content = (good / "part-00000.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(content[:-20])
    for test, message in {
        "one": "expected at least 2 test videos, got 1",
        "wide": "embeddings of different widths: 4 of 'train/0', 6 of 'test/0'",
        "other": "embeddings of another encoder or view than those in",
        "torn.parquet": "torn.parquet: not a whole Parquet file of embeddings",
        "missing": "missing: no embeddings there",
    }.items():
        arguments = ("--train", fit, "--test", tmp_path / test, "--out", out)
        assert message in failure(capsys, evaluate, *arguments), test
        assert not out.exists()
    both = ("--train", good, "--test", good, "--out", out)
    assert "expected at least 2 test videos, got 1" in failure(capsys, evaluate, *both)
    assert "--test and --out missing" in failure(capsys, evaluate, "--train", good)
    assert "expected a whole number of at least 1, got '0'" in failure(capsys, evaluate, *both, "--stride", 0)


def test_mistakes_of_embed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    assert "no trained demo there; train one with" in failure(capsys, embed)
    assert "--out is missing" in failure(capsys, embed, "--checkpoint", "x", "--manifest", "y")
    assert "--num-workers: expected a whole number of at least 1, got '0'" in failure(
        capsys, embed, "--num-workers", 0
    )


def test_repetitions_where_phases_return(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [video(str(k), [30, 40, 35], seed=k) for k in range(3)]
    unlabelled = [replace(one, frame_labels=None) for one in again]
    for name, tested in (("labelled", again), ("unlabelled", unlabelled)):
        folder = str(tmp_path / name)
        write_part(folder, tested, ORIGIN, "float32")
        evaluate.main(["--train", folder, "--test", folder, "--out", str(tmp_path / name)])
        document = json.loads((tmp_path / name / "metrics.json").read_text())
        assert ("repetition_count_error" in document["trained"]) == (name == "labelled")
        seem_to_repeat = "In 3 of 3 videos the action seems to repeat"
        assert (seem_to_repeat in capsys.readouterr().out) == (name == "unlabelled")
