# %% [markdown]
# # Compare two athletes
#
# Two videos of the same action are aligned in time: which frame of the second shows what each frame of the first
# shows, where one is slower, and where the two differ.

# %% tags=["parameters"]
FIRST, SECOND = "first.mp4", "second.mp4"
ENCODER = "frozen"  # or the folder of a run of `carl-ray train`

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import carl_ray
from carl_ray.data.decode import probe_video, read_frames
from carl_ray.evaluation.warping import align_pair
from carl_ray.report.video import Clip, aligned_video, partners

# %%
encoder = carl_ray.load_encoder(ENCODER)
first, second = encoder.embed(FIRST), encoder.embed(SECOND)
path = align_pair(first - first.mean(0), second - second.mean(0))  # pairs of frames
partner = partners(path, len(first))  # for each frame of the first
rates = [probe_video(video).fps or 25.0 for video in (FIRST, SECOND)]

# %% [markdown]
# ## Pace
#
# The dotted line is an even pace. On the right, how long the second takes for a second of the first: 1 is the same
# pace, more is slower.

# %%
seconds = np.arange(len(first)) / rates[0]
others = partner / rates[1]
window = min(round(rates[0]), len(first) - 1)
pace = (others[window:] - others[:-window]) / (seconds[window:] - seconds[:-window])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.plot(seconds, others)
left.plot(seconds, seconds * others[-1] / seconds[-1], linestyle=":", color="grey")
left.set(xlabel="first (s)", ylabel="second (s)", title="same moment")
right.plot(seconds[:-window], pace)
right.axhline(1, linestyle=":", color="grey")
right.set(xlabel="first (s)", ylabel="second / first", title="pace")
figure.savefig("pace.png")

# %% [markdown]
# ## Where they differ
#
# The similarity of each frame with its partner; the frames where it is lowest, side by side.

# %%
similarity = (first * second[partner]).sum(1)
least = int(similarity.argmin())
figure, axes = plt.subplots(1, 2, figsize=(6, 3))
for axis, video, frame in zip(axes, (FIRST, SECOND), (least, int(partner[least])), strict=True):
    axis.imshow(read_frames(video, [frame])[0])
    axis.set_title(f"{video}, frame {frame}", fontsize=8)
    axis.axis("off")
figure.savefig("difference.png")
print(f"least alike: frame {least} and {partner[least]}, similarity {similarity[least]:.3f}")

# %% [markdown]
# ## In step
#
# A video of both in step, and beside it the second at its own pace; `carl-ray align` makes the same.

# %%
clips = Clip(FIRST, FIRST, len(first)), Clip(SECOND, SECOND, len(second))
Path("aligned.mp4").write_bytes(aligned_video(*clips, path))
