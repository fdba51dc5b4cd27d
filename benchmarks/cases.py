"""What is timed: operators at the shapes of the two papers, and what the hardware has to do at least for each."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines import EAGER


@dataclass(frozen=True)
class Call:
    """One call of an operator. Subclasses have its sizes, and with them

    ``shape``           them, in words
    ``options``         what is given by name
    ``tensors()``       what is given by place
    ``small``           the same call with next to no memory
    ``gradient_mib()``  the gradients that a backward returns, as far as they are large
    """

    op: str
    backward: bool
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.op}{' fwd+bwd' if self.backward else ''} {self.shape} {self.dtype}"

    def inputs(self) -> tuple[Tensor, ...]:
        # Everything is made on the device; the seed makes it the same in every process.
        with torch.device(self.device):
            torch.manual_seed(0)
            return self.tensors()


@dataclass(frozen=True)
class Case(Call):
    """One operator at one shape: B tasks, K classes, C channels, a square grid, masks and targets of image x image."""

    tasks: int = 1
    classes: int = 2
    channels: int = 2048
    grid: int = 53
    image: int = 417
    steps: int = 10

    @property
    def shape(self) -> str:
        steps = f" T={self.steps}" if self.op == "inner_opt" and self.steps != 10 else ""
        return f"B={self.tasks} K={self.classes} C={self.channels} {self.grid}x{self.grid}{steps}"

    @property
    def options(self) -> dict[str, Any]:
        return {"steps": self.steps} if self.op == "inner_opt" else {}

    @property
    def small(self) -> "Case":
        return replace(self, tasks=1, classes=2, channels=16, grid=5, image=9)

    def tensors(self) -> tuple[Tensor, ...]:
        features = torch.randn(self.tasks, self.channels, self.grid, self.grid).to(getattr(torch, self.dtype))
        if self.op == "masked_avg_pool":
            foreground = torch.rand(self.tasks, 1, self.image, self.image) < 0.3
            return features.requires_grad_(self.backward), torch.cat([~foreground, foreground], 1)
        prototypes = torch.nn.functional.normalize(torch.randn(self.tasks, self.classes, self.channels), dim=2)
        side = self.image if self.op == "cosine_cross_entropy" else self.grid
        target = torch.randint(0, self.classes, (self.tasks, side, side))
        leaves = features.requires_grad_(self.backward), prototypes.requires_grad_(self.backward)
        return leaves if self.op == "cosine_logits" else (*leaves, target)

    def gradient_mib(self) -> float:
        return self.features_mib()

    def features_mib(self) -> float:
        size = torch.finfo(getattr(torch, self.dtype)).bits // 8
        return self.tasks * self.channels * self.grid**2 * size / 2**20

    def sweeps(self) -> int:
        """How often the features have to pass between memory and processor, reads and writes alike.

        The inner loop: a read and a write for the packed copy, whose first step comes with it, then a read a step; the
        same for the backward, and a read and a write for the gradient.
        """
        if self.op == "inner_opt":
            return 2 * self.steps + 4 if self.backward else self.steps + 1
        if self.op == "masked_avg_pool":
            return 2 if self.backward else 1
        return 3 if self.backward else 1

    def multiply_adds(self) -> int:
        """Without what happens per pixel or per channel only."""
        values, k = self.tasks * self.channels * self.grid**2, self.classes
        if self.op == "inner_opt":
            forward = 1 + 2 * (k - 1) * self.steps
            return values * (2 * forward + 2 * (k - 1) * self.steps + 1 if self.backward else forward)
        if self.op == "masked_avg_pool":
            return values * (2 * k if self.backward else k)
        return values * (k + 1 + (2 * k + 1 if self.backward else 0))


def cases(quick: bool, device: str) -> list[Case]:
    main = [Case(op, backward) for op in EAGER for backward in (False, True)]
    more = [
        *(Case(op, backward, channels=512) for op in EAGER for backward in (False, True)),
        *(Case(op, backward, tasks=8) for op in EAGER for backward in (False, True)),
        *(Case(op, backward, classes=6) for op in ("cosine_cross_entropy", "inner_opt") for backward in (False, True)),
        *(Case(op, backward, channels=320, grid=41, image=321) for op in EAGER for backward in (False, True)),
        *(Case(op, backward, dtype="bfloat16") for op in EAGER for backward in (False, True)),
    ]
    return [replace(case, device=device) for case in (main if quick else main + more)]


# Every axis around the main shape of inner_opt. Threads are set by the caller.
SCALING = {
    "tasks": (1, 2, 4, 8, 16),
    "classes": (2, 3, 6, 11, 21),
    "channels": (64, 256, 512, 1024, 2048, 4096),
    "grid": (7, 14, 27, 53, 80, 107),
    "steps": (1, 2, 5, 10, 20, 50),
}
