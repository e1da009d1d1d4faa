import numpy as np
import pytest

from benchmarks.real.__main__ import Corpus, of_other_places
from benchmarks.real.protocol import centered, circular_distance, folds, joined, scenes, score
from benchmarks.real.recipes import frozen_embeddings, untrained_controls, variants, windows
from benchmarks.real.report import markdown
from benchmarks.real.videos import Video, find_videos, phases, read_starts, same_places
from carl_ray.errors import UserError


def circle(phase):
    return np.stack([np.cos(2 * np.pi * phase), np.sin(2 * np.pi * phase)], axis=1)


def test_phase_is_the_share_of_the_time_between_two_starts():
    found = phases([10, 20, 40], np.array([9, 10, 15, 20, 30, 39, 40, 41]))
    np.testing.assert_allclose(found, [np.nan, 0, 0.5, 0, 0.5, 0.95, np.nan, np.nan])
    assert np.isnan(phases([10], np.arange(20))).all()


@pytest.mark.parametrize(("first", "second", "expected"), [(0.1, 0.9, 0.2), (0.0, 0.5, 0.5), (0.2, 0.3, 0.1)])
def test_phases_are_on_a_circle(first, second, expected):
    assert circular_distance(np.array(first), np.array(second)) == pytest.approx(expected)
    assert circular_distance(np.array(second), np.array(first)) == pytest.approx(expected)


def test_a_perfect_embedding_has_no_error_and_a_shifted_one_its_shift():
    times = {"a": np.linspace(0, 1, 101)[:-1], "b": np.linspace(0, 1, 201)[:-1]}
    perfect = score({name: circle(time) for name, time in times.items()}, times, ["a"], ["b"])
    assert perfect.phase_error == pytest.approx(0, abs=1e-12)
    assert perfect.one_shot == 1
    assert perfect.probe > 0.9
    shifted = {"a": circle(times["a"]), "b": circle(times["b"] + 0.25)}
    found = score(shifted, times, ["a"], ["b"], probe=False)
    assert found.phase_error == pytest.approx(0.25)
    assert found.one_shot == 0
    assert np.isnan(found.probe)


def test_the_probe_is_that_of_all_dimensions():
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, 40, endpoint=False)
    frames = {
        name: circle(time) @ rng.standard_normal((2, 30)) + 0.8 * rng.standard_normal((40, 30))
        for name in "ab"
    }
    padded = {name: np.pad(array, ((0, 0), (0, 200))) for name, array in frames.items()}
    phase = {"a": time, "b": time}
    assert score(padded, phase, ["a"], ["b"]).probe == score(frames, phase, ["a"], ["b"]).probe


def test_frames_without_a_phase_neither_search_nor_are_found():
    time = np.linspace(0, 1, 50, endpoint=False)
    hidden = np.where(time < 0.5, time, np.nan)
    # Were the frames without a phase searched, each would be nearest to itself.
    embeddings = {"a": circle(time), "b": np.where(np.isnan(hidden)[:, None], circle(time), -circle(time))}
    assert score(embeddings, {"a": time, "b": hidden}, ["a"], ["b"], probe=False).phase_error > 0.1


def test_random_vectors_are_at_chance():
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, 400, endpoint=False)
    frames = {name: rng.standard_normal((400, 16)) for name in "ab"}
    found = score(frames, {"a": time, "b": time}, ["a"], ["b"], probe=False)
    assert found.phase_error == pytest.approx(0.25, abs=0.03)


def test_scenes_are_clusters_of_mean_features_and_never_split():
    means = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1.0], [0, 0.1, 1]])
    found = scenes(means)
    assert len(set(found)) == 3
    assert found[0] == found[1] and found[2] == found[3] and found[4] == found[5]
    merged = scenes(means, [[1, 2]])
    assert len(set(merged)) == 2
    actions = ["x", "x", "x", "x", "x", "x"]
    chosen = folds(found, actions)
    assert chosen[0] == chosen[1] and chosen[2] == chosen[3] and chosen[4] == chosen[5]
    assert sorted(np.bincount(chosen)) == [2, 4]
    assert sorted(np.bincount(folds(np.arange(4), ["x", "y"] * 2))) == [2, 2]


def test_parts_of_a_joined_embedding_are_normalised_and_weighted():
    made = joined({"a": np.array([[3.0, 4.0]])}, {"a": np.array([[0.0, 7.0]])}, weights=(1.0, 0.5))
    np.testing.assert_allclose(made["a"], [[0.6, 0.8, 0.0, 0.5]])
    np.testing.assert_allclose(centered({"a": np.array([[1.0], [3.0]])})["a"], [[-1.0], [1.0]])


def test_windows_and_controls_cover_every_frame():
    rng = np.random.default_rng(0)
    features = {"a": rng.standard_normal((7, 3)).astype(np.float32), "b": rng.standard_normal((4, 3))}
    window = windows(features, 2)["a"]
    own = features["a"] - features["a"].mean(axis=0)
    np.testing.assert_allclose(window[3], own[1:6].reshape(-1), rtol=1e-5)
    np.testing.assert_allclose(window[0, :3], own[0], rtol=1e-5)
    frozen = frozen_embeddings(features, ["a"])
    assert frozen["b"].shape == (4, 7)  # As many components as frames to fit them to.
    made_of = (untrained_controls(features, ["a"]), variants(features, features, ["a"]))
    for made in (array for held in made_of for array in held.values()):
        assert {name: len(array) for name, array in made.items()} == {"a": 7, "b": 4}


def test_videos_and_labels_of_the_clones(tmp_path):
    with pytest.raises(UserError, match=r"git clone https://github\.com/calimiro-ai/WorkoutTracker"):
        find_videos(tmp_path)
    file = tmp_path / "push-up_1.csv"
    file.write_text("frame,time,label\n0,0.0,0\n1,0.03,1\n2,0.06,0\n5,0.1,1\n")
    np.testing.assert_array_equal(read_starts(file), [1, 5])
    held = [
        Video(f"{name}.mp4", tmp_path / f"{name}.mp4", "push-ups", 9, np.array([1, 5]))
        for name in ("push-up_1", "push-up_20", "push-up_14")
    ]
    assert same_places(held) == [[0, 2]]


def test_unlabelled_videos_are_of_other_places_than_the_test_videos(tmp_path):
    def video(name, *starts):
        return Video(f"{name}.mp4", tmp_path / f"{name}.mp4", "push-ups", 9, np.array(starts))

    labelled, unlabelled = (
        [video("push-up_1", 1, 5), video("push-up_20", 1, 5)],
        [video("push-up_2"), video("push-up_21")],
    )
    corpus = Corpus(labelled, {}, {}, {}, np.array([0, 1]), unlabelled)
    assert [v.video_id for v in of_other_places(corpus, 0)] == ["push-up_21.mp4"]
    assert [v.video_id for v in of_other_places(corpus, 1)] == ["push-up_2.mp4"]
    assert corpus.ids(0, tested=True) == corpus.ids(1, tested=False, action="push-ups") == ["push-up_1.mp4"]


def test_the_tables_have_bars_and_pairs():
    def scores(error):
        row = {"phase_error": error, "one_shot": 0.4, "probe": 0.5}
        return dict.fromkeys(("pull-ups", "push-ups", "squats"), row)

    found = {f"positions|{fold}|0": {"": scores(0.2)} for fold in (0, 1)}
    for seed, error in enumerate((0.17, 0.18)):
        for fold in (0, 1):
            found[f"scl|{fold}|{seed}"] = {"centred": scores(error)}
            found[f"contrastive|{fold}|{seed}"] = {"centred": scores(0.195)}
    text = markdown(found, [], np.zeros(0))
    assert "| positions | .200 / .200 |" in text
    assert ".175 ± .007 / .175 ± .007" in text
    assert "| bar | 0.190 | 0.190 | 0.190 | 0.190 | |" in text
    assert "| SCL, variance 9, centred | -0.015 | -0.015 | -0.015 | -0.015 | met |" in text
    assert "| contrastive baseline, centred | +0.005 | +0.005 | +0.005 | +0.005 | 4 missed |" in text
    assert "| SCL, variance 9, centred | -0.020 | 4 of 4 |" in text
