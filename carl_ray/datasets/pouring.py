"""Convert Pouring: the TFRecords of the TCC authors to videos and a manifest.

    python -m carl_ray.datasets.pouring RAW --out FOLDER

RAW is a folder with the three files that `tcc/dataset_preparation/download_pouring_data.sh` of
https://github.com/google-research/google-research fetches from https://storage.googleapis.com/tcc-pouring/:

    pouring_train-0-of-2.tfrecord  pouring_train-1-of-2.tfrecord    70 videos
    pouring_val-0-of-1.tfrecord                                     14 videos

Each record is a `tf.train.SequenceExample`: in the context `name` (bytes) and `len` (int64, frames), in the
feature lists `video` (one JPEG file a frame) and `frame_labels` (int64, the phase of a frame, 0 to 4).
`tcc/dataset_preparation/dataset_utils.py` writes this format and `tcc/datasets.py` reads it.

Output: `FOLDER/train/NAME.mp4` and `FOLDER/test/NAME.mp4` (Motion JPEG, frames unchanged, at a nominal 25 frames
a second: the records state no rate) and `FOLDER/manifest.parquet`. Every video has the label "pouring". CARL
tests on TCC's `val`: it becomes the split "test", and there is no validation split. A second run skips videos
that are finished.

Left out and counted: records without frames, or with an unsafe or repeated name; frames that are not whole JPEG
files or differ in size; labels that are no phases. Mended and counted: labels of another number of frames (see
`conversion.fit_labels`), no labels (null in the manifest), a `len` that is not the number of frames. A damaged
or missing file ends the conversion.
"""

from __future__ import annotations

from pathlib import Path

from carl_ray.datasets.conversion import (
    Conversion,
    LeftOut,
    OnVideo,
    VideoFolder,
    check_file_name,
    converter_parser,
    fit_labels,
    publish,
)
from carl_ray.datasets.tfrecord import SequenceExample, read_sequence_examples
from carl_ray.errors import UserError, one_line_errors
from carl_ray.progress import ProgressLine

NUM_PHASES = 5
"""From `tcc/dataset_splits.py`."""

PUBLISHED = {"train": 70, "test": 14}
"""Videos in the records, from `tcc/dataset_splits.py` (70, val 14) and section 4.1 of the CARL paper."""

_SHARDS = (
    ("train", "pouring_train-0-of-2.tfrecord"),
    ("train", "pouring_train-1-of-2.tfrecord"),
    ("test", "pouring_val-0-of-1.tfrecord"),
)


def convert(raw: Path, out: str, *, on_video: OnVideo = lambda done, total: None) -> Conversion:
    """Write the videos of the records into a folder and collect their labels, without Ray.

    Args:
        raw: The folder with the TFRecord files.
        out: Path or URI of the folder for the videos.
        on_video: Called after each record.

    Raises:
        UserError: `raw` has not the expected files, or one of them is damaged.
        RunError: the storage refuses, fails or is full.
    """
    shards = _shards(raw)
    folder, conversion = VideoFolder(out), Conversion(PUBLISHED)
    seen: set[str] = set()
    examples = (
        (split, f"{path.name}:{number}", example)
        for split, path in shards
        for number, example in enumerate(read_sequence_examples(path))
    )
    for done, (split, place, example) in enumerate(examples, 1):
        with conversion.counting(place):
            video = f"{split}/{_name(example)}"
            with conversion.counting(video):
                if video in seen:
                    raise LeftOut("another record of its split has the same name")
                seen.add(video)
                _convert_record(example, f"{video}.mp4", split, folder, conversion)
        on_video(done, 0)
    return conversion


def _shards(raw: Path) -> list[tuple[str, Path]]:
    """List (split, file) of every shard, in order.

    Raises:
        UserError: files are missing.
    """
    missing = [name for _, name in _SHARDS if not (raw / name).is_file()]
    if missing:
        raise UserError(f"{raw}: expected the TCC authors' files; there is no {', '.join(missing)}")
    return [(split, raw / name) for split, name in _SHARDS]


def _name(example: SequenceExample) -> str:
    value = next(iter(example.context.get("name", [])), b"")
    # What is no UTF-8 becomes unprintable, which no file name may be.
    name = value.decode(errors="surrogateescape") if isinstance(value, bytes) else ""
    check_file_name(name)
    return name


def _convert_record(
    example: SequenceExample, video_id: str, split: str, folder: VideoFolder, conversion: Conversion
) -> None:
    steps = [next(iter(step), b"") for step in example.feature_lists.get("video", [])]
    frames = [step for step in steps if isinstance(step, bytes)]
    if not frames or len(frames) != len(steps):
        raise LeftOut("it has no frames")
    steps_of_labels = example.feature_lists.get("frame_labels", [])
    labels = [label for step in steps_of_labels for label in step if isinstance(label, int)]
    frame_labels, notes = None, ["no frame labels"]
    if labels:
        frame_labels, notes = fit_labels(labels, range(len(frames)), len(frames), NUM_PHASES)
    if example.context.get("len") != [len(frames)]:
        notes.append("`len` is not the number of frames")
    folder.add(video_id, frames)
    conversion.add(video_id, split, "pouring", frame_labels, *notes)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        parser = converter_parser("pouring", __doc__, raw="folder with the TFRecord files")
        options = parser.parse_args(arguments)
        conversion = convert(Path(options.raw), options.out, on_video=ProgressLine("converted"))
        publish(conversion, options.raw, options.out, "pouring")


if __name__ == "__main__":
    main()
