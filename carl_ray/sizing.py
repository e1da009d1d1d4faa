"""Plan a cluster: CPU nodes that decode for a number of GPUs.

    python -m carl_ray.sizing VIDEO penn_action --gpus 4 --videos 1163
    python -m carl_ray.sizing s3://bucket/videos/typical.mp4 penn_action --data.manifest s3://bucket/manifest.parquet
    python -m carl_ray.sizing VIDEO finegym99 --gpus 4 --step-seconds 0.9
    python -m carl_ray.sizing VIDEO laptop --gpus 0 --videos 40
    python -m carl_ray.sizing

VIDEO should be as long and as large as most, and stored where the run will read it. The step is measured on this
machine's GPU with one worker's part of the batch. Without a GPU it is measured on the CPU, whose rate differs: give
--step-seconds, as measured by this command on a GPU node, or from a run's metrics.jsonl, `step_seconds` /
`training.log_every_steps`. Without VIDEO the demo is measured with one of its own videos. With --gpus 0 one worker
trains on this machine's CPU; for the preset `laptop`, or --augment.copies, that is time and memory of caching features
and training on them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from carl_ray import options, presets, storage
from carl_ray.config import Config
from carl_ray.data.manifest import read_manifest
from carl_ray.data.plan import training_plan
from carl_ray.errors import UserError, note, one_line_errors
from carl_ray.machine import machine_name
from carl_ray.progress import ProgressLine
from carl_ray.training import cluster_plan
from carl_ray.training.cluster_plan import ClusterPlan

if TYPE_CHECKING:
    from carl_ray.data.decode import VideoProbe
    from carl_ray.data.sample import Sample

_VIDEO_TIMES, _STEP_TIMES = 9, 3
_NODE_CPUS = 16
_DATA_NODE_PRICE = 0.25
_STEPS_WITHOUT_VIDEOS = 1000
_CACHED_VIDEOS, _VIDEO_ID = 40, "sizing"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        _run(*_parse(sys.argv[1:] if arguments is None else arguments))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, Config]:
    parser = options.OptionParser(
        prog="python -m carl_ray.sizing",
        usage="%(prog)s [VIDEO [PRESET]] [--gpus N] [--videos N] [--step-seconds S] [--section.field VALUE …]",
        description=__doc__,
    )
    count, positive = options.number(int, at_least=1), options.number(float, above=0)
    add = parser.add_argument
    add("video", nargs="?", metavar="VIDEO", help="path or URI of a typical training video")
    named = f"one of {', '.join(presets.PRESETS)} [demo]"
    add("preset", nargs="?", default="demo", metavar="PRESET", help=named)
    gpus = options.number(int, at_least=0)
    add("--gpus", type=gpus, metavar="N", help="training workers; 0: one, on the CPU [cluster.num_workers]")
    add("--videos", type=count, metavar="N", help="videos of an epoch [training videos of data.manifest]")
    add("--step-seconds", type=positive, metavar="S", help="of a step, where the GPU is not in this machine")
    cpus = f"of a data node [{_NODE_CPUS}, as in cluster/]"
    add("--node-cpus", type=count, default=_NODE_CPUS, metavar="N", help=cpus)
    price = f"of a data node, where a train node of one GPU costs 1 [{_DATA_NODE_PRICE}; a guess, look it up]"
    add("--data-node-price", type=positive, default=_DATA_NODE_PRICE, metavar="P", help=price)
    parsed, overrides = options.parse_with_config(parser, arguments)
    config = options.overridden(presets.preset(parsed.preset), overrides)
    parsed.gpus = config.cluster.max_workers if parsed.gpus is None else parsed.gpus
    parsed.given = overrides
    if parsed.node_cpus < config.cluster.decode_cpus:
        raise UserError(
            f"--node-cpus: expected at least {config.cluster.decode_cpus:g}, got {parsed.node_cpus}: a decoding task "
            "needs so many"
        )
    if parsed.gpus > config.training.global_batch_size:
        raise UserError(
            f"--gpus {parsed.gpus}: a step has {config.training.global_batch_size} videos, so some GPUs would have "
            "none; lower --gpus, or raise --training.global_batch_size"
        )
    return parsed, config


def _run(parsed: argparse.Namespace, config: Config) -> None:
    if parsed.gpus == 0 and config.augment.copies is not None:
        _run_cached(parsed, config)
        return
    num_videos = _count_videos(parsed, config)
    on_cpu, parsed.gpus = parsed.gpus == 0, max(1, parsed.gpus)
    video = parsed.video or _demo_video()
    video_seconds, samples = _measure_video(video, config)
    # Imported late: help and mistakes answer at once.
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    step_seconds, worker = None, "GPU"
    if parsed.step_seconds is None:
        worker = "GPU" if device.type == "cuda" else "CPU worker"
        share = cluster_plan.share(config.training.global_batch_size, parsed.gpus)
        progress = _progress(f"a step of {_count(share, 'video')} on the {device.type.upper()}")
        step_seconds = cluster_plan.measure_step(samples, config, share, device, _STEP_TIMES, progress)
    plan = ClusterPlan(
        video_seconds=statistics.median(video_seconds),
        frames_per_video=sum(int(view.mask.sum()) for view in (samples[0].views or {}).values()),
        step_seconds=parsed.step_seconds if step_seconds is None else statistics.median(step_seconds),
        batch_size=config.training.global_batch_size,
        num_workers=parsed.gpus,
        node_cpus=parsed.node_cpus,
        decode_cpus=config.cluster.decode_cpus,
    )
    lines = [
        ("measured on", machine_name(use_gpu=step_seconds is not None)),
        (
            "a core makes ready",
            f"{plan.frames_per_core:,.1f} frames/s: a video of {plan.frames_per_video} frames in "
            f"{plan.video_seconds:.2f} s ({_spread(video_seconds)})",
        ),
        (
            f"a {worker} takes",
            f"{plan.frames_per_worker:,.1f} frames/s: a step of {_count(plan.share, 'video')} in "
            f"{plan.step_seconds:.2f} s ({'as given' if step_seconds is None else _spread(step_seconds)})",
        ),
    ]
    if worker != "GPU":
        lines.insert(1, ("", "without a GPU: its rate is another one, and --step-seconds names it"))
    elif step_seconds is not None:
        peak = torch.cuda.max_memory_reserved(device)
        there = torch.cuda.get_device_properties(device).total_memory
        lines.append(("GPU memory", f"{_gib(peak)} at the peak, of {_gib(there)}"))
    for part in (lines, _nodes(plan, config, worker)):
        print("\n" + "\n".join(f"{label:<22}{text}" for label, text in part))
    print(f"\n{_schedule_text(plan, config, num_videos, parsed.data_node_price)}")
    manifest = config.data.manifest or "manifest.parquet"
    if parsed.video is None:
        options.print_next("train", config.preset)
    elif config.data.manifest is None:
        options.print_next("index", storage.parent(storage.absolute(video)), "--out", manifest)
    else:
        workers = () if on_cpu else ("--cluster.use_gpu", "true", "--cluster.num_workers", str(parsed.gpus))
        options.print_next("train", config.preset, "--data.manifest", manifest, *workers)


def _run_cached(parsed: argparse.Namespace, config: Config) -> None:
    """Print time and memory of a run on cached features on this machine."""
    from carl_ray.data.timing import fit_to_videos
    from carl_ray.evaluation.estimate import estimate_run

    manifest = config.data.manifest
    if manifest is not None:
        videos = read_manifest(manifest, ["video_id", "uri", "content_hash", "num_frames", "fps", "split"])
        training = read_manifest(manifest, ["num_frames", "fps"], split=config.data.train_split)
    else:
        video = parsed.video or _demo_video()
        probe = _probe(video)
        file = {"uri": video, "content_hash": "", "num_frames": probe.num_frames, "fps": probe.fps}
        names = (f"{_VIDEO_ID}-{number}" for number in range(parsed.videos or _CACHED_VIDEOS))
        rows = [{"video_id": name, "split": "train"} | file for name in names]
        videos = training = pa.Table.from_pylist(rows)
    config, timing = fit_to_videos(config, training, parsed.given)
    print(f"stride {config.data.frame_stride}, T {config.model.num_frames}: {timing.reason}", flush=True)
    print(f"measured on {machine_name(use_gpu=False)}")
    print(
        estimate_run(replace(config, data=replace(config.data, features=config.data.features or "")), videos)
    )
    options.print_next("train", config.preset, "--data.manifest", manifest or "manifest.parquet")


def _count_videos(parsed: argparse.Namespace, config: Config) -> int | None:
    if parsed.videos is not None or config.data.manifest is None:
        return parsed.videos
    found = read_manifest(config.data.manifest, ["split"], split=config.data.train_split).num_rows
    if not found:
        raise UserError(
            f"{storage.public_uri(config.data.manifest)}: no video with split {config.data.train_split!r}"
        )
    return math.ceil(config.data.train_fraction * found)


def _demo_video() -> str:
    from carl_ray.datasets import choreography

    folder = choreography.ensure_rendered(on_video=ProgressLine("rendered"))
    return str(min((folder / "train").glob("*.mp4")))


def _measure_video(video: str, config: Config) -> tuple[list[float], list[Sample]]:
    probe, shown = _probe(video), storage.public_uri(video)
    from carl_ray.data.decode import DecodeError

    try:
        print(
            f"{shown}: {probe.width} x {probe.height}, {probe.num_frames} frames, {probe.codec}; preset "
            f"{config.preset}: {cluster_plan.shown_views(config)}, {config.augment.image_size} pixels",
            flush=True,
        )
        progress = _progress("the video on one core")
        return cluster_plan.measure_video(video, probe.num_frames, config, _VIDEO_TIMES, progress)
    except DecodeError as error:
        raise UserError(f"{shown}: expected a video: {error}") from None


def _probe(video: str) -> VideoProbe:
    shown = storage.public_uri(video)
    if not storage.is_file(video):
        raise UserError(f"{shown}: expected a video: no such file")
    from carl_ray.data.decode import DecodeError, probe_video

    try:
        return probe_video(video)
    except DecodeError as error:
        raise UserError(f"{shown}: expected a video: {error}") from None


def _progress(what: str) -> Callable[[float], None]:
    note(f"measuring {what}")
    return lambda seconds: note(f"  {seconds:.2f} s")


def _spread(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return "measured once"
    return f"median of {len(seconds)}, {min(seconds):.2f} to {max(seconds):.2f}"


def _nodes(plan: ClusterPlan, config: Config, worker: str) -> list[tuple[str, str]]:
    """Lines, as label and text, about the nodes that keep the workers busy and what they need."""
    needed, memory = plan.nodes_needed, plan.memory(config)
    network = plan.bytes_per_second(config) * 8 / 1e9
    lines = [
        (f"cores per {worker}", _short(plan.cores_per_worker)),
        (
            "data nodes",
            f"{_short(needed / plan.num_workers)} of {plan.node_cpus} CPUs per {worker}; {math.ceil(needed)} for "
            f"{_count(plan.num_workers, worker)}; as max_workers {math.ceil(cluster_plan.HEADROOM * needed)}, since "
            "spot nodes go",
        ),
        (
            "a data node needs",
            f"memory {_gib(memory.data_heap)} for {_count(plan.tasks_per_node, 'task')}, object_store_memory "
            f"{_gib(memory.data_store)} for {cluster_plan.BLOCKS_PER_TASK} blocks each; /dev/shm larger",
        ),
        (
            f"a {worker} needs",
            f"object_store_memory {_gib(memory.train_store)}, memory {_gib(memory.train_heap)} for steps held ready, "
            f"network {network:.2f} Gbit/s",
        ),
    ]
    tasks, most = math.ceil(needed * plan.tasks_per_node), config.cluster.max_decode_tasks
    if most is not None and most < tasks:
        lines.append(("too few tasks", f"cluster.max_decode_tasks is {most}, not {tasks}"))
    return lines


def _gib(size: float) -> str:
    return f"{_short(size / 2**30)} GiB"


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _schedule_text(plan: ClusterPlan, config: Config, num_videos: int | None, price: float) -> str:
    epochs = config.training.epochs
    if num_videos is None:
        steps = _STEPS_WITHOUT_VIDEOS
        title = f"{steps:,} steps (--videos N: all of the {_count(epochs, 'epoch')})"
    else:
        steps = training_plan(0, num_videos, plan.batch_size, epochs).num_steps
        title = f"{_count(epochs, 'epoch')} of {_count(num_videos, 'video')}, {_count(steps, 'step')}"
    lines = [title, f"{'data nodes':>12}{'busy':>8}{'hours':>12}{'cost':>12}{'decoding':>11}"]
    for number in plan.nodes_to_compare:
        row = plan.projection(number, steps, price)
        lines.append(
            f"{row.num_nodes:>12}{row.busy:>8.0%}{row.hours:>12,.2f}{row.cost:>12,.2f}{row.decoding_share:>11.0%}"
        )
    note = f"{price:g} one of a data node (--data-node-price); no head"
    return "\n".join([*lines, f"cost: 1 is an hour of a train node of one GPU, {note}"])


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    main()
