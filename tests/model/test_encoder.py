import pytest
import torch

from carl_ray.config import ModelConfig
from carl_ray.layers.dropout import dropout_mask
from carl_ray.layers.heads import ProjectionHead
from carl_ray.layers.normalization import BatchNorm
from carl_ray.model.encoder import FrameLevelVideoEncoder

TIME = 6


def config(**fields):
    defaults = {
        "num_frames": TIME,
        "backbone": "small",
        "weights": "random",
        "hidden_width": 32,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "feedforward_width": 48,
    }
    return ModelConfig(**(defaults | fields))


def build(seed=0, **fields):
    torch.manual_seed(seed)
    model = config(**fields)
    return FrameLevelVideoEncoder(model), ProjectionHead(model.embedding_width, model.batch_norm)


def frames(*shape, seed=0):
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def real(*lengths, time=TIME):
    return torch.arange(time)[None, :] < torch.tensor(lengths)[:, None]


def padded(x, time, value):
    """The same videos with padding up to `time` frames."""
    filler = torch.full((x.shape[0], time - x.shape[1], *x.shape[2:]), value)
    return torch.cat([x, filler], 1)


VARIANTS = [
    {},
    {"backbone": "resnet18"},
    {"temporal_encoder": "none"},
    {"temporal_encoder": "c3d"},
    {"num_layers": 0},
    {"pooling": "average"},
    {"pooling": "grid"},
    {"cut_stages": 1},
    {"batch_norm": "local", "learnable": "all"},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_shapes_and_padded_outputs(fields):
    encoder, head = build(**fields)
    mask = real(TIME, 4)
    h = encoder(frames(2, TIME), mask)
    z = head(h, mask)
    for output in (h, z):
        assert output.shape == (2, TIME, 128)
        assert output.dtype == torch.float32
        assert output.isfinite().all()
        assert not output[1, 4:].any()
        assert output[mask].any(1).all()


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(fields, training):
    """Embeddings, batch-norm statistics and gradients, with dropout by seeds where it trains."""
    videos, mask, seeds = frames(2, 5), real(5, 3, time=5), torch.tensor([11, 12])
    results = []
    for time in (5, 9, 20):
        encoder, head = build(**fields)
        encoder.train(training)
        head.train(training)
        filled = torch.cat([mask, torch.zeros(2, time - 5, dtype=torch.bool)], 1)
        h = encoder(padded(videos, time, 1e4), filled, sample_seeds=seeds)
        z = head(h, filled)
        z[:, :3].square().sum().backward()
        gradients = [p.grad for p in [*encoder.parameters(), *head.parameters()] if p.requires_grad]
        results.append((h[:, :5], z[:, :5], list(encoder.buffers()), gradients))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other[0], results[0][0], rtol=1e-5, atol=1e-5)


def test_padded_pixels_are_never_seen():
    encoder, head = build()
    mask = real(TIME, 3)
    seeds = torch.tensor([1, 2])
    outputs = []
    for value in (0.0, float("nan")):
        encoder, head = build()
        x = frames(2, TIME)
        x[1, 3:] = value
        outputs.append(head(encoder(x, mask, sample_seeds=seeds), mask))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("lengths", [(0, TIME), (0, 0)])
@pytest.mark.parametrize("fields", [*VARIANTS, {"learnable": "none"}], ids=str)
def test_masked_videos_give_zeros_and_every_parameter_a_finite_gradient(fields, lengths):
    encoder, head = build(**fields)
    before = [buffer.clone() for buffer in encoder.buffers()]
    mask = real(*lengths)
    h = encoder(frames(2, TIME), mask, sample_seeds=torch.tensor([1, 2]))
    z = head(h, mask)
    assert not h[0].any()
    assert not z[0].any()
    z.square().sum().backward()
    gradients = [p.grad for p in [*encoder.parameters(), *head.parameters()] if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    if not any(lengths):
        assert not any(gradient.any() for gradient in gradients)
        assert all(torch.equal(a, b) for a, b in zip(encoder.buffers(), before, strict=True))


def test_a_whole_video_at_once():
    """At twice T the endpoints have the positions of T's endpoints."""
    encoder, _ = build(temporal_encoder="transformer", num_layers=0)
    encoder.eval()
    still = frames(1, 1)
    short = encoder(still.expand(1, TIME, -1, -1, -1), real(TIME))
    long = encoder(still.expand(1, 2 * TIME, -1, -1, -1), real(2 * TIME, time=2 * TIME))
    torch.testing.assert_close(long[0, [0, -1]], short[0, [0, -1]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(long[0, 1], short[0, 1], atol=1e-3)


@pytest.mark.parametrize("fields", [{}, {"temporal_encoder": "c3d"}], ids=str)
def test_frames_of_a_video_see_each_other(fields):
    encoder, _ = build(**fields)
    encoder.eval()
    x = frames(2, TIME)
    other = x.clone()
    other[0, 5] = frames(1, seed=9)[0]
    before, after = encoder(x, real(6, 6)), encoder(other, real(6, 6))
    assert not torch.allclose(before[0, 4], after[0, 4], atol=1e-5)
    torch.testing.assert_close(before[1], after[1])


def test_sizes_of_the_papers_model():
    with torch.device("meta"):
        encoder = FrameLevelVideoEncoder(ModelConfig())
        head = ProjectionHead(128, "synchronized")

    def count(module, learnable=False):
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not learnable)

    assert count(encoder.backbone) == 23_508_032, "ResNet-50 without its classifier"
    assert count(encoder.backbone, learnable=True) == 14_964_736, "layer4"
    layer = 4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
    assert count(encoder.transformer) == 3 * layer + 512
    dense = 2048 * 512 + 512 * 512 + 2 * 2 * 512 + 512 * 256 + 256 + 256 * 128 + 128
    assert count(encoder) - count(encoder.backbone) - count(encoder.transformer) == dense
    assert count(head) == 2 * 128 * 128 + 128 + 2 * 128


def test_dropout_does_not_depend_on_the_batch():
    """Statistics frozen, so that dropout alone could tie a video to its neighbours."""
    encoder, _ = build(batch_norm="frozen", dropout=0.5)
    x, seeds, mask = frames(3, TIME), torch.tensor([5, 2**62 + 1, -7]), real(TIME, 4, TIME)
    together = encoder(x, mask, sample_seeds=seeds)
    for order in ([1], [2, 1], [2, 0, 1]):
        some = encoder(x[order], mask[order], sample_seeds=seeds[order])
        torch.testing.assert_close(some, together[order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(x, mask, sample_seeds=seeds + 1), together, atol=1e-3)
    encoder.eval()
    assert torch.equal(encoder(x, mask, sample_seeds=seeds), encoder(x, mask))


def test_dropout_masks_look_independent():
    seeds = torch.arange(4).repeat_interleave(64)
    positions = torch.arange(64).repeat(4)
    masks = [dropout_mask(seeds, layer, positions, 512, 0.1).double() for layer in (0, 1)]
    for mask in masks:
        assert mask.mean().item() == pytest.approx(0.9, abs=0.004)  # 131,072 draws: 5 deviations
        assert mask.mean(0).sub(0.9).abs().max() < 0.1  # 256 draws a channel
        assert mask.mean(1).sub(0.9).abs().max() < 0.07  # 512 draws a frame
    # Rows of different seeds, positions and layers are uncorrelated.
    rows = torch.cat(masks)
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 0.3
    assert correlations.square().mean().item() == pytest.approx(1 / 512, rel=0.1)


def test_all_bits_of_a_seed_count():
    seeds = torch.tensor([0, 1, 1 << 40, 1 << 62, -1])
    masks = dropout_mask(seeds, 0, torch.zeros(5, dtype=torch.int64), 512, 0.5).flatten(1)
    assert len(masks.unique(dim=0)) == len(seeds)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("sizes", [(11,), (4, 1, 6), (1, 1, 1, 8), (3, 3, 3, 2), (1,)], ids=str)
def test_a_video_in_pieces_is_the_whole_video(fields, sizes):
    encoder = build(**fields, chunk_frames=5)[0].eval()
    for module in encoder.modules():
        if isinstance(module, BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    video = frames(1, sum(sizes))
    with torch.no_grad():
        whole = encoder(video, real(sum(sizes), time=sum(sizes)))[0]
    features = torch.cat(list(encoder.frame_features(video[0].split(list(sizes)))))
    torch.testing.assert_close(encoder.embed_features(features), whole, rtol=1e-4, atol=1e-5)


def test_a_video_in_pieces_needs_evaluation_mode():
    with pytest.raises(ValueError, match="evaluation mode"):
        next(build()[0].frame_features([frames(2)]))
