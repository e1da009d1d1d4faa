"""Embed every frame of a video with a trained encoder; needs no Ray and no manifest.

    python examples/embed_one_video.py RUN VIDEO OUT.npy

RUN is the run folder of `carl-ray train`, or one of its checkpoints. Vectors to compare with those of a folder of
embeddings come from `carl_ray.load_encoder(RUN, like=FOLDER)`.
"""

import sys

import numpy as np

import carl_ray


def main(run: str, video: str, out: str) -> None:
    """Save the embeddings, float32 (frames, width) of unit length, and print where the video changes fastest."""
    embeddings = carl_ray.load_encoder(run).embed(video)
    np.save(out, embeddings)
    changes = 1 - (embeddings[1:] * embeddings[:-1]).sum(1)
    print(
        f"{embeddings.shape[0]} frames x {embeddings.shape[1]}; fastest change after frame {changes.argmax()}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
