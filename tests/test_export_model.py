"""The command `export-model`: the folder, its card, the hub, ONNX."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub.constants as hub
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import carl_ray
from carl_ray import evaluate, export_model
from carl_ray.data.features import model_input
from carl_ray.evaluation.embeddings import write_part
from carl_ray.model import onnx
from carl_ray.training.checkpoint import checkpoint_at, initial_weights, load_encoder
from tests.embedded import failure
from tests.test_evaluate import ORIGIN, videos

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, with the metrics of other embeddings and ONNX files."""
    folder = tmp_path_factory.mktemp("exported")
    embeddings = str(folder / "embeddings")
    write_part(embeddings, videos("train", 4) + videos("test", 3), ORIGIN, "float16")
    evaluate.main(["--train", embeddings, "--test", embeddings, "--out", str(folder / "evaluation")])
    arguments = ["--out", str(folder / "model"), "--evaluation", str(folder / "evaluation"), "--onnx"]
    export_model.main([str(tiny_run), *arguments])
    return folder / "model"


def test_the_encoder_is_the_same(exported: Path, tiny_run: Path) -> None:
    expected = carl_ray.load_encoder(str(tiny_run)).embed(FRAMES)
    assert np.array_equal(carl_ray.load_encoder(str(exported)).embed(FRAMES), expected)
    config = checkpoint_at(str(tiny_run)).config
    assert "tensors of the encoder, 0 of the" in initial_weights(config, str(exported)).report


def test_the_card(exported: Path) -> None:
    _, header, text = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "carl_ray"
    for expected in ("# model\n", "| objective | scl |", "| steps | 3 |", "the rendered videos of the demo"):
        assert expected in text
    (row,) = (line for line in text.splitlines() if line.startswith("| Kendall's tau"))
    assert row.count("|") == 6 and row.count("[") >= 3, "trained and three controls, with intervals"


def test_the_hub(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--lab--squats"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(exported, repository / "snapshots" / ("0" * 40))
    embedded = carl_ray.load_encoder("hf://lab/squats").embed(FRAMES)
    assert np.array_equal(embedded, carl_ray.load_encoder(str(exported)).embed(FRAMES))
    with pytest.raises(
        carl_ray.errors.RunError, match=r"hf://lab/other: could not reach the Hugging Face hub"
    ):
        carl_ray.load_encoder("hf://lab/other")
    assert "expected OWNER/NAME" in failure(capsys, export_model, "hf://a/b/c", "--out", tmp_path)
    export_model.main(["hf://lab/squats", "--out", str(tmp_path / "again")])
    embedded = carl_ray.load_encoder(str(tmp_path / "again")).embed(FRAMES)
    assert np.array_equal(embedded, carl_ray.load_encoder(str(exported)).embed(FRAMES))


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push and a pull need: repositories, commits, files by name."""

    files: ClassVar[dict[str, bytes]] = {}
    private: ClassVar[dict[str, bool]] = {}
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.status != 200 or self.headers["Authorization"] != "Bearer hf_token":
            return self.answer({"error": "no"}, status=self.status if self.status != 200 else 401)
        if self.path == "/api/repos/create":
            settings = json.loads(body)  # Named by the version of huggingface_hub.
            self.private["lab/squats"] = settings.get("visibility") == "private" or settings.get("private")
            return self.answer({"url": "https://huggingface.co/lab/squats"})
        if self.path == "/api/validate-yaml":
            ModelCard(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if self.path.startswith("/api/models/lab/squats/preupload/"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            )
        assert self.path.startswith("/api/models/lab/squats/commit/main"), self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": "https://huggingface.co/lab/squats/commit/1", "commitOid": "1" * 40})

    def do_GET(self) -> None:
        repository, _, name = self.path.removeprefix("/").partition("/resolve/main/")
        content = self.files.get(name) if repository == "lab/squats" else None
        self.answer(content or {}, status=404 if content is None else 200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, content: object, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.send_response(status)
        for key, value in {"Content-Length": len(data), "ETag": etag, "X-Repo-Commit": "1" * 40}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(data if self.command != "HEAD" else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "ENDPOINT", url)
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(Hub, "status", 200)
    yield Hub
    server.shutdown()


def test_push_and_pull(
    tiny_run: Path,
    tmp_path: Path,
    hub_server: type[Hub],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        str(tiny_run),
        "--push",
        "hf://lab/squats",
        "--out",
        str(tmp_path / "model"),
        "--license",
        "mit",
    ]
    export_model.main(arguments)
    assert (
        "commit: https://huggingface.co/lab/squats/commit/1\nmodel: hf://lab/squats\n"
        in capsys.readouterr().out
    )
    assert hub_server.private == {"lab/squats": True}
    assert hub_server.files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert ModelCard(hub_server.files["README.md"].decode()).data.license == "mit"
    embedded = carl_ray.load_encoder("hf://lab/squats").embed(FRAMES)
    assert np.array_equal(embedded, carl_ray.load_encoder(str(tiny_run)).embed(FRAMES))

    monkeypatch.setattr(Hub, "status", 403)
    with pytest.raises(SystemExit) as left:
        export_model.main(arguments)
    message = capsys.readouterr().err
    assert left.value.code == 1 and "could not write to the Hugging Face hub" in message
    assert message.endswith("gives a token that may write there\n")
    assert "hf_token" not in message and message.count("\n") == 1


def test_the_card_by_the_rules_of_the_hub(exported: Path, tiny_run: Path) -> None:
    """Its fields by the hub's own classes; whether a licence is a known one, only the hub's server checks."""
    data = ModelCard.load(exported / "README.md").data
    document = json.loads((exported.parent / "evaluation" / "metrics.json").read_text())
    assert (data.library_name, data.pipeline_tag, data.model_name) == (
        "carl_ray",
        "feature-extraction",
        "model",
    )
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert len(values) > 5 and all(document["trained"][name]["value"] == values[name] for name in values)
    assert all(result.dataset_split == "test" for result in data.eval_results)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(["validation"], "validation"), (["validation", "test"], "test+validation"), ([None], None)],
)
def test_the_card_names_the_measured_splits(
    tiny_run: Path, tmp_path: Path, splits: list[str | None], expected: str | None
) -> None:
    write_part(str(tmp_path / "train"), videos("train", 4), ORIGIN, "float16")
    measured = [replace(video, split=split) for split in splits for video in videos(split or "other", 3)]
    write_part(str(tmp_path / "measured"), measured, ORIGIN, "float16")
    folders = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "measured")]
    evaluate.main([*folders, "--out", str(tmp_path / "evaluation")])
    arguments = ["--out", str(tmp_path / "model"), "--evaluation", str(tmp_path / "evaluation")]
    export_model.main([str(tiny_run), *arguments])
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {expected}


def test_a_damaged_file(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(carl_ray.errors.RunError, match="damaged"):
        carl_ray.load_encoder(str(tmp_path / "model"))


def test_onnx_of_any_length(exported: Path, tiny_run: Path) -> None:
    encoder = load_encoder(checkpoint_at(str(tiny_run)))
    backbone, temporal = (
        onnxruntime.InferenceSession(exported / f"{name}.onnx") for name in ("backbone", "temporal")
    )
    for length in (1, 5, 40):
        frames = torch.randn(length, 3, 16, 16)
        (features,) = backbone.run(None, {"frames": frames.numpy()})
        (embeddings,) = temporal.run(None, {"features": features})
        expected = encoder.embed_features(torch.cat(list(encoder.frame_features([frames]))))
        np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-5)


def test_onnx_of_fields_of_a_frame_with_their_motion(tiny_run: Path) -> None:
    config = checkpoint_at(str(tiny_run)).config
    model = replace(config.model, pooling="grid", cut_stages=1, centered=True, motion="difference")
    encoder = onnx.FrameLevelVideoEncoder(model).eval()
    files = onnx.onnx_files(encoder, 40)
    backbone, temporal = (onnxruntime.InferenceSession(files[f"{n}.onnx"]) for n in ("backbone", "temporal"))
    frames = torch.randn(9, 3, 40, 40)  # Maps of 5 x 5: fields overlap.
    (features,) = backbone.run(None, {"frames": frames.numpy()})
    assert features.shape == (9, encoder.backbone.pooled_channels)
    seen = model_input(features, model)
    (embeddings,) = temporal.run(None, {"features": seen})
    expected = encoder.embed_features(torch.from_numpy(seen)).detach()
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-5)


def test_mistakes(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out missing" in failure(capsys, export_model, tiny_run)
    assert "hf://OWNER/NAME" in failure(capsys, export_model, tiny_run, "--push", "squats")
    assert "hf://OWNER/NAME" in failure(capsys, export_model, tiny_run, "--push", "hf://a/b/c")
    message = failure(capsys, export_model, tiny_run, "--out", tmp_path, "--evaluation", tmp_path)
    assert "metrics.json: no such file" in message
    config = checkpoint_at(str(tiny_run)).config
    with pytest.raises(carl_ray.errors.UserError, match="c3d"):
        onnx.onnx_files(onnx.FrameLevelVideoEncoder(replace(config.model, temporal_encoder="c3d")), 16)
