"""`benchmarks.studies.partners`: partners of warps are right at every overlap, which those of tied ends are not."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies import pairings, partners
from benchmarks.studies.pairings import METHODS, SCENES, Scene, make_pairs, score, true_times

RIGHT = "open ends (weak_scl)"


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_partners_of_the_package(scene: Scene) -> None:
    a, b = make_pairs(scene, 16, seed=0)
    found = score(METHODS[RIGHT], a, b, repeated=scene.kind == "repeated")
    if scene.overlap == 0:
        assert found.kept < 0.2  # the last frames of one crop are like the first of the other
    else:
        assert found.right > 0.85
        assert found.found > (
            0.95 if max(scene.noise, scene.style) < 1 and scene.kind in ("once", "inside") else 0.6
        )


def test_tied_ends_are_wrong_at_a_fifth() -> None:
    a, b = make_pairs(Scene("", overlap=0.2), 16, seed=0)
    tied, right = (score(METHODS[name], a, b, repeated=False) for name in ("tied ends", RIGHT))
    assert tied.found < 0.1 and right.found > 0.95
    assert right.kept < 0.35


@pytest.mark.parametrize("repeated", [False, True])
def test_true_times(repeated: bool) -> None:
    a, b = make_pairs(Scene("", kind="repeated" if repeated else "once", overlap=0.5), 3, seed=1)
    times = true_times(a, b, repeated=repeated)
    inside = (times >= 0) & (times <= b.phase_of_frame.shape[1] - 1)
    below = times.clamp(0, 118).long()
    for number, (here, within) in enumerate(zip(below, inside, strict=True)):
        phase = a.phases + (number - 4 if repeated else 0)
        first, second = b.phase_of_frame.gather(1, here), b.phase_of_frame.gather(1, here + 1)
        assert ((first <= phase + 1e-9) & (phase <= second + 1e-9))[within].all()
    # Half of the frames have a partner; in repetitions each has several.
    assert inside.any(0).double().mean().item() == pytest.approx(1 if repeated else 0.5, abs=0.2)
    assert (inside.sum(0).max() > 1) == repeated


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairings, "SCENES", [SCENES[0], SCENES[-1]])
    partners.main(["--pairs", "2"])
    head, _, first, last = capsys.readouterr().out.splitlines()
    assert head.count("|") == first.count("|") == last.count("|") == len(METHODS) + 2
    assert "kept" in first and " / " in last
    assert torch.get_default_dtype() == torch.float32
