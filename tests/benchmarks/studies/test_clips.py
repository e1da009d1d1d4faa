"""The study of clips says where its claim on colour casts does not hold."""

from __future__ import annotations

from benchmarks.studies.clips import REGIONS, claims


def test_a_claim_that_does_not_hold_is_printed_as_failing() -> None:
    casts = {
        "regions without information": 0.78,
        "regions": 0.71,
        "regions, adversary": 0.39,
        "untrained": 0.1,
    }
    assert casts.keys() <= REGIONS.keys()
    failing, holding = claims(casts)
    assert failing.startswith("claim FAILS: regions leaves R² 0.71 of the cast, half of 0.78")
    assert holding.startswith("claim holds: regions, adversary leaves R² 0.39 of the cast")
    assert claims({"regions": 0.1}) == []
