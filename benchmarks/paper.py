"""The paper's ablation tables at reduced size on the choreographed videos, several seeds, one table.

    python -m benchmarks.paper TABLE --out FOLDER
    python -m benchmarks.paper 13 --seeds 3 --epochs 40 --out study
    python -m benchmarks.paper grid --frozen --seeds 1 --out study
    python -m benchmarks.paper 10 --preset finegym99 --manifest s3://bucket/finegym99.parquet --use-gpu --out study
    python -m benchmarks.paper

Tables: 5 to 11 and 13 of the paper; `unlabelled` and `labelled`, which have every objective; `grid`, SCL and the
contrastive baseline over variance and temperature. Each row is trained, embedded and evaluated with each seed, from the
config of --preset, the demo's by default. The table is written after every run; called again, the study does only what
is missing. Without arguments it runs table 13 in $CARL_RAY_HOME/study.

With --frozen, encoders train on cached features of a frozen pretrained backbone, in this process and without Ray: a run
takes a minute of one core, from the config of the preset `laptop`. Rows that need the backbone's maps or its gradients
are left out. `rates`, which needs --frozen, has videos of two frame rates.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.paper_tables import (
    TABLES,
    Row,
    Table,
    finegym_table,
    frames_table,
    frozen_table,
    pretrained_table,
)
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.errors import InterruptedRunError, UserError, one_line_errors
from carl_ray.options import OptionParser, nearest
from carl_ray.paper import protocol_of
from carl_ray.presets import preset


@dataclass(frozen=True)
class Study:
    """How the runs of a table are made."""

    config: Callable[[Row, int], Config]
    """Config of a row with a seed."""
    measured: Callable[[Config], dict[str, Any] | None]
    """Metrics of a run that was done before."""
    measure: Callable[[Config], dict[str, Any]]
    """Metrics of a run, which is done now."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when every run is done and the table written."""
    with one_line_errors():
        given = sys.argv[1:] if arguments is None else arguments
        _run(_parse(given), given)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OptionParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="?", default="13", metavar="TABLE", help=f"one of {', '.join(TABLES)}")
    parser.add_argument(
        "--preset", default="demo", metavar="NAME", help="of encoders of frames (default demo)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="(default 0)")
    parser.add_argument("--epochs", type=int, default=40, metavar="N", help="of each run (default 40)")
    parser.add_argument(
        "--row", action="append", metavar="NAME", help="only these; the first is the reference"
    )
    parser.add_argument(
        "--frozen", action="store_true", help="on cached features of a frozen backbone, without Ray"
    )
    parser.add_argument("--manifest", metavar="URI", help="labelled videos; none: the embedded ones")
    parser.add_argument("--use-gpu", action="store_true", help="train and embed on a GPU")
    parser.add_argument("--out", metavar="FOLDER", help="for the runs, the table and its numbers")
    options = parser.parse_args(arguments)
    if options.table not in TABLES:
        raise UserError(
            f"unknown table {options.table!r}{nearest(options.table, list(TABLES))} ({', '.join(TABLES)})"
        )
    for name in ("seeds", "epochs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    _table(options)
    return options


def _table(options: argparse.Namespace) -> Table:
    """The table with the rows that are asked for."""
    table, config = TABLES[options.table], preset(options.preset)
    protocol, is_demo = protocol_of(options.preset), options.preset == "demo"
    if protocol == "clips" or (options.frozen and not is_demo):
        raise UserError(
            f"--preset {options.preset}: expected one of encoders of frames, and with --frozen none"
        )
    if options.preset == "laptop" and not options.frozen:
        raise UserError(
            "--preset laptop: it trains on cached features: expected --frozen, of the preset demo"
        )
    if options.manifest is None and not is_demo:
        raise UserError(f"--preset {options.preset}: expected --manifest with the URI of its videos")
    if options.table == "11":
        table = frames_table(config.model.num_frames)
    if options.table == "7" and is_demo:
        table = pretrained_table(table)
    if protocol == "finegym":
        table = finegym_table(table)
    if options.frozen:
        table = frozen_table(table)
    elif options.table == "rates":
        raise UserError("table rates: expected --frozen, which trains on features of two frame rates")
    if len(table.rows) < 2:
        raise UserError(f"--frozen: table {options.table} is about the backbone, which is frozen there")
    if options.row:
        rows = {row.name: row for row in table.rows}
        for name in options.row:
            if name not in rows:
                raise UserError(f"--row: unknown row {name!r}{nearest(name, list(rows))} ({'; '.join(rows)})")
        table = replace(table, rows=tuple(rows[name] for name in options.row), reference=options.row[0])
    return table


def _run(options: argparse.Namespace, arguments: list[str]) -> None:
    # Imported late, the light ones first: help and mistakes answer at once, before torch is imported and Ray starts.
    from carl_ray.training.run_checks import refuse_secrets
    from carl_ray.training.run_videos import read_videos

    # The table has the command.
    refuse_secrets({"--manifest": options.manifest, "--out": options.out})
    if options.manifest is not None:
        read_videos(_base(options, options.manifest))
    table, out = _table(options), options.out or str(storage.home() / "study")
    with _session(options):
        study = _study(options, out)
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        runs = [(row.name, study.config(row, seed)) for seed in seeds for row in table.rows]
        missing = sum(study.measured(config) is None for _, config in runs)
        print(f"{len(runs)} runs, {missing} of them still to be done", flush=True)
        # The table of what there is by now, whatever ends the study.
        text, written = _write(options, arguments, table, study, runs, out)
        started, done = time.monotonic(), 0
        for name, config in runs:
            if study.measured(config) is not None:
                continue
            left = ""
            if done:
                left = f", {(time.monotonic() - started) * (missing - done) / done / 60:.0f} min left"
            print(f"run {done + 1} of {missing}: {name}, seed {config.training.seed}{left}", flush=True)
            try:
                study.measure(config)
            except InterruptedRunError as error:
                command = storage.shell_command("python", "-m", "benchmarks.paper", *arguments)
                raise InterruptedRunError(f"interrupted; go on with: {command}", error.status - 128) from None
            done += 1
            text, written = _write(options, arguments, table, study, runs, out)
    print(text)
    print(f"table: {storage.public_uri(written)}.md and .json")


def _session(options: argparse.Namespace) -> AbstractContextManager[object]:
    """Ray for runs that need it."""
    if options.frozen:
        return nullcontext()
    from carl_ray.session import connect

    return connect()


def _study(options: argparse.Namespace, out: str) -> Study:
    """The runs of a command, their videos prepared."""
    if options.frozen:
        from benchmarks.studies import cached
        from carl_ray.datasets.embedded import embedded_manifest

        folder, manifest = Path(out), options.manifest or embedded_manifest()
        if not storage.exists(manifest):
            raise UserError(
                f"{manifest}: no manifest there; `carl-ray train` renders and indexes the demo's videos"
            )
        folder.mkdir(parents=True, exist_ok=True)
        cached.prepare(manifest, folder)
        return Study(
            partial(cached.row_config, cached.base_config(options.epochs, folder), folder),
            lambda config: cached.measured(config, folder),
            lambda config: cached.measure(config, folder),
        )
    from benchmarks.studies import runs
    from carl_ray.datasets.embedded import index_embedded

    base = _base(options, options.manifest or index_embedded()[0])
    return Study(
        lambda row, seed: runs.row_config(base, dict(row.options), seed),
        lambda config: runs.measured(config, out),
        lambda config: runs.measure(config, out),
    )


def _write(
    options: argparse.Namespace,
    arguments: list[str],
    table: Table,
    study: Study,
    runs: list[tuple[str, Config]],
    out: str,
) -> tuple[str, str]:
    """Writes the table of the runs that are done; its Markdown and where it lies, without the suffix."""
    from benchmarks.studies.results import markdown, table_document
    from carl_ray.machine import machine_name

    documents: dict[str, list[dict | None]] = {}
    for name, config in runs:
        documents.setdefault(name, []).append(study.measured(config))
    codes = {document.get("code", "unknown") for row in documents.values() for document in row if document}
    result = {
        "table": options.table,
        "date": time.strftime("%Y-%m-%d"),
        "command": storage.shell_command("python", "-m", "benchmarks.paper", *arguments),
        "machine": machine_name(use_gpu=options.use_gpu),
        "code": ", ".join(sorted(codes)),
        "seeds": options.seeds,
        "epochs": options.epochs,
        **table_document(table, documents),
    }
    text = markdown(result)
    kind = "-frozen" if options.frozen else "" if options.preset == "demo" else f"-{options.preset}"
    chosen = "-rows" if options.row else ""
    name = storage.join(out, f"table-{options.table}{kind}{chosen}")
    storage.write_bytes(f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())
    storage.write_bytes(f"{name}.md", text.encode())
    return text, name


def _base(options: argparse.Namespace, manifest: str) -> Config:
    """The common config: the preset's, shorter, without the checkpoints and validations in between."""
    config = preset(options.preset)
    return replace(
        config,
        data=replace(config.data, manifest=manifest, max_validation_videos=0),
        training=replace(
            config.training, epochs=options.epochs, checkpoint_every_steps=10_000, validate_every_steps=10_000
        ),
        cluster=replace(config.cluster, use_gpu=options.use_gpu),
    )


if __name__ == "__main__":
    main()
