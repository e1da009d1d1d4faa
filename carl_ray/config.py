"""Config of a run: frozen, validated dataclasses, read from and written to JSON.

A run is a function of its `Config`: presets (`carl_ray.presets`) are functions that return one, and a run folder
stores it as `config.json`. Unknown fields and values of the wrong type are errors.

The options of an objective are in its own file, those of the views in `carl_ray.objectives.views`.

Longer than 400 lines: every field has its description here, which `--help` shows.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from carl_ray.errors import UserError
from carl_ray.objectives.choice import AnyOptions, complaint, objective_options
from carl_ray.objectives.views import CROPS, STRICT, AugmentConfig, ViewsConfig, ViewSpec

CLIP_BACKBONES = ("small3d", "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")
"""Backbones of clips."""
BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "small", "efficientnet_lite0"),
    *CLIP_BACKBONES,
)
"""Values of `model.backbone`, besides `timm:NAME`, `module:Class` and entry points."""
BACKBONE_GROUP = "carl_ray.backbones"
"""Group of entry points of other packages whose names are values of `model.backbone`."""
LEARNABLE_NAMES = {"none": "0", "block5": "1", "block4+5": "2"}
"""Values of `model.learnable` by the number of last stages that they mean."""
Motion = Literal["none", "difference", "window"]
MOTIONS: dict[Motion, int] = {"none": 1, "difference": 2, "window": 9}
"""Values of `model.motion` by the parts, as wide as the features, that the model's input has."""
Pooling = Literal["max", "average", "grid"]
Logger = Literal["wandb", "mlflow"]
"""Values of `training.loggers`: the names of their packages."""
PRETRAINED = ("imagenet", "pretrained")
"""Values of `model.weights` for what the backbone's own library or package offers."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DataConfig:
    """Selection and decoding of the videos."""

    manifest: str | None = None
    """URI of the Parquet manifest, as `python -m carl_ray.index` writes; none: the rendered videos of the demo."""
    features: str | None = None
    """Folder of `carl_ray.cache` with features of the frozen backbone, which the run reads instead of decoding videos;
    needs model.learnable none."""
    keypoints: str | None = None
    """Folder of `carl_ray.poses` with keypoints, for objectives that need them; none: the manifest's own."""
    feature_channels: int | None = Field(default=None, ge=1)
    """Channels of these features; read at the start of a run."""
    frame_stride: int = Field(default=1, ge=1)
    """Every how many frames of a video one is used; timestamps stay those of all frames. Embeddings of the frames
    between are interpolated."""
    train_split: str = "train"
    """Only rows of the manifest with this `split` are trained on; rows without a split count as "train"."""
    validation_split: str = "validation"
    """Rows with this `split` give the validation loss; where there are none, it is not computed."""
    max_validation_videos: int = Field(default=64, ge=0)
    """At most this many validation videos, the first of the split; 0 computes no validation loss."""
    decoder: Literal["pyav", "decord"] = "pyav"
    """Library that decodes; docs/benchmarks.md compares them."""
    short_side: int = Field(default=256, ge=8)
    """Frames are resized while decoding so that their shorter side has this many pixels."""
    retries: int = Field(default=2, ge=0)
    """How often reading a video is retried where its storage fails, before the workers are restarted."""
    time_limit: float = Field(default=300.0, gt=0)
    """Timeout in seconds of decoding one video, or one chunk of a video that is embedded; then the decoder is killed
    and the video counts as bad."""
    train_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training videos of each label that the run sees: whole videos, seeded (table 11)."""
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)
    """The run fails once more than this share of the videos drawn (at least one epoch) could not be read."""


def _known_backbone(name: str) -> str:
    """Check the name of a backbone; whether timm has it, or a class can be imported, is not known here."""
    if name in BACKBONES or re.fullmatch(r"timm:\S+|[\w.]+:[\w.]+", name):
        return name
    known = (*BACKBONES, *sorted(entry_points(group=BACKBONE_GROUP).names))
    if name not in known:
        raise ValueError(
            f"expected one of {', '.join(map(repr, known))}, 'timm:NAME' or 'module:Class', got {name!r}"
        )
    return name


def _names(value: object) -> object:
    """The names in a text, as a command line has them; `none` is none."""
    if not isinstance(value, str):
        return value
    return tuple(name for name in re.split(r"[,\s]+", value) if name not in ("", "none"))


def _known_learnable(value: object) -> str:
    text = str(value)
    if text not in ("all", *LEARNABLE_NAMES) and not re.fullmatch(r"[1-9]\d*", text):
        names = ", ".join(map(repr, ("all", *LEARNABLE_NAMES)))
        raise ValueError(f"expected one of {names}, or a number of stages from 1, got {value!r}")
    return text


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelConfig:
    """The frame-level video encoder and the projection (paper, sections 3.3 and 3.4)."""

    num_frames: int = Field(default=240, ge=2)
    """T: frames of a view; positions of any other length are spread over [0, T - 1]."""
    backbone: Annotated[str, AfterValidator(_known_backbone)] = "resnet50"
    """Encoder of single frames: a torchvision ResNet; `efficientnet_lite0`; `small`, six convolutions for runs on a
    CPU; `timm:NAME`; or a class of your own, `module:Class`. docs/guide.md compares them."""
    weights: str = "imagenet"
    """`random`; `pretrained` or `imagenet` (torchvision's, timm's, or those of a package); or the URI of a file:
    torchvision's or timm's, or of BYOL, MoCo v2 or SimCLR."""
    init_from: str | None = None
    """A run folder or a checkpoint whose encoder, and head where it has the same, this run begins with (fine-tuning);
    data, T and schedule are this run's own. The optimiser begins anew."""
    learnable: Annotated[str, BeforeValidator(_known_learnable)] = "block5"
    """What of the backbone trains: `none`, `all`, or the number of its last stages, which `block5` (1) and `block4+5`
    (2) name for a ResNet (table 7); the others stay frozen with their stored statistics."""
    cut_stages: int = Field(default=0, ge=0)
    """How many of the backbone's last stages are left out: earlier ones tell more of poses and less of classes."""
    pooling: Pooling = "max"
    """Spatial pooling of the backbone's last feature map: `max` or `average` over all of it, or `grid`, the averages of
    3 x 3 fields side by side, which keep where something is, such as a limb."""
    centered: bool = False
    """Subtract the mean over the video from the backbone's features; needs data.features."""
    motion: Motion = "none"
    """`difference`: join the features with their central difference over two strides; `window`: with those of the four
    strides before and after. Needs data.features."""
    temporal_encoder: Literal["transformer", "none", "c3d", "clip"] = "transformer"
    """Module that mixes information of frames (table 5). `clip`: none, and no embedding of single frames: the mean of
    the backbone's maps of a clip is its embedding."""
    clip_input: Literal["rgb", "difference"] = "rgb"
    """What an encoder of clips sees: frames, or twice the difference of each to the next, without what does not
    move."""
    clip_streams: Literal["one", "two", "shared"] = "one"
    """Of an encoder of clips. `two`: a dynamic stream, which sees `clip_input`, and a static one, which sees frames;
    their vectors are joined in this order. `shared`: the same with one backbone for both."""
    positions: Literal["sine_cosine", "none"] = "sine_cosine"
    """Positional encoding added to the Transformer's input; `none`: it sees a set of frames."""
    hidden_width: int = Field(default=512, ge=1)
    """Width of the two fully connected layers before the Transformer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before each of those two layers."""
    width: int = Field(default=256, ge=2)
    """Width of the Transformer."""
    num_layers: int = Field(default=3, ge=0)
    """Layers of the Transformer (table 6)."""
    num_heads: int = Field(default=8, ge=1)
    """Attention heads of the Transformer."""
    feedforward_width: int = Field(default=1024, ge=1)
    """Width of the Transformer's feed-forward layers."""
    embedding_width: int = Field(default=128, ge=1)
    """D: width of a frame's embedding, and of its projection."""
    batch_norm: Literal["synchronized", "local", "frozen"] = "synchronized"
    """Statistics over the frames of all workers, of each worker alone, or the stored ones."""
    chunk_frames: int = Field(default=1024, ge=1)
    """Frames that pass the frozen part of the backbone at a time: bounds memory, changes no result."""

    @model_validator(mode="before")
    @classmethod
    def _drop_removed_fields(cls, values: Any) -> Any:
        """Ignore the fields that configs of earlier versions have; they changed no result."""
        if isinstance(values, dict):
            return {
                name: value for name, value in values.items() if name not in ("weights_format", "compile")
            }
        return values

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width must be a multiple of 2 x num_heads, got {self.width} and {self.num_heads}"
            )
        is_own = self.backbone not in BACKBONES and not self.backbone.startswith("timm:")
        is_small = self.backbone in ("small", "small3d")
        if (is_small and self.weights != "random") or (is_own and self.weights in PRETRAINED):
            raise ValueError(
                f"backbone `{self.backbone}` has no pretrained weights: set model.weights to random"
            )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OptimizerConfig:
    """Adam with cosine decay without restarts (paper, section 4.2)."""

    name: Literal["adam", "adamw"] = "adam"
    """`adamw` decays the weights themselves, and neither biases nor normalisation."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """At the first step after the warm-up; decays to zero along a cosine."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the run in which the learning rate rises linearly."""
    encoder_scale: float = Field(default=1.0, gt=0)
    """Learning rate of the encoder, as a multiple of `learning_rate`, which is then that of the objective's heads."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """L2 penalty of `adam`; factor of `adamw`."""
    max_gradient_norm: float = Field(default=10.0, gt=0)
    """The gradient is scaled down to this norm."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TrainingConfig:
    """Length, batch size, precision and intervals of the training."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every random draw of the run comes from this, the epoch, the video and the view."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the training videos."""
    global_batch_size: int = Field(default=4, ge=1)
    """Videos a step over all workers together (two views each), whatever the number of workers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the matrix products (autocast); weights, statistics and losses stay float32. `auto` is bf16 where all
    training workers compute it natively (GPUs since Ampere, CPUs with AVX512-BF16 or AMX), fp32 elsewhere; the run
    keeps what it began with."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step always writes one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Older checkpoints are deleted."""
    validate_every_steps: int = Field(default=500, ge=1)
    """Steps between two validation losses; there is one before the first step and one after the last."""
    loggers: Annotated[tuple[Logger, ...], BeforeValidator(_names)] = ()
    """Services that get a copy of metrics.jsonl: wandb, mlflow or wandb,mlflow."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ClusterConfig:
    """Resources of the Ray cluster that the run uses, and its error handling."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Training workers; `[min, max]` is elastic: it starts with the workers that fit, grows when nodes join and
    continues with fewer when they leave, with the same batches and schedule."""
    use_gpu: bool = False
    """One GPU for each training worker."""
    worker_cpus: float = Field(default=1.0, ge=0)
    """CPUs reserved for each training worker."""
    decode_cpus: float = Field(default=1.0, gt=0)
    """CPUs reserved for each decoding task."""
    max_decode_tasks: int | None = Field(default=None, ge=1)
    """Maximum of concurrent decoding tasks; none lets Ray Data decide from the free resources."""
    prefetch_steps: int = Field(default=2, ge=1)
    """Steps whose frames each training worker prefetches."""
    data_node_labels: dict[str, str] = Field(default_factory=dict)
    """Decoding runs only on nodes with these labels, as JSON: '{"role": "data"}'."""
    train_node_labels: dict[str, str] = Field(default_factory=dict)
    """Training workers run only on nodes with these labels, as JSON."""
    max_failures: int = Field(default=3, ge=-1)
    """How often the training workers are restarted from the last checkpoint after a failure; -1: always."""
    storage_seconds: float = Field(default=120.0, ge=0)
    """How long the driver and the training workers retry a failing object store before they fail."""
    grace_seconds: float = Field(default=30.0, gt=0)
    """The command ends within this time of SIGTERM or Ctrl-C, with a checkpoint if a step and its writing fit in."""

    def __post_init__(self) -> None:
        if self.min_workers > self.max_workers:
            raise ValueError(f"cluster.num_workers: expected [min, max], got {list(self._range)}")

    @property
    def min_workers(self) -> int:
        """Minimum number of training workers."""
        return self._range[0]

    @property
    def max_workers(self) -> int:
        """Maximum number of training workers."""
        return self._range[1]

    @property
    def _range(self) -> tuple[int, int]:
        given = self.num_workers
        return given if isinstance(given, tuple) else (given, given)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Config:
    """Config of a run."""

    preset: str
    """Name of the preset that it came from."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Selection and decoding of the videos."""
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    """Temporal augmentation."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    """Spatial augmentation."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """Encoder and projection."""
    objective: AnyOptions = Field(default_factory=objective_options)
    """Training objective: the options of one, found by its `name`."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Adam and its schedule."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """Length, batch, precision, logging."""
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Ray resources."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of this package and its libraries, where the run was begun or resumed; written by the run."""

    def __post_init__(self) -> None:
        if self.objective.pairs_videos and self.training.global_batch_size % 2:
            raise ValueError(
                f"objective {self.objective.name} trains on pairs of videos: training.global_batch_size must be even, "
                f"got {self.training.global_batch_size}"
            )
        if self.data.features is not None and self.model.learnable != "none":
            raise ValueError(
                "data.features are those of a frozen backbone: model.learnable must be none, got "
                f"{self.model.learnable}"
            )
        encoder = self.model.temporal_encoder
        if self.data.features is not None and encoder in ("c3d", "clip"):
            raise ValueError(
                f"temporal_encoder {encoder} needs feature maps, which data.features does not hold"
            )
        if self.objective.reads_clips != (encoder == "clip"):
            needs, has = ("clips", encoder) if self.objective.reads_clips else ("frames", "clip")
            raise ValueError(
                f"objective {self.objective.name} is on {needs}, model.temporal_encoder is {has}: expected clip for "
                "objectives on clips and for these alone"
            )
        if self.objective.reads_streams and self.model.clip_streams == "one":
            raise ValueError(
                f"objective {self.objective.name} trains two streams, model.clip_streams is one: expected two or shared"
            )
        if self.training.global_batch_size < self.objective.least_videos():
            raise ValueError(
                f"objective {self.objective.name} compares videos: training.global_batch_size must be at least "
                f"{self.objective.least_videos()}, got {self.training.global_batch_size}"
            )
        if self.augment.copies is not None and self.data.short_side != self.augment.image_size:
            raise ValueError(
                f"augment.copies needs data.short_side equal to augment.image_size, got {self.data.short_side} and "
                f"{self.augment.image_size}"
            )

    @property
    def view_specs(self) -> tuple[ViewSpec, ...]:
        """The views of a video that the objective needs."""
        width = self.data.feature_channels
        if self.data.features is None:
            width = None
        elif width is not None:
            width *= MOTIONS[self.model.motion]
        return self.objective.views(
            ViewSpec(CROPS, 2, self.model.num_frames, self.views, self.augment, width)
        )


_ADAPTER = TypeAdapter(Config)
_HOW_DONE = (
    ("data", "retries"),
    ("data", "time_limit"),
    ("data", "max_bad_fraction"),
    ("training", "checkpoint_every_steps"),
    ("training", "keep_checkpoints"),
    ("training", "loggers"),
)
"""Fields besides the cluster section that change no result of a run. Logging and validation intervals are not among
them: they decide which lines a run leaves."""


def to_document(config: Config) -> dict[str, Any]:
    """Convert a config to plain dictionaries, lists and scalars, ready for JSON."""
    return asdict(config)


def what_is_computed(config: Config) -> dict[str, Any]:
    """The part of `to_document` that two runs must share to compute the same.

    Left out are cluster and versions; retries, time limit and bad-video budget; checkpoint interval and number.
    """
    document = to_document(config)
    del document["cluster"], document["versions"]
    for section, name in _HOW_DONE:
        del document[section][name]
    return document


def from_document(document: dict[str, Any], source: str) -> Config:
    """Read a config from plain dictionaries.

    Args:
        document: As from `to_document`; values may also be strings, as on a command line.
        source: Name of the source, for the message.

    Raises:
        UserError: an unknown field, or a value of the wrong type or out of its range.
    """
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise UserError(f"{source}: {complaint(error)}") from None


def to_json(config: Config) -> str:
    """Write a config as indented JSON text (`config.json` of a run folder)."""
    return _ADAPTER.dump_json(config, indent=2).decode() + "\n"


def from_json(text: str | bytes, source: str) -> Config:
    """Read a config from JSON text; raise `UserError` where it is invalid."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise UserError(f"{source}: {complaint(error)}") from None
