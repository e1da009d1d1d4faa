"""The study of clips says where its claim on colour casts does not hold."""

from __future__ import annotations

from benchmarks.studies.clips import REGIONS, claims


def test_a_claim_that_does_not_hold_is_printed_as_failing() -> None:
    found = {
        "regions without information": (0.78, 0.2),
        "regions": (0.71, 0.24),
        "regions, adversary": (0.39, 0.22),
    }
    assert found.keys() <= REGIONS.keys()
    tinted = {name: {"cast R²": cast, "linear action": action} for name, (cast, action) in found.items()}
    plain = {"regions": 0.25, "regions, adversary": 0.26}
    failing, holding = claims(tinted, plain)
    assert failing.startswith("claim FAILS: regions leaves R² 0.71 of the cast, half of 0.78")
    assert holding.startswith("claim holds: regions, adversary leaves R² 0.39 of the cast")
    _, lost = claims(tinted, plain | {"regions, adversary": 0.28})
    assert lost.startswith("claim FAILS: regions, adversary leaves R² 0.39") and lost.endswith(
        "at most 0.05 below 0.28"
    )
    _, unknown = claims(tinted, {"regions": 0.25})
    assert unknown.startswith("claim is undecided") and unknown.endswith("not in --out")
    assert claims({"regions": tinted["regions"]}, plain) == []
