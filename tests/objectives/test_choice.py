"""`carl_ray.objectives.choice`: an objective is found by its name, its options alone are read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from carl_ray.config import Config, from_document, from_json, to_document, to_json
from carl_ray.errors import UserError
from carl_ray.objectives.choice import EARLIER, OBJECTIVES, find_objective, objective_options
from carl_ray.presets import preset
from carl_ray.training.run_checks import check_inputs, try_objective

FOREIGN = """
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from carl_ray.objectives.base import Objective, ObjectiveOptions, Terms, options


class Foreign(Objective):
    @options
    class Options(ObjectiveOptions):
        margin: float = Field(default=2.0, gt=0)

    def __init__(self, options, width, batch_norm):
        super().__init__(options, width, batch_norm)
        self.head = nn.Linear(width, 1)


class NoObjective:
    pass


class Undecorated(Foreign):
    class Options(ObjectiveOptions):
        tau: float = 0.1


class WrongName(Foreign):
    @options
    class Options(ObjectiveOptions):
        name: Literal["right"] = "right"


class Fine(Foreign):
    def forward(self, encodings, batch, progress):
        (encoding,) = encodings.values()
        sums = self.head(encoding.frames)[..., 0].where(encoding.mask, 0).sum()[None]
        return Terms(sums, encoding.mask.sum()[None])


class WithClasses(Fine):
    @options
    class Options(ObjectiveOptions):
        columns = ("frame_labels",)
        num_classes: int | None = None

        def with_num_classes(self, num_classes):
            return replace(self, num_classes=num_classes)

    def __init__(self, options, width, batch_norm):
        super().__init__(options, width, batch_norm)
        self.classes = range(options.num_classes)

    def forward(self, encodings, batch, progress):
        for view in batch.views.values():
            assert all(label in self.classes for label in view.columns["frame_labels"].flatten().tolist())
        return super().forward(encodings, batch, progress)


class Scalar(Fine):
    def forward(self, encodings, batch, progress):
        return super().forward(encodings, batch, progress).sums.mean()


class Detached(Fine):
    def forward(self, encodings, batch, progress):
        return Terms(*(part.detach() for part in super().forward(encodings, batch, progress)))


class ReadsPadding(Fine):
    def forward(self, encodings, batch, progress):
        (encoding,) = encodings.values()
        return Terms(encoding.frames.std()[None] * encoding.mask.sum(), encoding.mask.sum()[None])


class OtherArguments(Fine):
    def __init__(self, options):
        super().__init__(options, 4, None)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package outside with an entry point, as pip would install it."""
    (tmp_path / "foreign_package.py").write_text(FOREIGN)
    info = tmp_path / "foreign_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[carl_ray.objectives]\nforeign = foreign_package:Foreign\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("foreign_package", None)
    find_objective.cache_clear()


def read(**options: object) -> Config:
    return from_document({"preset": "test", "objective": options}, "here")


@pytest.mark.parametrize("name", ["foreign", "foreign_package:Foreign"])
def test_a_package_outside(installed: None, name: str) -> None:
    config = read(name=name, margin="3")
    assert config.objective == find_objective(name).Options(name=name, margin=3.0)
    assert from_json(to_json(config), "here") == config
    assert to_document(config)["objective"] == {"name": name, "margin": 3.0}
    with pytest.raises(UserError, match=r"^here: objective\.margin: .*greater than 0, got -1$"):
        read(name=name, margin=-1)
    with pytest.raises(UserError, match=r"objective\.window: not an option of .* \(its options: margin\)$"):
        read(name=name, window=5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tcnn"}, r"objective\.name: unknown objective 'tcnn'; did you mean tcn\? \(.*foreign;"),
        ({"name": "foreign_package:Gone"}, r"objective\.name: objective 'foreign_package:Gone' cannot be imported"),
        ({"name": "gone:Gone"}, r"cannot be imported: No module named 'gone'; .* PYTHONPATH$"),
        ({"name": "foreign_package:NoObjective"}, r"expected a subclass of Objective with Options, got <class"),
        ({"name": "foreign_package:Undecorated"}, r"Undecorated\.Options is not decorated with @options$"),
        ({"name": "foreign_package:WrongName"}, r"WrongName\.Options\.name is .*'right'.*, not 'foreign_package"),
        ({"name": "scl", "window": 7}, r"objective\.window: not an option of objective scl \(its options: te"),
        ({"name": "tcn", "window": "far"}, r"objective\.window: .*number.*got 'far'$"),
        ({"name": 3}, r"objective\.name: expected a name, got 3$"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(installed: None, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(**options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="objective: expected a table of options, got 7"):
        from_document({"preset": "test", "objective": 7}, "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Fine", None),
        ("WithClasses", None),
        ("Scalar", r"expected Terms\(sums, counts\).*got tensor"),
        ("Detached", "its sums have no gradient"),
        ("ReadsPadding", "frames whose mask is False"),
        ("OtherArguments", "2 positional arguments but 4 were given"),
    ],
)
def test_an_objective_of_ones_own_is_tried_before_ray_starts(
    installed: None, name: str, message: str | None
) -> None:
    config = replace(preset("demo"), objective=objective_options(f"foreign_package:{name}"))
    if message is None:
        try_objective(config)
        return
    with pytest.raises(UserError, match=message) as caught:
        try_objective(config)
    assert str(caught.value).startswith(f"objective foreign_package:{name} fails on a batch of two videos: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "warns"), [("regions", True), ("clip_contrast", True), ("clip_classes", False)]
)
def test_steps_of_one_video_have_no_negatives(
    name: str, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    base = replace(preset("clips_demo"), objective=objective_options(name))
    for size in (1, 2):
        check_inputs(replace(base, training=replace(base.training, global_batch_size=size)))
        found = "has no other videos, which the objective" in capsys.readouterr().err
        assert found == (warns and size == 1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_configs_of_earlier_versions(name: str) -> None:
    """They have all options of all objectives."""
    if find_objective(name).Options.reads_clips:
        return  # Added later.
    # Its earlier default, which a resumed run keeps.
    config = read(name=name, **({"max_match_cost": 0.3} if name == "weak_scl" else {}))
    old = to_document(config)
    old["objective"] = {"name": name} | EARLIER
    assert from_document(old, "here") == config
    changed = from_document(old | {"objective": old["objective"] | {"window": 9.0}}, "here")
    assert getattr(changed.objective, "window", None) == (9.0 if name == "tcn" else None)


def test_options_are_described_and_need_no_torch() -> None:
    for name in OBJECTIVES:
        fields = find_objective(name).Options.__pydantic_fields__
        assert all(
            (info.description or "").endswith(".") for field, info in fields.items() if field != "name"
        )
        assert objective_options(name).pairs_videos == (name in ("tcc", "lav", "gta", "weak_scl"))
    code = (
        "import sys; from carl_ray.objectives.choice import OBJECTIVES, objective_options as o;"
        "print(*(o(name).name for name in OBJECTIVES), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*OBJECTIVES, "False"]
