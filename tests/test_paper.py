"""`carl_ray.paper`: every preset has its protocol, its stride and the paper's numbers."""

from __future__ import annotations

import pytest

from carl_ray.evaluation.tasks import TASKS, metric_names
from carl_ray.paper import PROTOCOLS, paper_numbers, protocol_of, stride_of
from carl_ray.presets import PRESETS


def test_protocols_and_strides() -> None:
    strides = {"penn_action": 2, "kinetics400": 2, "kinetics400_to_penn_action": 2, "pouring": 5, "demo": 1}
    assert {name: stride_of(name) for name in strides} == strides
    expected = {"penn_action": "phases", "finegym99": "finegym", "finegym288": "finegym"}
    assert {name: protocol_of(name) for name in expected} == expected
    assert {task for tasks in PROTOCOLS.values() for task in tasks} <= set(TASKS)


OF_OTHER_DATA = ("demo", "laptop", "clips_demo", "regions_kinetics400", "csvr_demo", "csvr_kinetics400")


@pytest.mark.parametrize("preset", [*PRESETS, "of another version"])
def test_every_preset_has_the_papers_numbers(preset: str) -> None:
    numbers, same_data = paper_numbers(preset)
    assert same_data is (preset in PRESETS and preset not in OF_OTHER_DATA)
    assert set(numbers.numbers) <= set(metric_names(PROTOCOLS[protocol_of(preset)]))
    assert numbers.numbers
