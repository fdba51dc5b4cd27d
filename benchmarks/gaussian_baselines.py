"""What VPI's operators are compared with; ``naive`` and ``eager`` mean what they do in baselines.py."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPS = (
    "gaussian_aggregate",
    "gaussian_sample",
    "sample_prototypes",
    "tiled_conv2d",
    "mc_average",
    "mc_uncertainty",
)


def eager_gaussian_aggregate(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    precision = variance.clamp(min=1e-12).reciprocal()
    total = precision.sum(1)
    return (mean * precision).sum(1) / total, mean.shape[1] / total


def naive_gaussian_aggregate(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    weighted, total = torch.zeros_like(mean[:, 0]), torch.zeros_like(mean[:, 0])
    for m, v in zip(mean.unbind(1), variance.unbind(1), strict=True):
        weighted, total = weighted + m / v, total + 1 / v
    return weighted / total, mean.shape[1] / total


def eager_gaussian_sample(mean: Tensor, variance: Tensor, num_samples: int) -> Tensor:
    noise = torch.randn(mean.shape[0], num_samples, mean.shape[1], dtype=mean.dtype, device=mean.device)
    return torch.addcmul(mean[:, None], variance.clamp(min=1e-12).sqrt()[:, None], noise)


def naive_gaussian_sample(mean: Tensor, variance: Tensor, num_samples: int) -> Tensor:
    normal = torch.distributions.Normal(mean, variance.sqrt())
    return torch.stack([normal.rsample() for _ in range(num_samples)], 1)


def eager_sample_prototypes(mean: Tensor, variance: Tensor, num_samples: int) -> Tensor:
    return eager_gaussian_sample(*eager_gaussian_aggregate(mean, variance), num_samples)


def naive_sample_prototypes(mean: Tensor, variance: Tensor, num_samples: int) -> Tensor:
    return naive_gaussian_sample(*naive_gaussian_aggregate(mean, variance), num_samples)


def eager_tiled_conv2d(features: Tensor, z: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The features' part once; z's part by a convolution of one constant map per sample."""
    channels, (height, width) = features.shape[1], features.shape[2:]
    shared = F.conv2d(features, weight[:, :channels], padding=padding)
    tiled = z.flatten(0, 1)[:, :, None, None].expand(-1, -1, height, width)
    return shared[:, None] + F.conv2d(tiled, weight[:, channels:], padding=padding).unflatten(0, z.shape[:2])


def naive_tiled_conv2d(features: Tensor, z: Tensor, weight: Tensor, padding: int) -> Tensor:
    results = []
    for sample in z.unbind(1):
        tiled = sample[:, :, None, None].expand(-1, -1, *features.shape[2:])
        results.append(F.conv2d(torch.cat([features, tiled], 1), weight, padding=padding))
    return torch.stack(results, 1)


def eager_mc_average(logits: Tensor, size: tuple[int, int]) -> Tensor:
    large = F.interpolate(logits.flatten(0, 1), size, mode="bilinear", align_corners=False)
    return large.softmax(1).unflatten(0, logits.shape[:2]).mean(1)


def naive_mc_average(logits: Tensor, size: tuple[int, int]) -> Tensor:
    maps = [F.interpolate(x, size, mode="bilinear", align_corners=False).softmax(1) for x in logits.unbind(1)]
    return torch.stack(maps).mean(0)


def eager_mc_uncertainty(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    large = F.interpolate(logits.flatten(0, 1), size, mode="bilinear", align_corners=False)
    p = large.softmax(1).unflatten(0, logits.shape[:2])
    variance, mean = torch.var_mean(p, dim=1, correction=0)
    entropy = torch.special.entr(mean).sum(1)
    return mean, variance, entropy, entropy - torch.special.entr(p).sum(2).mean(1)


def naive_mc_uncertainty(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    p = torch.stack([F.interpolate(x, size, mode="bilinear").softmax(1) for x in logits.unbind(1)], 1)
    mean = p.mean(1)
    entropy = -(mean * (mean + 1e-12).log()).sum(1)
    return mean, p.var(1, correction=0), entropy, entropy + (p * (p + 1e-12).log()).sum(2).mean(1)


EAGER: dict[str, Callable[..., Any]] = {op: globals()[f"eager_{op}"] for op in OPS}
NAIVE: dict[str, Callable[..., Any]] = {op: globals()[f"naive_{op}"] for op in OPS}
