"""Views of a video that an objective requires, and their augmentation. No torch here."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Of all options. Finite numbers only: JSON has no others, and config.json must yield the same config."""

CROPS = "crops"
"""Name of the view of the config: two overlapping crops of T frames."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ViewsConfig:
    """Temporal augmentation (paper, section 3.2)."""

    max_crop_ratio: float = Field(default=1.5, ge=1)
    """alpha: a crop has at most this many times T frames."""
    min_overlap: float = Field(default=0.2, ge=0, le=1)
    """beta: the two crops share at least this part of the shorter one; 0: independent crops, 1: the same."""
    crop: Literal["paper", "released"] = "paper"
    """`paper` crops as section 3.2 says; `released` draws over the whole video as the authors' code does."""
    sampling: Literal["random", "even"] = "random"
    """How T frames are taken from a crop."""
    stride: tuple[int, int] = (1, 4)
    """Of objectives on clips: frames from one of a clip to the next, drawn from [low, high]; evaluation takes their
    mean, rounded down."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride[0] <= self.stride[1]:
            raise ValueError(f"stride must be (low, high) with 1 <= low <= high, got {self.stride}")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AugmentConfig:
    """Spatial augmentation, one draw a view (paper, section 3.2; SimCLR's list)."""

    image_size: int = Field(default=224, ge=8)
    """Height and width of the frames that the encoder sees, in pixels."""
    crop_area: tuple[float, float] = (0.8, 1.0)
    """Range of the area of the random resized crop, as a part of the frame."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the aspect ratio (width to height) of the random resized crop."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Chance of a horizontal flip."""
    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    """Chance of colour jitter."""
    brightness: float = Field(default=0.8, ge=0)
    """Brightness is multiplied by a factor from [max(0, 1 - x), 1 + x]."""
    contrast: float = Field(default=0.8, ge=0)
    """Contrast, likewise."""
    saturation: float = Field(default=0.8, ge=0)
    """Saturation, likewise."""
    hue: float = Field(default=0.2, ge=0, le=0.5)
    """Hue is turned by a part of the circle from [-x, x]."""
    grayscale_probability: float = Field(default=0.2, ge=0, le=1)
    """Chance of greyscale."""
    blur_probability: float = Field(default=0.5, ge=0, le=1)
    """Chance of a Gaussian blur (the paper leaves it out on FineGym)."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's deviation, in pixels."""
    copies: int | None = Field(default=None, ge=0)
    """`none`: each view has a draw of its own. Otherwise each video has this many fixed draws, and each view is one of
    them or the clean frames, as features are cached; needs data.short_side equal to augment.image_size."""
    color_on: Literal["workers", "trainer"] = "workers"
    """Where colour and blur are computed: the CPU workers that decode, or the trainer's device."""
    pixels: Literal["rgb", "yuv420"] = "rgb"
    """How views are shipped to the trainer: `rgb`, or `yuv420` with half the bytes, and half the resolution in
    colour."""

    @model_validator(mode="before")
    @classmethod
    def _drop_color(cls, values: Any) -> Any:
        """Ignore the way to compute colours that configs of earlier versions name; the exact one is left."""
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if name != "color"}
        return values

    def __post_init__(self) -> None:
        if self.pixels == "yuv420" and self.image_size % 2:
            raise ValueError(f"pixels yuv420 needs an even image_size, got {self.image_size}")
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got ({low:g}, {high:g})")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area is a part of the frame, at most 1, got {self.crop_area[1]:g}")


@dataclass(frozen=True, config=STRICT)
class Stride:
    """A span of clips: T frames at an even stride, a few seconds of the video."""

    low: int
    high: int
    """The stride is drawn from [low, high], one for all clips of a view: other speeds are other motions."""
    reserve: int = 0
    """So many frames, in units of `data.frame_stride`, follow a clip wherever the video is long enough."""

    @property
    def mean(self) -> int:
        """The stride of evaluation."""
        return (self.low + self.high) // 2


@dataclass(frozen=True, config=STRICT)
class Whole:
    """A span of clips: T frames, one at a random place of each of T equal parts of the video."""


Policy = Literal["auto", "codec", "even"]
"""Of the choice of key frames."""


@dataclass(frozen=True, config=STRICT)
class KeyFrame:
    """A span of one frame: a key frame of the video, or an evenly spaced one."""

    policy: Policy = "auto"
    """`codec`: a key frame of the file, where the manifest has any; `even`: one of the frames 0, 12, 24, …; `auto`: a
    key frame where the file has at least two and at most a quarter of its frames are, else an even one."""


@dataclass(frozen=True, config=STRICT)
class Follows:
    """A span of one clip: T frames from the end of the first clip of another view, with its spatial draw.

    Frames beyond the end of the video are masked.
    """

    view: str
    """Name of the other view."""
    stride: int
    """Frames from one to the next, in units of `data.frame_stride`."""


@plain_dataclass(frozen=True)
class ViewSpec:
    """A named view of a video: `count` clips of `num_frames` frames each."""

    name: str
    """An identifier. Draws depend on it: views of different names are independent."""
    count: int
    """n: 1 or 2; the crops of two overlap as `span` says, and two clips of a `Stride` in half of the draws."""
    num_frames: int
    """T: frames of a clip."""
    span: Whole | Stride | KeyFrame | Follows | ViewsConfig
    """Where in the video its frames lie. `Whole` comes first: of a span without fields, pydantic takes the first."""
    augment: AugmentConfig
    """Spatial augmentation, drawn for each clip, and size of the frames."""
    features: int | None = None
    """C: channels of features of the frames from a cache, in the place of pixels; None: pixels."""
    encoder: Literal["all", "static", "none"] = "all"
    """Which streams of the encoder see it: all, of an encoder of clips the static one alone, or none, so that only the
    objective does."""
    keypoints: bool = False
    """With `ViewTensors.keypoints`."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.count not in (1, 2) or self.num_frames < 1:
            raise ValueError(
                "a view needs an identifier as name, a count of 1 or 2 and at least one frame, got "
                f"{self.name!r}, {self.count}, {self.num_frames}"
            )
        if isinstance(self.span, KeyFrame | Follows) and self.count != 1:
            raise ValueError(
                f"view {self.name}: a {type(self.span).__name__} has a count of 1, got {self.count}"
            )
        if isinstance(self.span, KeyFrame) and self.num_frames != 1:
            raise ValueError(f"view {self.name}: a KeyFrame has one frame, got {self.num_frames}")
        if self.keypoints and self.features is not None:
            raise ValueError(
                f"view {self.name}: where cached features lie in the frame, for keypoints, is not known"
            )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame as shipped: (S, S, 3), or YUV 4:2:0 in one row."""
        size = self.augment.image_size
        return (size * size * 3 // 2,) if self.augment.pixels == "yuv420" else (size, size, 3)


def clips_view(default: ViewSpec, name: str, count: int) -> ViewSpec:
    """A view of clips at a stride.

    Args:
        default: The view of the config.
        name: Of the view.
        count: Clips.
    """
    assert isinstance(default.span, ViewsConfig)
    return replace(default, name=name, count=count, span=Stride(*default.span.stride))
