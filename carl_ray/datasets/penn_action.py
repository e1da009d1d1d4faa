"""Convert PennAction: frame folders and phase labels of 13 actions to videos and a manifest.

    python -m carl_ray.datasets.penn_action RAW --out FOLDER [--phase-labels FOLDER]

RAW is what `Penn_Action.tar.gz` (http://dreamdragon.github.io/PennAction/) unpacks to:

    frames/0001/000001.jpg …    one folder a video, 2,326 of them; frames are numbered from 1
    labels/0001.mat …           action (text), train (1: training, -1: test), nframes; pose, dimensions, bbox,
                                x, y and visibility are not used

It has no phase labels. The TCC authors labelled 13 of its 15 actions (not jump_rope, not strum_guitar); the
README of https://github.com/minghchen/CARL_code links their "label files", a folder `penn_action_labels` of
plain NumPy arrays, one integer a frame:

    penn_action_labels/train/ACTION/0001.npy …
    penn_action_labels/val/ACTION/0002.npy …

The folder is searched in RAW and beside it, or given by `--phase-labels`; `numpy.save` writes such files. With
it, the manifest has the videos with phase labels: the lists that CARL reports on, 1,140 to train and 966 to
test, in the split of that folder (TCC's `val` is "test"). Without it, the manifest has all videos of the 13
actions, in PennAction's own split, without frame labels. PennAction has no validation split.

Pickles can run code and are never read: neither pickled arrays nor the `train.pkl` and `val.pkl` of the
pre-processed copies. To convert such a pair from a trusted source to label files, in a shell with PyTorch:

    python -c 'import pickle, pathlib, numpy; [
        (folder := pathlib.Path("penn_action_labels", split, video["name"][5:])).mkdir(0o755, True, True)
        or numpy.save(folder / video["name"][:4], video["frame_label"])
        for split in ("train", "val") for video in pickle.load(open(split + ".pkl", "rb"))[0]]'

Output: `FOLDER/train/0001_baseball_pitch.mp4`, `FOLDER/test/…` (Motion JPEG, frames unchanged, at a nominal 25
frames a second: PennAction states no rate) and `FOLDER/manifest.parquet`. A second run skips videos that are
finished.

Left out and counted: other actions; videos without frames, without a readable .mat, without phase labels, or
with two files of them or those of another action; labels that are no phases; frames that are not whole JPEG
files or differ in size. Mended and counted: labels that are off by one or of another number of frames (see
`conversion.fit_labels`; they follow the numbers of the frames, so a missing frame moves no label), an
`nframes` that is not the number of frames, a split that is not the .mat's. Other files are ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from carl_ray import storage
from carl_ray.datasets.conversion import (
    Conversion,
    LeftOut,
    OnVideo,
    VideoFolder,
    converter_parser,
    fit_labels,
    publish,
)
from carl_ray.errors import UserError, one_line_errors
from carl_ray.progress import ProgressLine

NUM_PHASES = {
    "baseball_pitch": 4,
    "baseball_swing": 3,
    "bench_press": 2,
    "bowl": 3,
    "clean_and_jerk": 6,
    "golf_swing": 3,
    "jumping_jacks": 4,
    "pullup": 2,
    "pushup": 2,
    "situp": 2,
    "squat": 4,
    "tennis_forehand": 3,
    "tennis_serve": 4,
}
"""The 13 actions, by PennAction's names, and how many phases each has (from `tcc/dataset_splits.py`)."""

PUBLISHED = {"train": 1140, "test": 966}
"""Videos with phase labels: the sums over the 13 actions in `datasets/dataset_splits.py` of CARL_code."""

_OTHER_NAMES = {"bowling": "bowl", "pullups": "pullup", "pushups": "pushup", "squats": "squat"}
_SPLITS = {"train": "train", "val": "test"}
_LABEL_FOLDER = "penn_action_labels"
_LAYOUT = "expected what Penn_Action.tar.gz unpacks to, frames/0001/000001.jpg … and labels/0001.mat …"
_LABEL_LAYOUT = f"expected {_LABEL_FOLDER}/train/ACTION/0001.npy … and {_LABEL_FOLDER}/val/ACTION/0002.npy …"


_PhaseFile = tuple[Path, str, str]
"""A file of phase labels, with the action and split that its folders name."""


def convert(
    raw: Path,
    out: str,
    *,
    phase_labels: Path | None = None,
    on_video: OnVideo = lambda done, total: None,
) -> Conversion:
    """Write the videos of the 13 actions and collect their labels, without Ray.

    Args:
        raw: The folder with `frames` and `labels`.
        out: Path or URI of the folder for the videos.
        phase_labels: The folder with `train` and `val`; None: the one in or beside `raw`, if there is one.
        on_video: Called after each video of the download.

    Raises:
        UserError: a folder has not the expected layout.
        RunError: the storage refuses, fails or is full.
    """
    folders = {path.name: path for path in _find(raw, "frames/*/", _LAYOUT)}
    annotations = {path.stem: path for path in _find(raw, "labels/*.mat", _LAYOUT)}
    if phase_labels is None:
        candidates = (raw / _LABEL_FOLDER, raw.absolute().parent / _LABEL_FOLDER)
        phase_labels = next((folder for folder in candidates if folder.is_dir()), None)
    phases = None if phase_labels is None else _list_phase_labels(phase_labels)
    names = sorted(folders.keys() | annotations.keys() | (phases or {}).keys())
    folder, conversion = VideoFolder(out), Conversion(PUBLISHED)
    for done, name in enumerate(names, 1):
        found = None if phases is None else phases.get(name, [])
        try:
            with conversion.counting(name):
                _convert_video(name, annotations.get(name), folders.get(name), found, folder, conversion)
        except OSError as error:
            raise storage.storage_error(error, str(error.filename or raw), "read") from None
        on_video(done, len(names))
    return conversion


def _convert_video(
    name: str,
    annotation: Path | None,
    frame_folder: Path | None,
    phases: list[_PhaseFile] | None,
    folder: VideoFolder,
    conversion: Conversion,
) -> None:
    """Write one video and add its row; `phases` is None if there are no phase labels at all."""
    if annotation is None:
        raise LeftOut("no .mat file")
    action, split_of_mat, num_frames = _read_annotation(annotation)
    if action not in NUM_PHASES:
        raise LeftOut(f"{action} is not among the 13 actions")
    frames = {} if frame_folder is None else _list_frames(frame_folder)
    if not frames:
        raise LeftOut("no frames")
    split, frame_labels, notes = split_of_mat, None, list[str]()
    if phases is not None:
        if len(phases) != 1:
            raise LeftOut("more than one file of phase labels" if phases else "no phase labels")
        ((path, labelled_action, split),) = phases
        if labelled_action != action:
            raise LeftOut("its phase labels are in the folder of another action")
        # Frames are numbered from 1, or from 0 in copies that were extracted anew.
        first = min(1, *frames)
        numbers = [number - first for number in frames]
        frame_labels, notes = fit_labels(_read_phase_labels(path), numbers, num_frames, NUM_PHASES[action])
    if split != split_of_mat:
        notes.append("the split of the phase labels is not that of the .mat file; the former counts")
    if num_frames != len(frames):
        notes.append("`nframes` is not the number of frames")
    video_id = f"{split}/{name}_{action}.mp4"
    folder.add(video_id, (path.read_bytes() for path in frames.values()))
    conversion.add(video_id, split, action, frame_labels, *notes)


def _find(folder: Path, pattern: str, layout: str) -> list[Path]:
    """Paths that match, sorted, without hidden ones such as .DS_Store and ._0001.mat.

    Raises:
        UserError: there are none.
    """
    found = [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]
    if not found:
        raise UserError(f"{folder}: {layout}; nothing there is named {pattern}")
    return found


def _list_phase_labels(folder: Path) -> dict[str, list[_PhaseFile]]:
    """Find the files of phase labels, by the name of the video; each should have one.

    Raises:
        UserError: the folder has another layout, or no files.
    """
    found: dict[str, list[_PhaseFile]] = {}
    for folder_name, split in _SPLITS.items():
        for path in _find(folder, f"{folder_name}/*/*.npy", _LABEL_LAYOUT):
            found.setdefault(path.stem, []).append((path, _action(path.parent.name), split))
    return found


def _list_frames(folder: Path) -> dict[int, Path]:
    """List frame files by their number, ascending; other names than numbers are ignored."""
    frames = {
        int(path.stem): path
        for path in folder.iterdir()
        if path.suffix.lower() in (".jpg", ".jpeg") and path.stem.isdecimal()
    }
    return dict(sorted(frames.items()))


def _action(name: str) -> str:
    """Translate a name of an action to PennAction's own; TCC uses the plural of some."""
    name = name.strip().lower().replace(" ", "_")
    return _OTHER_NAMES.get(name, name)


def _read_annotation(path: Path) -> tuple[str, str, int]:
    """Read action, split and number of frames of a .mat file (MATLAB 5).

    Raises:
        LeftOut: the file cannot be read or lacks a field.
    """
    # Lazy import: --help and usage errors do not need it.
    from scipy.io import loadmat

    names = ("action", "train", "nframes")
    try:
        fields = loadmat(path, variable_names=names)
        action, train, num_frames = (np.asarray(fields[name]).reshape(-1)[0] for name in names)
        return _action(str(action)), {1: "train", -1: "test"}[int(train)], int(num_frames)
    except Exception:  # scipy raises whatever a damaged file leads it to
        raise LeftOut("its .mat file cannot be read") from None


def _read_phase_labels(path: Path) -> list[int]:
    """Read the phase of every labelled frame.

    Raises:
        LeftOut: the file holds no array of integers.
    """
    try:
        labels = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise LeftOut("its phase labels are no plain NumPy array (pickled ones are not read)") from None
    if not isinstance(labels, np.ndarray) or labels.size == 0 or labels.size != max(labels.shape, default=0):
        raise LeftOut("its phase labels are not one number a frame")
    if labels.dtype.kind not in "iuf" or np.any(labels != np.floor(labels)):
        raise LeftOut("its phase labels are no integers")
    return [int(label) for label in labels.reshape(-1)]


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        parser = converter_parser("penn_action", __doc__, raw="folder with frames/ and labels/")
        parser.add_argument(
            "--phase-labels",
            type=Path,
            metavar="FOLDER",
            help=f"folder with train/ and val/; default: {_LABEL_FOLDER} in or beside RAW",
        )
        options = parser.parse_args(arguments)
        on_video = ProgressLine("converted")
        raw, phase_labels = Path(options.raw), options.phase_labels
        conversion = convert(raw, options.out, phase_labels=phase_labels, on_video=on_video)
        publish(conversion, options.raw, options.out, "penn_action")


if __name__ == "__main__":
    main()
