import pytest
import torch

from carl_ray.layers.heads import gather_real, real_frame_index, scatter_real
from carl_ray.model.temporal import (
    TransformerEncoder,
    frame_positions,
    sine_cosine_code,
)


def mask(*lengths, time):
    return torch.arange(time)[None, :] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("length", [2, 5, 8, 13, 16])
def test_positions_are_spread_over_those_of_a_view_whatever_the_padding(length):
    for time in (length, 16, 30):
        positions = frame_positions(mask(length, time=time), 8)[0, :length]
        torch.testing.assert_close(positions, torch.linspace(0, 7, length))


def test_positions_follow_the_real_frames_of_any_mask():
    holes = torch.tensor([[False, True, False, True, True, False]])
    assert frame_positions(holes, 5)[holes].tolist() == [0, 2, 4]
    single = frame_positions(mask(1, 0, time=4), 8)
    assert single[0, 0] == 0 and single.isfinite().all()


def test_code_is_the_sines_and_cosines_of_the_positions():
    code = sine_cosine_code(torch.tensor([[0.0, 3.5]]), 6)
    assert code.shape == (1, 2, 6)
    assert code[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    angle = torch.tensor(3.5 / 10000 ** (2 / 6))
    torch.testing.assert_close(code[0, 1, 2:4], torch.stack([angle.sin(), angle.cos()]))


def test_scatter_undoes_gather():
    real = mask(3, 0, 4, time=4)
    x = torch.arange(12.0).view(3, 4, 1)
    index = real_frame_index(real)
    assert gather_real(x, index).flatten().tolist() == [0, 1, 2, 8, 9, 10, 11]
    assert torch.equal(scatter_real(gather_real(x, index), index, 3, 4), x.where(real[:, :, None], 0))


def test_attention_does_not_see_padding():
    torch.manual_seed(0)
    encoder = TransformerEncoder(2, 16, 4, 32).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    real = mask(4, 6, time=6)
    expected = encoder(x[:1, :4], mask(4, time=4))
    got = encoder(x.masked_fill(~real[:, :, None], 1e3), real)
    torch.testing.assert_close(got[:1, :4], expected)
    # Frames do see each other: otherwise the comparison above says nothing.
    assert not torch.allclose(encoder(x[:1, :3], mask(3, time=3)), expected[:, :3])


def test_a_video_without_frames_gives_no_nan():
    encoder = TransformerEncoder(1, 16, 4, 32)
    output = encoder(torch.zeros(2, 3, 16), mask(0, 3, time=3))
    output.sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_layers_equal_torchs_pre_norm_encoder():
    torch.manual_seed(0)
    ours = TransformerEncoder(1, 16, 4, 32).eval()
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0, norm_first=True, batch_first=True).eval()
    own = ours.layers[0]
    pairs = [
        (layer.norm1, own.attention_norm),
        (layer.self_attn.out_proj, own.attention_output),
        (layer.norm2, own.feedforward_norm),
        (layer.linear1, own.feedforward_in),
        (layer.linear2, own.feedforward_out),
    ]
    for theirs, module in pairs:
        theirs.load_state_dict(module.state_dict())
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(own.query_key_value.weight)
        layer.self_attn.in_proj_bias.copy_(own.query_key_value.bias)
        x = torch.randn(2, 5, 16)
        real = mask(5, 3, time=5)
        expected = ours.norm(layer(x, src_key_padding_mask=~real))
        torch.testing.assert_close(ours(x, real)[real], expected[real], rtol=1e-4, atol=1e-5)
