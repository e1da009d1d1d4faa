"""`carl_ray.datasets.choreography`: deterministic frames and labels, real H.264, folders whole or absent."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray import index
from carl_ray.data import manifest
from carl_ray.data.decode import read_frames
from carl_ray.data.randomness import sample_generator
from carl_ray.datasets import choreography
from carl_ray.datasets.choreography import ACTIONS, ChoreographyConfig
from carl_ray.datasets.timeline import sample_timeline
from tests.samples import manifest_row

SMALL = ChoreographyConfig(num_train=4, num_validation=1, num_test=1, size=32)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choreography") / "videos"
    choreography.render(folder, SMALL)
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_layout_and_labels(rendered: Path) -> None:
    files = {name for name in _content(rendered) if name.endswith(".mp4")}
    assert files == {
        *(f"train/{name}-000.mp4" for name in ("lift", "jump", "kick", "greet")),
        "validation/lift-000.mp4",
        "test/lift-000.mp4",
    }
    rows = choreography.read_labels(rendered).to_pylist()
    assert [row["video_id"] for row in rows] == sorted(files)
    for row in rows:
        with av.open(str(rendered / row["video_id"])) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (SMALL.size, SMALL.size)
            assert stream.average_rate == choreography.FRAMES_PER_SECOND
            kinds = [frame.pict_type for frame in container.decode(video=0)]
        assert av.video.frame.PictureType.B in kinds
        assert len(row["frame_labels"]) == len(row["progress"]) == len(kinds)
        assert row["label"] == row["video_id"].split("/")[1].split("-")[0]


def test_bytes_do_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    # glibc fills fresh memory with this byte: an encoder that reads what nobody wrote gives itself away.
    code = (
        "import sys; from pathlib import Path; from carl_ray.datasets import choreography as c\n"
        "c.render(Path(sys.argv[1]), c.ChoreographyConfig(num_train=4, num_validation=0, num_test=0))"
    )
    for value in ("85", "165"):
        environment = {**os.environ, "MALLOC_PERTURB_": value}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / value)], env=environment, check=True)
    assert _content(tmp_path / "85") == _content(tmp_path / "165")


def test_rendered_truth_is_that_of_the_timeline(rendered: Path) -> None:
    for row in choreography.read_labels(rendered).to_pylist():
        rng = sample_generator(SMALL.seed, 0, row["video_id"], 0)
        timeline = sample_timeline(len(ACTIONS[row["label"]].phases), rng)
        assert row["frame_labels"] == timeline.frame_labels.tolist()
        assert row["progress"] == timeline.progress.astype(np.float32).tolist()


def test_default_videos_stay_what_they_were(tmp_path: Path) -> None:
    # Means over tiles, which other encoders hardly change.
    choreography.render(tmp_path / "videos", ChoreographyConfig(num_train=1, num_validation=0, num_test=0))
    (row,) = choreography.read_labels(tmp_path / "videos").to_pylist()
    runs = [(label, len(list(run))) for label, run in itertools.groupby(row["frame_labels"])]
    assert runs == [(-1, 10), (0, 24), (1, 21), (2, 25), (3, 16), (-1, 19)]
    assert row["progress"][::12] == pytest.approx(
        [0, 0.02742, 0.13773, 0.28772, 0.41093, 0.54899, 0.67534, 0.83435, 1, 1], abs=1e-5
    )
    frames = read_frames(str(tmp_path / "videos" / "train" / "lift-000.mp4"), np.arange(0, 115, 24))
    tiles = frames.reshape(5, 4, 24, 4, 24, 3).mean(axis=(2, 4, 5))
    expected = [
        [[58, 58, 58, 58], [63, 86, 104, 57], [62, 103, 120, 58], [76, 95, 91, 82]],
        [[58, 58, 58, 58], [63, 66, 79, 58], [62, 100, 131, 58], [72, 100, 94, 82]],
        [[58, 58, 58, 58], [62, 72, 84, 58], [69, 107, 120, 67], [70, 91, 89, 72]],
        [[58, 58, 58, 58], [71, 95, 110, 76], [64, 96, 115, 63], [61, 79, 80, 61]],
        [[70, 87, 81, 80], [63, 89, 117, 58], [62, 78, 105, 58], [62, 75, 83, 61]],
    ]
    np.testing.assert_allclose(tiles, expected, atol=1.5)


def test_finished_folder_is_kept_and_damaged_or_other_ones_are_rendered_anew(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    one = ChoreographyConfig(num_train=1, num_validation=0, num_test=0, size=32)
    two = ChoreographyConfig(num_train=2, num_validation=0, num_test=0, size=32)
    renders: list[int] = []

    def ensure(config: ChoreographyConfig) -> int:
        renders.clear()
        assert (
            choreography.ensure_rendered(folder, config, lambda done, total: renders.append(done)) == folder
        )
        assert choreography.is_rendered(folder, config)
        return len(renders)

    assert ensure(one) == 1
    assert ensure(one) == 0
    assert ensure(two) == 2
    (folder / "train" / "jump-000.mp4").unlink()
    assert ensure(two) == 2
    marker = json.loads((folder / "choreography.json").read_text())
    (folder / "choreography.json").write_text(json.dumps({**marker, "renderer_version": -1}))
    assert ensure(two) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def _manifest(counts: dict[str, int]) -> pa.Table:
    rows = [manifest_row(video_id, num_frames=count) for video_id, count in counts.items()]
    return pa.Table.from_pylist(rows, schema=manifest.SCHEMA)


def test_labels_are_attached_by_id_in_the_order_of_the_manifest(rendered: Path) -> None:
    labels = choreography.read_labels(rendered)
    rows = {row["video_id"]: row for row in labels.to_pylist()}
    counts = {
        name: len(rows[name]["frame_labels"]) for name in ("validation/lift-000.mp4", "train/kick-000.mp4")
    }
    table = manifest.attach_labels(_manifest(counts), labels)
    assert table.column_names == manifest.SCHEMA.names
    assert table.column("label").to_pylist() == ["lift", "kick"]
    for column in ("frame_labels", "progress"):
        assert table.column(column).to_pylist() == [rows[name][column] for name in counts]


def test_folders_of_earlier_versions_are_read(rendered: Path, tmp_path: Path) -> None:
    labels = pq.read_table(rendered / "labels.parquet")
    repetition = [[0] * len(row) for row in labels.column("frame_labels").to_pylist()]
    labels = labels.append_column("repetition", pa.array(repetition, pa.list_(pa.int32())))
    pq.write_table(labels, tmp_path / "labels.parquet")
    assert choreography.read_labels(tmp_path).equals(choreography.read_labels(rendered))
    counts = {row["video_id"]: len(row["frame_labels"]) for row in labels.to_pylist()}
    uri = str(tmp_path / "manifest.parquet")
    manifest.write_table(manifest.attach_labels(_manifest(counts), labels), uri)
    assert manifest.read_manifest(uri).column("repetition").to_pylist() == repetition
    (tmp_path / "more.csv").write_text("video,person\ntrain/kick-000.mp4,ann\n")
    index.main(["--update", uri, "--labels", str(tmp_path / "more.csv")])
    assert manifest.read_manifest(uri).column("repetition").to_pylist() == repetition


def test_labels_that_do_not_fit_are_refused(rendered: Path) -> None:
    labels = choreography.read_labels(rendered)
    with pytest.raises(ValueError, match="no labels"):
        manifest.attach_labels(_manifest({"elsewhere.mp4": 60}), labels)
    with pytest.raises(ValueError, match=r"row 0 .'train/lift-000.mp4'. has \d+ frame_labels for 7 frames"):
        manifest.attach_labels(_manifest({"train/lift-000.mp4": 7}), labels)
