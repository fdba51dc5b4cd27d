"""Intersection over union as few-shot segmentation scores it."""

import torch
from torch import Tensor


class SegmentationScore:
    """Intersections and unions, summed per class over all episodes and divided once.

    Pixels labelled ``ignore_index`` are removed from both. mIoU is the mean over the classes that occurred; binary
    (FB) IoU pools all classes into one foreground and averages the IoU of foreground and background.

    Args:
        num_classes: classes of the data set, background not counted.
        ignore_index: the label of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"SegmentationScore: num_classes must be at least 1, got {num_classes}")
        self.ignore_index = ignore_index
        self.episodes = 0
        # Row c: class c. Columns: intersection, union.
        self.class_pixels = torch.zeros(num_classes, 2, dtype=torch.int64)
        # Rows: background, foreground.
        self.binary_pixels = torch.zeros(2, 2, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor, class_ids: Tensor) -> Tensor:
        """Adds a batch of episodes.

        Args:
            prediction: any integer dtype [B,h,w], 0 background, n way n.
            target: any integer dtype [B,h,w], labelled likewise, with ``ignore_index`` where nothing counts.
            class_ids: int64 [B,N], the data set's class of ways 1..N.

        Returns:
            The IoU of every way in every episode, float64 [B,N]; NaN where a way is neither predicted nor there.

        Raises:
            ValueError: shapes that do not fit.
        """
        if prediction.shape != target.shape or prediction.dim() != 3:
            raise ValueError(
                f"SegmentationScore: prediction {list(prediction.shape)} and target {list(target.shape)} must both be "
                f"[B,h,w]"
            )
        if class_ids.dim() != 2 or class_ids.shape[0] != prediction.shape[0]:
            raise ValueError(f"SegmentationScore: class_ids must be [B,N], got {list(class_ids.shape)}")
        valid = target != self.ignore_index
        ways = torch.arange(1, class_ids.shape[1] + 1, device=target.device)[:, None, None]
        predicted = (prediction[:, None] == ways) & valid[:, None]
        true = (target[:, None] == ways) & valid[:, None]
        pixels = _intersection_union(predicted, true)
        self.class_pixels.index_add_(0, class_ids.reshape(-1).cpu(), pixels.reshape(-1, 2))
        for row, positive in enumerate((prediction == 0, prediction > 0)):
            here = (target == 0) if row == 0 else (target > 0)
            self.binary_pixels[row] += _intersection_union(positive & valid, here & valid).sum(0)
        self.episodes += prediction.shape[0]
        return pixels[..., 0].double() / pixels[..., 1]

    @property
    def class_iou(self) -> Tensor:
        """float64 [num_classes] in 0..1, NaN for a class that did not occur."""
        return self.class_pixels[:, 0].double() / self.class_pixels[:, 1]

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occurred, in 0..1; NaN before the first episode."""
        return float(self.class_iou.nanmean())

    @property
    def fb_iou(self) -> float:
        """Mean of the pooled foreground's and the background's IoU, in 0..1."""
        return float((self.binary_pixels[:, 0].double() / self.binary_pixels[:, 1]).nanmean())


def _intersection_union(first: Tensor, second: Tensor) -> Tensor:
    """Two bool [...,h,w] -> int64 [...,2] on the CPU."""
    return torch.stack([(first & second).sum((-2, -1)), (first | second).sum((-2, -1))], dim=-1).cpu()
