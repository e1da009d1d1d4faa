"""The stream gives exactly the plan's rows, whoever asks and from wherever."""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from carl_ray.config import AugmentConfig, ClusterConfig, Config, DataConfig, ModelConfig, TrainingConfig
from carl_ray.data import coordinator, stream
from carl_ray.data.keypoint_table import add_keypoints, locate_keypoints
from carl_ray.data.make_views import make_views
from carl_ray.data.manifest import STREAM_COLUMNS, read_manifest, save_manifest
from carl_ray.data.plan import Plan, training_plan, validation_plan
from carl_ray.data.sample import Sample, arrays_of, rows_per_task, sample_spec
from carl_ray.data.scan import build_manifest
from carl_ray.data.stream import read_samples, stream_views
from carl_ray.objectives.choice import objective_options
from tests.samples import make_crops

CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32, retries=0),
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
    training=TrainingConfig(seed=7, global_batch_size=3),
    cluster=ClusterConfig(decode_cpus=1.0),
)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> pa.Table:
    folder = tmp_path_factory.mktemp("videos")
    lengths = [5, 20, 31, 40, 17]
    paths = [make_video(folder / f"video-{i}.mp4", length, 48, 32) for i, length in enumerate(lengths)]
    return pa.table(
        {
            "video_id": [path.name for path in paths],
            "uri": [str(path) for path in paths],
            "num_frames": lengths,
            "verified": [True, False, True, False, True],
            "frame_step": [1.0, 1.0, 2.0, 1.0, 0.5],
        }
    )


def collect(plan: Plan, videos: pa.Table, config: Config = CONFIG, **options: Any) -> list[Sample]:
    dataset = stream_views(plan, ray.put(videos), config, **options)
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return [row for table in batches for row in read_samples(table, sample_spec(config))]


def test_rows_are_the_plans_and_views_are_those_made_by_hand(videos: pa.Table) -> None:
    plan = training_plan(CONFIG.training.seed, videos.num_rows, 3, epochs=2)
    classes = [[n % 5 - 1 for n in range(count)] for count in videos.column("num_frames").to_pylist()]
    videos = videos.append_column("frame_labels", pa.array(classes, pa.list_(pa.int32())))
    config = replace(CONFIG, objective=objective_options("supervised", num_classes=5))
    rows = collect(plan, videos, config)
    planned = list(plan.rows(0, plan.num_rows))
    assert [(row.row, row.step, row.epoch) for row in rows] == [(p.row, p.step, p.epoch) for p in planned]
    listed = videos.to_pylist()
    for row, plan_row in zip(rows, planned, strict=True):
        video = listed[plan_row.video_index]
        by_hand = make_crops(
            video["uri"],
            video["video_id"],
            video["num_frames"],
            video["frame_step"],
            plan_row.epoch,
            config,
            columns={"frame_labels": video["frame_labels"]},
        )
        assert row.views is not None
        assert row.video_id == video["video_id"]
        np.testing.assert_array_equal(row.views["crops"].pixels, by_hand.pixels)
        np.testing.assert_array_equal(row.views["crops"].timestamps, by_hand.timestamps)
        np.testing.assert_array_equal(row.views["crops"].mask, by_hand.mask)
        np.testing.assert_array_equal(
            row.views["crops"].columns["frame_labels"], by_hand.columns["frame_labels"]
        )
        np.testing.assert_array_equal(row.views["crops"].parameters, by_hand.parameters)


@pytest.mark.parametrize("of", ["the manifest", "a table"])
def test_key_frames_and_keypoints_reach_the_views(videos: pa.Table, of: str, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        model=replace(CONFIG.model, backbone="small3d", temporal_encoder="clip"),
        objective=objective_options("tests.training.test_learner:Stills"),
    )
    rng = np.random.default_rng(0)
    lengths = videos.column("num_frames").to_pylist()
    keypoints = [rng.random((count, 17, 3)).astype(np.float16) for count in lengths[:-1]]
    keypoints[1][3] = np.nan
    values = pa.array([*(points.ravel() for points in keypoints), None], pa.list_(pa.float16()))
    keys = [[0, 2], [7, 11], [], None, [5, 9, 13]]
    given = videos.append_column("key_frames", pa.array(keys, pa.list_(pa.int32())))
    if of == "the manifest":
        given = given.append_column("keypoints", values)
    else:
        uri = str(tmp_path / "keypoints")
        identified = given.append_column("content_hash", pa.array(list("abcde")))
        add_keypoints(uri, identified.slice(0, 4), keypoints, "fake", "1")
        given = locate_keypoints(identified, uri).drop_columns(["content_hash", "keypoints_digest"])
        config = replace(config, data=replace(config.data, keypoints=uri))
    plan = training_plan(CONFIG.training.seed, videos.num_rows, 3, epochs=1)
    rows = {row.video_id: row for row in collect(plan, given, config)}
    for video, own, points in zip(given.to_pylist(), keys, [*keypoints, None], strict=True):
        row = rows[video["video_id"]]
        arguments = video["uri"], video["video_id"], video["num_frames"], video["frame_step"], row.epoch
        here = make_views(*arguments, sample_spec(config), key_frames=own, keypoints=points)
        assert row.views is not None and arrays_of(row.views).keys() == arrays_of(here).keys()
        for name, expected in arrays_of(here).items():
            np.testing.assert_array_equal(arrays_of(row.views)[name], expected)
        assert here["clip"].keypoints.any() == (points is not None)


def _parts(folder: Path, make_video: Callable[..., Path]) -> dict[str, Path]:
    """The same three clips: in files of their own, in a shard, in a long video, in a LeRobot dataset."""
    clips = [make_video(folder / "own" / f"{n}.mp4", 20 + 5 * n, 48, 32, fps=25) for n in range(3)]
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "clips-0.tar", "w") as shard:
        for clip in clips:
            shard.add(clip, clip.name)
            shard.addfile(tarfile.TarInfo(f"{clip.stem}.txt"))
    camera = "observation.images.top"
    long = folder / "robot" / "videos" / camera / "chunk-000" / "file-000.mp4"
    long.parent.mkdir(parents=True)
    starts = [0.0]
    with av.open(str(long), "w") as container:
        for clip in clips:
            with av.open(str(clip)) as source:
                stream = source.streams.video[0]
                joined = container.streams.video[0] if container.streams.video else None
                joined = joined or container.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        shift = round(starts[-1] / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, joined
                        container.mux(packet)
            starts.append(starts[-1] + (20 + 5 * (len(starts) - 1)) / 25)
    rows = [f"robot/videos/{camera}/chunk-000/file-000.mp4,{a},{b}" for a, b in pairwise(starts)]
    (folder / "clips.csv").write_text("\n".join(["uri,start,end", *rows]))
    (folder / "robot" / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        "features": {camera: {"dtype": "video"}, "action": {"dtype": "float32"}},
    }
    (folder / "robot" / "meta" / "info.json").write_text(json.dumps(info | {"splits": {"train": "0:3"}}))
    place = {
        "chunk_index": [0] * 3,
        "file_index": [0] * 3,
        "from_timestamp": starts[:3],
        "to_timestamp": starts[1:],
    }
    episodes = {"episode_index": range(3), "length": [20, 25, 30], "tasks": [["lift"]] * 3}
    episodes |= {f"videos/{camera}/{name}": values for name, values in place.items()}
    pq.write_table(
        pa.table(episodes), folder / "robot" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    )
    return {
        "own": folder / "own",
        "tar": folder / "shards",
        "csv": folder / "clips.csv",
        "robot": folder / "robot",
    }


def test_parts_of_files_are_indexed_and_streamed_as_files_of_their_own(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    tables = {}
    for kind, source in _parts(tmp_path, make_video).items():
        tables[kind], rejects = build_manifest(str(source), str(tmp_path / f"{kind}.parquet"))
        assert rejects.num_rows == 0 and tables[kind].num_rows == 3
        assert read_manifest(str(tmp_path / f"{kind}.parquet")).equals(tables[kind])
        tables[kind] = tables[kind].sort_by("video_id")  # Members are sorted by their URI as a text.
    # Indexed again, a range keeps the labels that it was given.
    out, at = str(tmp_path / "csv.parquet"), tables["csv"].schema.get_field_index("label")
    save_manifest(tables["csv"].set_column(at, "label", pa.array(list("xyz"))), out)
    again, _ = build_manifest(str(tmp_path / "clips.csv"), out)
    assert again["label"].to_pylist() == list("xyz") and again.drop_columns("label").equals(
        tables["csv"].drop_columns("label")
    )
    parts = tables["tar"], tables["csv"], tables["robot"]
    own, theirs = (pa.concat_tables(group) for group in ([tables["own"]] * 3, parts))
    assert own.column("num_frames") == theirs.column("num_frames") and len({*theirs["uri"].to_pylist()}) == 6
    assert tables["tar"]["video_id"].to_pylist() == [f"clips-0.tar/{n}.mp4" for n in range(3)]
    assert {*tables["robot"]["label"].to_pylist(), *tables["robot"]["split"].to_pylist()} == {"lift", "train"}
    hashes = [tables[kind]["content_hash"].to_pylist() for kind in ("own", "tar", "csv", "robot")]
    assert hashes[0] == hashes[1] and hashes[2] == hashes[3] and len({*hashes[0], *hashes[2]}) == 6
    plan = training_plan(CONFIG.training.seed, theirs.num_rows, 3, epochs=1)
    ids = theirs.column("video_id")
    expected = collect(plan, own.set_column(0, "video_id", ids).select(STREAM_COLUMNS))
    for start in (0, 5):
        rows = collect(plan, theirs.select(STREAM_COLUMNS), start_row=start)
        assert len(rows) == plan.num_rows - start
        for row, other in zip(rows, expected[start:], strict=True):
            assert row.views is not None and other.views is not None and row.video_id == other.video_id
            pairs = zip(arrays_of(row.views).values(), arrays_of(other.views).values(), strict=True)
            assert all(np.array_equal(ours, others) for ours, others in pairs)


def test_starts_at_any_row_with_the_same_rows(videos: pa.Table) -> None:
    config = replace(CONFIG, augment=replace(CONFIG.augment, pixels="yuv420"))
    plan = training_plan(CONFIG.training.seed, videos.num_rows, 3, epochs=2)
    whole, rest = collect(plan, videos, config), collect(plan, videos, config, start_row=4)
    assert [row.row for row in rest] == list(range(4, plan.num_rows))
    assert collect(plan, videos, config, start_row=plan.num_rows) == []
    for before, after in zip(whole[4:], rest, strict=True):
        assert before.views is not None
        assert after.views is not None
        assert before.views["crops"].pixels.shape == (2, 8, 24 * 24 * 3 // 2)
        np.testing.assert_array_equal(before.views["crops"].pixels, after.views["crops"].pixels)


def test_a_block_is_read_without_a_copy(videos: pa.Table) -> None:
    video, spec = videos.to_pylist()[0], sample_spec(CONFIG)
    crops = make_crops(video["uri"], "a", video["num_frames"], 1.0, 0, CONFIG)
    one = Sample(0, 0, 0, "a", None, {"crops": crops}).to_arrow(spec)
    (row,) = read_samples(stream._as_one_row(one), spec)
    assert row.views is not None
    assert row.views["crops"].pixels.ctypes.data == crops.pixels.ctypes.data
    bad = Sample(1, 0, 0, "b", "broken", None).to_arrow(spec)
    block = stream._as_one_row(pa.concat_tables([one, bad, one]))
    assert block.num_rows == 1
    first, broken, last = read_samples(block, spec)
    assert broken.views is None and broken.error == "broken" and first.views is not None
    assert last.views is not None
    np.testing.assert_array_equal(last.views["crops"].pixels, crops.pixels)
    held = block["crops.pixels"].chunk(0).values.buffers()[2]
    for sample in (first, last):
        assert sample.views is not None
        assert 0 <= sample.views["crops"].pixels.ctypes.data - held.address < held.size


@pytest.mark.parametrize(
    ("num_workers", "batch_size", "epochs"), [(2, 3, 2), (3, 3, 2), (2, 8, 4), (2, 8, None), (3, 9, None)]
)
def test_workers_share_every_step_of_the_plan(
    videos: pa.Table, num_workers: int, batch_size: int, epochs: int | None
) -> None:
    """Of training, or of validation, whose last step is short."""
    if epochs is None:
        plan = validation_plan(CONFIG.training.seed, videos.num_rows, batch_size)
    else:
        plan = training_plan(CONFIG.training.seed, videos.num_rows, batch_size, epochs=epochs)
    dataset = stream_views(plan, ray.put(videos), CONFIG, max_workers=num_workers)

    @ray.remote(num_cpus=0)
    def consume(shard: ray.data.DataIterator) -> list[tuple[int, int, str | None, bytes]]:
        return [
            (row.row, row.step, row.video_id, row.views["crops"].pixels.tobytes())
            for table in shard.iter_batches(batch_size=None, batch_format="pyarrow")
            for row in read_samples(table, sample_spec(CONFIG))
            if row.views is not None
        ]

    shards = ray.get([consume.remote(s) for s in dataset.streaming_split(num_workers, equal=True)])
    for shard in shards:
        assert [row[0] for row in shard] == sorted(row[0] for row in shard)
    alone = [
        (row.row, row.step, row.video_id, row.views["crops"].pixels.tobytes())
        for row in collect(plan, videos)
        if row.views is not None
    ]
    assert sorted(row for shard in shards for row in shard) == alone


def test_a_bad_video_is_a_row_with_its_reason(videos: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    bad = videos.slice(0, 1).to_pylist()[0]
    table = pa.concat_tables(
        [
            videos.slice(0, 2),
            pa.Table.from_pylist(
                [
                    {**bad, "video_id": "broken", "uri": str(tmp_path / "broken.mp4")},
                    {**bad, "video_id": "gone", "uri": str(tmp_path / "gone.mp4")},
                    {**bad, "video_id": "shorter", "num_frames": 500},
                ],
                schema=videos.schema,
            ),
        ]
    )
    rows = collect(validation_plan(0, table.num_rows, 3), table)
    assert [row.video_id for row in rows] == table.column("video_id").to_pylist()
    assert [row.views is None for row in rows] == [False, False, True, True, True]
    assert rows[0].error is None
    assert all(row.error for row in rows[2:])
    assert "no such file" in (rows[3].error or "")


def strike(pipe: Path, number: int, then: Path | None = None) -> None:
    """Sends a signal to whoever opens a named pipe to read it; before that `then` takes the pipe's place."""
    os.mkfifo(pipe)

    def wait_and_strike() -> None:
        with pipe.open("wb"):  # returns when a decoder has opened the other end
            readers = {int(fd.parts[2]) for fd in Path("/proc").glob("[0-9]*/fd/*") if _is_same(fd, pipe)}
            if then is not None:
                then.rename(pipe)
            for process in readers - {os.getpid()}:
                os.kill(process, number)

    threading.Thread(target=wait_and_strike, daemon=True).start()


def _is_same(descriptor: Path, file: Path) -> bool:
    try:
        return descriptor.samefile(file)
    except OSError:  # another user's, or closed meanwhile
        return False


def test_decoders_that_hang_or_die_cost_one_video_each_and_no_try(
    videos: pa.Table, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    # Who opens a named pipe to read it waits for one who writes.
    config = replace(CONFIG, data=replace(CONFIG.data, time_limit=10.0, retries=1))
    os.mkfifo(tmp_path / "hangs.mp4")
    whole = make_video(tmp_path / "whole.mp4", 20, 48, 32)
    strike(tmp_path / "crashes.mp4", signal.SIGSEGV)
    strike(tmp_path / "killed.mp4", signal.SIGKILL, then=whole)
    good = videos.slice(0, 1).to_pylist()[0]
    table = pa.Table.from_pylist(
        [
            good,
            {**good, "video_id": "hangs", "uri": str(tmp_path / "hangs.mp4")},
            {**good, "video_id": "crashes", "uri": str(tmp_path / "crashes.mp4")},
            {**good, "video_id": "killed", "uri": str(tmp_path / "killed.mp4")},
            good,
        ],
        schema=videos.schema,
    )
    said = tmp_path / "warnings"

    def warn(message: str) -> None:
        with said.open("a") as file:
            file.write(f"{message}\n")

    rows = collect(validation_plan(0, table.num_rows, 3), table, config, warn=warn)
    (line,) = said.read_text().splitlines()
    assert line.startswith("killed: the decoder was killed (SIGKILL") and line.endswith("; trying again")
    assert [row.video_id for row in rows] == table.column("video_id").to_pylist()
    assert [row.error for row in rows] == [
        None,
        "the decoder took longer than 10 s",
        "the decoder crashed (SIGSEGV)",
        None,  # whoever kills from outside says nothing about the video: it is read another time
        None,
    ]
    for row in (rows[0], rows[3], rows[4]):
        assert row.views is not None
        assert row.video_id is not None
        uri = str(tmp_path / "killed.mp4") if row.video_id == "killed" else good["uri"]
        by_hand = make_crops(uri, row.video_id, good["num_frames"], 1.0, row.epoch, config)
        np.testing.assert_array_equal(row.views["crops"].pixels, by_hand.pixels)


@contextlib.contextmanager
def consumer(shard: ray.data.DataIterator) -> Iterator[Iterator[pa.Table]]:
    """The blocks of a shard; its threads have ended afterwards: one that is left at Ray's end ends the process."""
    others = set(threading.enumerate())
    blocks: Any = iter(shard.iter_batches(batch_size=None, batch_format="pyarrow"))
    try:
        yield blocks
    finally:
        blocks.close()
        for thread in set(threading.enumerate()) - others:
            if thread.name == "iter_threaded":
                thread.join()


def test_a_long_run_starts_at_once_and_neither_plans_far_ahead_nor_records_its_blocks(
    videos: pa.Table,
) -> None:
    # Frames that fill the room that videos have in the object store: loading comes to rest.
    config = replace(CONFIG, augment=replace(CONFIG.augment, image_size=224))
    plan = training_plan(0, videos.num_rows, 4, epochs=20_000_000)
    (shard,) = stream_views(plan, ray.put(videos), config, max_workers=1).streaming_split(1, equal=True)

    def look(coordinator: object) -> tuple[int, int]:
        """Planned rows that wait to be loaded, and blocks that are remembered, in the coordinator's process."""
        gc.collect()
        things: dict[str, list[Any]] = {"StreamingExecutor": [], "BlockStats": []}
        for thing in gc.get_objects():
            things.get(type(thing).__name__, []).append(thing)
        (executor,) = things["StreamingExecutor"]
        (loading,) = (state for op, state in executor._topology.items() if "load" in op.name)
        # As when loading has come to rest with none of its tasks left: Ray lifts the backpressure in each step.
        executor._output_backpressure_guard._evaluate_unblock_raw = lambda operator: "plan" in operator.name
        return loading.total_enqueued_input_blocks(), len(things["BlockStats"])

    with consumer(shard) as blocks:
        seen = [row.row for _ in range(40) for row in read_samples(next(blocks), sample_spec(config))]
        assert seen == list(range(40))
        ask = shard._coord_actor.__ray_call__.remote
        deadline = time.monotonic() + 300
        while ray.get(ask(look))[0] < 64 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2.0)  # for what there is no limit to, to go on
        waiting, remembered = ray.get(ask(look))
    # Two more for each of four tasks that load.
    assert 64 <= waiting <= 64 + 2 * 4
    # At least one of each row of the plan and one of each video, if Ray Data had its way.
    assert remembered < 40


def test_a_stream_that_is_full_leaves_its_cores_to_others(videos: pa.Table) -> None:
    # As validation meets the stream of a run whose worker trains no more meanwhile.
    cores = int(ray.cluster_resources()["CPU"])
    config = replace(CONFIG, augment=replace(CONFIG.augment, image_size=176))
    assert rows_per_task(sample_spec(config), 8, 1) == 8
    plan = training_plan(0, videos.num_rows, 8, epochs=20_000)
    (shard,) = stream_views(plan, ray.put(videos), config).streaming_split(1, equal=True)
    with consumer(shard) as blocks:
        next(blocks)
        idle, deadline = 0, time.monotonic() + 300
        while idle < 5 and time.monotonic() < deadline:
            idle = idle + 1 if ray.available_resources().get("CPU", 0) == cores else 0
            time.sleep(0.2)
        assert idle == 5
        assert len(collect(validation_plan(0, videos.num_rows, 8), videos, config)) == videos.num_rows


# What a later Ray may change of the classes that `coordinator` uses: replacements in its modules (all of Ray Data's, if
# the name is empty), after which Ray is consistent in itself.
CHANGES = {
    "nothing": [],
    "an abstract method more": [
        ("backpressure_policy", "from abc import ABC", "from abc import ABC, abstractmethod"),
        ("backpressure_policy", "    def can_add", "    @abstractmethod\n    def reset(self): ...\n\n    def can_add"),
        ("", "(BackpressurePolicy):\n", "(BackpressurePolicy):\n    def reset(self): ...\n\n"),
    ],
    "state of the constructor": [
        ("backpressure_policy", "manager = resource_manager", "manager = resource_manager\n        self._limits = {}"),
        ("backpressure_policy", "        return True", "        return self._limits is not None"),
    ],
    "an argument more of a policy": [
        ("", 'bytes_to_read(self, op: "PhysicalOperator")', 'bytes_to_read(self, op: "PhysicalOperator", now)'),
        ("", " policy.max_task_output_bytes_to_read(op)", " policy.max_task_output_bytes_to_read(op, 0)"),
    ],
    "an argument more of a callback": [
        ("", 'execution_step(self, executor: "StreamingExecutor")', 'execution_step(self, executor, step)'),
        ("", "callback.on_execution_step(self)", "callback.on_execution_step(self, 0)"),
        ("", "self.on_execution_step(executor)", "self.on_execution_step(executor, 0)"),
    ],
    "another name of the guard": [("", "self._output_backpressure_guard", "self._guard")],
    "another name of the topology": [
        ("streaming_executor", "self._topology", "self._operators"),
        ("", "executor._topology", "executor._operators"),
    ],
}  # fmt: skip


def stream_on_changed_ray(
    changes: list[tuple[str, str, str]], plan: Plan, videos: pa.Table, config: Config
) -> tuple[list[int], list[str], int, bool]:
    """Stream twice in this process, on a changed Ray: rows, warnings, waits of ours, whether Ray's is its own."""
    assert not any(name.startswith("ray.data") for name in sys.modules)
    unused = {old for _, old, _ in changes}

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> Any:
            text = Path(self.path).read_text()
            for module, old, new in changes:
                if old in text and module in ("", fullname.rpartition(".")[2]):
                    unused.discard(old)
                    text = text.replace(old, new)
            return compile(text, self.path, "exec", dont_inherit=True)

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec and name.startswith("ray.data.") and str(spec.origin).endswith(".py"):
                text = Path(str(spec.origin)).read_text()
                # Only these are compiled anew.
                if any(old in text and module in ("", name.rpartition(".")[2]) for module, old, _ in changes):
                    spec.loader = Loader(name, str(spec.origin))
            return spec

    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    said = io.StringIO()
    waits = []
    with contextlib.redirect_stderr(said):
        from ray.data._internal.execution import streaming_executor_state

        from carl_ray.data import coordinator
        from carl_ray.data.stream import read_samples, stream_views

        before = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
        wait = coordinator._wait_for_one
        coordinator._wait_for_one = lambda *arguments: waits.append(wait(*arguments))  # type: ignore[func-returns-value]
        during = set()
        rows = []
        for _ in range(2):
            for table in stream_views(plan, ray.put(videos), config).iter_batches(
                batch_size=None, batch_format="pyarrow"
            ):
                rows += [row.row for row in read_samples(table, sample_spec(config))]
                during.add(streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S)
    assert not unused
    after = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
    assert after == before
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    return rows, warnings, len(waits), during == {before}


@pytest.mark.slow
def test_a_ray_that_is_not_as_expected_streams_without_our_scheduling(
    videos: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = training_plan(0, videos.num_rows, 3, epochs=2)
    # By reference, they would bring this module with them, which imports what is to be changed.
    monkeypatch.setattr(stream_on_changed_ray, "__module__", "__main__")
    own_process = {"env_vars": {"CARL_RAY_TEST": "a process that has imported nothing"}}

    class Process:
        def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
            return function(*arguments)

    actors = {change: ray.remote(num_cpus=0, runtime_env=own_process)(Process).remote() for change in CHANGES}
    answers = {
        change: actor.call.remote(stream_on_changed_ray, CHANGES[change], plan, videos, CONFIG)
        for change, actor in actors.items()
    }
    for change, answer in answers.items():
        rows, said, waits, is_plain = ray.get(answer)
        assert rows == 2 * [row.row for row in plan.rows(0, plan.num_rows)], change
        if change == "nothing":
            assert (said, is_plain) == ([], False)
            assert waits > 0
        else:
            (line,) = said
            assert line.startswith(f"warning: Ray {ray.__version__} is not as "), change
            assert (waits, is_plain) == (0, True), change


def test_a_ray_that_does_not_number_attempts_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coordinator.ray, "get_runtime_context", object)
    coordinator._warn.cache_clear()
    for _ in range(2):
        coordinator.limit_retries("row 1")
    assert capsys.readouterr().err.count("warning: Ray") == 1


@pytest.mark.slow
def test_a_task_whose_process_always_dies_is_not_tried_forever(videos: pa.Table) -> None:
    def die(planned: pa.Table, manifest: ray.ObjectRef, config: Config) -> pa.Table:
        os.kill(os.getpid(), signal.SIGKILL)
        return planned

    # The module's function, in the process that loads: closures travel with what they refer to.
    plan = validation_plan(0, 1, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "_load_sample", die)
        with pytest.raises(
            ray.exceptions.RayError, match=r"the process that decodes row \d of the plan died 4 times"
        ):
            collect(plan, videos.slice(0, 1))
