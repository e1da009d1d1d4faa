"""Find, compare and label moments of embedded videos, in a web browser.

    python -m carl_ray.explore --embeddings FOLDER --manifest MANIFEST
    python -m carl_ray.explore

The page's address, with its token, is printed; whoever has it can see the videos that the embeddings name. Only this
machine can reach it (127.0.0.1). From another one, forward the port under the same number:
ssh -N -L 8765:127.0.0.1:8765 HOST, with --port 8765 here. Posters and other pictures are kept in FOLDER/explore, or
below ~/carl_ray for embeddings in an object store. Without --embeddings, it shows those of the newest demo run.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from carl_ray import storage
from carl_ray.errors import RunError, UserError, note, one_line_errors
from carl_ray.lease import hold
from carl_ray.options import OptionParser, number
from carl_ray.progress import ProgressLine


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    with one_line_errors(), ExitStack() as stack:
        options = _parse(arguments)
        # Lazy imports: --help and usage errors answer at once.
        from carl_ray.explore.library import Corpus
        from carl_ray.training.checkpoint import default_run

        uri = options.embeddings or storage.join(default_run("--embeddings"), "embeddings")
        corpus = Corpus.open(uri, options.manifest, ProgressLine("indexed"))
        from carl_ray.explore.api import open_workbench
        from carl_ray.explore.labels import labels_of_another_form
        from carl_ray.explore.server import make_app, serve

        folder = storage.parent(uri) if storage.is_file(uri) else uri
        own = storage.join(folder, "labels.csv")
        labels, start = options.labels or own, {}
        if options.labels and (start := labels_of_another_form(labels, corpus.videos)):
            shown = storage.public_uri(own)
            if storage.exists(own):
                note(
                    f"{shown} goes on with what it has; move it away to begin with {storage.public_uri(labels)}"
                )
            else:
                note(f"labels of {len(start)} videos to begin with; the page saves all in {shown}")
            labels = own
        check = None
        try:
            lease, _ = stack.enter_context(hold(f"{labels}.lock"))
            check = lease.check
        except (UserError, RunError) as error:  # Another process writes, or nobody may.
            note(f"carl_ray: labels are only shown: {error}")
        workbench = open_workbench(corpus, labels, check, start)
        serve(make_app(corpus, workbench, cache_bytes=int(options.cache_gb * 1e9)), options.port)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.explore", description=__doc__)
    add = parser.add_argument
    add("--embeddings", metavar="EMBEDDINGS", help="folder or file of embeddings; none: the newest demo's")
    add(
        "--manifest",
        metavar="MANIFEST",
        help="its further columns (person, camera, …) are shown, too; they filter and sort the library",
    )
    add(
        "--labels",
        metavar="FILE",
        help="CSV file of the labels drawn in the page [labels.csv in the folder of the embeddings]; or labels to "
        "begin with, of any form that index --labels takes",
    )
    add(
        "--port",
        type=number(int, at_least=0, at_most=65535),
        metavar="N",
        help="of 127.0.0.1; 0: any [8765, or the next that is free]",
    )
    add(
        "--cache-gb",
        type=number(float, at_least=0),
        default=10.0,
        metavar="GB",
        help="room for videos that browsers cannot play, converted; the oldest make way [10]",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
