"""Trains under kills and storage faults for a while, and says what it survived and whether anything grew.

    python -m benchmarks.soak
    python -m benchmarks.soak --minutes 3 --seed 7
    python -m benchmarks.soak --fuzz FOLDER --minutes 5

On a cluster of its own on this machine, a small encoder is trained on rendered videos, again and again: decoding
tasks, data actors, training workers, a node, the driver and the submitting shell are killed at random moments, and
requests to the object store fail. The storage faults need the package `moto` (pip install 'moto[server]'); without
it they are left out. Every run must equal an undisturbed one bit by bit. The last quarter of the time, a run goes
on undisturbed, to see whether its processes grow. The last line has all figures; exit status 0 only where all runs
were equal and nothing grew beyond the bounds in `benchmarks.faults.rounds`; from 15 minutes on, also only where every
kind of victim, fault and process was met.

With --fuzz, videos of a folder are damaged at random and read instead.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from carl_ray import storage
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> None:
    parser = OptionParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20.0, metavar="N", help="how long, all in all [20]")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices [0]")
    parser.add_argument("--run-dir", metavar="FOLDER", help="where videos, runs and logs go")
    parser.add_argument(
        "--fuzz", metavar="FOLDER", help="damage and read the videos of a local folder instead"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < float("inf"):
        raise UserError(f"--minutes: expected a number above 0, got {options.minutes:g}")
    if options.fuzz is not None:
        if options.run_dir is not None:
            raise UserError("--fuzz writes nothing: leave out --run-dir")
        _fuzz(Path(options.fuzz), 60 * options.minutes, options.seed)
        return
    if options.run_dir is not None and storage.is_remote(options.run_dir):
        raise UserError(
            f"--run-dir: expected a folder of this machine, got {storage.public_uri(options.run_dir)}"
        )
    folder = Path(options.run_dir or storage.home() / "runs" / time.strftime("soak-%Y%m%d-%H%M%S")).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--run-dir {folder}: expected a folder that is empty or not there")
    # Before Ray is imported: it reads them once. Its servers listen on all interfaces.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from benchmarks.faults.rounds import soak

    # However it is told to end, it takes its processes along; SIGTERM and SIGINT raise already.
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    figures = soak(options.minutes, options.seed, folder, lambda line: print(line, flush=True))
    for note in figures.notes:
        print(f"note: {note}")
    print(figures.line(), flush=True)
    failures = figures.failures()
    if failures:
        raise RunError(f"{'; '.join(failures)}; see {folder}")


def _fuzz(folder: Path, seconds: float, seed: int) -> None:
    from benchmarks.faults.fuzz import fuzz
    from carl_ray.data.manifest import VIDEO_SUFFIXES

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder on this machine")
    videos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    found = fuzz(videos, seconds=seconds, seed=seed, on_progress=lambda line: print(line, flush=True))
    print(found, flush=True)
    if found.total["error"]:
        raise RunError(f"{found.total['error']} damaged files failed in a way that no error is foreseen for")


if __name__ == "__main__":
    main()
