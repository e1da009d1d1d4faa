# %% [markdown]
# # Your own videos on a laptop
#
# A folder of videos, no labels, no training: every frame gets a vector, frames that show the same moment get similar
# ones. This notebook searches by a moment and counts repetitions.

# %% tags=["parameters"]
VIDEOS = "videos"  # a folder
QUERY = 0.5  # the moment to search for, as a share of the first video

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import carl_ray
from carl_ray.data.decode import read_frames
from carl_ray.evaluation.repetitions import find_repetitions

# %% [markdown]
# The encoder `frozen` is a pretrained image network, over windows of nine frames. The folder of a run of
# `carl-ray train` gives one that has learnt from your videos.

# %%
encoder = carl_ray.load_encoder("frozen")
paths = sorted(path for path in Path(VIDEOS).iterdir() if path.suffix in (".mp4", ".mov", ".avi", ".mkv"))
embeddings = {path: encoder.embed(path) for path in paths}
for path, frames in embeddings.items():
    print(f"{path.name}: {frames.shape[0]} frames x {frames.shape[1]} numbers")

# %% [markdown]
# ## Search by a moment
#
# Vectors have unit length, so a product is a cosine. Frames of one video differ less than videos do: without each
# video's mean, what is left is the moment.

# %%
centred = {path: frames - frames.mean(0) for path, frames in embeddings.items()}
units = {path: frames / np.linalg.norm(frames, axis=1, keepdims=True) for path, frames in centred.items()}
first, *others = paths
query = int(QUERY * (len(units[first]) - 1))
found = [(first, query, 1.0)]
for path in others:
    similarities = units[path] @ units[first][query]
    found.append((path, int(similarities.argmax()), float(similarities.max())))
    print(f"{path.name}, frame {found[-1][1]}: similarity {found[-1][2]:.2f}")

figure, axes = plt.subplots(1, len(found), figsize=(3 * len(found), 3), squeeze=False)
for axis, (path, frame, similarity) in zip(axes[0], found, strict=True):
    axis.imshow(read_frames(str(path), [frame])[0])
    axis.set_title(f"{path.name}, frame {frame}: {similarity:.2f}", fontsize=8)
    axis.axis("off")
figure.savefig("moments.png")

# %% [markdown]
# ## Repetitions

# %%
for path, frames in embeddings.items():
    intervals = find_repetitions(frames)
    shown = ", ".join(f"{one.start}-{one.end} ({one.confidence:.2f})" for one in intervals)
    print(f"{path.name}: {len(intervals)} found: {shown}")

# %% [markdown]
# ## More
#
# The same for a whole corpus, with training, from a shell:
#
# ```bash
# carl-ray index videos --out videos.parquet
# carl-ray train laptop --data.manifest videos.parquet --run-dir run
# carl-ray explore --embeddings run/embeddings
# ```
