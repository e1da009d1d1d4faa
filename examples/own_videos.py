"""From a folder of videos to a search by a moment: index, train, embed, search.

    python examples/own_videos.py VIDEOS OUT [EPOCHS]

The preset `demo` is a small encoder that trains on a CPU; with a GPU use `penn_action` or another preset of the paper.
"""

import sys
from dataclasses import replace
from pathlib import Path

import carl_ray


def main(videos: str, out: str, epochs: int = 70) -> None:
    """Train on the videos and print the moments nearest to the middle of the first one."""
    manifest, run, embeddings_uri = (
        str(Path(out) / name) for name in ("videos.parquet", "run", "embeddings")
    )
    carl_ray.build_manifest(videos, manifest)

    config = carl_ray.preset("demo")
    config = replace(
        config,
        data=replace(config.data, manifest=manifest),
        training=replace(config.training, epochs=epochs),
    )
    carl_ray.fit(config, run, resume=True)  # Called again, it continues.
    carl_ray.embed_corpus(run, manifest, embeddings_uri)

    embeddings = carl_ray.Embeddings.open(embeddings_uri)
    first = next(iter(embeddings))
    frame = len(first.embeddings) // 2
    print(f"nearest to frame {frame} of {first.video_id}:")
    for found in embeddings.search((first.video_id, frame), k=5):
        print(f"  {found.similarity:.3f}  {found.video_id}, frame {found.frame} ({found.seconds:.2f} s)")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
