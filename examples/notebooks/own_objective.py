# %% [markdown]
# # An objective of your own
#
# What an encoder is trained for is one class. Here it is written, and tried on a few videos in this process, before
# the same class trains on all of them with Ray.

# %% tags=["parameters"]
VIDEOS = "videos"  # a folder; the first four are taken
STEPS = 30

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy, normalize

import carl_ray
from carl_ray.data.batch import collate
from carl_ray.data.decode import probe_video
from carl_ray.data.make_views import make_views
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.objectives.base import Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.choice import objective_options
from carl_ray.training.step import TrainingStep

# %% [markdown]
# Each video gives two crops, B videos of 2 x T frames. For every frame of one, the objective asks which frame of the
# other is nearest in time, as a classification. It returns sums and counts; the step divides. Frames that `mask` leaves
# out are padding and must not count.


# %%
class NearestFrame(Objective):
    """Cross-entropy of the frame of the other crop that is nearest in time."""

    @options
    class Options(ObjectiveOptions):
        """Options of the objective, also of the command line."""

        temperature: float = 0.1
        """Divides the similarities."""

    def forward(self, encodings, batch, progress) -> Terms:
        """Sum and number of the errors of the first crop's frames."""
        encoding, view = crops(encodings, batch)  # frames (B, 2, T, D), mask (B, 2, T); timestamps (B, 2, T)
        frames, real = normalize(encoding.frames.float(), dim=-1), encoding.mask
        with torch.autocast(frames.device.type, enabled=False):  # in float32, whatever training.precision is
            similarities = frames[:, 0] @ frames[:, 1].mT / self.options.temperature
        distances = (view.timestamps[:, 0, :, None] - view.timestamps[:, 1, None]).abs()
        unreal = ~real[:, 1, None].expand_as(similarities)
        nearest = distances.masked_fill(unreal, torch.inf).argmin(-1)
        errors = cross_entropy(similarities.masked_fill(unreal, -1e9).mT, nearest, reduction="none")
        return Terms(errors.where(real[:, 0], 0).sum()[None], real[:, 0].sum()[None])


# %% [markdown]
# ## One batch by heart
#
# The crops of a few videos, as a run would draw them in its first epoch. What cannot learn them by heart is broken.

# %%
paths = sorted(path for path in Path(VIDEOS).iterdir() if path.suffix in (".mp4", ".mov", ".avi", ".mkv"))[:4]
config = carl_ray.preset("demo")
config = replace(
    config,
    objective=objective_options("__main__:NearestFrame"),
    training=replace(config.training, global_batch_size=len(paths)),
)
spec = sample_spec(config)
samples = []
for row, path in enumerate(paths):
    views = make_views(str(path), path.name, probe_video(str(path)).num_frames, 1.0, 0, spec)
    samples.append(Sample(row, 0, 0, path.name, None, views))
batch = collate(samples, spec)

torch.manual_seed(0)
step = TrainingStep(config, torch.device("cpu"), STEPS)
losses = [step.train(batch, number).loss for number in range(STEPS)]

figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(losses)
axis.set(xlabel="step", ylabel="loss")
figure.savefig("loss.png")
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; a guess: {torch.tensor(config.model.num_frames).log():.2f}")

# %% [markdown]
# ## All videos
#
# Put the class into a file, `nearest_frame.py`, and train on any number of workers, with every option of the command:
#
# ```bash
# PYTHONPATH=. carl-ray train --objective.name nearest_frame:NearestFrame --objective.temperature 0.2 \
#     --data.manifest videos.parquet --run-dir run
# ```
