"""Base of the objectives: what one needs, reads and returns.

A module of an objective holds everything about it: options, heads, required views and labels, terms of the loss. It
imports torch inside functions: options are read by every command, which must answer before torch is loaded.

Legend: B videos of this worker, n clips of a view, T frames of a clip, D width of an embedding, P pairs.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar, dataclass_transform

from pydantic import Field
from pydantic.dataclasses import dataclass

from carl_ray.objectives.views import CROPS, STRICT, ViewSpec

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int64
    from torch import Tensor, nn
    from torch.nn import Module
    from torch.optim import Optimizer
else:
    Module = object  # `Objective.__new__` adds torch's.

A = TypeVar("A")
C = TypeVar("C")


@plain_dataclass(frozen=True)
class ViewTensors(Generic[A]):
    """A view of one video, as NumPy arrays, or of the B videos of a batch, as tensors with a leading axis B."""

    timestamps: A
    """(n, T) float64: frame index in the raw video times the manifest's `frame_step`."""
    mask: A
    """(n, T) bool: True for frames of the video, False for padding. Real frames come first."""
    parameters: A
    """(n, 16) float64: `AugmentParameters.to_vector` of each clip."""
    boxes: A
    """(n, 4) float64: left, top, right and bottom of the crop of each clip, as parts of the decoded frame."""
    flips: A
    """(n,) bool: left and right are exchanged within the box."""
    spans: A
    """(n, 2) float64: begin and end of what each clip stands for, in the units of the timestamps: its crop, or T frames
    times their stride, also where some are padding; of a key frame that did not decode, although another is shown."""
    pixels: A | None = None
    """(n, T, S, S, 3) uint8, or packed as by `carl_ray.data.pixels.to_yuv420`; masked frames are 0."""
    features: A | None = None
    """(n, T, C) float16: features of the frames from a cache, in the place of pixels."""
    keypoints: A | None = None
    """(n, T, 17, 3) float32, of views with `ViewSpec.keypoints`: x, y (0 to 1 within the view, COCO's joints, left and
    right exchanged under a flip) and 1 where valid, else three zeros; see `carl_ray.data.keypoints`."""
    columns: Mapping[str, A] = field(default_factory=dict)
    """(n, T) int64 each: values of the objective's columns at the frames; -1 where there is none, and padded."""

    def arrays(self) -> dict[str, A]:
        """The arrays by name, those of the columns by `columns.NAME`; `from_arrays` undoes it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "columns"}
        own |= {f"columns.{name}": value for name, value in self.columns.items()}
        return {name: value for name, value in own.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, A]) -> Self:
        """The view of arrays by these names."""
        own = {name: value for name, value in arrays.items() if "." not in name}
        return cls(**own, columns={name[8:]: value for name, value in arrays.items() if "." in name})

    def map(self, function: Callable[[Any], Any]) -> Self:
        """The view with a function applied to every array."""
        return self.from_arrays({name: function(value) for name, value in self.arrays().items()})


@plain_dataclass(frozen=True)
class Batch:
    """Videos of one worker in one step; without any, one fully masked video."""

    views: Mapping[str, ViewTensors[Tensor]]
    rows: Int64[Tensor, " B"]
    """Rows of the plan; 2 k and 2 k + 1 are a pair where the plan has pairs. -1 for the masked video."""
    seeds: Mapping[str, Int64[Tensor, "B n"]]
    """Of each view: seeds of the model's and the objective's own draws."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The batch with a function applied to every tensor."""
        return replace(
            self,
            views={name: view.map(function) for name, view in self.views.items()},
            rows=function(self.rows),
            seeds={name: function(value) for name, value in self.seeds.items()},
        )

    @property
    def is_real(self) -> Bool[Tensor, " B"]:
        """Which videos have frames."""
        import torch

        return torch.stack([view.mask.flatten(1).any(1) for view in self.views.values()]).any(0)


class Encoding(NamedTuple):
    """Output of the encoder for a view of the batch."""

    frames: Float[Tensor, "B n T D"]
    """Embeddings H of the frames, as evaluation sees them; zeros where the mask is False. Of an encoder of clips the
    means over space of each step in time of `maps`, (B, n, t, C)."""
    mask: Bool[Tensor, "B n T"]
    maps: Float[Tensor, "B n C t h w"] | None = None
    """Of an encoder of clips: its backbone's maps. T is a multiple of t."""
    clip: Float[Tensor, "B n C"] | None = None
    """Of an encoder of clips: their mean over real cells, as evaluation sees it; zeros for clips without frames."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoding:
        """The encoding with a function applied to every tensor."""
        return Encoding(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


class Terms(NamedTuple):
    """Sums of losses and numbers of anchors, which the step divides once they are summed over the workers."""

    sums: Float[Tensor, " terms"]
    """Of each term of the loss: the sum over this worker's anchors, with gradient."""
    counts: Int[Tensor, " terms"]
    """Number of these anchors, int64."""

    @classmethod
    def checked(cls, returned: object, source: str) -> Terms:
        """What an objective returned, if it is terms.

        Args:
            returned: By its `forward`.
            source: Name of the objective, for the message.

        Raises:
            TypeError: it is something else.
        """
        import torch

        if isinstance(returned, tuple) and len(returned) == 2:
            sums, counts = returned
            tensors = isinstance(sums, torch.Tensor) and isinstance(counts, torch.Tensor)
            if tensors and sums.shape == counts.shape and sums.ndim == 1:
                return cls(sums, counts)
        raise TypeError(
            f"objective {source}: expected Terms(sums, counts), two tensors with one number for each term of the loss, "
            f"got {reprlib.repr(returned)}"
        )


@plain_dataclass(frozen=True)
class Phase:
    """One update of a step; a step runs the phases of an objective in order on one batch."""

    name: str
    optimizer: Optimizer
    """Of the parameters that the phase updates; others get no update, whatever their gradient."""
    trains_encoder: bool = True
    """False: the encodings have no gradient. Where no phase but the last trains the encoder, all share one
    pass of it."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def options(cls: type[C]) -> type[C]:
    """Make a class options of an objective: a frozen pydantic dataclass."""
    made: Any = dataclass(frozen=True, config=STRICT, kw_only=True)(cls)
    return made


@options
class ObjectiveOptions:
    """Options of an objective, the section `objective` of a config."""

    name: str
    """The objective."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the manifest with a number for each frame, or one for all, that the objective needs: `frame_labels`,
    `label`, or `content_hash`, a number that only copies share."""
    reads_clips: ClassVar[bool] = False
    """Needs `maps` and `clip` of the encodings: an encoder of clips, `model.temporal_encoder clip`."""
    reads_streams: ClassVar[bool] = False
    """Needs an encoder of clips with two streams, whose halves of `maps` and `clip` are the dynamic and the static
    one's."""
    contrasts_videos: ClassVar[bool] = False
    """Takes the other videos of a batch as negatives."""
    pairs_videos: ClassVar[bool] = False
    """Train on pairs of videos of the same label: rows 2 k and 2 k + 1 of the plan."""

    def views(self, default: ViewSpec) -> tuple[ViewSpec, ...]:
        """The views of a video that the objective needs.

        Args:
            default: Two overlapping crops, as the sections `model`, `views` and `augment` of the config say.
        """
        return (default,)

    def least_videos(self) -> int:
        """How many videos a step must have, over all workers."""
        return 1

    def with_num_classes(self, num_classes: int) -> Self:
        """The options for so many classes of `frame_labels`."""
        return self


class Objective(Module):
    """A training objective: a torch module with its heads, whose `forward` returns the terms of the loss.

    A subclass has a nested class `Options`, decorated by `options`. It computes in float32 or better, and ignores
    frames whose mask is False, whatever they contain.

    Args:
        options: Its options.
        width: D.
        batch_norm: Mode of a head's `carl_ray.layers.normalization.BatchNorm`.

    Attributes:
        figures: What a run logs besides the loss: sum and number (2,) of each mean, by name, set by `forward`.
        warnings: What a run warns of after a step, the same on every worker.
    """

    figures: Mapping[str, Float[Tensor, " 2"]]
    warnings: tuple[str, ...] = ()
    Options: ClassVar[type[ObjectiveOptions]]
    options: Any

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Add torch's `Module` to the bases, which are imported without torch for their options."""
        from torch import nn

        if issubclass(cls, nn.Module):
            return super().__new__(cls)
        namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        return super().__new__(type(cls.__name__, (cls, nn.Module), namespace))

    def __init__(self, options: Any, width: int, batch_norm: Any) -> None:
        super().__init__()
        self.options, self.figures = options, {}

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss.

        Args:
            encodings: Of each view.
            batch: This worker's videos, on the device of the encodings. Those of other workers: `gather.py`.
            progress: Share of the run that is done, from 0 to 1; 1 in evaluation.
        """
        raise NotImplementedError

    def phase_terms(
        self, phase: str, encodings: Mapping[str, Encoding], batch: Batch, progress: float
    ) -> Terms:
        """Terms of a phase; to be replaced together with `phases`."""
        return self(encodings, batch, progress)

    def phases(
        self, encoder: nn.Module, adam: Callable[[Iterable[nn.Parameter]], Optimizer]
    ) -> tuple[Phase, ...]:
        """The updates of a step: by default one of encoder and heads with Adam.

        The last one's loss is reported, validated and searched for videos that are not finite.

        Args:
            encoder: The encoder.
            adam: Makes an Adam of the config's section `optimizer`. Learning rates decay alike in all optimisers.
        """
        return (Phase("all", adam(self.learnable(encoder))),)

    def learnable(self, encoder: nn.Module, without: Iterable[nn.Parameter] = ()) -> list[nn.Parameter]:
        """Parameters of encoder and heads that train, without those of another phase."""
        left_out = {id(p) for p in without}
        every = (p for module in (encoder, self) for p in module.parameters())
        return [p for p in every if p.requires_grad and id(p) not in left_out]


def crops(encodings: Mapping[str, Encoding], batch: Batch) -> tuple[Encoding, ViewTensors[Tensor]]:
    """Encoding and view of the two crops, for objectives on these alone."""
    return encodings[CROPS], batch.views[CROPS]
