"""`benchmarks.parts.plan`: a manifest that a run could read, and its costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.parts import plan
from carl_ray.data.manifest import SCHEMA, read_manifest, write_table


def test_the_manifest_is_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "_CHUNK_ROWS", 700)
    table = plan.synthetic_manifest(2000)
    assert table.num_rows == 2000 and table.column("video_id").num_chunks == 3
    assert len(set(table.column("video_id").to_pylist())) == 2000
    write_table(table, str(tmp_path / "manifest.parquet"))
    training = read_manifest(str(tmp_path / "manifest.parquet"), plan.STREAM_COLUMNS, split="train")
    validation = read_manifest(str(tmp_path / "manifest.parquet"), plan.STREAM_COLUMNS, split="validation")
    assert training.num_rows + validation.num_rows == 2000
    assert training.num_rows == pytest.approx(1900, abs=60)
    assert training.schema.equals(SCHEMA.empty_table().select(plan.STREAM_COLUMNS).schema)
    first = training.slice(0, 1).to_pylist()[0]
    assert first["uri"].endswith(first["video_id"]) and first["uri"].startswith("s3://")


def test_the_table() -> None:
    lines: list[str] = []
    table = plan.measure(3000, lines.append)
    assert "3,000 videos" in table.title and len(lines) == 2
    assert all(len(row) == len(table.columns) for row in table.rows)
    costs = {name: mebibytes for name, _, mebibytes in table.rows}
    # 71 characters of URI, 33 of id, three numbers: without what the validation videos take.
    assert 100 < 2**20 * float(costs["read the columns of a run, split train"].replace(",", "")) / 2850 < 200


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells a process its own peak")
def test_the_memory_of_a_part_is_not_that_of_the_process_that_started_it() -> None:
    np.ones(2**29, np.uint8)
    assert plan._peak_bytes() > 2**29
    assert 2**20 < plan._apart(plan._peak_bytes) < 2**29
