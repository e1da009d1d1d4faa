"""How right the partners of frames are, by several ways of pairing two crops, on warps whose partners are known.

    python -m benchmarks.studies.partners [--pairs 64] [--seed 0]

A pair is two crops of one action at paces of their own, which change smoothly by up to a factor of four. Frames are
unit vectors along a smooth random curve, with noise. Of every way: the share of the targets' weight that lies within a
tenth of a crop of a true partner, and the weight there of the frames that have a partner. Markdown goes to standard
output; it takes a minute.
"""

from __future__ import annotations

import argparse

from carl_ray.errors import one_line_errors
from carl_ray.options import OptionParser, number


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m benchmarks.studies.partners",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        count = number(int, at_least=1)
        parser.add_argument("--pairs", type=count, default=64, help="pairs of crops of each scene")
        parser.add_argument("--seed", type=int, default=0)
        options = parser.parse_args(arguments)
        _print_table(options.pairs, options.seed)


def _print_table(num_pairs: int, seed: int) -> None:
    # Lazy import: --help answers at once.
    from benchmarks.studies.pairings import METHODS, SCENES, make_pairs, score

    print(f"| right / found | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
    for scene in SCENES:
        a, b = make_pairs(scene, num_pairs, seed)
        cells = []
        for method in METHODS.values():
            found = score(method, a, b, repeated=scene.kind == "repeated")
            value = f"{found.right:.2f} / {found.found:.2f}" if found.kept else "– / 0"
            cells.append(f"kept {found.kept:.2f}" if scene.overlap == 0 else value)
        print(f"| {scene.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
