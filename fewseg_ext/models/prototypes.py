"""Class prototypes: from episode label maps to pooled vectors, and the cosine scores of a query against them.

Shapes: B tasks, K = ways + 1 classes (0 = background), S support images of a task (all shots of all ways), C channels,
H x W features, h x w masks. Symbols as in ``docs/math.md``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewseg_ext import ops

IGNORE_INDEX = 255
# Below this length a vector counts as zero, as in the operators: its direction is noise.
ZERO_NORM = 1e-12


def check_labels(labels: Tensor, ways: int, name: str = "masks") -> None:
    """Raise where ``labels`` is not an episode label map: 0 background, 1..ways, 255 ignore, or bool for one way.

    The values are read on the CPU only: on other devices, where reading them would wait for the device, and while
    compiling, the dtype alone is checked, and a label that is no class of the episode counts as 255 in a support mask.

    Args:
        labels: integer or bool label maps of any shape. The 0/255 test looks at all of them together, so that a
            training crop that lost its object and kept an ignored border passes in a batch that has objects.
        ways: number of foreground classes N of the episode.
        name: the argument's name, for the message.

    Raises:
        TypeError: a floating or complex dtype.
        ValueError: bool with more than one way, a label outside the episode, or only 0 and 255.
    """
    if labels.dtype == torch.bool:
        if ways != 1:
            raise ValueError(
                f"{name}: a bool mask has one foreground class, but the episode has {ways} ways: "
                f"pass labels 0..{ways}, 255 where ignored"
            )
        return
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"{name}: expected integer labels (0 background, 1..{ways}, 255 ignore) or bool, got {labels.dtype}"
        )
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    ignored = labels == IGNORE_INDEX
    wrong = ((labels < 0) | (labels > ways)) & ~ignored
    if wrong.any():
        raise ValueError(
            f"{name}: label {int(labels[wrong][0])} is not of this {ways}-way episode: expected "
            f"0 (background), {'1' if ways == 1 else f'1..{ways}'} or 255 (ignore)"
        )
    if ignored.any() and not ((labels > 0) & ~ignored).any():
        raise ValueError(
            f"{name}: only 0 and 255 in it, which looks like a 0/255 mask: pass mask > 127 "
            f"(255 in a label map means: ignore this pixel)"
        )


def label_masks(labels: Tensor, ways: int) -> Tensor:
    """Episode label maps [..., h, w] to one bool mask per class [..., K, h, w]; 255 is in none of them."""
    if labels.dtype == torch.bool:
        return torch.stack([~labels, labels], dim=-3)
    classes = torch.arange(ways + 1, device=labels.device, dtype=labels.dtype)
    return labels.unsqueeze(-3) == classes[:, None, None]


def unit_norm(prototypes: Tensor) -> Tensor:
    """p / |p| along the last dimension; a zero vector stays zero and gets no gradient (F.normalize gives 1e12)."""
    norm = torch.linalg.vector_norm(prototypes, dim=-1, keepdim=True)
    inverse = torch.where(norm > ZERO_NORM, 1 / norm.clamp(min=ZERO_NORM), 0.0)
    return prototypes * inverse


def pool(features: Tensor, masks: Tensor, resize: str = "features") -> Tensor:
    """Masked average pooling [B,C,H,W], bool [B,K,h,w] -> [B,K,C], never below float32.

    Bool masks would give prototypes the features' dtype, and the inner loop needs more than the 8 bits of a bfloat16.
    """
    weights = masks.to(torch.promote_types(features.dtype, torch.float32))
    pooled: Tensor = ops.masked_avg_pool(features, weights, resize=resize)
    return pooled


def support_prototypes(features: Tensor, masks: Tensor, resize: str = "features") -> Tensor:
    """P_s: each image pooled alone, then averaged over the images that show the class.

    Args:
        features: [B,S,C,H,W], floating; the S images are all shots of all ways.
        masks: [B,S,K,h,w], bool, from :func:`label_masks`.
        resize: "features" (exact value of upsampling the features) or "masks" (downsample the masks).

    Returns:
        [B,K,C]; zero, so of cosine 0 with every pixel, for a class that no image shows.
    """
    tasks, images = features.shape[:2]
    flat = masks.flatten(0, 1)
    pooled = pool(features.flatten(0, 1), flat, resize).view(tasks, images, -1, features.shape[2])
    if resize == "masks":
        # A small object may vanish from the resized mask: such an image has nothing to say about the class either.
        weight = F.interpolate(flat.float(), size=features.shape[-2:], mode="bilinear", align_corners=False)
        shown = weight.sum((2, 3)) > 0
    else:
        shown = flat.any(-1).any(-1)
    count = shown.view(tasks, images, -1, 1).to(pooled.dtype)
    return (pooled * count).sum(1) / count.sum(1).clamp(min=1)


def query_prototypes(features: Tensor, labels: Tensor, fallback: Tensor, resize: str = "features") -> Tensor:
    """P': the query pooled under its own temporary labels [B,H,W]; a class predicted nowhere keeps ``fallback``."""
    masks = label_masks(labels, fallback.shape[1] - 1)
    shown = masks.any(-1).any(-1)[..., None]
    return torch.where(shown, pool(features, masks, resize).to(fallback.dtype), fallback)


def cosine_logits(features: Tensor, prototypes: Tensor, scale: float = 20.0) -> Tensor:
    """[B,C,H,W], [B,K,C] -> [B,K,H,W]: scale * cos(feature, prototype), never below float32."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, prototypes.dtype), torch.float32)
    q, p = features.to(dtype).flatten(2), unit_norm(prototypes.to(dtype))
    # The pixels' norms divide K planes instead of C.
    norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)
    inverse = torch.where(norm > ZERO_NORM, 1 / norm.clamp(min=ZERO_NORM), 0.0)
    logits: Tensor = scale * inverse * (p @ q)
    return logits.view(*logits.shape[:2], *features.shape[-2:])


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, align_corners=False; the same tensor where the size is right already."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def task_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of [B,K,h,w] against int64 [B,h,w] as one mean over the valid pixels per task, [B].

    A task with no valid pixel has loss 0 (the mean of PyTorch is NaN).
    """
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none").sum((1, 2))
    return loss / (target != IGNORE_INDEX).sum((1, 2)).clamp(min=1)
