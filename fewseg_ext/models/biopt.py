"""BiOpt, bi-level optimisation of query prototypes, and the prototype baseline that it is compared with.

Shapes: B tasks, N ways, K = N + 1 classes (0 = background), S shots, C channels, H x W features, h x w images and
masks. Equation numbers are those of the BiOpt paper.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewseg_ext import ops
from fewseg_ext.models.episode_model import EpisodeModel, SupportTensors, check_query_masks, check_tasks
from fewseg_ext.models.prototypes import (
    label_masks,
    query_prototypes,
    support_prototypes,
    unit_norm,
    upsample,
)

# The papers take 10; more than this would be a mistake, or a file that means to keep a computer busy.
MOST_STEPS = 100_000


@dataclass
class SupportState(SupportTensors):
    """What a model keeps of a support set: encode it once, segment any number of queries."""

    prototypes: Tensor
    """P_s [B,K,C]."""


@dataclass
class QueryState:
    """What a model keeps of its queries."""

    features: Tensor
    """[B,C,H,W]."""
    size: tuple[int, int]
    """(h, w) of the images, the default size of the logits."""


@dataclass
class SegmentationOutput:
    """What ``forward`` and ``predict`` return."""

    logits: Tensor
    """[B,K,h,w], float32 or float64."""
    loss: Tensor | None
    """Sum of ``losses``, a scalar; None without query masks."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """The terms of the loss by name, scalars; empty without query masks."""
    prototypes: Tensor | None = None
    """[B,K,C], those that gave the logits."""


class PrototypeModel(EpisodeModel[SupportState, QueryState, SegmentationOutput]):
    """Encode, pool prototypes, compare: the stages that prototype models share. Subclasses give the prototypes."""

    def __init__(self, backbone: str | nn.Module, weights: str | None, scale: float, resize: str) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: expected a positive number, got {scale}")
        if resize not in ("features", "masks"):
            raise ValueError(f'resize: expected "features" or "masks", got {resize!r}')
        super().__init__(backbone, weights, scale=scale, resize=resize)
        channels = getattr(self.backbone, "out_channels", None)
        if not isinstance(channels, int):
            raise ValueError(f"backbone: {type(self.backbone).__name__} needs an int attribute out_channels")
        self.channels = channels
        self.scale = scale
        self.resize = resize

    def _pool(self, features: Tensor, masks: Tensor) -> SupportState:
        with torch.autocast(features.device.type, enabled=False):
            per_class = label_masks(masks, masks.shape[1]).flatten(1, 2)
            return SupportState(support_prototypes(features.flatten(1, 2), per_class, self.resize))

    def query_state(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> QueryState:
        """See `EpisodeModel.query_state`."""
        return QueryState(maps[-1], size)

    def predict(
        self,
        state: SupportState,
        query: QueryState,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        query_masks: Tensor | None = None,
    ) -> SegmentationOutput:
        """Segment encoded queries: everything but the backbone, so that a slider over ``steps`` is cheap.

        Args:
            state: of B tasks.
            query: of the same B tasks.
            steps: inner steps instead of the model's own; a model without an inner loop ignores it.
            size: (h, w) of the logits; by default that of the query masks, or of the query images.
            query_masks: [B,h,w] label maps, or bool for one way; with them the output has a loss.
        """
        features = query.features
        check_tasks(state.prototypes.shape[0], features.shape[0], "SupportState.repeat")
        # Cosines, inner loop and loss stay in float32 under autocast; the backbone has run in its dtype by now.
        with torch.autocast(features.device.type, enabled=False):
            stages = self._prototype_stages(state.prototypes, features, steps)
            prototypes = list(stages.values())[-1]
            losses: dict[str, Tensor] = {}
            if query_masks is not None:
                losses = self._losses(features, stages, query_masks)
                size = size or (query_masks.shape[-2], query_masks.shape[-1])
            logits = upsample(ops.cosine_logits(features, prototypes, self.scale), size or query.size)
        loss = torch.stack(list(losses.values())).sum() if losses else None
        return SegmentationOutput(logits, loss, losses, prototypes)

    def sample_logits(
        self,
        state: SupportState,
        query: QueryState,
        steps: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `EpisodeModel.sample_logits`; [B,1,K,H,W], and ``steps`` as in `predict`."""
        grid = (query.features.shape[-2], query.features.shape[-1])
        return self.predict(state, query, steps, size=grid).logits[:, None]

    def _prototype_stages(self, support: Tensor, features: Tensor, steps: int | None) -> dict[str, Tensor]:
        """The prototypes that enter the loss, by name; the last ones give the prediction."""
        raise NotImplementedError

    def _losses(self, features: Tensor, stages: dict[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of every stage: mean over each task's pixels, then over tasks, whatever the batch is split."""
        tasks, classes = features.shape[0], next(iter(stages.values())).shape[1]
        check_query_masks(masks, tasks, classes - 1)
        target = masks.to(torch.uint8) if masks.dtype == torch.bool else masks
        return {
            name: ops.cosine_cross_entropy(features, p, target, self.scale, reduction="per_task").sum() / max(tasks, 1)
            for name, p in stages.items()
        }


class PrototypeBaseline(PrototypeModel):
    """The papers' baseline: support prototypes by masked average pooling, cosine to the query, nothing else.

    Args:
        backbone: a name for :func:`~fewseg_ext.models.build_backbone`, or a module [B,3,h,w] -> [B,C,H,W] with an int
            attribute ``out_channels``.
        weights: for a backbone given by name: None, a torchvision weights name, or a path.
        scale: alpha, the factor of the cosine in the softmax.
        resize: "features" pools as if the features were upsampled to the mask, "masks" downsamples the mask.

    Example:
        >>> import torch, fewseg_ext
        >>> model = fewseg_ext.PrototypeBaseline("conv4")
        >>> support_images = torch.randn(1, 2, 5, 3, 64, 64)  # two ways, five shots
        >>> support_masks = torch.randint(0, 3, (1, 2, 5, 64, 64))
        >>> model(support_images, support_masks, torch.randn(1, 3, 64, 64)).logits.shape
        torch.Size([1, 3, 64, 64])
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        weights: str | None = None,
        scale: float = 20.0,
        resize: str = "features",
    ) -> None:
        super().__init__(backbone, weights, scale, resize)

    def _prototype_stages(self, support: Tensor, features: Tensor, steps: int | None) -> dict[str, Tensor]:
        return {"support": support}


class BiOpt(PrototypeModel):
    """Bi-level optimisation: prototypes fitted to the query itself by gradient descent, differentiably.

    Per task: support prototypes P_s; temporary labels M' = argmax cos(Q, P_s); the query pooled under them, P';
    omega = sigmoid(FC(cat(P_s, P'))), P^0 = omega P_s + (1 - omega) P' (Eq. 5); the target M_q = argmax cos(Q, P^0)
    (Eq. 6), constant for the gradient; ``inner_steps`` steps of gradient descent on the cross-entropy of the query
    against M_q (Eq. 7). The loss is the sum of the cross-entropies of P_s, P^0 and the final prototypes against the
    truth (Eq. 8), on logits upsampled to the mask; its terms are named "support", "init" and "final".

    Args:
        backbone: a name for :func:`~fewseg_ext.models.build_backbone`, or a module [B,3,h,w] -> [B,C,H,W] with an int
            attribute ``out_channels``.
        weights: for a backbone given by name: None, a torchvision weights name, or a path.
        init: "module" as above; "support" is the paper's InOpt-dagger: start at P_s with target M', and no "init" term.
        inner_steps: T >= 0; with 0 the final prototypes are the initial ones, and their loss counts twice.
        inner_lr: learning rate of the inner loop.
        inner_reduction: "mean" or "sum" of the inner loss over the query's pixels.
        normalize_prototypes: start the inner loop at prototypes of length 1. A step moves a prototype by about
            lr * scale * error / |P|: with the mean loss and raw prototypes of length 30 ten steps do nothing, with the
            sum loss and length 1 they diverge.
        second_order: differentiate through the inner gradients; False takes them as constants.
        scale: alpha, the factor of the cosine in the softmax.
        resize: "features" pools as if the features were upsampled to the mask, "masks" downsamples the mask.

    Example:
        >>> import torch, fewseg_ext
        >>> model = fewseg_ext.BiOpt("conv4")
        >>> support_images, support_masks = torch.randn(1, 1, 5, 3, 64, 64), torch.rand(1, 1, 5, 64, 64) < 0.3
        >>> query_images, query_masks = torch.randn(1, 3, 64, 64), torch.rand(1, 64, 64) < 0.3
        >>> output = model(support_images, support_masks, query_images, query_masks)
        >>> output.loss.backward()
        >>> output.logits.shape, list(output.losses)
        (torch.Size([1, 2, 64, 64]), ['support', 'init', 'final'])

        For prediction each part alone, so that a support set and a photo are encoded once:

        >>> with torch.no_grad():
        ...     state, query = model.encode_support(support_images, support_masks), model.encode_query(query_images)
        ...     masks = [model.predict(state, query, steps=steps).logits.argmax(1) for steps in (0, 10)]
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        weights: str | None = None,
        init: str = "module",
        inner_steps: int = 10,
        inner_lr: float = 0.1,
        inner_reduction: str = "mean",
        normalize_prototypes: bool = True,
        second_order: bool = True,
        scale: float = 20.0,
        resize: str = "features",
    ) -> None:
        super().__init__(backbone, weights, scale, resize)
        if init not in ("module", "support"):
            raise ValueError(f'init: expected "module" or "support", got {init!r}')
        if inner_steps < 0:
            raise ValueError(f"inner_steps: expected 0 or more, got {inner_steps}")
        if inner_steps > MOST_STEPS:
            raise ValueError(f"inner_steps: expected at most {MOST_STEPS}, got {inner_steps}")
        if not math.isfinite(inner_lr):
            raise ValueError(f"inner_lr: expected a finite number, got {inner_lr}")
        if inner_reduction not in ("mean", "sum"):
            raise ValueError(f'inner_reduction: expected "mean" or "sum", got {inner_reduction!r}')
        self.init = init
        self.inner_steps = inner_steps
        self.inner_lr = inner_lr
        self.inner_reduction = inner_reduction
        self.normalize_prototypes = normalize_prototypes
        self.second_order = second_order
        self.config.update(
            init=init,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            inner_reduction=inner_reduction,
            normalize_prototypes=normalize_prototypes,
            second_order=second_order,
        )
        if init == "module":
            self.weight_generator = nn.Linear(2 * self.channels, self.channels)
            # omega starts at 1/2 everywhere: the plain mean of P_s and P'.
            nn.init.zeros_(self.weight_generator.weight)
            nn.init.zeros_(self.weight_generator.bias)

    def initial_prototypes(self, support: Tensor, features: Tensor) -> Tensor:
        """P^0 of Eq. 5 from P_s [B,K,C] and the query's features [B,C,H,W]."""
        temporary = query_prototypes(features, self._segment(features, support), support, self.resize)
        both = torch.cat([support, temporary], dim=-1)
        omega = torch.sigmoid(self.weight_generator(both.to(self.weight_generator.weight.dtype)))
        return omega * support + (1 - omega) * temporary

    def _prototype_stages(self, support: Tensor, features: Tensor, steps: int | None) -> dict[str, Tensor]:
        stages = {"support": support}
        start = support
        if self.init == "module":
            start = stages["init"] = self.initial_prototypes(support, features)
        stages["final"] = ops.inner_opt(
            features,
            unit_norm(start) if self.normalize_prototypes else start,
            self._segment(features, start),
            steps=self.inner_steps if steps is None else steps,
            lr=self.inner_lr,
            scale=self.scale,
            reduction=self.inner_reduction,
            second_order=self.second_order,
        )
        return stages

    def _segment(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """The most similar class of every feature, [B,H,W]: a label, so a constant for the gradient."""
        with torch.no_grad():
            return ops.cosine_logits(features, prototypes, self.scale).argmax(1)
