"""`benchmarks.peers`: peers that compute the same, and the parts to their end at small sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import peers
from carl_ray.data.augment import draw_parameters
from carl_ray.data.augment_tensors import apply_color, apply_geometry
from carl_ray.objectives.scl import sequence_contrastive_loss
from carl_ray.objectives.views import AugmentConfig

PARTS = [name for name in peers.PARTS if name != "stream"]


def test_the_loss_with_all_logits_is_half_of_ours_less_the_entropy() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 2, 6, 8, generator=generator)
    s = torch.rand(3, 2, 6, generator=generator).mul(20).sort(-1)[0]
    mask = torch.ones(3, 2, 6, dtype=torch.bool)
    mask[1, :, 4:] = False
    ours = sequence_contrastive_loss(z[:, 0], z[:, 1], s[:, 0], s[:, 1], mask[:, 0], mask[:, 1])
    entropies = []
    for video in range(3):
        for view in (0, 1):
            own, other = mask[video, view], mask[video, 1 - view]
            apart = s[video, view][own][:, None] - s[video, 1 - view][other]
            weights = (-(apart**2) / 20).softmax(-1)
            entropies += (-(weights * weights.log()).sum(-1)).tolist()
    found = peers.released_loss(z, s, mask)
    assert found.item() == pytest.approx(ours.item() / 2 - np.mean(entropies), abs=1e-5)


def test_torchvision_makes_the_same_view() -> None:
    rng = np.random.default_rng(3)
    frames = torch.from_numpy(rng.integers(0, 256, (2, 40, 56, 3), np.uint8))
    config = AugmentConfig(image_size=32)
    for _ in range(10):
        draw = draw_parameters(config, 40, 56, rng)
        ours = apply_color(apply_geometry(frames, draw, 32), draw)
        theirs = peers.torchvision_view(frames.permute(0, 3, 1, 2), draw, size=32).permute(0, 2, 3, 1)
        # Rounding in between, which saturation amplifies.
        assert (ours.int() - theirs.int()).abs().float().mean() < 1


def test_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    peers.main(["--tiny", "--turns", "1", "--parts", ",".join(PARTS)])
    tables = capsys.readouterr().out.split("\n\n")[1:]
    assert len(tables) == len(PARTS)
    for table in tables:
        first = next(line for line in table.splitlines()[2:])
        assert " 1.00" in first


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--parts", "losses"], "unknown part 'losses'"),
        (["--turns", "0"], "--turns: expected at least 1, got 0"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        peers.main(arguments)
    assert left.value.code == 2 and expected in capsys.readouterr().err
