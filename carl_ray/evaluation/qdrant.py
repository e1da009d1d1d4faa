"""Frames of embedded videos as points of a Qdrant collection (extra `carl_ray[search]`)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any, cast

import numpy as np

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import Embeddings

_POINTS_A_REQUEST = 512
_ATTEMPTS = 5
_TIMEOUT_SECONDS = 60
_IDS = uuid.UUID("6f7c9d1e-5b0a-5f43-9c58-0f4f0e0a8d21")


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
        UserError: there is no frame, or an embedding is not finite; or the extra is not installed.
        RunError: the server refuses or fails, or the collection has vectors of another width.
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
    number = 0

    def points() -> Iterator[models.PointStruct]:
        nonlocal number
        for done, video in enumerate(embeddings, 1):
            if not np.isfinite(video.embeddings).all():
                raise UserError(f"{video.video_id}: expected finite values")
            for frame, vector in enumerate(video.embeddings.tolist()):
                payload = {
                    "video": video.video_id,
                    "frame": frame,
                    "seconds": None if video.seconds is None else float(video.seconds[frame]),
                    "label": video.label,
                    "phase": video.phase_name(int(video.phases[frame])),
                }
                point_id = str(uuid.uuid5(_IDS, f"{video.video_id}\0{frame}"))
                yield models.PointStruct(id=point_id, vector=vector, payload=payload)
                number += 1
            on_video(done)

    stream = points()
    first = next(stream, None)
    if first is None:
        raise UserError(f"{storage.public_uri(embeddings.uri)}: it holds no embedded frame")
    is_server = storage.is_remote(uri)
    remote: dict[str, Any] = {"url": server, "api_key": os.environ.get("QDRANT_API_KEY")}
    place = remote | {"timeout": _TIMEOUT_SECONDS} if is_server else {"path": storage.absolute(server)}
    try:
        with closing(QdrantClient(**place, check_compatibility=False)) as client:
            if not client.collection_exists(collection):
                width = len(cast(list[float], first.vector))
                form = models.VectorParams(size=width, distance=models.Distance.COSINE, on_disk=True)
                client.create_collection(collection, vectors_config=form)
                for name in ("video", "label") if is_server else ():
                    client.create_payload_index(collection, name, models.PayloadSchemaType.KEYWORD)
            client.upload_points(
                collection,
                chain([first], stream),
                batch_size=_POINTS_A_REQUEST,
                max_retries=_ATTEMPTS,
                wait=True,
            )
    except (ApiException, OSError, RuntimeError, ValueError) as error:
        raise storage.storage_error(OSError(str(error)), uri, "write") from None
    return number
