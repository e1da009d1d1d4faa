"""Every set of rendered videos: deterministic bytes, folders whole or absent, options of the command."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from carl_ray.datasets import choreography, scenes
from carl_ray.errors import RunError, UserError
from tests.samples import failure

COUNTS = {"num_train": 1, "num_validation": 0, "num_test": 0, "size": 32}
WORDS = [word for name, value in COUNTS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
both = pytest.mark.parametrize("module", [choreography, scenes])


def small(module: ModuleType) -> Any:
    return replace(module.RENDERER.default, **COUNTS)


@both
def test_same_config_same_bytes_other_seed_other_bytes(module: ModuleType, tmp_path: Path) -> None:
    one, name = small(module), next(iter(module.video_ids(small(module))))
    for folder, config in (("first", one), ("again", one), ("other", replace(one, seed=1))):
        module.render(tmp_path / folder, config)
    first, again, other = (
        [(tmp_path / folder / file).read_bytes() for file in (name, "labels.parquet")]
        for folder in ("first", "again", "other")
    )
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


@both
def test_what_ends_early_leaves_nothing(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(KeyboardInterrupt):
        module.render(tmp_path / "videos", small(module), interrupt)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="no room"):
        module.render(tmp_path / "videos", small(module))
    assert list(tmp_path.iterdir()) == []


@both
@pytest.mark.parametrize("name", ["notes.txt", "train/mine.mp4"])
def test_folder_with_foreign_files_is_refused_and_untouched(
    module: ModuleType, tmp_path: Path, name: str
) -> None:
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        module.RENDERER.ensure_rendered(tmp_path, small(module))
    assert own.read_text() == "mine"


@both
def test_default_folder_follows_the_config(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    default = module.RENDERER.default
    folders = {module.RENDERER.default_folder(config) for config in (small(module), default, None)}
    assert len(folders) == 2 and all(folder.parent == tmp_path / "datasets" for folder in folders)


@both
def test_options_are_the_fields_of_the_config(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module.main([str(tmp_path / "videos"), *WORDS])
    assert "1 videos and their labels" in capsys.readouterr().out
    assert module.read_labels(tmp_path / "videos").num_rows == 1


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (scenes, ["--camera", "moving"], "moving"),
        (scenes, ["--num-train", "-1"], "num_train must not be negative, got -1"),
        (choreography, ["--size", "33"], "size must be an even number of pixels from 32 to 1024, got 33"),
    ],
)
def test_mistakes_are_one_line(
    module: ModuleType, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failure(capsys, module.main, str(tmp_path / "other"), *words)
    assert status == 2 and said in line and not (tmp_path / "other").exists()
