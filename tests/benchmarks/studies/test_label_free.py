"""`benchmarks.studies.label_free`: halves do not share videos, and correlations are what plain Spearman says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.studies.label_free import correlate, effective_rank, halves_of, main
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin, write_part

ACTIONS = ["jump"] * 6 + ["kick"] * 4


def test_halves_are_complements_with_half_of_each_action() -> None:
    halves = halves_of(ACTIONS, 5)
    assert halves.shape == (10, 10)
    assert (halves[::2] ^ halves[1::2]).all()
    assert (halves[:, :6].sum(1) == 3).all() and (halves[:, 6:].sum(1) == 2).all()
    assert len({half.tobytes() for half in halves}) > 4
    assert np.array_equal(halves, halves_of(ACTIONS, 5))
    assert not np.array_equal(halves, halves_of(ACTIONS, 5, seed=1))


def test_the_correlation_is_spearmans_with_the_other_half() -> None:
    rng = np.random.default_rng(0)
    scores, accuracies = rng.standard_normal((2, 9, 6))
    found = correlate(scores, accuracies, num_draws=50)
    expected = [spearmanr(scores[:, half], accuracies[:, half ^ 1])[0] for half in range(6)]
    assert found.value == pytest.approx(np.mean(expected))
    # The same videos' accidents would be seen in the same half.
    assert correlate(accuracies, accuracies, num_draws=50).value < 0.5


def test_clear_orders_and_none() -> None:
    accuracies = np.arange(8.0)[:, None] + np.zeros((8, 4))
    clear = correlate(accuracies**3, accuracies, num_draws=500)
    assert clear.value == pytest.approx(1) and clear.low == pytest.approx(1)
    assert clear.p_value == pytest.approx(1 / 501)
    reversed_order = correlate(-accuracies, accuracies, num_draws=500)
    assert (reversed_order.value, reversed_order.p_value) == pytest.approx((-1, 1))
    ties = correlate(np.zeros((8, 4)), accuracies, num_draws=500)
    assert (ties.value, ties.low, ties.high, ties.p_value) == (0, 0, 0, 1)


def test_effective_rank() -> None:
    assert effective_rank([np.eye(5)]) == pytest.approx(5)
    assert effective_rank([np.ones((7, 5))]) == pytest.approx(1)


def embedded(folder, *, noise: float, objective: str, seed: int, num_test: int = 8) -> str:
    """A run whose encoder sees the progress of an action, the less of it the more noise there is."""
    rng = np.random.default_rng(seed)
    videos = []
    for number in range(num_test + 4):
        length = 30 + 3 * number
        before = 2 * (number * 5 % 7)
        progress = np.clip((np.arange(length) - before) / (length - before - 1), 0, 1)
        code = np.exp(-80 * (progress[:, None] - np.linspace(0, 1, 12)) ** 2)
        videos.append(
            EmbeddedVideo(
                video_id=f"{number}.mp4",
                uri=f"/videos/{number}.mp4",
                content_hash=str(number),
                split="test" if number < num_test else "train",
                label="jump",
                frame_labels=(progress * 2.99).astype(np.int32),
                progress=progress.astype(np.float32),
                fps=25.0,
                timestamps=np.arange(length, dtype=np.float64),
                embeddings=(code + noise * rng.standard_normal(code.shape)).astype(np.float32),
                untrained=None,
            )
        )
    origin = Origin("checkpoint", "0", "demo", 7, 8, 16, "resized", False)
    run = folder / f"{objective}-{seed}"
    write_part(str(run / "embeddings"), videos, origin, "float32")
    config = {
        "objective": {"name": objective, "temperature": 0.1, "variance": 10.0},
        "training": {"seed": seed},
        "model": {"num_frames": 8},
    }
    (run / "config.json").write_text(json.dumps(config))
    return str(run)


def test_the_command_ranks_runs(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        embedded(tmp_path, noise=noise, objective=objective, seed=seed)
        for seed, (noise, objective) in enumerate(
            [(0.1, "scl"), (0.5, "scl"), (1.0, "contrastive"), (2.0, "scl"), (4.0, "tcn")]
        )
    ]
    main(runs)
    printed = capsys.readouterr().out.splitlines()
    ranked = [line.split(" | ") for line in printed if "consistent warping |" in line]
    assert [row[0] for row in ranked[:3]] == ["| all", "| SCL and its variants", "| scl, 7 steps"]
    assert [row[1] for row in ranked[:3]] == ["5", "4", "3"]
    assert float(ranked[0][3]) > 0.7
    first, last = (next(line for line in printed if f"seed {seed} |" in line) for seed in (0, 4))
    assert printed.index(first) < printed.index(last)
    codes = dict(line.strip("| ").split(" | ") for line in printed[-8:])
    assert float(codes["true progress"]) > 0.03
    assert float(codes["positions"]) == pytest.approx(0, abs=0.003)


def test_other_videos_are_refused(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        embedded(tmp_path, noise=0.1, objective="scl", seed=0),
        embedded(tmp_path, noise=0.1, objective="scl", seed=1, num_test=7),
    ]
    with pytest.raises(SystemExit) as error:
        main(runs)
    assert error.value.code == 2
    assert "expected embeddings of the same videos" in capsys.readouterr().err
