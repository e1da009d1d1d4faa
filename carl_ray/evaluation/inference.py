"""Embedding of whole videos with a checkpoint's encoder, without Ray.

video ─ decode in chunks (child processes) ▶ square view ▶ CNN, a chunk at a time ▶ all features ▶ one temporal pass ▶ H

Longer than 400 lines: one video and many, from a file, frames or features, are embedded by the same code.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.augment_tensors import center_view
from carl_ray.data.features import model_input, upsample
from carl_ray.data.guard import BadVideoError, FrameReader
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import CropMode, Form, read_origin
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.frozen import CONTROL, FrozenEncoder, formed, load_frozen
from carl_ray.model.backbone import Backbone
from carl_ray.model.clips import ClipEncoder
from carl_ray.model.features import normalize
from carl_ray.model.pretrained import find_weights
from carl_ray.model.weights import load_backbone_weights, weights_digest
from carl_ray.training.checkpoint import Checkpoint, checkpoint_at
from carl_ray.training.checkpoint import load_encoder as trained_encoder
from carl_ray.training.learner import VideoNetwork, initial_encoder

_CHUNK_FRAMES = 64


def untrained_encoder(
    config: Config, *, instead: str = "--no-untrained, without the control"
) -> VideoNetwork:
    """The encoder before any training, in evaluation mode: the control in every table.

    Its backbone has the pretrained weights that the config names; all other weights are random.

    Args:
        config: Of the run.
        instead: What the command can do without this encoder, for the message of a failed download.

    Raises:
        UserError, RunError: as `find_weights` and `load_backbone_weights`.
    """
    find_weights(config.model, instead)
    encoder = initial_encoder(config)
    load_backbone_weights(encoder.backbone, config.model)
    if isinstance(encoder, ClipEncoder) and encoder.static_backbone is not None:
        load_backbone_weights(encoder.static_backbone, config.model)
    return encoder.eval()


class FrozenNetwork(nn.Module):
    """Backbone and components of a frozen encoder, as a `VideoEmbedder` takes them.

    Args:
        encoder: Whose backbone is taken, in evaluation mode.
        frozen: Its components.

    Raises:
        UserError: the backbone has other weights than the one that the components were made with.
    """

    components: Tensor | None

    def __init__(self, encoder: WholeVideoEncoder, frozen: FrozenEncoder) -> None:
        super().__init__()
        self._encoder, self._model = encoder, frozen.config.model
        self.register_buffer("components", None)
        if frozen.components is not None:
            self.components = torch.from_numpy(frozen.components)
            digest = weights_digest(encoder.backbone)
            if digest != frozen.weights_digest:
                raise UserError(
                    f"{storage.public_uri(frozen.uri)}: made with a backbone of other weights "
                    f"({frozen.weights_digest}) than those found now ({digest}); embed anew into another folder"
                )

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone."""
        return self._encoder.backbone

    def frame_features(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """As `FrameLevelVideoEncoder.frame_features`."""
        return self._encoder.frame_features(chunks)

    def embed_features(self, features: Float[Tensor, "T C"]) -> Float[Tensor, "T D"]:
        """The components of all features of a video, as the encoder's config has them."""
        made = torch.from_numpy(model_input(features.float().cpu().numpy(), self._model)).to(features.device)
        return made if self.components is None else made @ self.components


class BackwardsEncoder(nn.Module):
    """An encoder of clips that plays each clip backwards, as a `VideoEmbedder` takes it."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    @property
    def backbone(self) -> Backbone:
        """That of the encoder."""
        return self._encoder.backbone

    def frame_features(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """As `ClipEncoder.frame_features`."""
        return self._encoder.frame_features(chunks, backwards=True)

    def embed_features(self, features: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        """The features themselves, as of the encoder."""
        return features


WholeVideoEncoder = VideoNetwork | FrozenNetwork | BackwardsEncoder
"""What a `VideoEmbedder` embeds with: `backbone`, `frame_features` and `embed_features`."""


def load_encoders(checkpoint: Checkpoint | FrozenEncoder, *, untrained: bool) -> list[WholeVideoEncoder]:
    """The trained or frozen encoder and, if wanted, the one before training."""
    if isinstance(checkpoint, FrozenEncoder):
        return [FrozenNetwork(untrained_encoder(checkpoint.config), checkpoint)]
    return [trained_encoder(checkpoint), *([untrained_encoder(checkpoint.config)] if untrained else [])]


class VideoEncoder:
    """A trained or frozen encoder for one video at a time; equals the command `embed`.

    Attributes:
        checkpoint: The checkpoint, or what was never trained.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | FrozenEncoder,
        device: torch.device,
        view: CropMode,
        form: Form = "plain",
        frozen: FrozenEncoder | None = None,
    ) -> None:
        self.checkpoint, self._form, self._stride = checkpoint, form, checkpoint.config.data.frame_stride
        encoders = load_encoders(checkpoint, untrained=False)
        if frozen is not None:
            encoders.append(FrozenNetwork(encoders[0], frozen))
        self._embedder = VideoEmbedder(encoders, checkpoint.config, device, view=view)

    def embed(
        self, video: str | Path | bytes | UInt8[np.ndarray, "frames height width 3"]
    ) -> Float[np.ndarray, "frames width"]:
        """L2-normalised embeddings of all frames, float32.

        The command `embed` writes them before normalisation.

        Args:
            video: Path or URI of a video file, its content, or its frames as RGB. Of frames that are larger than the
                encoder's input, the result differs a little from that of the file, which is scaled while it is decoded.

        Raises:
            UserError: it is not there, or is no video that can be decoded; or the encoder's output is not finite.
            RunError: its storage fails, or its decoder was killed from outside.
        """
        if isinstance(video, np.ndarray):
            found = self._embedder.embed_frames(video)
        else:
            found = self._embedder.embed_file(str(video) if isinstance(video, Path) else video)
        try:
            embedded = formed(found[0], found[1] if len(found) > 1 else None, self._form, self._stride)
            return unit_frames([embedded])[0].astype(np.float32)
        except ValueError as error:
            raise UserError(f"the encoder of {storage.public_uri(self.checkpoint.uri)}: {error}") from None


def load_encoder(
    checkpoint: str | Checkpoint | FrozenEncoder,
    *,
    device: str | None = None,
    view: CropMode = "resized",
    like: str | None = None,
) -> VideoEncoder:
    """The trained encoder of a run or checkpoint, or one without training.

    Args:
        checkpoint: A checkpoint, or URI of one or of a run folder, whose latest is taken; `frozen`, for videos at 24 to
            30 frames a second, or the folder of embeddings without training, whose encoder is taken.
        device: Where it computes, as torch names it; None: a GPU where there is one, otherwise the CPU.
        view: How frames are cropped to the encoder's input.
        like: URI of a folder of this encoder's embeddings, whose form (`embed --form`) the output takes; None: plain.

    Raises:
        UserError: there is no checkpoint, or it does not fit its config.
        RunError: it is damaged, or the store refuses or fails.
    """
    if isinstance(checkpoint, str):
        checkpoint = load_frozen(checkpoint) or checkpoint_at(checkpoint)
    form: Form = "plain"
    frozen = None
    if like is not None:
        origin, shown = read_origin(like), storage.public_uri(like)
        form = origin.form
        if checkpoint.model_sha256 != origin.model_sha256:
            raise UserError(
                f"{shown}: embeddings of step {origin.step} of {origin.checkpoint}, not of this encoder"
            )
        if form == "joined":
            folder = storage.join(storage.parent(like) if storage.is_file(like) else like, CONTROL)
            frozen = load_frozen(folder)
            if frozen is None:
                raise UserError(
                    f"{storage.public_uri(folder)}: not there, but joined embeddings need its components"
                )
    return VideoEncoder(
        checkpoint, default_device() if device is None else torch.device(device), view, form, frozen
    )


def default_device() -> torch.device:
    """A GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class VideoEmbedder:
    """Embeds whole videos with several encoders, decoding each video once.

    Videos are decoded side by side, each in a child process; the processes are reused and end with the embedder.

    Args:
        encoders: In evaluation mode; moved to `device`.
        config: Of the run that trained them.
        device: Where they compute.
        bf16: Matrix products in bfloat16.
        view: How frames are cropped to the encoder's input.
    """

    def __init__(
        self,
        encoders: Sequence[WholeVideoEncoder],
        config: Config,
        device: torch.device,
        *,
        bf16: bool = False,
        view: CropMode = "resized",
    ) -> None:
        self._encoders = [encoder.to(device) for encoder in encoders]
        self._config = config
        self._device = device
        self._bf16 = bf16
        self._view = view
        self._idle_readers: list[FrameReader] = []
        weakref.finalize(self, _close, self._idle_readers)

    def embed_file(self, source: bytes | str) -> list[Float[np.ndarray, "frames width"]]:
        """H of all frames of a video, float32, one array for each encoder.

        Args:
            source: Content, path or URI.

        Raises:
            UserError: it is not there, or is no video that can be decoded.
            RunError: its storage fails, or its decoder was killed from outside.
        """
        try:
            with self._readers(1) as (reader,):
                num_frames = reader.count(source, self._config)
            (embedded,) = self.embed([(source, num_frames)])
        except (BadVideoError, RunError) as error:
            embedded = error
        if isinstance(embedded, Exception):
            kind = RunError if isinstance(embedded, RunError) else UserError
            shown = f"{storage.public_uri(source)}: " if isinstance(source, str) else ""
            raise kind(shown + str(embedded).removeprefix(shown)) from None
        return embedded

    def embed_frames(
        self, frames: UInt8[np.ndarray, "frames height width 3"]
    ) -> list[Float[np.ndarray, "frames width"]]:
        """H of the frames of one video, float32, one array for each encoder.

        Raises:
            ValueError: these are not uint8 RGB frames, or there are none.
        """
        if len(frames) == 0:
            raise ValueError("expected at least one frame, got none")
        size = self._config.augment.image_size
        if self._view == "central" and min(frames.shape[1:3]) > size:
            top, left = ((side - size) // 2 for side in frames.shape[1:3])
            frames = frames[:, top : top + size, left : left + size]
        taken = frames[:: self._config.data.frame_stride]
        chunks = (taken[start : start + _CHUNK_FRAMES] for start in range(0, len(taken), _CHUNK_FRAMES))
        pieces = list(self._features(center_view(chunk, size) for chunk in chunks))
        return self._embed_whole(pieces, len(frames))

    def embed_features(
        self, features: Float[np.ndarray, "taken C"], num_frames: int
    ) -> list[Float[np.ndarray, "frames width"]]:
        """H of all frames of a video from its cached features, float32, one array for each encoder.

        Args:
            features: Of the clean frames, every `data.frame_stride`-th one, by the backbone of all encoders.
            num_frames: Frames of the video.
        """
        return self._embed_whole(
            [(torch.from_numpy(features.astype(np.float32)),) * len(self._encoders)], num_frames
        )

    def embed(
        self, videos: Sequence[tuple[bytes | str, int]]
    ) -> Iterator[list[Float[np.ndarray, "frames width"]] | BadVideoError | RunError]:
        """H of all frames of several videos, float32, one array for each encoder.

        Args:
            videos: Content, path or URI, and number of frames.

        Yields:
            The arrays; for a video that cannot be read a `BadVideoError`, for one that another try may read a
            `RunError`.
        """
        with self._readers(len(videos)) as readers, ThreadPoolExecutor(max(1, len(videos))) as pool:
            views = [self._views(reader, *video) for reader, video in zip(readers, videos, strict=True)]
            # The next chunk of each video that is not done; None is its end.
            chunks = {number: pool.submit(next, view, None) for number, view in enumerate(views)}

            def take(number: int) -> Iterator[Tensor]:
                while (chunk := chunks[number].result()) is not None:
                    chunks[number] = pool.submit(next, views[number], None)
                    yield chunk

            features = [self._features(take(number)) for number in range(len(videos))]
            pieces: list[list[tuple[Tensor, ...]]] = [[] for _ in videos]
            done: dict[int, list[np.ndarray] | BadVideoError | RunError] = {}
            try:
                for number in range(len(videos)):
                    while number not in done:
                        # Take whichever video has a chunk ready, so that no decoder waits for another video.
                        wait(chunks.values(), return_when=FIRST_COMPLETED)
                        at = next(at for at, chunk in chunks.items() if chunk.done())
                        try:
                            piece = next(features[at], None)
                            if piece is not None:
                                pieces[at].append(piece)
                                continue
                            done[at] = self._embed_whole(pieces[at], videos[at][1])
                        except (BadVideoError, RunError) as error:
                            done[at] = error
                        del chunks[at]
                    yield done[number]
            finally:
                # A pool does not end before its threads, which may wait for a decoder.
                for number, chunk in chunks.items():
                    while not chunk.done():
                        readers[number].interrupt()
                        wait([chunk], timeout=0.1)
                for view in views:
                    view.close()

    @contextmanager
    def _readers(self, count: int) -> Iterator[list[FrameReader]]:
        readers = [self._idle_readers.pop() if self._idle_readers else FrameReader() for _ in range(count)]
        try:
            for reader in readers:
                # Here, because the reading threads end with their video. If it fails, reading reports it.
                with suppress(RunError):
                    reader.start()
            yield readers
        finally:
            self._idle_readers.extend(readers)

    def _views(
        self, reader: FrameReader, source: bytes | str, num_frames: int
    ) -> Generator[UInt8[Tensor, "chunk size size 3"], None, None]:
        size = self._config.augment.image_size
        # The reader cuts the square of either view; only smaller frames remain to be enlarged.
        short_side = size if self._view == "resized" else None
        for frames in reader.read(
            source, num_frames, self._config, chunk_frames=_CHUNK_FRAMES, short_side=short_side
        ):
            yield center_view(frames, size)

    def _features(self, views: Iterator[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Pooled features of each chunk, of each encoder."""
        backbone = self._encoders[0].backbone
        chunks = (normalize(view.to(self._device), backbone.mean, backbone.std) for view in views)
        # The encoders take turns, chunk by chunk, so that no copy of the frames is kept longer.
        copies = itertools.tee(chunks, len(self._encoders))
        streams = [encoder.frame_features(copy) for encoder, copy in zip(self._encoders, copies, strict=True)]
        del copies
        while True:
            with self._computing():
                piece = tuple(next(stream, None) for stream in streams)
            if piece[0] is None:
                return
            yield tuple(features for features in piece if features is not None)

    def _embed_whole(self, pieces: list[tuple[Tensor, ...]], num_frames: int) -> list[np.ndarray]:
        model, stride = self._config.model, self._config.data.frame_stride
        embedded = []
        for encoder, parts in zip(self._encoders, zip(*pieces, strict=True), strict=True):
            features = torch.cat(parts)
            prepares = isinstance(encoder, FrozenNetwork)
            if not prepares and (model.centered or model.motion != "none"):
                features = torch.from_numpy(model_input(features.float().cpu().numpy(), model))
            with self._computing():
                made = encoder.embed_features(features.to(self._device)).float().cpu().numpy()
            embedded.append(upsample(made, num_frames, stride))
        return embedded

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Never around a yield: these modes would stay active in the caller while the generator waits.
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            yield


def _close(readers: list[FrameReader]) -> None:
    for reader in readers:
        reader.close()
