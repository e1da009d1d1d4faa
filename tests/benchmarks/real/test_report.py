"""`benchmarks.real.report`: SCL beside the contrastive baseline, paired by seed."""

import numpy as np
import pytest

from benchmarks.real.report import markdown
from benchmarks.real.videos import ACTIONS


def scores(error):
    return {"centred": {action: {"phase_error": error, "one_shot": 0.5, "probe": 0.5} for action in ACTIONS}}


@pytest.mark.parametrize(
    ("gains", "interval", "verdict"),
    [
        ((0.02, 0.03, 0.04), "[-0.055, -0.005]", "holds"),
        ((-0.02, -0.03, -0.04), "[+0.005, +0.055]", "does not hold"),
        ((0.01, -0.01, 0.0), "[-0.025, +0.025]", "undecided"),
        ((0.01,), "–", "–"),
    ],
)
def test_the_order_of_the_paper(gains, interval, verdict):
    found = {}
    for seed, gain in enumerate(gains):
        for fold in (0, 1):
            found[f"contrastive|{fold}|{seed}"] = scores(0.2)
            # Folds differ; the interval is of their mean.
            found[f"scl|{fold}|{seed}"] = scores(0.2 - gain + (0.01 if fold else -0.01))
    found |= {f"frozen|{fold}|0": {"": scores(0.2)["centred"]} for fold in (0, 1)}
    (line,) = [
        line
        for line in markdown(found, [], np.zeros(0)).splitlines()
        if "centred | " in line and " of " in line
    ]
    assert line.endswith(f"| {interval} | {verdict} |")
