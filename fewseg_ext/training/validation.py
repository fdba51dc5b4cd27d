"""Scores during training, over all processes. Needs torchmetrics."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.evaluation.evaluate import predict
from fewseg_ext.evaluation.metrics import SegmentationScore
from fewseg_ext.training.distributed import rank, world_size


def validate(
    model: nn.Module, episodes: EpisodeDataset, device: torch.device, num_workers: int = 0
) -> dict[str, float]:
    """mIoU and foreground-background IoU in per cent; each process scores its part, all get the same result.

    A model's samples are drawn with the number of the episode as seed, so the result depends neither on the number of
    processes nor on the training's random state, which is left as it was.
    """
    mine = range(rank(), len(episodes), world_size())
    score = SegmentationScore(len(episodes.source.class_names)).to(device)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        loader = DataLoader(Subset(episodes, mine), batch_size=1, num_workers=num_workers, generator=torch.Generator())
        for index, batch in zip(mine, loader, strict=True):
            torch.manual_seed(index)
            score.update(predict(model, batch, device), batch["query_masks"].to(device), batch["class_ids"])
    model.train(was_training)
    values = score.compute()
    return {name: 100 * float(values[name]) for name in ("miou", "fb_iou")}
