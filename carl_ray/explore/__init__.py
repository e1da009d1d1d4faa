"""The page for finding, comparing and labelling moments: `carl-ray explore`."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Run the command `explore`, as `carl-ray explore` does."""
    # Lazy import: `python -m carl_ray.explore` executes that module itself.
    from carl_ray.explore.__main__ import main as run

    run(arguments)
