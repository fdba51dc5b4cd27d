"""Every operator in a few lines of plain PyTorch: the definition, and what the tests compare with.

Nothing here is called by the product. The functions are differentiable by autograd (to any order), take the arguments
of the operator of the same name and compute in float32, or in float64 where an input is float64. Symbols: q features,
p prototypes, t target, as in ``docs/math.md``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this length a vector counts as zero: its direction is noise.
ZERO_NORM = 1e-12
# Smaller variances count as this one.
LEAST_VARIANCE = 1e-12


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    result = tensors[0].dtype
    for x in tensors[1:]:
        result = torch.promote_types(result, x.dtype)
    return result


def unit(v: Tensor, dim: int) -> Tensor:
    """v / |v| along ``dim``; 0, with zero gradient, where |v| <= 1e-12."""
    nonzero = v.norm(dim=dim, keepdim=True) > ZERO_NORM
    # The inner where keeps the gradient of the norm, which is NaN at 0, out of the graph.
    return torch.where(nonzero, v / torch.where(nonzero, v, 1.0).norm(dim=dim, keepdim=True), 0.0)


def masked_avg_pool(features: Tensor, masks: Tensor, eps: float = 1e-5, resize: str = "features") -> Tensor:
    """[B,C,H,W], [B,K,h,w] -> [B,K,C]: the average of the features under each mask."""
    compute, result = _compute_dtype(features, masks), _result_dtype(features, masks)
    if masks.dtype == torch.bool:
        result = features.dtype
    f, m = features.to(compute), masks.to(compute)
    if resize == "features":
        f = F.interpolate(f, size=m.shape[-2:], mode="bilinear", align_corners=False)
    else:
        m = F.interpolate(m, size=f.shape[-2:], mode="bilinear", align_corners=False)
    total = torch.einsum("bchw,bkhw->bkc", f, m)
    return (total / (m.sum((2, 3))[..., None] + eps)).to(result)


def cosine_logits(features: Tensor, prototypes: Tensor, scale: float = 20.0) -> Tensor:
    """[B,C,H,W], [B,K,C] -> [B,K,H,W]: scale * cos(feature, prototype)."""
    compute = _compute_dtype(features, prototypes)
    q, p = unit(features.to(compute), 1), unit(prototypes.to(compute), 2)
    return (scale * torch.einsum("bchw,bkc->bkhw", q, p)).to(_result_dtype(features, prototypes))


def cosine_cross_entropy(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    scale: float = 20.0,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """[B,C,H,W], [B,K,C], [B,h,w] -> scalar, or [B] for ``"per_task"``: cross-entropy of upsampled cosine logits."""
    compute = _compute_dtype(features, prototypes)
    result = _result_dtype(features, prototypes)
    logits = cosine_logits(features.to(compute), prototypes.to(compute), scale)
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, target.long(), ignore_index=ignore_index, reduction="none").sum((1, 2))
    valid = (target != ignore_index).sum((1, 2))
    if reduction == "mean":
        loss = loss.sum() / valid.sum().clamp(min=1)
    elif reduction == "per_task":
        loss = loss / valid.clamp(min=1)
    else:
        loss = loss.sum()
    return loss.to(result)


def inner_opt(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    steps: int = 10,
    lr: float = 0.1,
    scale: float = 20.0,
    ignore_index: int = 255,
    reduction: str = "mean",
    second_order: bool = True,
) -> Tensor:
    """[B,C,H,W], [B,K,C], [B,H,W] -> [B,K,C]: Eq. 7 of the BiOpt paper, gradient descent on the cross-entropy."""
    compute = _compute_dtype(features, prototypes)
    q, p = features.to(compute), prototypes.to(compute)
    per_task = "per_task" if reduction == "mean" else "sum"
    with torch.enable_grad():
        p = p if p.requires_grad else p.detach().requires_grad_()
        for _ in range(steps):
            loss = cosine_cross_entropy(q, p, target, scale, ignore_index, per_task).sum()
            (gradient,) = torch.autograd.grad(loss, p, create_graph=second_order)
            p = p - lr * gradient
    needs_graph = torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad)
    return (p if needs_graph else p.detach()).to(_result_dtype(features, prototypes))


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """[...,4], [...,2] -> [...,4]: Philox 4x32-10, all words as int64 in 0..2^32 - 1."""
    mask = 0xFFFFFFFF

    def multiply(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
        # High and low word of a 64-bit product by 16-bit pieces, because int64 would overflow.
        low, high = factor * (x & 0xFFFF), factor * (x >> 16)
        middle = high + (low >> 16)
        return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)

    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        high0, low0 = multiply(0xD2511F53, c0)
        high2, low2 = multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return torch.stack((c0, c1, c2, c3), -1)


def normal_noise(tasks: int, samples: int, channels: int, key: Tensor) -> Tensor:
    """[B,L,C] standard normal numbers in float64: Box-Muller of Philox, a counter for every four channels."""
    b, l, group = torch.meshgrid(  # noqa: E741  (the paper's letter)
        torch.arange(tasks), torch.arange(samples), torch.arange((channels + 3) // 4), indexing="ij"
    )
    low, high = key[0] & 0xFFFFFFFF, (key[0] >> 32) & 0xFFFFFFFF
    counter = torch.stack((group, l, b, (key[1] & 0xFFFFFFFF).expand_as(b)), -1)
    words = philox(counter, torch.stack((low, high)))
    u = (words.double() + 0.5) * 2.0**-32
    radius, angle = (-2 * u[..., 0::2].log()).sqrt(), 2 * torch.pi * u[..., 1::2]
    noise = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
    return noise.flatten(-3)[..., :channels]


def gaussian_aggregate(
    mean: Tensor, variance: Tensor, mean_weighting: str = "precision", variance_weighting: str = "precision"
) -> tuple[Tensor, Tensor]:
    """[B,S,C] twice -> [B,C] twice: Eq. 6 of the VPI paper, or the plain averages of Eq. 10."""
    compute, result = _compute_dtype(mean, variance), _result_dtype(mean, variance)
    mu, var = mean.to(compute), variance.to(compute).clamp(min=LEAST_VARIANCE)
    precision = 1 / var
    aggregated = {
        "precision": ((mu * precision).sum(1) / precision.sum(1), mu.shape[1] / precision.sum(1)),
        "uniform": (mu.mean(1), var.mean(1)),
    }
    return aggregated[mean_weighting][0].to(result), aggregated[variance_weighting][1].to(result)


def gaussian_sample(mean: Tensor, variance: Tensor, num_samples: int, key: Tensor) -> Tensor:
    """[B,C], [B,C], L, [2] -> [B,L,C]: mean + sqrt(variance) * noise."""
    compute = _compute_dtype(mean, variance)
    noise = normal_noise(mean.shape[0], num_samples, mean.shape[1], key)
    deviation = variance.to(compute).clamp(min=LEAST_VARIANCE).sqrt()
    return (mean.to(compute)[:, None] + deviation[:, None] * noise.to(compute)).to(_result_dtype(mean, variance))


def sample_prototypes(mean: Tensor, variance: Tensor, num_samples: int, key: Tensor) -> Tensor:
    """[B,S,C], [B,S,C], L, [2] -> [B,L,C]: samples of the aggregated Gaussian."""
    compute = _compute_dtype(mean, variance)
    aggregated = gaussian_aggregate(mean.to(compute), variance.to(compute))
    return gaussian_sample(*aggregated, num_samples, key).to(_result_dtype(mean, variance))


def tiled_conv2d(
    features: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
) -> Tensor:
    """[B,C,H,W], [B,L,D], [O,C+D,kh,kw], [O] -> [B,L,O,H',W']: the convolution of cat(features, tile(z_l)), L times."""
    given = [features, z, weight] if bias is None else [features, z, weight, bias]
    compute = _compute_dtype(*given)
    tiled = z[..., None, None].expand(*z.shape, *features.shape[2:])
    samples = features[:, None].expand(-1, z.shape[1], -1, -1, -1)
    both = torch.cat((samples.to(compute), tiled.to(compute)), 2)
    bias = None if bias is None else bias.to(compute)
    result = F.conv2d(both.flatten(0, 1), weight.to(compute), bias, padding=padding, dilation=dilation)
    return result.unflatten(0, z.shape[:2]).to(_result_dtype(*given))


def _sample_probabilities(logits: Tensor, size: Sequence[int] | None) -> Tensor:
    """[B,L,K,H,W] -> [B,L,K,h,w]: the softmax of every sample, upsampled."""
    planes = logits.to(_compute_dtype(logits)).flatten(0, 1)
    if size is not None:
        planes = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    return planes.softmax(1).unflatten(0, logits.shape[:2])


def mc_average(logits: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """[B,L,K,H,W] -> [B,K,h,w]: Eq. 5 of the VPI paper, the mean of the samples' probabilities."""
    return _sample_probabilities(logits, size).mean(1).to(logits.dtype)


def mc_uncertainty(logits: Tensor, size: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, with the variance over samples [B,K,h,w], the entropy and the mutual information [B,h,w]."""
    samples = _sample_probabilities(logits, size)
    mean = samples.mean(1)
    with torch.no_grad():
        variance = (samples - mean[:, None]).pow(2).mean(1)
        entropy = torch.special.entr(mean).sum(1)
        information = (entropy - torch.special.entr(samples).sum(2).mean(1)).clamp(min=0)
    return tuple(x.to(logits.dtype) for x in (mean, variance, entropy, information))  # type: ignore[return-value]
