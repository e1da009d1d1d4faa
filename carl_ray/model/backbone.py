"""Freezing, chunks and folded batch norm around the network that sees single frames or clips."""

from __future__ import annotations

import copy
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from carl_ray.config import LEARNABLE_NAMES, ModelConfig, Pooling
from carl_ray.errors import UserError
from carl_ray.layers.normalization import BatchNorm
from carl_ray.model.networks import Chain, Network, TimmNetwork, build_network, cut, outcome_shape

GRID = 3
"""Fields of a map along its height and its width, for `model.pooling grid`."""


class Backbone(nn.Module):
    """A network whose first stages may be frozen.

    Frozen stages have no gradient and use their stored statistics, also after `train()`. State names are torchvision's
    for a ResNet (without `fc`); a network that is no chain of modules is one module of the name `network`.

    Where batch norm uses stored statistics and nothing needs a gradient, it is folded into the convolution before it:
    always in the frozen modules, and in all of them in evaluation mode without gradient. At most `chunk_frames` inputs
    pass these at a time. The folded copy is a cache, made anew once a tensor has changed; changes through
    `.data.copy_()` and the like are not detected.

    Args:
        network: The network.
        name: As in `model.backbone`, for messages and digests.
        num_learnable: How many of the last stages train; None: everything, also what is in no stage.
        cut_stages: How many of the last stages are left out.
        pooling: As `model.pooling`; instead of `max` and `average`, a network of tokens has its own `pool`.
        chunk_frames: See above.

    Attributes:
        kind, mean, std, input_size: Those of the network.
        channels: Of its maps.
        pooled_channels: C: of what `pool` makes of them.
        published: Prefix of the state names before those of the files of weights.
        frozen: Names of the modules that are frozen whole, in order.
        learnable: Names of the others, in order.
    """

    def __init__(
        self,
        network: Network,
        *,
        name: str,
        num_learnable: int | None,
        cut_stages: int = 0,
        pooling: Pooling = "max",
        chunk_frames: int = 1024,
    ) -> None:
        super().__init__()
        self.name = name
        self.kind, self.input_size = network.kind, network.input_size
        self.mean, self.std = tuple(network.mean), tuple(network.std)
        self.pooling, self.chunk_frames = pooling, chunk_frames
        if pooling == "grid" and isinstance(network, TimmNetwork):
            network.freeze_unused(TimmNetwork.maps_of)
        stages = list(network.stages())
        if cut_stages:
            cut(network, stages, cut_stages, name, pooled=pooling != "grid")
            stages = stages[:-cut_stages]
        if pooling == "grid" and not _has_maps(network):
            raise UserError(
                f"model.pooling grid: expected a backbone with a map of each frame, and {name} has none: choose max or "
                "average"
            )
        self.channels = network.channels
        self.pooled_channels = self.channels * (GRID**2 if pooling == "grid" else 1)
        # Not registered as submodules: they are a cache, not state.
        self._folded: dict[str, tuple[tuple[object, ...], nn.Module]] = {}
        is_chain = isinstance(network, Chain)
        assert isinstance(network, nn.Module)
        for part, module in network.named_children() if is_chain else [("network", network)]:
            self.add_module(part, module)
        self.published = "" if is_chain else "network." + getattr(network, "published", "")
        self._frozen_stages: list[nn.Module] = []
        if num_learnable is not None:
            if num_learnable > len(stages):
                raise UserError(
                    f"model.learnable: expected all, or at most the {len(stages)} stages of {name}, got {num_learnable}"
                )
            self._frozen_stages = stages[: len(stages) - num_learnable]
            trained = {id(p) for stage in stages[len(self._frozen_stages) :] for p in stage.parameters()}
            for parameter in self.parameters():
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)
        inside = {id(module) for stage in self._frozen_stages for module in stage.modules()}
        parts = dict(self.named_children())
        self.frozen = [part for part in parts if id(parts[part]) in inside or num_learnable == 0]
        self.learnable = [part for part in parts if part not in self.frozen]
        self.train()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the cache of folded modules, for copies and pickles."""
        return {**self.__dict__, "_folded": {}}

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of the learnable stages; the frozen ones stay in evaluation mode."""
        super().train(mode)
        for module in (*map(self.get_submodule, self.frozen), *self._frozen_stages):
            module.eval()
        if mode:
            self._folded.pop("learnable", None)  # The next step outdates it.
        return self

    def forward(self, pixels: Float[Tensor, "N 3 *space"]) -> Float[Tensor, "N C *maps"]:
        """Feature maps (N, C, *space), or tokens (N, tokens, C), of normalised frames or clips."""
        if self.training or torch.is_grad_enabled():
            return self.pass_learnable(self.pass_frozen(pixels))
        return self._pass_folded(("frozen", "learnable"), pixels)

    # Not inference_mode: the learnable modules save the output for their backward pass.
    @torch.no_grad()
    def pass_frozen(self, pixels: Float[Tensor, "N 3 *space"]) -> Tensor:
        """Output of the frozen modules, without gradient; the input if none is frozen."""
        return self._pass_folded(("frozen",), pixels) if self.frozen else pixels

    def pass_learnable(self, maps: Tensor) -> Float[Tensor, "N C *maps"]:
        """Output of the learnable modules for the output of `pass_frozen`."""
        maps = _channels_last(maps)
        for name in self.learnable:
            maps = self.get_submodule(name)(maps)
        return maps

    def pool(self, maps: Float[Tensor, "N channels *maps"]) -> Float[Tensor, "N C"]:
        """One vector for each frame or clip: as `pooling` says, or by the network's own `pool`."""
        if self.pooling == "grid":
            maps = self.get_submodule("network").maps_of(maps) if maps.ndim < 4 else maps  # type: ignore[operator]
            return functional.adaptive_avg_pool2d(maps, GRID).flatten(1)
        own = getattr(getattr(self, "network", None), "pool", None)
        if own is not None and maps.ndim < 4:
            pooled: Tensor = own(maps)
            return pooled
        space = tuple(range(2, maps.ndim))
        return maps.amax(space) if self.pooling == "max" else maps.mean(space)

    def chunks(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Split a batch into the fewest, nearly equal chunks of at most `chunk_frames`."""
        # Equal chunks need less memory at once, and cuDNN tunes for fewer sizes.
        return pixels.chunk(max(1, math.ceil(len(pixels) / self.chunk_frames)))

    def _pass_folded(self, parts: Sequence[str], pixels: Tensor) -> Tensor:
        device = pixels.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        present = [part for part in parts if getattr(self, part)]
        folded: list[nn.Module] = []
        passed: list[Tensor] = []
        # The folded weights have the type already; autocast would cast them again for every chunk.
        with torch.autocast(device, enabled=False):
            for maps in self.chunks(pixels):
                if dtype is not None:
                    maps = maps.to(dtype)
                for number, part in enumerate(present):
                    maps = _channels_last(maps)
                    # Once for all chunks: checking whether the weights have changed reads all of them.
                    if number == len(folded):
                        folded.append(self._folded_part(part, dtype, maps[:1]))
                    maps = folded[number](maps)
                passed.append(maps)
        return passed[0] if len(passed) == 1 else torch.cat(passed)

    def _folded_part(self, part: str, dtype: torch.dtype | None, example: Tensor) -> nn.Module:
        names: list[str] = getattr(self, part)
        modules = [self.get_submodule(name) for name in names]
        key = _fingerprint(modules, dtype)
        if part not in self._folded or self._folded[part][0] != key:
            self._folded[part] = key, _fold(names, modules, dtype, example)
        return self._folded[part][1]


def _has_maps(network: Network) -> bool:
    return network.kind == "frame" and (hasattr(network, "maps_of") or len(outcome_shape(network)) == 4)


def _fingerprint(modules: Sequence[nn.Module], dtype: torch.dtype | None) -> tuple[object, ...]:
    """Key that changes once a tensor of the modules is written, moved or replaced."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return dtype, *(
        # Moving a module keeps its tensors' versions, writing keeps their addresses.
        (id(t), t.data_ptr(), t.device, t.dtype, None if t.is_inference() else t._version)
        for t in tensors
    )


@torch.inference_mode(False)  # A copy made in inference mode could not be used in training.
@torch.no_grad()
def _fold(
    names: Sequence[str], modules: Sequence[nn.Module], dtype: torch.dtype | None, example: Tensor
) -> nn.Module:
    """Copies of the modules with batch norm folded into the convolutions, cast."""
    named = zip(names, (copy.deepcopy(module) for module in modules), strict=True)
    folded = nn.Sequential(OrderedDict(named)).eval().requires_grad_(False)
    for before, name in _foldable(folded, example):
        norm = folded.get_submodule(name)
        assert isinstance(norm, BatchNorm)
        # torch's annotation: two modules.
        fused: nn.Module = fuse_conv_bn_eval(folded.get_submodule(before), norm)  # type: ignore[type-var]
        folded.set_submodule(before, fused)
        folded.set_submodule(name, nn.Identity() if norm.activation is None else norm.activation)
    return folded if dtype is None else folded.to(dtype)


def _foldable(modules: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their output, of one pass of an example."""
    made: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()

    def note_output(name: str, output: Tensor) -> None:
        made[name] = output
        calls[name] += 1

    def note_input(name: str, taken: Tensor) -> None:
        pairs.extend((before, name) for before, output in made.items() if output is taken)
        calls[name] += 1

    handles = []
    for name, module in modules.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            hook = partial(lambda name, module, inputs, output: note_output(name, output), name)
            handles.append(module.register_forward_hook(hook))
        elif isinstance(module, BatchNorm):
            hook = partial(lambda name, module, inputs: note_input(name, inputs[0]), name)
            handles.append(module.register_forward_pre_hook(hook))
    weight = next(modules.parameters(), example)
    modules(example.to(weight.dtype, copy=True))
    for handle in handles:
        handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def _channels_last(maps: Tensor) -> Tensor:
    # The layout in which convolutions are fastest, on CPUs and on GPUs.
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return maps.contiguous(memory_format=layouts.get(maps.ndim, torch.contiguous_format))


def build_backbone(model: ModelConfig) -> Backbone:
    """Build the backbone that a config names, with random weights.

    Raises:
        UserError: there is no such network, or it has too few stages for what is to be left out or to train.
    """
    learnable = LEARNABLE_NAMES.get(model.learnable, model.learnable)
    backbone = Backbone(
        build_network(model.backbone, model.batch_norm),
        name=model.backbone,
        num_learnable=None if learnable == "all" else int(learnable),
        cut_stages=model.cut_stages,
        pooling=model.pooling,
        chunk_frames=model.chunk_frames,
    )
    is_clip = backbone.kind == "clip"
    return backbone.to(memory_format=torch.channels_last_3d if is_clip else torch.channels_last)
