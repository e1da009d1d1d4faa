"""Folders of rendered videos: made whole or not at all, and anew where the config or the renderer is another.

Layout: `train/*.mp4`, `validation/*.mp4`, `test/*.mp4`, the truth in `labels.parquet`, and a marker that names the
config.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import typing
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser, print_next, program
from carl_ray.progress import ProgressLine

if TYPE_CHECKING:
    from PIL import Image

FRAMES_PER_SECOND = 25

_LABELS = "labels.parquet"
_SPLITS = ("train", "validation", "test")

OnVideo = Callable[[int, int], None]
"""Called with (videos done, videos in all) after each video."""
_IGNORED: OnVideo = lambda done, total: None  # noqa: E731


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Options that every set of rendered videos has. The same config always gives the same frames and labels."""

    num_train: int
    """Videos in `train/`; the actions take turns."""
    num_validation: int
    """Videos in `validation/`."""
    num_test: int
    """Videos in `test/`."""
    size: int
    """Height and width of a frame in pixels, even."""
    seed: int = 0
    """Every random draw comes from this and the video's id."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 32 <= self.size <= 1024 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels from 32 to 1024, got {self.size}")
        for name, hint in typing.get_type_hints(type(self)).items():
            allowed, value = get_args(hint), getattr(self, name)
            if allowed and value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")

    @property
    def num_videos(self) -> dict[str, int]:
        """Number of videos by split."""
        return dict(zip(_SPLITS, (self.num_train, self.num_validation, self.num_test), strict=True))


_Config = TypeVar("_Config", bound=RenderConfig)


@dataclass(frozen=True)
class Renderer(Generic[_Config]):
    """How the videos of a data set are rendered, and where they are by default."""

    name: str
    """Module in this package; also begins the names of default folder and marker."""
    version: int
    """Incremented with every change of frames or labels, so that older folders are rendered again."""
    labels: pa.Schema
    """Of `labels.parquet`: `video_id` and what is known of each video."""
    default: _Config
    """Which videos, where no config is named."""
    video_ids: Callable[[_Config], dict[str, str]]
    """Action of every video, by its id (the path inside the folder)."""
    render_video: Callable[[Path, _Config, str, str], dict[str, object]]
    """Render the video (folder, config, id, action) into the folder; its row of the labels."""
    complete: Callable[[pa.Table], pa.Table] = lambda labels: labels
    """Adds to labels that are read what need not be stored."""

    def render(self, folder: Path, config: _Config, on_video: OnVideo = _IGNORED) -> None:
        """Render all videos and their labels into a folder, atomically.

        Args:
            folder: Created; an earlier rendering is replaced.
            config: Which videos.
            on_video: Called after each video.

        Raises:
            UserError: the folder holds other files than an earlier rendering.
            RunError: no permission, or no space left.
        """
        folder = folder.absolute()
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        marker = f"{self.name}.json"
        try:
            is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
            if not is_empty and not (folder / marker).is_file():
                raise UserError(
                    f"{folder}: it holds other files than rendered videos; name a new or empty folder"
                )
            videos = self.video_ids(config)
            for split in _SPLITS:
                (temporary / split).mkdir(parents=True)
            rows = []
            for video_id, action in videos.items():
                rows.append(self.render_video(temporary, config, video_id, action))
                on_video(len(rows), len(videos))
            labels = pa.Table.from_pylist(rows, schema=self.labels).sort_by("video_id")
            pq.write_table(labels, temporary / _LABELS, compression="zstd")
            (temporary / marker).write_text(json.dumps(self._identity(config), indent=2) + "\n")
            if self.is_rendered(folder, config):
                return  # another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            try:
                temporary.rename(folder)
            except OSError:
                if not self.is_rendered(folder, config):
                    raise
        except OSError as error:
            raise storage.storage_error(error, str(folder), "render into") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _identity(self, config: _Config) -> dict[str, object]:
        return {"renderer_version": self.version, **asdict(config)}

    def is_rendered(self, folder: Path, config: _Config) -> bool:
        """Whether a folder holds exactly the videos of a config, complete."""
        try:
            identity = json.loads((folder / f"{self.name}.json").read_text())
        except (OSError, ValueError):
            return False
        files = [folder / _LABELS, *(folder / video_id for video_id in self.video_ids(config))]
        return bool(identity == self._identity(config)) and all(file.is_file() for file in files)

    def default_folder(self, config: _Config | None = None) -> Path:
        """Default folder of the videos of a config (None: the default ones): below `storage.home()`."""
        text = json.dumps(self._identity(config or self.default), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return storage.home() / "datasets" / f"{self.name}-{digest}"

    def ensure_rendered(
        self, folder: Path | None = None, config: _Config | None = None, on_video: OnVideo = _IGNORED
    ) -> Path:
        """Return the folder (None: the default one) with the videos of a config; render what is not there.

        Arguments and errors are those of `render`.
        """
        config = config or self.default
        folder = folder or self.default_folder(config)
        if not self.is_rendered(folder, config):
            self.render(folder, config, on_video)
        return folder

    def read_labels(self, folder: Path) -> pa.Table:
        """Read the labels of a rendered folder, one row a video."""
        return self.complete(pq.read_table(folder / _LABELS, schema=self.labels))


def encode(frames: Iterable[Image.Image], path: Path, options: dict[str, str] | None = None) -> None:
    """Write H.264 in MP4: yuv420p, 25 frames a second, B-frames, a key frame at least every 24 frames.

    Equal frames give equal bytes.

    Args:
        frames: RGB, at least one, of one size, with even sides.
        path: Of the file.
        options: Further ones of libx264, or others instead. Its macroblock tree must be off: it reads uninitialised
            memory.
    """
    # Lazy import of FFmpeg: most commands only need the folder's path.
    import av

    # A fixed quantizer: x264 has no macroblock tree then.
    defaults = {"preset": "veryfast", "qp": "20", "g": "24", "bf": "2"}
    # In memory: a full disk is then an OSError of Python's, with its reason.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=defaults | (options or {}))
        stream.pix_fmt = "yuv420p"
        # The bytes depend on the number of threads, which by default follows the machine.
        stream.codec_context.thread_count = 1
        for number, image in enumerate(frames):
            if not number:
                stream.width, stream.height = image.size
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())


def rendering_command(renderer: Renderer[_Config], description: str, arguments: list[str] | None) -> None:
    """The command of a set of rendered videos; its options are the fields of the config."""
    default = renderer.default
    parser = OptionParser(prog=program(f"datasets.{renderer.name}"), description=description)
    parser.add_argument("folder", type=Path, nargs="?", help="default: in $CARL_RAY_HOME or ~/carl_ray")
    for field, hint in typing.get_type_hints(type(default)).items():
        choices = get_args(hint)
        kind: dict[str, Any] = {"choices": choices} if choices else {"type": hint}
        if hint is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        option = f"--{field.replace('_', '-')}"
        note = f"default {getattr(default, field)}"
        parser.add_argument(option, default=argparse.SUPPRESS, help=note, **kind)
    with one_line_errors():
        options = vars(parser.parse_args(arguments))
        folder = options.pop("folder")
        try:
            config = replace(default, **options)
        except ValueError as error:
            raise UserError(str(error)) from None
        folder = renderer.ensure_rendered(folder, config, ProgressLine("rendered"))
        print(f"{sum(config.num_videos.values())} videos and their labels are in {folder}")
        print_next("index", str(folder), "--out", str(folder / "manifest.parquet"))
