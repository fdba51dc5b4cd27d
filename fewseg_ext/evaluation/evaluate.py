"""Scoring a model on the episodes of a data set."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.evaluation.metrics import SegmentationScore


@dataclass(frozen=True)
class EvaluationResult:
    """Scores in per cent, and what they were measured on."""

    miou: float
    fb_iou: float
    class_iou: dict[str, float]  # by class name; NaN for a class that no episode drew
    episodes: int
    protocol: str


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: EpisodeDataset,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Scores ``model`` on every episode of ``dataset``.

    The resolution is that of the episodes' masks: logits are upsampled to it.

    Args:
        model: called as ``model(support_images, support_masks, query_images)``, returns an object with ``logits``
            [B,N+1,H,W]. It is set to eval mode for the time of the call.
        dataset: the episodes.
        batch_size: episodes per call.
        device: where the model is.
        num_workers: of the data loader.
        progress: called as ``progress(episodes_done, episodes_in_total)`` after every batch.
    """
    score = SegmentationScore(len(dataset.source.class_names))
    was_training = model.training
    model.eval()
    size: tuple[int, ...] = ()
    try:
        for batch in DataLoader(dataset, batch_size=batch_size, num_workers=num_workers):
            size = tuple(batch["query_masks"].shape[-2:])
            score.update(predict(model, batch, device).cpu(), batch["query_masks"], batch["class_ids"])
            if progress is not None:
                progress(score.episodes, len(dataset))
    finally:
        model.train(was_training)
    return EvaluationResult(
        miou=100 * score.miou,
        fb_iou=100 * score.fb_iou,
        class_iou=dict(zip(dataset.source.class_names, (100 * score.class_iou).tolist(), strict=True)),
        episodes=score.episodes,
        protocol=(
            f"{score.episodes} episodes (seed {dataset.seed}), {dataset.ways}-way {dataset.shots}-shot, "
            f"{size[0]} x {size[1]} pixels, IoU summed per class over all episodes and divided once, "
            f"mIoU over {int(score.class_iou.isfinite().sum())} classes, pixels labelled {score.ignore_index} removed"
        ),
    )


@torch.inference_mode()
def predict(model: nn.Module, batch: dict[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
    """The predicted episode label maps int64 [B,h,w] of a batch of episodes, as large as its query masks."""
    output = model(*(batch[key].to(device) for key in ("support_images", "support_masks", "query_images")))
    size = batch["query_masks"].shape[-2:]
    logits: Tensor = output.logits
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits.argmax(1)
