"""Future poses, key frames and generated clips (CSVR): what moves and what does not, in two streams.

A reading of the abstract of "Collaboratively Self-supervised Video Representation Learning for Action Recognition"
(IEEE TIFS 2025), whose full text was not at hand.

    clip ─ dynamic stream ▶ f_d ─ with noise ▶ poses after the clip, and their critic              what moves
      │                      └─ scale and shift ─┐
      └─── static stream ▶ map ─ AdaIN ◀──────────┘ ▶ the clip, and the one after it, with critics  both
    another clip ─ static stream ▶ f_s ─ attracts the vector of a key frame of the same video     what stays

Legend: B videos of this worker, A videos of all workers, C width of a stream, F poses, K = 17 joints, T frames of a
generated clip.

Longer than 400 lines: all that an objective is has one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from carl_ray.objectives.base import (
    Batch,
    Encoding,
    Objective,
    ObjectiveOptions,
    Phase,
    Terms,
    ViewTensors,
    options,
)
from carl_ray.objectives.clips import clip_contrast_terms
from carl_ray.objectives.views import Follows, KeyFrame, Policy, Stride, ViewSpec, clips_view

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn
    from torch.optim import Optimizer

CLIP, FUTURE, CONTEXT, KEY_FRAME = "clip", "future", "context", "key_frame"
NUM_POSES = 4
"""F: poses at the first frames of the view after the clip."""
NUM_JOINTS = 17
_FUTURE_STRIDE = 2
_FUTURE_SPAN = 8
"""Frames of the video that follow every clip."""
_NOISE_WIDTH = 16
_SMOOTH = 0.05
"""Error, as a part of the view, above which the loss of a joint grows linearly."""
_CLIP_CRITICS_FROM = 0.2
"""Share of the run after which the critics of clips have a weight."""
_COLLAPSED_LOSS, _COLLAPSED_STEPS = 0.05, 500
_CRITIC_RATE = 2e-4
_MADE = {"now": CLIP, "next": FUTURE}
"""Views of the real clips by the name of what is generated."""
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, for key frames."""


class Csvr(Objective):
    """Prediction of poses, context matching and generation of clips, of an encoder with two streams."""

    @options
    class Options(ObjectiveOptions):
        reads_clips = True
        reads_streams = True
        columns = ("content_hash",)
        name: Literal["csvr"] = "csvr"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities of clips and key frames."""
        context_weight: float = Field(default=1.0, ge=0)
        """Weight of context matching; 0: without."""
        pose_weight: float = Field(default=1.0, ge=0)
        """Weight of the prediction of poses; 0: without."""
        generation_weight: float = Field(default=1.0, ge=0)
        """Weight of the generation of clips; 0: without."""
        pose_error_weight: float = Field(default=20.0, gt=0)
        """Weight of the error of the predicted joints, within that of the poses."""
        pose_critic_weight: float = Field(default=0.1, ge=0)
        """Weight of the critic of poses, likewise; 0: without."""
        clip_critic_weight: float = Field(default=0.01, ge=0)
        """Weight of the critics of clips, within that of the generation, after a fifth of the run; 0: without."""
        key_frames: Policy = "auto"
        """Which frames are key frames: the codec's, every twelfth (`even`), or the codec's where they are some but not
        too many."""
        key_frame_backbone: Literal["resnet18", "small"] = "resnet18"
        """Encoder of key frames, which is trained with the others and not kept: a ResNet, or three convolutions."""
        key_frame_crop_area: tuple[float, float] = (0.3, 1.0)
        """Range of the area of their crop, as `augment.crop_area`."""
        generated_frames: int = Field(default=8, ge=2)
        """T. So many frames also follow the clip, in steps of two."""
        generated_size: int = Field(default=64, ge=8)
        """Height and width of generated clips, in pixels; the real ones are averaged down to it."""
        hidden_width: int = Field(default=512, ge=1)
        """Of the projections of clips and key frames."""
        projection_width: int = Field(default=128, ge=1)
        """Of the same."""

        def __post_init__(self) -> None:
            low, high = self.key_frame_crop_area
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"key_frame_crop_area must be (low, high) with 0 < low <= high <= 1, got ({low:g}, {high:g})"
                )
            if not self.context_weight + self.pose_weight + self.generation_weight:
                raise ValueError("one of context_weight, pose_weight and generation_weight must be above 0")

        def least_videos(self) -> int:
            """Two, where key frames of others are compared."""
            return 2 if self.context_weight else 1

        def views(self, default: ViewSpec) -> tuple[ViewSpec, ...]:
            """A clip, the frames after it, another clip, and a key frame."""
            view, found = clips_view(default, CLIP, 1), []
            assert isinstance(view.span, Stride)
            if self.pose_weight or self.generation_weight:
                future = ViewSpec(
                    FUTURE,
                    1,
                    max(NUM_POSES, self.generated_frames),
                    Follows(CLIP, _FUTURE_STRIDE),
                    view.augment,
                    encoder="none",
                    keypoints=self.pose_weight > 0,
                )
                found += [replace(view, span=replace(view.span, reserve=_FUTURE_SPAN)), future]
            if self.context_weight:
                augment = replace(view.augment, crop_area=self.key_frame_crop_area)
                found += [
                    replace(view, name=CONTEXT, encoder="static"),
                    ViewSpec(KEY_FRAME, 1, 1, KeyFrame(self.key_frames), augment, encoder="none"),
                ]
            return tuple(found)

    options: Options

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        import torch
        from torch import nn

        from carl_ray.layers.generation import (
            AdaptiveInstanceNorm,
            ClipCritic,
            ClipGenerator,
            PoseCritic,
            PoseGenerator,
        )
        from carl_ray.layers.heads import projection

        own = width // 2
        self.critics = nn.ModuleDict()
        if options.context_weight:
            self.key_frame_encoder, seen = _frame_encoder(options.key_frame_backbone, batch_norm)
            sizes = options.hidden_width, options.projection_width, batch_norm
            self.project_clip, self.project_key_frame = projection(own, *sizes), projection(seen, *sizes)
        if options.pose_weight:
            self.poses = PoseGenerator(own, _NOISE_WIDTH, NUM_POSES, NUM_JOINTS)
            if options.pose_critic_weight:
                self.critics["pose"] = PoseCritic(own, NUM_POSES, NUM_JOINTS)
        if options.generation_weight:
            self.fusion = AdaptiveInstanceNorm(own, own)
            self.generators = nn.ModuleDict(
                {name: ClipGenerator(own, options.generated_frames, options.generated_size) for name in _MADE}
            )
            if options.clip_critic_weight:
                self.critics.update({name: ClipCritic() for name in _MADE})
        self.collapsed: Tensor
        self.register_buffer("collapsed", torch.zeros(len(self.critics), dtype=torch.int64))
        self._critic_figures: dict[str, Tensor] = {}

    def phases(
        self, encoder: nn.Module, adam: Callable[[Iterable[nn.Parameter]], Optimizer]
    ) -> tuple[Phase, ...]:
        """The critics, then all else."""
        import torch

        critics = list(self.critics.parameters())
        learner = Phase("all", adam(self.learnable(encoder, critics)))
        if not critics:
            return (learner,)
        optimizer = torch.optim.Adam(critics, lr=_CRITIC_RATE, betas=(0.0, 0.9))
        return Phase("critics", optimizer, trains_encoder=False), learner

    def phase_terms(
        self, phase: str, encodings: Mapping[str, Encoding], batch: Batch, progress: float
    ) -> Terms:
        """Terms of a phase; see `Objective.phase_terms`."""
        if phase == "all":
            return self(encodings, batch, progress)
        import torch

        sums, counts = [], []
        with torch.autocast(batch.rows.device.type, enabled=False):
            with torch.no_grad():
                made = self.made(encodings, batch)
            for name, critic in self.critics.items():
                critic.train()
                found = critic_terms(critic, made[name])
                sums.append(found.sums[0])
                counts.append(found.counts[0])
        terms = Terms(torch.stack(sums), torch.stack(counts))
        self._note_collapse(terms, progress)
        return terms

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        import torch

        found: list[tuple[Tensor, Tensor]] = []
        figures = dict(self._critic_figures)
        if self.options.context_weight:
            matched = self._context(encodings[CONTEXT], batch)
            sums = 0.5 * self.options.context_weight * matched.sums
            found += zip(sums.unbind(), matched.counts.unbind(), strict=True)
            figures["context_loss"] = torch.stack([0.5 * matched.sums.sum(), matched.counts[0]])
            still = batch.views[KEY_FRAME]
            replaced = still.timestamps[:, 0, 0] != still.spans[:, 0, 0]
            figures["replaced_key_frames"] = torch.stack([replaced.sum(), batch.is_real.sum()])
        # Generators and critics in full precision: spectral norm needs it.
        with torch.autocast(batch.rows.device.type, enabled=False):
            for name, made in self.made(encodings, batch).items():
                found += self._terms_of(name, made, progress)
                figures[f"{name}_error"] = torch.stack([made.error, made.number])
                if name == "pose":
                    figures["mean_pose_error"] = mean_pose_error(made)
                    people = made.number.new_tensor(len(made.real))
                    figures["people"] = torch.stack([people, batch.is_real.sum()])
        self.figures = {name: figure.detach() for name, figure in figures.items()}
        self._critic_figures = {}
        return Terms(*map(torch.stack, zip(*found, strict=True)))

    def _terms_of(self, name: str, made: Made, progress: float) -> list[tuple[Tensor, Tensor]]:
        """Sum and number of the error of what was made and, where it has one, of its critic's opinion."""
        weight, error_weight, critic_weight = self._weights(name, progress)
        terms = [(weight * error_weight * made.error, made.number)]
        # Also where its weight is 0 yet: DDP, whose hooks the critics' own phase has called, expects a gradient.
        if name in self.critics:
            scores = self.critics[name].eval()(made.fake, *made.given).mean(1)
            terms.append((-weight * critic_weight * scores.sum(), made.number.new_tensor(len(scores))))
        return terms

    def _weights(self, name: str, progress: float) -> tuple[float, float, float]:
        """Of what is made: of the whole, and within it of the error and of the critic."""
        options = self.options
        if name == "pose":
            return options.pose_weight, options.pose_error_weight, options.pose_critic_weight
        return (
            options.generation_weight,
            1.0,
            options.clip_critic_weight * (progress >= _CLIP_CRITICS_FROM),
        )

    def _context(self, encoding: Encoding, batch: Batch) -> Terms:
        """Terms of each direction of context matching."""
        assert encoding.clip is not None
        clips, key_frames = batch.views[CONTEXT], batch.views[KEY_FRAME]
        real = clips.mask[:, 0].any(-1) & key_frames.mask[:, 0].any(-1)
        assert key_frames.pixels is not None
        shown = key_frames.pixels[real][:, 0, 0].movedim(-1, 1).to(encoding.clip.dtype) / 255
        mean, deviation = (shown.new_tensor(of)[:, None, None] for of in (_MEAN, _DEVIATION))
        maps = self.key_frame_encoder((shown - mean) / deviation)
        content = clips.columns["content_hash"][:, 0].amax(-1)
        sides = (self.project_clip(encoding.clip[real, 0]), self.project_key_frame(maps.mean((2, 3))))
        return clip_contrast_terms(*sides, content[real], temperature=self.options.temperature)

    def made(self, encodings: Mapping[str, Encoding], batch: Batch) -> dict[str, Made]:
        """Everything that is generated from the view `CLIP`, beside what is real: `pose`, `now` and `next`."""
        if CLIP not in encodings:
            return {}
        encoding = encodings[CLIP]
        assert encoding.maps is not None and encoding.clip is not None
        dynamic = encoding.clip[:, 0].chunk(2, -1)[0]  # Float32 or better, as all that follows.
        made = {}
        if self.options.pose_weight:
            made["pose"] = self._predicted_poses(dynamic, batch)
        if self.options.generation_weight:
            maps = self.fusion(encoding.maps[:, 0].chunk(2, 1)[1], dynamic)
            for name, view in _MADE.items():
                made[name] = self._generated(self.generators[name], maps, batch.views[view])
        return made

    def _predicted_poses(self, dynamic: Float[Tensor, "B C"], batch: Batch) -> Made:
        from carl_ray.layers.dropout import uniform_noise

        keypoints = batch.views[FUTURE].keypoints
        assert keypoints is not None
        keypoints = keypoints[:, 0, :NUM_POSES]
        chosen = show_a_person(keypoints) & batch.views[CLIP].mask[:, 0].any(-1)
        condition, keypoints = dynamic[chosen], keypoints[chosen]
        noise = uniform_noise(batch.seeds[CLIP][chosen, 0], _NOISE_WIDTH).to(condition.dtype)
        fake = self.poses(condition, noise).to(dynamic.dtype)
        real, valid = keypoints[..., :2].to(fake.dtype), keypoints[..., 2].to(fake.dtype)
        error = pose_error(fake, real, valid)
        return Made(fake, real, (valid, condition.detach()), error, valid.sum())

    def _generated(
        self, generator: nn.Module, maps: Float[Tensor, "B C t h w"], view: ViewTensors[Tensor]
    ) -> Made:
        import torch
        from torch.nn import functional

        assert view.pixels is not None
        size, steps = self.options.generated_size, self.options.generated_frames
        pixels = view.pixels[:, 0].movedim(-1, 1).to(maps.dtype) / 127.5 - 1
        real = functional.adaptive_avg_pool3d(pixels, (steps, size, size))
        there = functional.adaptive_avg_pool1d(view.mask[:, 0].to(maps.dtype), steps) == 1
        chosen = there.any(1)
        fake = generator(maps[chosen]).to(maps.dtype)
        errors = (fake - real[chosen]).abs().mean((1, 3, 4)) * there[chosen]
        whole = there[chosen].all(1)
        return Made(fake[whole], real[chosen][whole], (), errors.sum(), torch.count_nonzero(there))

    def _note_collapse(self, terms: Terms, progress: float) -> None:
        """Count the steps in a row in which a critic has hardly any loss; a collective call.

        Of those in which it had samples, and what it criticises opposes it.
        """
        import torch

        from carl_ray.objectives.gather import sum_over_workers

        figures = torch.stack([terms.sums.detach().double(), terms.counts.double()], 1)
        sums, counts = sum_over_workers(figures).unbind(1)
        weights = [self._weights(name, progress)[2] for name in self.critics]
        counted = (counts > 0) & (counts.new_tensor(weights) > 0)
        low = sums < _COLLAPSED_LOSS * counts
        before = self.collapsed.clone()
        self.collapsed.copy_((before + low).where(low, 0).where(counted, before))
        self.warnings = tuple(
            f"the critic of objective csvr for {name} has told generated from real ones for {_COLLAPSED_STEPS} steps "
            f"almost without error (loss below {_COLLAPSED_LOSS:g}): its term has no useful gradient any more"
            for name, steps, earlier in zip(
                self.critics, self.collapsed.tolist(), before.tolist(), strict=True
            )
            if steps == _COLLAPSED_STEPS > earlier
        )
        self._critic_figures = {
            f"{name}_critic_loss": figure for name, figure in zip(self.critics, figures, strict=True)
        }


class Made(NamedTuple):
    """What a generator made, beside what is real."""

    fake: Float[Tensor, "N ..."]
    """For a critic; float32 or better, as all others."""
    real: Float[Tensor, "N ..."]
    given: tuple[Tensor, ...]
    """Further inputs of the critic, without gradient."""
    error: Tensor
    """Sum over this worker's joints or frames."""
    number: Tensor
    """Of these."""


def critic_terms(critic: nn.Module, made: Made) -> Terms:
    """Hinge loss of a critic: sum over this worker's samples, and their number.

    Args:
        critic: Of what was made.
        made: Without gradient.
    """
    import torch

    # At once: spectral norm moves with every call.
    given = (torch.cat([part, part]) for part in made.given)
    scores = critic(torch.cat([made.real, made.fake]), *given)
    real, fake = scores.to(made.real.dtype).chunk(2)
    losses = (1 - real).relu().mean(1) + (1 + fake).relu().mean(1)
    return Terms(losses.sum()[None], torch.tensor([len(losses)], device=losses.device))


def show_a_person(keypoints: Float[Tensor, "N F 17 3"]) -> Bool[Tensor, " N"]:
    """Which poses are poses: not those of too few valid joints."""
    return 2 * keypoints[..., 2].sum((1, 2)) >= NUM_POSES * NUM_JOINTS


def pose_error(
    fake: Float[Tensor, "N F 17 2"], real: Float[Tensor, "N F 17 2"], valid: Float[Tensor, "N F 17"]
) -> Float[Tensor, ""]:
    """Sum over the valid joints of the smooth distance of a coordinate, as a part of the view."""
    from torch.nn import functional

    errors = functional.smooth_l1_loss(fake, real, reduction="none", beta=_SMOOTH)
    return (errors.mean(-1) * valid).sum()


def mean_pose(real: Float[Tensor, "N F 17 2"], valid: Float[Tensor, "N F 17"]) -> Float[Tensor, "F 17 2"]:
    """The mean of each joint where it is valid, over the videos of all workers; a collective call."""
    import torch

    from carl_ray.objectives.gather import sum_over_workers

    total = sum_over_workers(torch.cat([(real * valid[..., None]).sum(0), valid.sum(0)[..., None]], -1))
    return total[..., :2] / total[..., 2:].clamp(min=1)


def mean_pose_error(made: Made) -> Float[Tensor, " 2"]:
    """Sum and number of the errors of the batch's mean pose, of all workers: what a prediction must stay below."""
    import torch

    valid = made.given[0]
    mean = mean_pose(made.real, valid).expand_as(made.real)
    return torch.stack([pose_error(mean, made.real, valid), valid.sum()])


def _frame_encoder(name: str, batch_norm: Any) -> tuple[nn.Module, int]:
    """An encoder of single frames to maps, and its channels."""
    from functools import partial

    from torch import nn

    from carl_ray.layers.normalization import BatchNorm

    if name == "resnet18":
        import torchvision

        network = torchvision.models.resnet18(weights=None, norm_layer=partial(BatchNorm, mode=batch_norm))
        return nn.Sequential(*list(network.children())[:-2]), network.fc.in_features
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 32), (32, 64)):
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        layers += [convolution, BatchNorm(after, batch_norm), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers), 64
