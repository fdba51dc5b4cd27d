"""VPI, variational prototype inference: a Gaussian over prototypes, sampled and averaged.

Shapes: B tasks, N ways, K = N + 1 classes (0 = background), S shots, D latent channels, L samples, C channels, H x W
features, h x w images and masks. Equation numbers are those of the VPI paper.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from fewseg_ext import ops
from fewseg_ext.models.biopt import SegmentationOutput
from fewseg_ext.models.episode_model import EpisodeModel, SupportTensors, check_query_masks, check_tasks
from fewseg_ext.models.prototypes import IGNORE_INDEX, pool, upsample

# Standard deviations between 0.007 and 7: positive and finite, and wider than any that training should end at.
LOG_VARIANCE_RANGE = (-10.0, 4.0)
INITIAL_LOG_VARIANCE = -4.0  # a deviation of 0.14


# The paper takes 6; more than this would be a mistake, or a file that means to keep a computer busy.
MOST_SAMPLES = 10_000


@dataclass
class GaussianState(SupportTensors):
    """What VPI keeps of a support set: one Gaussian per way and shot."""

    mean: Tensor
    """[B,N,S,D]."""
    variance: Tensor
    """[B,N,S,D], positive."""


@dataclass
class PyramidState:
    """What VPI keeps of its queries."""

    pyramid: tuple[Tensor, ...]
    """The backbone's maps, the finest first and the features [B,C,H,W] last."""
    size: tuple[int, int]
    """(h, w) of the images, the default size of the logits."""


@dataclass
class UncertainOutput(SegmentationOutput):
    """What VPI returns: ``logits`` are the logarithms of ``probabilities``, ``prototypes`` the samples [B,N,L,D]."""

    probabilities: Tensor | None = None
    """[B,K,h,w], averaged over the samples (Eq. 5)."""
    variance: Tensor | None = None
    """[B,K,h,w], of the probabilities over the samples."""
    entropy: Tensor | None = None
    """[B,h,w] in nats: how uncertain the averaged prediction is."""
    mutual_information: Tensor | None = None
    """[B,h,w] in nats: the part of the entropy that the samples disagree about."""
    sample_logits: Tensor | None = None
    """[B,L,K,H',W'], the decoder's own, before upsampling."""


class GaussianHead(nn.Module):
    """A pooled feature to a diagonal Gaussian: two fully connected layers, for mean and log-variance.

    The feature is normalised first, and the deviation starts at a fifth of the means' spread. With features as they
    come and deviations of 1 the first samples were nearly the same noise for every class: the decoder learnt to do
    without them, and never looked at the support again.
    """

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mean = nn.Linear(channels, latent_dim)
        self.log_variance = nn.Linear(channels, latent_dim)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, INITIAL_LOG_VARIANCE)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[...,C] -> mean and variance [...,D]."""
        pooled = self.norm(pooled.to(self.mean.weight.dtype))
        return self.mean(pooled), self.log_variance(pooled).clamp(*LOG_VARIANCE_RANGE).exp()


class TiledBlock(nn.Module):
    """The first block: a 3 x 3 convolution of the features with a prototype tiled beside them."""

    def __init__(self, channels: int, latent_dim: int, width: int) -> None:
        super().__init__()
        # Only its parameters are used; a Conv2d brings their initialisation and their names.
        self.conv = nn.Conv2d(channels + latent_dim, width, 3)
        self.norm = _norm(width)

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        """[B,C,H,W], [B,L,D] -> [B,L,width,H,W]."""
        x = ops.tiled_conv2d(features, z, self.conv.weight, self.conv.bias, padding=1)
        return F.relu(self.norm(x.flatten(0, 1))).unflatten(0, z.shape[:2])


class SkipBlock(nn.Module):
    """A 3 x 3 convolution of cat(samples, skip): the skip's part is convolved once for all samples."""

    def __init__(self, channels: int, skip_channels: int, width: int) -> None:
        super().__init__()
        self.samples = nn.Conv2d(channels, width, 3, padding=1)
        self.skip = nn.Conv2d(skip_channels, width, 3, padding=1, bias=False)
        self.norm = _norm(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[B,L,C,H,W], [B,Cs,H',W'] -> [B,L,width,H',W']."""
        tasks_samples = x.shape[:2]
        y = upsample(x.flatten(0, 1), (skip.shape[-2], skip.shape[-1]))
        y = self.samples(y).unflatten(0, tasks_samples) + self.skip(skip)[:, None]
        return F.relu(self.norm(y.flatten(0, 1))).unflatten(0, tasks_samples)


class Decoder(nn.Module):
    """The segmentation net: three convolutional blocks with skip connections from the encoder, for L samples at once.

    Everything that does not depend on the sample is computed once.
    """

    def __init__(self, pyramid_channels: tuple[int, ...], latent_dim: int, width: int) -> None:
        super().__init__()
        fine, middle, channels = pyramid_channels
        self.tiled = TiledBlock(channels, latent_dim, width)
        self.middle = SkipBlock(width, middle, width)
        self.fine = SkipBlock(width, fine, width // 2)
        self.classify = nn.Conv2d(width // 2, 2, 1)

    def forward(self, pyramid: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """The pyramid of [B,3,h,w] and [B,L,D] -> logits [B,L,2,H',W'] of background and foreground."""
        fine, middle, features = pyramid
        x = self.fine(self.middle(self.tiled(features, z), middle), fine)
        return self.classify(x.flatten(0, 1)).unflatten(0, z.shape[:2])


def _norm(width: int) -> nn.Module:
    """Group normalisation: batches are a handful of images, and their samples are not independent."""
    return nn.GroupNorm(next(groups for groups in (32, 16, 8, 4, 2, 1) if width % groups == 0), width)


class VPI(EpisodeModel[GaussianState, PyramidState, UncertainOutput]):
    """Variational prototype inference: a distribution over prototypes instead of one, and so an uncertainty.

    The prior net pools the support's features under its mask and gives a diagonal Gaussian over prototypes z (Eq. 7),
    one per shot, aggregated by precision (Eq. 6); the posterior net does the same with query and truth (Eq. 8); the
    segmentation net decodes the query's features with z tiled beside them. Trained by the cross-entropy of a sample
    plus ``kl_weight`` KL(posterior || prior); predictions average the probabilities of L samples (Eq. 5). The
    convolutions of everything that samples share are computed once for all of them.

    VPI is 1-way. For more ways each is decoded alone, s_n = foreground_n - background_n, and the logits are
    [0, s_1, ..., s_N].

    Args:
        backbone: a name for :func:`~fewseg_ext.models.build_backbone`, or a module with ``pyramid(images)`` (three
            maps, the finest first, the features last) and ``pyramid_channels``.
        weights: for a backbone given by name: None, a torchvision weights name, or a path.
        latent_dim: D, channels of a prototype.
        width: channels of the decoder's first two blocks; the third has half of them.
        num_samples: L, samples that a prediction averages.
        train_samples: L of the training, samples whose losses are averaged.
        sample_from: where the training's samples come from, "prior" (as Algorithm 1) or "posterior".
        kl_weight: factor of the KL, which is summed over the latent channels and averaged over tasks and ways. With
            0.01 the prior's means became the same for every class on generated data: see docs/vpi.md.
        kl_warmup: training steps in which the factor rises from 0 to ``kl_weight``.
        average: predictions average "probabilities" or "logits".
        mean_weighting: how the shots' means are aggregated, "precision" or "uniform" (Table 2).
        variance_weighting: how their variances are, "precision" or "uniform".
        deterministic: the paper's counterpart without a distribution: z is the mean, no KL.
        resize: "features" pools as if the features were upsampled to the mask, "masks" downsamples the mask.

    Example:
        >>> import torch, fewseg_ext
        >>> model = fewseg_ext.VPI("conv4", latent_dim=32, width=48).eval()
        >>> support_images, support_masks = torch.randn(1, 1, 5, 3, 64, 64), torch.rand(1, 1, 5, 64, 64) < 0.3
        >>> with torch.no_grad():
        ...     output = model(support_images, support_masks, torch.randn(1, 3, 64, 64))
        >>> output.probabilities.shape, output.mutual_information.shape
        (torch.Size([1, 2, 64, 64]), torch.Size([1, 64, 64]))
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        weights: str | None = None,
        latent_dim: int = 256,
        width: int = 256,
        num_samples: int = 6,
        train_samples: int = 1,
        sample_from: str = "prior",
        kl_weight: float = 3e-4,
        kl_warmup: int = 1000,
        average: str = "probabilities",
        mean_weighting: str = "precision",
        variance_weighting: str = "precision",
        deterministic: bool = False,
        resize: str = "features",
    ) -> None:
        for name, value, least in (
            ("latent_dim", latent_dim, 1),
            ("width", width, 2),
            ("num_samples", num_samples, 1),
            ("train_samples", train_samples, 1),
            ("kl_warmup", kl_warmup, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
        if max(num_samples, train_samples) > MOST_SAMPLES:
            raise ValueError(
                f"num_samples, train_samples: expected at most {MOST_SAMPLES}, got {num_samples}, {train_samples}"
            )
        for name, choice, choices in (
            ("sample_from", sample_from, ("prior", "posterior")),
            ("average", average, ("probabilities", "logits")),
            ("mean_weighting", mean_weighting, ("precision", "uniform")),
            ("variance_weighting", variance_weighting, ("precision", "uniform")),
            ("resize", resize, ("features", "masks")),
        ):
            if choice not in choices:
                raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {choice!r}")
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight: expected 0 or more, got {kl_weight}")
        settings: dict[str, Any] = {
            "latent_dim": latent_dim,
            "width": width,
            "num_samples": num_samples,
            "train_samples": train_samples,
            "sample_from": sample_from,
            "kl_weight": kl_weight,
            "kl_warmup": kl_warmup,
            "average": average,
            "mean_weighting": mean_weighting,
            "variance_weighting": variance_weighting,
            "deterministic": deterministic,
            "resize": resize,
        }
        super().__init__(backbone, weights, **settings)
        channels = getattr(self.backbone, "pyramid_channels", None)
        if channels is None or len(channels) != 3:
            raise ValueError(f"backbone: {type(self.backbone).__name__} has no pyramid of three maps for the decoder")
        self.num_samples, self.train_samples = num_samples, train_samples
        self.sample_from, self.average = sample_from, average
        self.kl_weight, self.kl_warmup = kl_weight, kl_warmup
        self.mean_weighting, self.variance_weighting = mean_weighting, variance_weighting
        self.deterministic, self.resize = deterministic, resize
        self.prior = GaussianHead(channels[-1], latent_dim)
        # Without a distribution there is no posterior either.
        self.posterior = None if deterministic else GaussianHead(channels[-1], latent_dim)
        self.decoder = Decoder(tuple(channels), latent_dim, width)
        # A buffer: a training that goes on from a checkpoint goes on with the warm-up too.
        self.register_buffer("training_steps", torch.zeros((), dtype=torch.int64))
        self.training_steps: Tensor

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """The pyramid of images [B,3,h,w]: three maps, the finest first, the features [B,C,H,W] last."""
        pyramid: tuple[Tensor, ...] = self.backbone.pyramid(images)  # type: ignore[operator]
        return pyramid

    def query_state(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> PyramidState:
        """See `EpisodeModel.query_state`."""
        return PyramidState(maps, size)

    def predict(
        self,
        state: GaussianState,
        query: PyramidState,
        num_samples: int | None = None,
        size: tuple[int, int] | None = None,
        query_masks: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> UncertainOutput:
        """Segment encoded queries.

        Args:
            state: of B tasks.
            query: of the same B tasks.
            num_samples: L instead of the model's own (``train_samples`` in training, else ``num_samples``). The first
                samples are the same for every L.
            size: (h, w) of the results; by default that of the query masks, or of the query images.
            query_masks: [B,h,w] label maps, or bool for one way; with them the output has a loss.
            generator: what the samples are drawn with, on the device of the state; torch's own by default.
        """
        features, tasks = query.pyramid[-1], state.mean.shape[0]
        check_tasks(tasks, features.shape[0], "GaussianState.repeat")
        samples = num_samples or (self.train_samples if self.training else self.num_samples)
        if self.deterministic:
            samples = 1
        posterior = None
        if query_masks is not None:
            ways = state.mean.shape[1]
            check_query_masks(query_masks, tasks, ways)
            size = size or (query_masks.shape[-2], query_masks.shape[-1])
            if self.posterior is not None:
                posterior = self._posterior(features, query_masks, ways)
        prior = self._aggregate(state)
        from_posterior = self.training and self.sample_from == "posterior" and posterior is not None
        z = self._sample(posterior if from_posterior and posterior else prior, samples, generator)
        logits = self._decode(query.pyramid, z)
        losses: dict[str, Tensor] = {}
        if query_masks is not None:
            losses = self._losses(logits, query_masks, prior, posterior)
        output = self._output(logits, size or query.size)
        output.loss = torch.stack(list(losses.values())).sum() if losses else None
        output.losses, output.prototypes, output.sample_logits = losses, z, logits
        return output

    def sample_logits(
        self, state: GaussianState, query: PyramidState, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """See `EpisodeModel.sample_logits`; one sample where the model averages logits."""
        check_tasks(state.mean.shape[0], query.pyramid[-1].shape[0], "GaussianState.repeat")
        z = self._sample(self._aggregate(state), 1 if self.deterministic else self.num_samples, generator)
        logits = self._decode(query.pyramid, z)
        return logits.mean(1, keepdim=True) if self.average == "logits" else logits

    def forward(
        self,
        support_images: Tensor,
        support_masks: Tensor,
        query_images: Tensor,
        query_masks: Tensor | None = None,
    ) -> UncertainOutput:
        """Segment one query per task; see `EpisodeModel.forward`. In training it counts a step of the KL's warm-up."""
        if self.training and query_masks is not None:
            self.training_steps += 1
        return super().forward(support_images, support_masks, query_images, query_masks)

    # --- parts -------------------------------------------------------------------------------------------------------

    @property
    def kl_factor(self) -> float:
        """The KL's factor now: it rises to ``kl_weight`` over the first ``kl_warmup`` training steps."""
        if self.kl_warmup == 0:
            return self.kl_weight
        return self.kl_weight * min(float(self.training_steps) / self.kl_warmup, 1.0)

    def _pool(self, features: Tensor, masks: Tensor) -> GaussianState:
        ways = torch.arange(1, masks.shape[1] + 1, device=masks.device).view(1, -1, 1, 1, 1)
        foreground = masks if masks.dtype == torch.bool else masks == ways
        mean, variance = self._gaussian(self.prior, features.flatten(0, 2), foreground.flatten(0, 2))
        return GaussianState(*(x.unflatten(0, features.shape[:3]) for x in (mean, variance)))

    def _gaussian(self, head: GaussianHead, features: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """[M,C,H,W] and bool [M,h,w] -> mean and variance [M,D]."""
        with torch.autocast(features.device.type, enabled=False):
            return head(pool(features, foreground[:, None], self.resize)[:, 0])

    def _posterior(self, features: Tensor, masks: Tensor, ways: int) -> tuple[Tensor, Tensor]:
        """Mean and variance [B,N,D] from the query and its truth."""
        assert self.posterior is not None
        numbers = torch.arange(1, ways + 1, device=masks.device).view(1, -1, 1, 1)
        foreground = (masks[:, None] if masks.dtype == torch.bool else masks[:, None] == numbers).flatten(0, 1)
        mean, variance = self._gaussian(self.posterior, features.repeat_interleave(ways, dim=0), foreground)
        return mean.unflatten(0, (-1, ways)), variance.unflatten(0, (-1, ways))

    def _aggregate(self, state: GaussianState) -> tuple[Tensor, Tensor]:
        """The shots' Gaussians to one per way: [B,N,D] each."""
        tasks_ways = state.mean.shape[:2]
        mean, variance = ops.gaussian_aggregate(
            state.mean.flatten(0, 1), state.variance.flatten(0, 1), self.mean_weighting, self.variance_weighting
        )
        return mean.unflatten(0, tasks_ways), variance.unflatten(0, tasks_ways)

    def _sample(self, gaussian: tuple[Tensor, Tensor], samples: int, generator: torch.Generator | None) -> Tensor:
        """[B,N,L,D]."""
        mean, variance = gaussian
        if self.deterministic:
            return mean[:, :, None].expand(-1, -1, samples, -1)
        z = ops.gaussian_sample(mean.flatten(0, 1), variance.flatten(0, 1), samples, generator=generator)
        return z.unflatten(0, mean.shape[:2])

    def _decode(self, pyramid: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """[B,N,L,D] -> logits [B,L,N+1,H',W']."""
        ways = [self.decoder(pyramid, z[:, way].contiguous()) for way in range(z.shape[1])]
        if len(ways) == 1:
            return ways[0]
        scores = [way[:, :, 1] - way[:, :, 0] for way in ways]
        return torch.stack([torch.zeros_like(scores[0]), *scores], dim=2)

    def _losses(
        self, logits: Tensor, masks: Tensor, prior: tuple[Tensor, Tensor], posterior: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """Cross-entropy of every sample, mean over each task's pixels, then over samples and tasks; and the KL."""
        tasks, samples = logits.shape[:2]
        target = masks.long().repeat_interleave(samples, dim=0)
        scores = upsample(logits.float().flatten(0, 1), (masks.shape[-2], masks.shape[-1]))
        pixel = F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, reduction="none").flatten(1).sum(1)
        valid = (target != IGNORE_INDEX).flatten(1).sum(1).clamp(min=1)
        losses = {"segmentation": (pixel / valid).sum() / max(tasks * samples, 1)}
        if posterior is not None:
            divergence = kl_divergence(*(Normal(mean, variance.sqrt()) for mean, variance in (posterior, prior)))
            losses["kl"] = self.kl_factor * divergence.sum(-1).mean()
        return losses

    def _output(self, logits: Tensor, size: tuple[int, int]) -> UncertainOutput:
        if self.average == "logits":
            logits = logits.mean(1, keepdim=True)
        if torch.is_grad_enabled() and logits.requires_grad:
            # Only the probabilities are differentiable; the uncertainty is not worth its time in training.
            probabilities = ops.mc_average(logits, size)
            return UncertainOutput(_logarithm(probabilities), None, probabilities=probabilities)
        probabilities, variance, entropy, information = ops.mc_uncertainty(logits, size)
        return UncertainOutput(
            _logarithm(probabilities),
            None,
            probabilities=probabilities,
            variance=variance,
            entropy=entropy,
            mutual_information=information,
        )


def _logarithm(probabilities: Tensor) -> Tensor:
    """Finite where a probability is rounded to zero."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
