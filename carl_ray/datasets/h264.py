"""H.264 in MP4: equal frames give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import av.video


def encode_h264(
    frames: Iterable[av.VideoFrame], frame_rate: int, options: dict[str, str]
) -> tuple[bytes, int]:
    """Encode frames as yuv420p; the content of the file and the number of frames.

    Args:
        frames: In order, of one size, with even sides. The same object may come several times in a row.
        frame_rate: Frames a second.
        options: Of libx264. Its macroblock tree must be off: it reads uninitialised memory, so that equal
            frames would not always give equal bytes.
    """
    # In memory: a full disk is then an OSError of Python's, with its reason.
    buffer = io.BytesIO()
    num_frames = 0
    with av.open(buffer, "w", format="mp4") as container:
        stream: av.VideoStream | None = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=frame_rate, options=options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                # The bytes depend on the number of threads, which by default follows the machine.
                stream.codec_context.thread_count = 1
                # Without its label a reader would guess the color space.
                stream.codec_context.colorspace = frame.colorspace
                stream.codec_context.color_primaries = frame.color_primaries
                stream.codec_context.color_trc = frame.color_trc
            frame.pts, frame.time_base = num_frames, Fraction(1, frame_rate)
            frame.pict_type = av.video.frame.PictureType.NONE  # the encoder decides, not the source
            container.mux(stream.encode(frame))
            num_frames += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return buffer.getvalue(), num_frames
