import pytest
import torch
from torch import nn

from carl_ray.layers import normalization
from carl_ray.layers.normalization import BatchNorm
from tests.samples import run_workers

SHAPES = [(7, 5), (7, 5, 3, 2)]


def values(shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng) * 3 + 40


def layer(mode, channels=5):
    module = BatchNorm(channels, mode)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        module.weight.uniform_(0.5, 2, generator=rng)
        module.bias.uniform_(-1, 1, generator=rng)
        module.running_mean.normal_(generator=rng)
        module.running_var.uniform_(0.5, 2, generator=rng)
    return module


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["local", "synchronized"])
def test_one_worker_is_torchs_own(shape, mode):
    ours = layer(mode)
    reference = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    reference.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        ours.train(training)
        reference.train(training)
        x = values(shape)
        torch.testing.assert_close(ours(x), reference(x))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_and_gradients_in_parts_are_torchs_own(layout, monkeypatch):
    monkeypatch.setattr(normalization, "_PART_VALUES", 70)  # of 30 a frame
    ours, reference = layer("synchronized").double(), nn.BatchNorm2d(5).double()
    reference.load_state_dict(ours.state_dict())
    found = []
    for module in (ours, reference):
        x = values((7, 5, 3, 2)).double().to(memory_format=layout).requires_grad_()
        output = module.train()(x)
        output.backward(values((7, 5, 3, 2), seed=2).double())
        found.append([output, x.grad, module.weight.grad, module.bias.grad, module.running_var])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_uses_and_keeps_the_stored_statistics():
    module = layer("frozen").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = values((7, 5))
    normalised = (x - module.running_mean) / (module.running_var + module.eps).sqrt()
    torch.testing.assert_close(module(x), normalised * module.weight + module.bias)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("mode", ["local", "synchronized"])
@pytest.mark.parametrize("count", [0, 1])
def test_too_few_values_fall_back_to_the_stored_statistics(mode, count):
    module = layer(mode).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = values((count, 5)).requires_grad_()
    output = module(x)
    output.sum().backward()
    torch.testing.assert_close(output, module.eval()(x))
    assert module.weight.grad is not None
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


# Rows of each of two workers, out of 7.
SHARES = {
    "uneven": [(0, 2), (2, 7)],
    "none on one": [(0, 7), (7, 7)],
    "one in all": [(0, 0), (0, 1)],
    "nothing": [(0, 0)] * 2,
}


def run(module, x, start):
    """One training step on rows of a batch whose loss weighs every output differently."""
    x = x.clone().requires_grad_()
    output = module(x)
    # Weights by the row's number in the union, so that both ways of computing have the same loss.
    weight = (values((7, *x.shape[1:]), seed=2) - 40)[start : start + len(x)].to(output.dtype)
    (output * weight).sum().backward()
    return {
        "output": output.detach(),
        "input": x.grad,
        "weight": module.weight.grad,
        "bias": module.bias.grad,
    }


def _worker(rank, _):
    answers = {}
    for shape in SHAPES:
        for name, bounds in SHARES.items():
            for dtype in (torch.float32, torch.bfloat16):
                start, stop = bounds[rank]
                module = layer("synchronized").train()
                x = values(shape)[start:stop].to(dtype)
                if len(shape) == 4:
                    x = x.contiguous(memory_format=torch.channels_last)
                answers[len(shape), name, dtype] = run(module, x, start) | {"state": module.state_dict()}
    return answers


def test_two_workers_equal_one_over_the_union():
    first, second = run_workers(_worker, 2)
    for shape in SHAPES:
        for name, bounds in SHARES.items():
            start, stop = bounds[0][0], bounds[1][1]
            module = layer("local").double().train()
            exact = run(module, values(shape)[start:stop].double(), start)
            expected = {part: value.float() for part, value in exact.items()}
            a, b = first[len(shape), name, torch.float32], second[len(shape), name, torch.float32]
            for part in ("output", "input"):
                torch.testing.assert_close(
                    torch.cat([a[part], b[part]]), expected[part], rtol=1e-4, atol=1e-4
                )
            for part in ("weight", "bias"):
                torch.testing.assert_close(a[part] + b[part], expected[part], rtol=1e-4, atol=1e-4)
            for buffer, value in module.state_dict().items():
                assert torch.equal(a["state"][buffer], b["state"][buffer])
                torch.testing.assert_close(a["state"][buffer], value.to(a["state"][buffer].dtype))
            half = first[len(shape), name, torch.bfloat16], second[len(shape), name, torch.bfloat16]
            assert half[0]["output"].dtype == torch.bfloat16
            for part in ("output", "input"):
                got = torch.cat([half[0][part], half[1][part]]).float()
                torch.testing.assert_close(
                    got, expected[part], rtol=0.1, atol=2.0 if part == "input" else 0.2
                )


def test_statistics_are_float32_under_bf16():
    module = layer("synchronized").train()
    x = values((7, 5)).bfloat16()
    module(x)
    reference = layer("synchronized").train()
    reference(x.float())
    assert module.running_mean.dtype == torch.float32
    torch.testing.assert_close(module.running_mean, reference.running_mean)
    torch.testing.assert_close(module.running_var, reference.running_var)
