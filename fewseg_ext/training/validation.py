"""Scores during training, over all processes. Needs torchmetrics."""

import torch
from torch import nn

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.evaluation.evaluate import evaluate
from fewseg_ext.training.distributed import rank, world_size


def validate(
    model: nn.Module, episodes: EpisodeDataset, device: torch.device, num_workers: int = 0
) -> dict[str, float]:
    """mIoU and foreground-background IoU in per cent; each process scores its part, all get the same result.

    As `evaluate`, whose samples depend on the episode alone: the result depends neither on the number of processes nor
    on the training's random state, which is left as it was.
    """
    result = evaluate(model, episodes, device=device, num_workers=num_workers, part=(rank(), world_size()))
    return {"miou": result.miou, "fb_iou": result.fb_iou}
