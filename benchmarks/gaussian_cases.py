"""VPI's operators as they are timed: at the shapes of a ResNet-50 at 384 pixels."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import Call
from gaussian_baselines import OPS
from torch import Tensor


@dataclass(frozen=True)
class GaussianCase(Call):
    """One operator: B tasks, S shots, L samples, D latent channels; C feature channels and a square grid for
    ``tiled_conv2d`` (3 x 3, to ``width`` channels); logits of ``grid`` to ``image`` for the averages."""

    tasks: int = 1
    shots: int = 5
    samples: int = 6
    latent: int = 256
    channels: int = 2048
    width: int = 256
    grid: int = 48
    image: int = 384

    @property
    def shape(self) -> str:
        sizes = {"B": self.tasks}
        if self.op in ("gaussian_aggregate", "sample_prototypes"):
            sizes["S"] = self.shots
        if self.op != "gaussian_aggregate":
            sizes["L"] = self.samples
        if not self.op.startswith("mc_"):
            sizes["D"] = self.latent
        shape = " ".join(f"{name}={size}" for name, size in sizes.items())
        if self.op == "tiled_conv2d":
            shape += f" {self.channels}->{self.width} {self.grid}x{self.grid}"
        if self.op.startswith("mc_"):
            shape += f" {self.grid}x{self.grid}->{self.image}x{self.image}"
        return shape

    @property
    def options(self) -> dict[str, Any]:
        if self.op == "tiled_conv2d":
            return {"padding": 1}
        if self.op.startswith("mc_"):
            return {"size": (self.image, self.image)}
        return {"num_samples": self.samples} if self.op != "gaussian_aggregate" else {}

    @property
    def small(self) -> "GaussianCase":
        return replace(self, tasks=1, latent=4, channels=4, width=4, grid=5, image=9)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(x.to(getattr(torch, self.dtype)).requires_grad_(self.backward) for x in self._float32())

    def _float32(self) -> tuple[Tensor, ...]:
        if self.op == "tiled_conv2d":
            features = torch.randn(self.tasks, self.channels, self.grid, self.grid)
            weight = torch.randn(self.width, self.channels + self.latent, 3, 3) / 100
            return features, torch.randn(self.tasks, self.samples, self.latent), weight
        if self.op.startswith("mc_"):
            return (torch.randn(self.tasks, self.samples, 2, self.grid, self.grid),)
        shape = (self.tasks, self.latent) if self.op == "gaussian_sample" else (self.tasks, self.shots, self.latent)
        return torch.randn(shape), torch.rand(shape) + 0.1

    def gradient_mib(self) -> float:
        return sum(x.numel() * x.element_size() for x in self.inputs()) / 2**20


def gaussian_cases(device: str) -> list[GaussianCase]:
    both = (False, True)
    made = [GaussianCase(op, backward, tasks=8) for op in OPS[:3] for backward in both]
    made += [GaussianCase("tiled_conv2d", backward, samples=n) for n in (1, 6) for backward in both]
    # The uncertainty is not differentiable.
    made += [GaussianCase("mc_average", backward) for backward in both] + [GaussianCase("mc_uncertainty", False)]
    return [replace(case, device=device) for case in made]
