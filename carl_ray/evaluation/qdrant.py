"""Frames of embedded videos as points of a Qdrant collection (extra `carl_ray[search]`)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Embeddings

_POINTS_A_REQUEST = 512
_TIMEOUT_SECONDS = 60
_IDS = uuid.UUID("6f7c9d1e-5b0a-5f43-9c58-0f4f0e0a8d21")
_T = TypeVar("_T")


def export_points(
    embeddings: Embeddings, uri: str, on_video: Callable[[int], None] = lambda done: None
) -> int:
    """Write all frames into a collection, made where it is missing; return their number.

    The id of a point is made of video and frame, so that a further call writes the same points.

    Args:
        embeddings: The videos.
        uri: SERVER/COLLECTION, whose key is in $QDRANT_API_KEY; or FOLDER/COLLECTION of Qdrant's local form.
        on_video: Called with the number of videos done.

    Raises:
        UserError: the collection has vectors of another form, or an embedding is not finite; or the extra is not
            installed.
        RunError: the server refuses or fails.
    """
    shown = storage.public_uri(uri)
    try:
        from qdrant_client import QdrantClient, models
        from qdrant_client.http.exceptions import ApiException
    except ImportError:
        raise UserError(
            f"{shown}: --format qdrant needs its client: pip install 'carl_ray[search]'"
        ) from None
    server, _, collection = uri.rpartition("/")

    def call(request: Callable[..., _T], *values: Any, **arguments: Any) -> _T:
        def attempt() -> _T:
            try:
                return request(*values, **arguments)
            except (ApiException, ValueError, RuntimeError) as error:
                raise OSError(str(error)) from None

        try:
            return storage.persistently(uri, "write", attempt)
        except OSError as error:
            raise storage.storage_error(error, uri, "write") from None

    place: dict[str, Any] = (
        {"url": server, "api_key": os.environ.get("QDRANT_API_KEY"), "timeout": _TIMEOUT_SECONDS}
        if storage.is_remote(uri)
        else {"path": storage.absolute(server)}
    )
    client = call(QdrantClient, **place, check_compatibility=False)
    done = number = 0
    try:
        for done, video in enumerate(embeddings, 1):
            if not np.isfinite(video.embeddings).all():
                raise UserError(f"{video.video_id}: expected finite values")
            if number == 0 and len(video):
                form = models.VectorParams(
                    size=video.embeddings.shape[1], distance=models.Distance.COSINE, on_disk=True
                )
                if not call(client.collection_exists, collection):
                    call(client.create_collection, collection, vectors_config=form)
                    for name in ("video", "label") if storage.is_remote(uri) else ():
                        call(client.create_payload_index, collection, name, models.PayloadSchemaType.KEYWORD)
                found = call(client.get_collection, collection).config.params.vectors
                if not isinstance(found, models.VectorParams) or (found.size, found.distance) != (
                    form.size,
                    form.distance,
                ):
                    raise UserError(f"{shown}: expected vectors of {form.size} numbers, cosine, got {found}")
            for start in range(0, len(video), _POINTS_A_REQUEST):
                frames = range(start, min(start + _POINTS_A_REQUEST, len(video)))
                points = models.Batch(
                    ids=[str(uuid.uuid5(_IDS, f"{video.video_id}\0{frame}")) for frame in frames],
                    vectors=video.embeddings[frames.start : frames.stop].tolist(),
                    payloads=[_payload(video, frame) for frame in frames],
                )
                call(client.upsert, collection, points=points)
            number += len(video)
            on_video(done)
    finally:
        client.close()
    return number


def _payload(video: EmbeddedVideo, frame: int) -> dict[str, Any]:
    return {
        "video": video.video_id,
        "frame": frame,
        "seconds": None if video.seconds is None else float(video.seconds[frame]),
        "label": video.label,
        "phase": video.phase_name(int(video.phases[frame])),
    }
