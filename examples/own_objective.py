"""Train the encoder with an objective of your own on a folder of videos, through Ray.

    python examples/own_objective.py VIDEOS OUT [EPOCHS]

In a shell: PYTHONPATH=examples carl-ray train --objective.name own_objective:TimeRegression --objective.temperature 0.2
"""

import sys
from dataclasses import replace

import torch
from pydantic import Field
from torch.nn.functional import normalize, smooth_l1_loss

import carl_ray
from carl_ray.objectives.base import Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.choice import objective_options


class TimeRegression(Objective):
    """Error of the times of one crop's frames that the frames of the other crop predict."""

    @options
    class Options(ObjectiveOptions):
        temperature: float = Field(default=0.1, gt=0)
        """Divides the similarities."""

    def forward(self, encodings, batch, progress) -> Terms:
        encoding, view = crops(encodings, batch)  # frames (B, 2, T, D), mask (B, 2, T); timestamps (B, 2, T)
        frames = normalize(encoding.frames.float(), dim=-1)
        times = view.timestamps.where(view.mask, 0).float()
        with torch.autocast(frames.device.type, enabled=False):  # in float32, whatever training.precision is
            similarities = frames[:, 0] @ frames[:, 1].mT / self.options.temperature
        real = encoding.mask[:, 1, None].expand_as(similarities)
        weights = similarities.masked_fill(~real & real.any(-1, keepdim=True), -torch.inf).softmax(-1)
        predicted = (weights * times[:, 1, None]).sum(-1)
        errors = smooth_l1_loss(predicted, times[:, 0], reduction="none") / times.shape[-1]
        return Terms(errors.where(encoding.mask[:, 0], 0).sum()[None], encoding.mask[:, 0].sum()[None])


if __name__ == "__main__":
    config, (videos, out, *epochs) = carl_ray.preset("demo"), sys.argv[1:]
    training = replace(config.training, epochs=int(*epochs or [70]))
    carl_ray.build_manifest(videos, f"{out}.parquet")
    data = replace(config.data, manifest=f"{out}.parquet")
    objective = objective_options("own_objective:TimeRegression")
    print(carl_ray.fit(replace(config, data=data, objective=objective, training=training), out))
