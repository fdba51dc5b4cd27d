"""The operators in a model of your own: a head on a frozen backbone, trained through the inner optimisation.

    python examples/inner_opt_in_your_model.py                                   # downloads MobileNetV2's weights
    python examples/inner_opt_in_your_model.py --weights mobilenet_v2.safetensors   # or takes a file

The backbone is frozen: its features are constants. What is trained is one 1 x 1 convolution behind it, such that the
prototypes are good before *and after* five steps of gradient descent on the query. The gradient goes through all steps.
``--photos`` takes a folder with ``train`` and ``unseen``, each with a folder per class. Without it pictures are
generated, which show how it is done and no more: features of ImageNet say little about them.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fewseg_ext
from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.folder import open_folder
from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.models import build_backbone


class InnerOptHead(nn.Module):
    """Any frozen network [B,3,h,w] -> [B,C,H,W] with a trained 1 x 1 convolution behind it."""

    def __init__(self, backbone: nn.Module, channels: int, width: int = 128, steps: int = 5) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.embed = nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, width, 1))
        self.steps = steps

    def features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = self.backbone(images)
        return self.embed(frozen)

    def forward(self, support_images: Tensor, support_masks: Tensor, query_images: Tensor) -> tuple[Tensor, ...]:
        """[B,3,h,w], bool [B,h,w], [B,3,h,w] -> the query's features [B,D,H,W], the prototypes [B,2,D] of the support,
        and those fitted to the query."""
        support, query = self.features(support_images), self.features(query_images)
        masks = torch.stack([~support_masks, support_masks], dim=1)
        prototypes = F.normalize(fewseg_ext.masked_avg_pool(support, masks), dim=2)
        # The query pooled under what the support's prototypes find in it, half and half with them: where to start.
        found = fewseg_ext.cosine_logits(query, prototypes).argmax(1)
        own = fewseg_ext.masked_avg_pool(query, torch.stack([found == 0, found == 1], dim=1))
        start = F.normalize(prototypes + F.normalize(own, dim=2), dim=2)
        # What that finds is the target of the descent; labels are constants for the gradient.
        target = fewseg_ext.cosine_logits(query, start).argmax(1)
        return query, prototypes, fewseg_ext.inner_opt(query, start, target, steps=self.steps)


def split(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of 1-way 1-shot episodes: support images and masks, query images and labels."""
    return (
        batch["support_images"][:, 0, 0],
        batch["support_masks"][:, 0, 0] == 1,
        batch["query_images"],
        batch["query_masks"],
    )


@torch.no_grad()
def foreground_iou(model: InnerOptHead, episodes: EpisodeDataset) -> str:
    """Intersection over union of all episodes' objects together, of the support's prototypes and of the fitted ones."""
    intersection, union = torch.zeros(2), torch.zeros(2)
    for batch in DataLoader(episodes, batch_size=8):
        *inputs, labels = split(batch)
        query, *stages = model(*inputs)
        for stage, prototypes in enumerate(stages):
            logits = F.interpolate(fewseg_ext.cosine_logits(query, prototypes), labels.shape[-2:], mode="bilinear")
            found, valid = logits.argmax(1) == 1, labels != 255
            intersection[stage] += (found & (labels == 1) & valid).sum()
            union[stage] += ((found | (labels == 1)) & valid).sum()
    support, fitted = (100 * intersection / union.clamp(min=1)).tolist()
    return f"{support:.1f} % with the support's prototypes, {fitted:.1f} % with the fitted ones"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="IMAGENET1K_V1", help='a name, a file, or "none" for random features')
    parser.add_argument("--photos", type=Path, default=Path("runs/generated"))
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--episodes", type=int, default=100, help="unseen ones, to score")
    options = parser.parse_args(arguments)

    if not options.photos.exists():
        generate_synthetic(options.photos, SyntheticConfig())
    resize = PairTransform(128)
    train = EpisodeDataset(open_folder(options.photos / "train"), 8 * options.iterations, transform=resize)
    unseen = EpisodeDataset(open_folder(options.photos / "unseen"), options.episodes, transform=resize)

    torch.manual_seed(0)
    backbone = build_backbone("mobilenet_v2", None if options.weights == "none" else options.weights)
    model = InnerOptHead(backbone, backbone.out_channels)
    print(f"classes never seen, before: IoU {foreground_iou(model, unseen)}")

    optimizer = torch.optim.AdamW(model.embed.parameters(), lr=3e-4)
    for iteration, batch in enumerate(DataLoader(train, batch_size=8), start=1):
        *inputs, labels = split(batch)
        query, *stages = model(*inputs)
        # Labels have the size of the photo; upsampling the logits is part of the operator, and nothing is stored at
        # that size.
        loss = torch.stack([fewseg_ext.cosine_cross_entropy(query, stage, labels) for stage in stages]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 25 == 0 or iteration == options.iterations:
            print(f"iteration {iteration:4d}  loss {loss.item():.4f}")

    print(f"classes never seen, after:  IoU {foreground_iou(model, unseen)}")


if __name__ == "__main__":
    main()
