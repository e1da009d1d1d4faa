"""ONNX files of an encoder, checked against torch: the backbone of frames, and the layers over time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from carl_ray.errors import RunError, UserError
from carl_ray.model.encoder import FrameLevelVideoEncoder

_TOLERANCE = 1e-3
_LENGTHS = (1, 7)


class _FrameFeatures(nn.Module):
    def __init__(self, encoder: FrameLevelVideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> Tensor:
        backbone = self.encoder.backbone
        for name in (*backbone.frozen, *backbone.learnable):
            frames = backbone.get_submodule(name)(frames)
        return backbone.pool(frames)


class _Embeddings(nn.Module):
    def __init__(self, encoder: FrameLevelVideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.encoder.embed_features(features)
        return embeddings


def onnx_files(encoder: nn.Module, image_size: int) -> dict[str, bytes]:
    """`backbone.onnx` and `temporal.onnx` by name; any number of frames passes both.

    `backbone.onnx` computes features (N, C) of normalised `frames` (N, 3, size, size), `temporal.onnx` embeddings
    (T, D), not L2-normalised, of the `features` of one video, (T, C) or, where the model is told of their motion, as
    `carl_ray.data.features.model_input` makes them.

    Raises:
        UserError: onnx, onnxscript or onnxruntime are missing, or the encoder sees clips or convolves over time.
        RunError: onnxruntime computes something else than torch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch needs it)
    except ImportError as error:
        raise UserError(f"--onnx: {error}: pip install 'carl_ray[onnx]'") from None
    if not isinstance(encoder, FrameLevelVideoEncoder) or encoder.convolutions is not None:
        raise UserError(
            "--onnx: temporal_encoder c3d and clip mix neighbouring frames; they are not exported"
        )
    encoder = encoder.eval()
    parts: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "backbone": (_FrameFeatures(encoder), (3, image_size, image_size)),
        "temporal": (_Embeddings(encoder), (encoder.input_channels,)),
    }
    files = {}
    for part, (module, shape) in parts.items():
        taken = "frames" if part == "backbone" else "features"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{part}.onnx")
            torch.onnx.export(
                module.eval(),
                (torch.zeros(2, *shape),),
                path,
                input_names=[taken],
                output_names=["features" if part == "backbone" else "embeddings"],
                dynamic_shapes=({0: torch.export.Dim("length")},),
                external_data=False,
                verbose=False,
            )
            files[path.name] = path.read_bytes()
        session = onnxruntime.InferenceSession(files[path.name])
        draw = torch.Generator().manual_seed(0)
        for length in _LENGTHS:
            example = torch.randn(length, *shape, generator=draw)
            with torch.no_grad():
                expected = module(example)
            (computed,) = session.run(None, {taken: example.numpy()})
            difference = float(
                (torch.from_numpy(computed) - expected).abs().max() / expected.abs().max().clamp(min=1)
            )
            if not difference < _TOLERANCE:
                raise RunError(
                    f"{path.name}: onnxruntime differs from torch by {difference:.2g}, relative to the largest"
                )
    return files
