"""A checkpoint becomes an encoder that embeds whole videos, in bounded memory. Free of Ray.

video ─ decode in chunks (threads) ▶ square view ▶ CNN, a chunk at a time ▶ all features ▶ one temporal pass ▶ H
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.augment import center_view, normalize
from carl_ray.data.decode import DecodeError, iterate_frames, probe_video
from carl_ray.errors import RunError, UserError
from carl_ray.model.backbone import load_backbone_weights
from carl_ray.model.encoder import FrameLevelVideoEncoder
from carl_ray.training.checkpoint import latest_checkpoint
from carl_ray.training.step import initial_model

View = Literal["resized", "central"]
"""`resized`: shorter side resized to the encoder's size, then the central square (SPEC 7). `central`: the central
square of the frames as they are, which is what the released code's FineGym tests see."""

_CHUNK_FRAMES = 64
_CHUNKS_AHEAD = 2


def untrained_encoder(config: Config) -> FrameLevelVideoEncoder:
    """The encoder before any training, in evaluation mode: the control that every table has.

    Its backbone has the pretrained weights that the config names, everything else is random.

    Raises:
        UserError, RunError: as `load_backbone_weights`.
    """
    encoder = initial_model(config).encoder
    load_backbone_weights(encoder.backbone, config.model)
    return encoder.eval()


def default_run() -> str:
    """The newest run of the demo on this machine, where no checkpoint is named.

    Raises:
        UserError: there is none.
    """
    runs = storage.home() / "runs"
    for name in sorted(storage.list_folder(str(runs)), reverse=True):
        if name.startswith("demo-") and latest_checkpoint(str(runs / name)) is not None:
            return str(runs / name)
    raise UserError(
        f"{runs}: no trained demo there; train one with `python -m carl_ray.train`, or name --checkpoint"
    )


class VideoEmbedder:
    """Embeds whole videos with one or several encoders of one config, decoding each video once.

    Args:
        encoders: In evaluation mode; moved to `device`.
        config: Of the run that trained them.
        device: Where they compute.
        bf16: Matrix products in bfloat16.
        view: How frames become the encoder's square.
    """

    def __init__(
        self,
        encoders: Sequence[FrameLevelVideoEncoder],
        config: Config,
        device: torch.device,
        *,
        bf16: bool = False,
        view: View = "resized",
    ) -> None:
        self._encoders = [encoder.to(device) for encoder in encoders]
        self._config = config
        self._device = device
        self._bf16 = bf16
        self._view = view
        for encoder in self._encoders:
            encoder.backbone.to(memory_format=torch.channels_last)

    def embed_file(self, uri: str) -> list[Float[np.ndarray, "frames width"]]:
        """H of all frames of a video file, float32, one array for each encoder.

        Raises:
            UserError: it is no video that can be decoded, or not there.
        """
        try:
            (embedded,) = self.embed([(uri, probe_video(uri, verify=True).num_frames)])
        except DecodeError as error:
            embedded = error
        if isinstance(embedded, Exception):
            raise UserError(f"{storage.public_uri(uri)}: {embedded}") from None
        return embedded

    def embed(
        self, videos: Sequence[tuple[bytes | str, int]]
    ) -> Iterator[list[Float[np.ndarray, "frames width"]] | Exception]:
        """H of all frames of each video, float32, one array for each encoder; videos decode side by side.

        Args:
            videos: Content, path or URI, and number of frames.

        Yields:
            The arrays, or for a video that cannot be read the exception that says why.
        """
        ready: queue.SimpleQueue[int] = queue.SimpleQueue()
        with ExitStack() as stack:
            features = [
                self._features(stack.enter_context(_ahead(self._views(*video), ready, number)))
                for number, video in enumerate(videos)
            ]
            pieces: list[list[tuple[Tensor, ...]]] = [[] for _ in videos]
            done: dict[int, list[np.ndarray] | Exception] = {}
            for number in range(len(videos)):
                while number not in done:
                    # Whichever video has a chunk ready, so that no decoder waits for another one's video.
                    at = ready.get()
                    try:
                        piece = next(features[at], None)
                        if piece is None:
                            done[at] = self._embed_whole(pieces[at])
                        else:
                            pieces[at].append(piece)
                    except (DecodeError, UserError, RunError) as error:
                        done[at] = error
                yield done[number]

    def _views(self, source: bytes | str, num_frames: int) -> Iterator[UInt8[Tensor, "chunk size size 3"]]:
        size = self._config.augment.image_size
        chunks = iterate_frames(
            source,
            num_frames,
            chunk_frames=_CHUNK_FRAMES,
            short_side=size if self._view == "resized" else None,
            decoder=self._config.data.decoder,
        )
        for frames in chunks:
            if self._view == "central" and min(frames.shape[1:3]) > size:
                top, left = ((extent - size) // 2 for extent in frames.shape[1:3])
                frames = frames[:, top : top + size, left : left + size]
            yield center_view(frames, size)

    def _features(self, views: Iterator[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Pooled features of each chunk, of each encoder."""
        chunks = (normalize(view.to(self._device)) for view in views)
        # The encoders take turns, chunk by chunk: no copy of the frames outlives them.
        copies = itertools.tee(chunks, len(self._encoders))
        streams = [encoder.frame_features(copy) for encoder, copy in zip(self._encoders, copies, strict=True)]
        del copies
        while True:
            with self._computing():
                piece = tuple(next(stream, None) for stream in streams)
            if piece[0] is None:
                return
            yield tuple(features for features in piece if features is not None)

    def _embed_whole(self, pieces: list[tuple[Tensor, ...]]) -> list[np.ndarray]:
        with self._computing():
            return [
                encoder.embed_features(torch.cat(features)).float().cpu().numpy()
                for encoder, features in zip(self._encoders, zip(*pieces, strict=True), strict=True)
            ]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Never around a yield to the caller: what is active while a generator waits is active for its caller too.
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            yield


@contextmanager
def _ahead(items: Iterator[Tensor], ready: queue.SimpleQueue[int], number: int) -> Iterator[Iterator[Tensor]]:
    """The items, made in a thread a few ahead of their use; its errors are raised where they are used.

    Of each item that can be taken, and of the end, `ready` gets the number.
    """
    made: queue.Queue[Tensor | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
    stopped = threading.Event()

    def put(item: Tensor | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.1)
                ready.put(number)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # The consumer's to handle, whatever it is.
            put(error)

    def used() -> Iterator[Tensor]:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield used()
    finally:
        stopped.set()
        thread.join()
