"""What every model of few-shot episodes has: a backbone, and the stages from images to a prediction.

Shapes: B tasks, N ways, K = N + 1 classes (0 = background), S shots, L samples, C channels, H x W features, h x w
images and masks.
"""

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fewseg_ext.models.backbones import build_backbone
from fewseg_ext.models.prototypes import check_labels

State = TypeVar("State", bound="SupportTensors")
Support = TypeVar("Support")
Query = TypeVar("Query")
Output = TypeVar("Output")


class SupportTensors:
    """What a model keeps of a support set: a dataclass of tensors whose first dimension is that of the tasks."""

    def repeat(self: State, queries: int) -> State:
        """The state of ``queries`` queries per task, task by task: [B * queries, ...]."""
        return type(self)(*(tensor.repeat_interleave(queries, dim=0) for tensor in vars(self).values()))


class EpisodeModel(nn.Module, Generic[Support, Query, Output]):
    """Encode the support, encode the query, predict; ``forward`` composes the stages. Subclasses fill them.

    Both encodings have two halves: `encode`, which is all that the backbone does, alike for support and query, and
    `pool_support` or `query_state`. Whoever meets an image again keeps what `encode` gave.

    Args:
        backbone: a name for :func:`~fewseg_ext.models.build_backbone`, or a module.
        weights: for a backbone given by name: None, a torchvision weights name, or a path.
        settings: the subclass's own arguments; with backbone and weights they are the ``config``, from which
            :func:`~fewseg_ext.models.build_model` makes the model again.
    """

    def __init__(self, backbone: str | nn.Module, weights: str | None, **settings: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"name": type(self).__name__, **settings}
        if isinstance(backbone, nn.Module):
            if weights is not None:
                raise ValueError("weights: goes with a backbone's name; a module brings its own")
            self.backbone = backbone
            self.config.update(backbone=None, weights=None)
        else:
            self.backbone = build_backbone(backbone, weights)
            self.config.update(backbone=backbone, weights=None if weights is None else str(weights))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of images [B,3,h,w] that the model works with: the features [B,C,H,W] come last."""
        return (self.backbone(images),)

    def encode_support(self, images: Tensor, masks: Tensor) -> Support:
        """Encode a support set.

        Args:
            images: [B,N,S,3,h,w], floating, normalised as the backbone expects.
            masks: [B,N,S,h',w'], label maps (0 background, n = way n, 255 ignore), or bool for one way.

        Raises:
            ValueError: shapes that do not fit, or labels that are not the episode's.
            TypeError: floating masks.
        """
        if images.dim() != 6:
            raise ValueError(f"support_images: expected [B,N,S,3,h,w], got {list(images.shape)}")
        features = self.encode(images.flatten(0, 2))[-1]
        return self.pool_support(features.unflatten(0, images.shape[:3]), masks)

    def pool_support(self, features: Tensor, masks: Tensor) -> Support:
        """The second half of :meth:`encode_support`: from the features [B,N,S,C,H,W], the last of the maps."""
        if masks.dim() != 5 or masks.shape[:3] != features.shape[:3]:
            raise ValueError(
                f"support_masks: expected [B,N,S,h,w] with B,N,S = {list(features.shape[:3])}, got {list(masks.shape)}"
            )
        check_labels(masks, masks.shape[1], "support_masks")
        return self._pool(features, masks)

    def encode_query(self, images: Tensor) -> Query:
        """Encode queries [B,3,h,w], one per task."""
        if images.dim() != 4:
            raise ValueError(f"query_images: expected [B,3,h,w], got {list(images.shape)}")
        return self.query_state(self.encode(images), (images.shape[-2], images.shape[-1]))

    def query_state(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Query:
        """The second half of :meth:`encode_query`: from the feature maps of B queries and the images' (h, w)."""
        raise NotImplementedError

    def predict(self, state: Support, query: Query, *, query_masks: Tensor | None = None) -> Output:
        """Segment encoded queries: everything but the backbone."""
        raise NotImplementedError

    def sample_logits(self, state: Support, query: Query, *, generator: torch.Generator | None = None) -> Tensor:
        """Logits [B,L,K,H',W'] at the model's own resolution, of which a prediction averages the L probabilities.

        Args:
            state: of B tasks.
            query: of the same B tasks.
            generator: what the samples are drawn with, on the device of the state; torch's own by default. Models
                without samples, whose L is 1, ignore it.
        """
        raise NotImplementedError

    def forward(
        self,
        support_images: Tensor,
        support_masks: Tensor,
        query_images: Tensor,
        query_masks: Tensor | None = None,
    ) -> Output:
        """Segment one query per task.

        Args:
            support_images: [B,N,S,3,h,w], floating, normalised as the backbone expects.
            support_masks: [B,N,S,h,w], label maps: 0 background, n = way n (1..N), 255 ignore; or bool for N = 1.
            query_images: [B,3,h,w].
            query_masks: [B,h,w], label maps; needed for the loss only.

        Returns:
            What ``predict`` returns, at the masks' size (the images' without masks).

        Raises:
            ValueError, TypeError: shapes, dtypes or labels that are not an episode's. On CUDA, where the labels are not
                read, a query label outside the episode makes that loss NaN.
        """
        state = self.encode_support(support_images, support_masks)
        return self.predict(state, self.encode_query(query_images), query_masks=query_masks)

    def _pool(self, features: Tensor, masks: Tensor) -> Support:
        """`pool_support`, of arguments that fit."""
        raise NotImplementedError


def check_tasks(states: int, queries: int, repeat: str) -> None:
    """One query per task; ``repeat`` names the method that helps."""
    if states != queries:
        raise ValueError(
            f"{states} support states for {queries} queries: one query per task; "
            f"for several queries of an episode repeat the state ({repeat})"
        )


def check_query_masks(masks: Tensor, tasks: int, ways: int) -> None:
    """Truth [B,h,w] with the episode's labels, or bool for one way."""
    if masks.dim() != 3 or masks.shape[0] != tasks:
        raise ValueError(f"query_masks: expected [B,h,w] with B = {tasks}, got {list(masks.shape)}")
    check_labels(masks, ways, "query_masks")
