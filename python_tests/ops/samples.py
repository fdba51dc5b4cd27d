"""One sample of arguments for every operator: what the tests of the common contract run over.

A new operator is added to `SAMPLES` and inherits all of test_contract.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fewseg_ext
from fewseg_ext.ops import reference


@dataclass
class Sizes:
    tasks: int = 2
    classes: int = 3
    channels: int = 5
    height: int = 4
    width: int = 3
    mask_height: int = 7
    mask_width: int = 9


@dataclass
class Sample:
    name: str
    build: Callable[[Sizes, torch.dtype], tuple[Any, ...]]  # the positional arguments
    differentiable: tuple[int, ...]  # which of them have a gradient
    variant: str = ""
    feature_map: bool = True  # whether the first is [B,C,H,W], which may be channels-last
    shared: tuple[int, ...] = ()  # which tensors all tasks share: they have no dimension of tasks
    placed: bool = False  # whether a task's result depends on its place in the batch
    only_first_result: bool = False  # whether the other results have no gradient

    @property
    def public(self) -> Callable[..., Any]:
        return getattr(fewseg_ext, self.name)

    @property
    def dispatched(self) -> Callable[..., Any]:
        return getattr(torch.ops.fewseg, self.name)

    @property
    def reference(self) -> Callable[..., Any]:
        return getattr(reference, self.name)

    def arguments(
        self, sizes: Sizes | None = None, dtype: torch.dtype = torch.float64, gradients: bool = False
    ) -> tuple[Any, ...]:
        """The arguments, as leaves that require gradients if asked."""
        args = list(self.build(sizes or Sizes(), dtype))
        for i in self.differentiable:
            args[i] = args[i].detach().requires_grad_(gradients)
        return tuple(args)

    def with_gradient(self, result: Any) -> tuple[Tensor, ...]:
        """Those of the results that can be differentiated."""
        return results(result)[:1] if self.only_first_result else results(result)


def results(result: Any) -> tuple[Tensor, ...]:
    """What an operator returns, one tensor or several, as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def features(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    return torch.randn(sizes.tasks, sizes.channels, sizes.height, sizes.width, dtype=torch.float64).to(dtype)


def prototypes(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    # Every prototype points at something: orthogonal ones would hide mistakes in the cosines.
    return (torch.randn(sizes.tasks, sizes.classes, sizes.channels, dtype=torch.float64) + 0.5).to(dtype)


def target(sizes: Sizes, height: int, width: int) -> Tensor:
    labels = torch.randint(0, sizes.classes, (sizes.tasks, height, width))
    labels[torch.rand(labels.shape) < 0.1] = 255
    return labels


def _masked_avg_pool(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    masks = torch.rand(sizes.tasks, sizes.classes, sizes.mask_height, sizes.mask_width, dtype=torch.float64).to(dtype)
    # A large eps: with a small one a one-pixel map gives masks a gradient that is nothing but cancellation.
    return features(sizes, dtype), masks, 0.5


def _inner_opt(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    labels = target(sizes, sizes.height, sizes.width)
    return features(sizes, dtype), prototypes(sizes, dtype), labels, 3, 0.05


def _cosine_logits(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    return features(sizes, dtype), prototypes(sizes, dtype), 7.0


def _cosine_cross_entropy(reduction: str) -> Callable[[Sizes, torch.dtype], tuple[Any, ...]]:
    def build(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
        labels = target(sizes, sizes.mask_height, sizes.mask_width)
        return features(sizes, dtype), prototypes(sizes, dtype), labels, 7.0, 255, reduction

    return build


KEY = (0x123456789ABCDEF0, -3)


def gaussians(*size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, variance = torch.randn(size, dtype=torch.float64), torch.rand(size, dtype=torch.float64) + 0.1
    return mean.to(dtype), variance.to(dtype)


def _gaussian_aggregate(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    return gaussians(sizes.tasks, sizes.classes, sizes.channels, dtype=dtype)


def _gaussian_sample(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    return *gaussians(sizes.tasks, sizes.channels, dtype=dtype), 5, torch.tensor(KEY)


def _sample_prototypes(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    return *_gaussian_aggregate(sizes, dtype), 5, torch.tensor(KEY)


def _tiled_conv2d(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    z = torch.randn(sizes.tasks, sizes.classes, 4, dtype=torch.float64).to(dtype)
    weight = torch.randn(sizes.channels, sizes.channels + 4, 3, 3, dtype=torch.float64).to(dtype)
    bias = torch.randn(sizes.channels, dtype=torch.float64).to(dtype)
    return features(sizes, dtype), z, weight, bias, (1, 2), (1, 2)


def _mc(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    logits = 2 * torch.randn(sizes.tasks, 3, sizes.classes, sizes.height, sizes.width, dtype=torch.float64)
    return logits.to(dtype), (sizes.mask_height, sizes.mask_width)


SAMPLES = [
    Sample("masked_avg_pool", _masked_avg_pool, (0, 1)),
    Sample("cosine_logits", _cosine_logits, (0, 1)),
    *(Sample("cosine_cross_entropy", _cosine_cross_entropy(r), (0, 1), r) for r in ("mean", "per_task", "sum")),
    Sample("inner_opt", _inner_opt, (0, 1)),
    Sample("gaussian_aggregate", _gaussian_aggregate, (0, 1), feature_map=False),
    Sample("gaussian_sample", _gaussian_sample, (0, 1), feature_map=False, shared=(3,), placed=True),
    Sample("sample_prototypes", _sample_prototypes, (0, 1), feature_map=False, shared=(3,), placed=True),
    Sample("tiled_conv2d", _tiled_conv2d, (0, 1, 2, 3), shared=(2, 3)),
    Sample("mc_average", _mc, (0,), feature_map=False),
    Sample("mc_uncertainty", _mc, (0,), feature_map=False, only_first_result=True),
]
