"""Presets: functions that return a whole `Config`.

A preset is the paper's run wherever the paper states it (section 4.2), except for the weights that the backbone
starts from: the paper's are BYOL's (`model.weights` URI), a preset's torchvision's for ImageNet. Block 5 of
ResNet-50 trains, with Adam, learning rate 1e-4, weight decay 1e-5, 4 videos a step, alpha 1.5, beta 0.2,
temperature 0.1 and variance 10, all of them the defaults of `carl_ray.config` and, of the last two,
`carl_ray.objectives.scl`. Presets other than the demos leave
`data.manifest` for the user to name. None touches the `cluster` section, which says where a run
happens, not what it computes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from carl_ray import storage
from carl_ray.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    ViewsConfig,
)
from carl_ray.errors import UserError
from carl_ray.objectives.choice import objective_options

_OFTEN = TrainingConfig(checkpoint_every_steps=100, validate_every_steps=100)
_HALF_COLOUR = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_probability=0.0)


def demo() -> Config:
    """A small encoder on the rendered videos of the demo, from scratch: minutes on two CPU cores.

    Everything is small (frames of 48 pixels, T = 32, six convolutions, all of them learnable), and the colour
    augmentation is half as strong as the paper's, without blur: it has some five hundred steps. A crop is
    up to three times as long as T, because an action is longer than 48 frames.
    """
    return Config(
        preset="demo",
        data=DataConfig(short_side=56),
        views=ViewsConfig(max_crop_ratio=3.0),
        augment=replace(_HALF_COLOUR, image_size=48),
        model=ModelConfig(
            num_frames=32,
            backbone="small",
            weights="random",
            learnable="all",
            hidden_width=256,
            width=128,
            num_heads=4,
            feedforward_width=256,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(
            epochs=45,
            global_batch_size=8,
            log_every_steps=10,
            checkpoint_every_steps=200,
            validate_every_steps=100,
        ),
    )


def laptop() -> Config:
    """An encoder of real videos on a CPU, from cached features of a frozen backbone: minutes for some dozens of clips.

    Features are centred in each video and joined with their motion, which a frozen image backbone does not show; the
    run ends with embeddings that are joined with windows of the frozen features (`embed --form joined`). The upper part
    is small. `carl_ray.data.timing.fit_to_videos` chooses stride, T and epochs for a manifest, as the
    commands do; those here are for clips of some seconds at 24 to 30 frames per second.
    """
    return Config(
        preset="laptop",
        data=DataConfig(short_side=160, frame_stride=3),
        augment=AugmentConfig(image_size=160, copies=4),
        model=ModelConfig(
            num_frames=32,
            backbone="efficientnet_lite0",
            weights="pretrained",
            learnable="none",
            cut_stages=1,
            pooling="grid",
            centered=True,
            motion="difference",
            hidden_width=256,
            width=128,
            num_layers=2,
            num_heads=4,
            feedforward_width=256,
        ),
        objective=objective_options("scl", variance=9.0),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=replace(_OFTEN, epochs=67, global_batch_size=8),
    )


def clips_demo() -> Config:
    """Region contrast on rendered scenes in which action, motion and scene are independent: minutes on two CPU cores.

    Everything is small (clips of 8 frames of 32 pixels, four convolutions), and the colour augmentation is half as
    strong as the paper's, without blur. The encoder sees differences of frames: with the frames themselves it learns
    the scenes (`benchmarks.studies.clips`).
    """
    return Config(
        preset="clips_demo",
        data=DataConfig(short_side=36),
        augment=replace(_HALF_COLOUR, image_size=32, crop_area=(0.2, 1.0)),
        model=ModelConfig(
            num_frames=8,
            backbone="small3d",
            weights="random",
            learnable="all",
            temporal_encoder="clip",
            clip_input="difference",
        ),
        objective=objective_options("regions", hidden_width=128, projection_width=64),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, warmup=0.1, weight_decay=1e-2),
        training=replace(_OFTEN, epochs=30, global_batch_size=24),
    )


def regions_ucf101() -> Config:
    """Region contrast on UCF101 (split 1), from scratch: clips of 16 frames of 112 pixels, one GPU."""
    return Config(
        preset="regions_ucf101",
        data=DataConfig(short_side=128),
        augment=AugmentConfig(image_size=112, crop_area=(0.2, 1.0)),
        model=ModelConfig(
            num_frames=16, backbone="r3d_18", weights="random", learnable="all", temporal_encoder="clip"
        ),
        objective=objective_options("regions"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup=1 / 30, weight_decay=1e-2),
        training=TrainingConfig(epochs=300, global_batch_size=64),
    )


def regions_kinetics400() -> Config:
    """Region contrast on Kinetics-400, from scratch: as `regions_ucf101`, with R(2+1)D-18 on eight GPUs."""
    base = regions_ucf101()
    return replace(
        base,
        preset="regions_kinetics400",
        model=replace(base.model, backbone="r2plus1d_18"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, warmup=0.1, weight_decay=5e-2),
        training=TrainingConfig(epochs=100, global_batch_size=512),
    )


def csvr_demo() -> Config:
    """Future poses, key frames and generated clips on rendered scenes: minutes on two CPU cores.

    Sizes and augmentation are those of `clips_demo`, generated clips have 4 frames of 16 pixels.
    """
    base = clips_demo()
    return replace(
        base,
        preset="csvr_demo",
        views=ViewsConfig(stride=(2, 2)),
        augment=replace(base.augment, crop_area=(0.5, 1.0)),
        model=replace(base.model, clip_streams="two"),
        objective=objective_options(
            "csvr",
            hidden_width=128,
            projection_width=64,
            key_frame_backbone="small",
            generated_frames=4,
            generated_size=16,
        ),
    )


def csvr_ucf101() -> Config:
    """CSVR on UCF101 (split 1), from scratch: clips of 16 frames of 112 pixels, one GPU; keypoints from `poses`."""
    base = regions_ucf101()
    return replace(
        base,
        preset="csvr_ucf101",
        views=ViewsConfig(stride=(2, 2)),
        augment=replace(base.augment, crop_area=(0.5, 1.0)),
        model=replace(base.model, clip_input="difference", clip_streams="two"),
        objective=objective_options("csvr"),
    )


def csvr_kinetics400() -> Config:
    """CSVR on Kinetics-400, from scratch: as `csvr_ucf101`, with R(2+1)D-18 on eight GPUs."""
    base, larger = csvr_ucf101(), regions_kinetics400()
    return replace(
        base,
        preset="csvr_kinetics400",
        model=replace(base.model, backbone=larger.model.backbone),
        optimizer=larger.optimizer,
        training=larger.training,
    )


def pouring() -> Config:
    """The paper's run on Pouring (table 4): T = 240, 500 epochs."""
    return Config(preset="pouring", model=ModelConfig(num_frames=240), training=TrainingConfig(epochs=500))


def penn_action() -> Config:
    """The paper's run on PennAction (tables 1 and 2): 13 actions, T = 80, 300 epochs."""
    return Config(preset="penn_action", model=ModelConfig(num_frames=80), training=TrainingConfig(epochs=300))


def finegym99() -> Config:
    """The paper's run on FineGym99 (table 3): T = 240, 300 epochs, no blur."""
    return Config(
        preset="finegym99",
        augment=AugmentConfig(blur_probability=0.0),
        model=ModelConfig(num_frames=240),
        training=TrainingConfig(epochs=300),
    )


def finegym288() -> Config:
    """The paper's run on FineGym288 (table 3): as `finegym99`."""
    return replace(finegym99(), preset="finegym288")


def kinetics400() -> Config:
    """The paper's run on Kinetics-400 (appendix A.5, table 14): T = 80, 10 epochs.

    The number of epochs is the released code's; the paper does not name one. That code also takes the other
    videos of the batch as negatives on this data set, which the paper does not mention:
    `--objective.negatives batch`.
    """
    return Config(preset="kinetics400", model=ModelConfig(num_frames=80), training=TrainingConfig(epochs=10))


def kinetics400_to_penn_action() -> Config:
    """Fine-tuning of a `kinetics400` run on PennAction (table 14), by `init_from`."""
    return replace(penn_action(), preset="kinetics400_to_penn_action")


PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__: function
    for function in (
        demo,
        laptop,
        clips_demo,
        regions_ucf101,
        regions_kinetics400,
        csvr_demo,
        csvr_ucf101,
        csvr_kinetics400,
        pouring,
        penn_action,
        finegym99,
        finegym288,
        kinetics400,
        kinetics400_to_penn_action,
    )
}
"""Every preset by its name."""


def preset(name: str) -> Config:
    """The preset of a name.

    Raises:
        UserError: there is none; the message has the nearest name and all names.
    """
    if name in PRESETS:
        return PRESETS[name]()
    found = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {found[0]}?" if found else ""
    raise UserError(f"unknown preset {storage.public_uri(name)!r}{hint} (presets: {', '.join(PRESETS)})")
