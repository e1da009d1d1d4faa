"""Resampled features against a slow reference written from the sources named in the module."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from scipy.interpolate import make_interp_spline

from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import write_part
from carl_ray.evaluation.localization import export_features, resample, to_file, video_name
from tests.embedded import ORIGIN, embedded


def _reference(embeddings, length):
    """BSN's data_process.py in times of the video: three points a part, between the first and last frame."""
    count = len(embeddings)
    times = (np.arange(count) + 0.5) / count
    snippets = []
    for k in range(length):
        start, end = (min(max(edge, times[0]), times[-1]) for edge in (k / length, (k + 1) / length))
        points = [start, (start + end) / 2, end]
        snippets.append(
            embeddings[0] if count == 1 else make_interp_spline(times, embeddings, k=1)(points).mean(axis=0)
        )
    return np.array(snippets)


@pytest.mark.parametrize("count", [1, 2, 3, 49, 50, 99, 100, 101, 1000])
@pytest.mark.parametrize("length", [1, 7, 100])
def test_resampling_equals_the_reference(count, length):
    embeddings = np.random.default_rng(count).standard_normal((count, 5)).astype(np.float32)
    features = resample(embeddings, length)
    assert features.shape == (length, 5) and features.dtype == np.float32
    np.testing.assert_allclose(features, _reference(embeddings, length), atol=1e-6)


@pytest.mark.parametrize(("shape", "length"), [((0, 3), 100), ((5,), 100), ((5, 3), 0)])
def test_misuse_is_refused(shape, length):
    with pytest.raises(ValueError, match="got"):
        resample(np.zeros(shape), length)


@pytest.mark.parametrize(
    ("video_id", "name"),
    [
        ("train/v_-a_b.mp4", "v_-a_b"),
        ("v_x.WEBM", "v_x"),
        ("a.b/v_with.dots.mp4", "v_with.dots"),
        ("ünï code", "ünï code"),
    ],
)
def test_names(video_id, name):
    assert video_name(video_id) == name


def test_both_formats_give_every_value_back():
    features = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32) * 1e-3
    with h5py.File(io.BytesIO(to_file(features, "v_ü", "hdf5")), "r") as file:
        assert list(file) == ["v_ü"] and file["v_ü"].dtype == np.float32
        assert np.array_equal(file["v_ü"][()], features)
    text = to_file(features, "v_ü", "csv").decode()
    assert text.splitlines()[0] == "f0,f1,f2,f3,f4,f5,f6,f7"
    read = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1, dtype=np.float32)
    assert np.array_equal(read, features)


def _video(video_id, count, fill=None):
    values = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
    return embedded(video_id, values if fill is None else np.full_like(values, fill))


@pytest.fixture
def embeddings(tmp_path):
    folder = str(tmp_path / "embeddings")
    write_part(folder, [_video("train/v_a.mp4", 1), _video("v_b.mkv", 250)], ORIGIN, "float32")
    write_part(folder, [_video("val/v_ç.mp4", 60)], ORIGIN, "float32")
    return folder


def test_one_file_a_video_and_only_what_is_missing(embeddings, tmp_path):
    out = tmp_path / "out"
    assert export_features(embeddings, str(out)) == (3, 0)
    names = ["export.json", *(f"{name}.h5" for name in ("v_a", "v_b", "v_ç"))]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    unit = _video("", 250).embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    content = (out / "v_b.h5").read_bytes()
    assert content == to_file(resample(unit, 100), "v_b", "hdf5")

    kept = (out / "v_a.h5").stat().st_mtime_ns
    (out / "v_b.h5").unlink()
    assert export_features(embeddings, str(out)) == (1, 2)
    assert (out / "v_b.h5").read_bytes() == content
    assert (out / "v_a.h5").stat().st_mtime_ns == kept


def test_a_folder_of_something_else_is_refused(embeddings, tmp_path):
    out = str(tmp_path / "out")
    export_features(embeddings, out)
    with pytest.raises(UserError, match="another length; name another --out"):
        export_features(embeddings, out, length=50)
    other = str(tmp_path / "other")
    write_part(other, [_video("v_a.mp4", 5)], replace(ORIGIN, step=11), "float32")
    with pytest.raises(UserError, match="another origin"):
        export_features(other, out)
    (tmp_path / "out" / "export.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="another origin and length and format"):
        export_features(embeddings, out)


def test_two_videos_of_one_name_are_refused(tmp_path):
    folder = str(tmp_path / "embeddings")
    write_part(folder, [_video("train/v_a.mp4", 3), _video("val/v_a.mkv", 3)], ORIGIN, "float32")
    with pytest.raises(UserError, match=r"val/v_a.mkv and train/v_a.mp4 would both be written as v_a"):
        export_features(folder, str(tmp_path / "out"))


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
    folder = str(tmp_path / "embeddings")
    write_part(folder, [_video("v_bad.mp4", 3, fill=np.nan)], ORIGIN, "float32")
    with pytest.raises(UserError, match=r"v_bad.mp4: .*finite"):
        export_features(folder, str(tmp_path / "out"))
