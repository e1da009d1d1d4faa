"""README and docs: their commands exist with their options, their links lead somewhere, README's blocks run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import carl_ray
from carl_ray.__main__ import COMMANDS, main
from tests.test_commands import answer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "cluster" / "README.md"])
_COMMAND = re.compile(r"(?:carl-ray |python -m carl_ray\.)(?P<name>[a-z][\w.-]*)(?P<rest>[^`\n]*)")
# Few steps of few videos: the preset is the README's.
_SMALL = (
    "--augment.copies 1 --training.epochs 1 --training.global_batch_size 2 --data.max_validation_videos 0"
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str], list[str]]]:
    """Every command line of the documentation: where, its command (and subcommand of jobs), its options."""
    for page in PAGES:
        for found in _COMMAND.finditer(page.read_text().replace("\\\n", " ")):
            rest = found["rest"].partition("  #")[0]
            first = next(iter(rest.split()), "")
            command = (
                [found["name"], first] if first in ("submit", "status", "logs", "stop") else [found["name"]]
            )
            yield f"{page.name}: {found[0]}", command, re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", rest)


@cache
def help_of(*arguments: str) -> str:
    status, output = answer("carl_ray.__main__", *arguments, "--help", home=Path("/nowhere"))
    assert status == 0
    return output


def test_every_command_and_option_exists() -> None:
    seen = set()
    for where, command, options in commands():
        assert command[0] in (*COMMANDS, "COMMAND"), where
        # `jobs submit --set train_options=…` holds options of its stages.
        known = help_of("train") + help_of("embed") if command[0] == "jobs" else ""
        for option in options:
            assert re.search(rf"{re.escape(option)}(?![\w.-])", help_of(*command) + known), (
                f"{where}: {option}"
            )
        seen.add(command[0])
    assert {"train", "index", "embed", "evaluate", "search", "align", "sweep", "jobs", "sizing"} <= seen


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            if target.startswith("https://"):
                continue
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert anchor in anchors, f"{page.name}: {target}"


def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text().splitlines()
    assert {f"::: carl_ray.{name}" for name in carl_ray.__all__ if name != "__version__"} <= set(reference)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1300


@pytest.mark.slow
def test_your_own_videos_and_python(
    make_video: Callable[..., Path],
    tmp_path: Path,
    local_training: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The README's blocks as they are, on two made videos; training has an option for few steps more."""
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "videos" / name, 124)
    section = README[README.index("## Your own videos") : README.index("## On a cluster")]
    (tmp_path / "few.csv").write_text("video,start,end,label\na.mp4,0,2,up\na.mp4,2,4,down\n")
    lines = [line.partition("  #")[0] for block in blocks(section, "bash") for line in block.splitlines()]
    commands = ["index", "embed", "train", "search", "align", "propagate", "segments"]
    assert [shlex.split(line)[:2] for line in lines] == [["carl-ray", command] for command in commands]
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("carl_ray.errors.handle_signals", lambda: None)  # This process keeps its own.
    monkeypatch.chdir(tmp_path)
    for line in lines:
        _, *words = shlex.split(line)
        main([*words, *(shlex.split(_SMALL) if words[0] == "train" else [])])
    (code,) = blocks(section, "python")
    capsys.readouterr()
    exec(f"{code}\nprint(h.shape, h.dtype, len(moments), moments[0].video_id)", {})
    # Of 124 frames there are fewer than 128 principal axes beside the 128 numbers of the trained encoder.
    assert capsys.readouterr().out == "(124, 252) float32 2 a.mp4\n"
    for name in (
        "videos.parquet",
        "run/config.json",
        "sheet.png",
        "aligned.mp4",
        "predicted.csv",
        "segments.csv",
    ):
        assert (tmp_path / name).exists()
