"""`benchmarks.studies.runs`: folders of runs keep their names."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.studies.runs import digest
from carl_ray.config import Config
from carl_ray.presets import preset


def test_a_config_of_an_earlier_version_keeps_its_digest() -> None:
    """Folders are named by it: a field that is added belongs into `_ADDED`."""
    demo = preset("demo")
    assert digest(replace(demo, training=replace(demo.training, epochs=70))) == "3d616204257aec2a"
    assert digest(Config(preset="d")) == "d1f2257632dcd0bb"
