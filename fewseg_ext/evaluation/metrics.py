"""Intersection over union as few-shot segmentation scores it. Needs torchmetrics."""

import torch
from torch import Tensor

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError("scores need torchmetrics: pip install torchmetrics") from error

# The IoU of an image is summed as an integer in this unit, so that the sum does not depend on the order.
_IOU_UNIT = 2.0**-40


class SegmentationScore(Metric):
    """Intersections and unions, summed per class over all episodes and divided once.

    All sums are int64: the scores depend neither on the order of the episodes nor on how they are spread over
    processes, bit for bit.

    ``compute`` returns, float64 in 0..1, NaN where nothing occurred:

        ``class_iou``     [num_classes]: intersections over unions of all episodes.
        ``miou``          mean of ``class_iou`` over the classes that occurred. For 1-way episodes this is also
                          FSS-1000's positive IoU, read as "accumulated per class".
        ``positive_iou``  the other reading: the IoU of every episode's way, averaged over episodes; with several
                          ways over all pairs of an episode and a way that is predicted or there.
        ``fb_iou``        all classes pooled into one foreground: mean of its IoU and the background's.

    Args:
        num_classes: classes of the data set, background not counted.
        ignore_index: the label of pixels that are removed from intersections and unions.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    class_pixels: Tensor
    binary_pixels: Tensor
    image_iou: Tensor
    images: Tensor
    episodes: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"SegmentationScore: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # Columns: intersection, union. Rows of the second: background, foreground.
        self._add_sum("class_pixels", num_classes, 2)
        self._add_sum("binary_pixels", 2, 2)
        self._add_sum("image_iou")
        self._add_sum("images")
        self._add_sum("episodes")

    def update(self, prediction: Tensor, target: Tensor, class_ids: Tensor) -> None:
        """Adds a batch of episodes.

        Args:
            prediction: any dtype of whole numbers [B,h,w], 0 background, n way n.
            target: any dtype of whole numbers [B,h,w], labelled likewise, with ``ignore_index`` where nothing counts.
            class_ids: int64 [B,N], the data set's class of ways 1..N, each at most once in an episode.

        Raises:
            ValueError: shapes that do not fit, or labels that are not of the episode.
        """
        if prediction.shape != target.shape or prediction.dim() != 3:
            raise ValueError(
                f"SegmentationScore: prediction {list(prediction.shape)} and target {list(target.shape)} must both be "
                f"[B,h,w]"
            )
        if class_ids.dim() != 2 or class_ids.shape[0] != prediction.shape[0]:
            raise ValueError(f"SegmentationScore: class_ids must be [B,N], got {list(class_ids.shape)}")
        if class_ids.numel() and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < self.num_classes:
            raise ValueError(
                f"SegmentationScore: class_ids must be 0..{self.num_classes - 1}, got {class_ids.tolist()}"
            )
        pixels = self._confusion(prediction, target, class_ids.shape[1])
        there, predicted, both = pixels.sum(2), pixels.sum(1), pixels.diagonal(dim1=1, dim2=2)
        ways = torch.stack([both, there + predicted - both], dim=2)[:, 1:]
        self.class_pixels.index_add_(0, class_ids.reshape(-1).to(self.device), ways.reshape(-1, 2))
        occurred = ways[ways[..., 1] > 0].double()
        self.image_iou += (occurred[:, 0] / occurred[:, 1] / _IOU_UNIT).round().long().sum()
        self.images += occurred.shape[0]

        background = pixels[:, 0, 0].sum()
        foreground = pixels[:, 1:, 1:].sum()
        missed_or_wrong = pixels.sum() - background - foreground
        pooled = [background, background + missed_or_wrong, foreground, foreground + missed_or_wrong]
        self.binary_pixels += torch.stack(pooled).view(2, 2)
        self.episodes += prediction.shape[0]

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        class_iou = self.class_pixels[:, 0].double() / self.class_pixels[:, 1]
        return {
            "miou": class_iou.nanmean(),
            "fb_iou": (self.binary_pixels[:, 0].double() / self.binary_pixels[:, 1]).nanmean(),
            "positive_iou": self.image_iou.double() * _IOU_UNIT / self.images,
            "class_iou": class_iou,
        }

    def _confusion(self, prediction: Tensor, target: Tensor, ways: int) -> Tensor:
        """Pixels by episode, true way and predicted way: int64 [B,N+1,N+1]."""
        tasks, classes = prediction.shape[0], ways + 1
        predicted, true = (labels.to(self.device, torch.int64) for labels in (prediction, target))
        # Ignored pixels get a row of their own, which is cut off; this is faster than to pick the others.
        true = torch.where(true == self.ignore_index, classes, true)
        for name, labels, largest in (("prediction", predicted, ways), ("target", true, classes)):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= largest:
                raise ValueError(f"SegmentationScore: a label in {name} is none of this {ways}-way episode's")
        first = torch.arange(tasks, device=self.device)[:, None, None] * (classes + 1)
        cells = ((first + true) * classes + predicted).flatten()
        counts = torch.bincount(cells, minlength=tasks * (classes + 1) * classes)
        return counts.view(tasks, classes + 1, classes)[:, :classes]

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, default=torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
