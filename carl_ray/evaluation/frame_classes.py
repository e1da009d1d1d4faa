"""The linear probe: one linear layer for the frame classes of all videos together, trained by SGD."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from carl_ray.evaluation.bootstrap import Result
from carl_ray.evaluation.probes import (
    Embeddings,
    Labels,
    ProbeFrames,
    accuracy_metrics,
    by_fraction,
    select,
)
from carl_ray.evaluation.task import Task, Videos

_LEARNING_RATE = 50.0
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-6
_EPOCHS = 100
_BATCH_VIDEOS = 10


def linear_probe(
    train_embeddings: Embeddings,
    train_labels: Labels,
    test_embeddings: Embeddings,
    test_labels: Labels,
    *,
    num_classes: int,
    fraction: float = 1.0,
    seed: int = 0,
) -> Result:
    """Accuracy over the test frames of a linear layer (paper, table 3).

    SGD with learning rate 50, momentum .9 and weight decay 1e-6, cosine decay by epoch over 100 epochs,
    batches of 10 videos in a seeded order, cross-entropy averaged over the labelled frames of a batch. The
    layer is initialised with zeros: its loss is convex, so no initialisation is better.

    Arguments, result and errors are those of `phase_classification`, except: labels are classes from 0 to
    `num_classes` - 1, and a larger one is a ValueError; `seed` is also that of the order of the videos; `left_out` has
    `test_frames_of_unseen_classes` instead of the last two.
    """
    data = select(train_embeddings, train_labels, test_embeddings, test_labels, fraction, seed)
    data.check_classes(num_classes)
    data.left_out["test_frames_of_unseen_classes"] = data.num_unseen()
    if not data.train:
        return data.accuracy(None)
    weight, bias = _linear_layer(data, num_classes, seed)
    return data.accuracy(lambda video: (video @ weight.T + bias).argmax(1))


def _linear_layer(
    data: ProbeFrames, num_classes: int, seed: int
) -> tuple[Float64[np.ndarray, "classes width"], Float64[np.ndarray, " classes"]]:
    """Weight and bias after the last epoch."""
    import torch
    from torch.nn import functional

    # In float64: at this learning rate the rounding of float32 grows into other weights on other machines.
    frames = [torch.from_numpy(video) for video in data.train]
    targets = [torch.from_numpy(classes.astype(np.int64)) for classes in data.train_classes]
    weight = torch.zeros(num_classes, frames[0].shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(
        [weight, bias], lr=_LEARNING_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    rng = np.random.default_rng(seed)
    for _ in range(_EPOCHS):
        order = rng.permutation(len(frames))
        for start in range(0, len(order), _BATCH_VIDEOS):
            batch = order[start : start + _BATCH_VIDEOS]
            logits = functional.linear(torch.cat([frames[video] for video in batch]), weight, bias)
            loss = functional.cross_entropy(logits, torch.cat([targets[video] for video in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return weight.detach().numpy(), bias.detach().numpy()


def _run(videos: Videos) -> dict[str, Result]:
    return by_fraction("linear_probe", linear_probe, videos, num_classes=videos.num_classes)


TASK = Task(
    name="linear_probe",
    needs=("frame labels", "labelled training videos"),
    pooled=True,
    metrics=accuracy_metrics(
        "linear_probe",
        "share of the test frames whose class, among those of all videos, a linear layer reads from the embedding",
    ),
    run=_run,
)
