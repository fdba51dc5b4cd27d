"""Backbones: images [B,3,h,w] to features [B,C,H,W], dilated to output stride 8."""

import difflib
import importlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewseg_ext.optional import need_torchvision
from fewseg_ext.torch_files import load_torch

BACKBONES = ("conv4", "mobilenet_v2", "resnet18", "resnet50", "resnet101", "vgg16")


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d that stays in eval mode."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm1d":
        return super().train(False)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that stays in eval mode."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


class FrozenBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d that stays in eval mode."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm3d":
        return super().train(False)


_FROZEN: dict[type[nn.modules.batchnorm._BatchNorm], type[nn.modules.batchnorm._BatchNorm]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Freeze every BatchNorm of ``module`` in place: running statistics and affine parameters (weight, bias) alike.

    The frozen layers use their running statistics in ``train()`` too, as few-shot segmentation does with its batches of
    a few images. Names and state dict stay as they were; copies and pickles stay frozen.

    Returns:
        ``module`` itself.

    Raises:
        TypeError: a BatchNorm of another kind, whose ``forward`` is not known here.

    Example:
        >>> from torch import nn
        >>> from fewseg_ext.models import freeze_batch_norm
        >>> freeze_batch_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).train()[1].training
        False
    """
    for child in module.modules():
        if not isinstance(child, nn.modules.batchnorm._BatchNorm) or type(child) in _FROZEN.values():
            continue
        if type(child) not in _FROZEN:
            raise TypeError(f"freeze_batch_norm: {type(child).__name__} is not BatchNorm1d, 2d or 3d")
        # A change of class keeps parameters, buffers and hooks; the class is importable, so pickle and deepcopy work.
        child.__class__ = _FROZEN[type(child)]
        child.eval().requires_grad_(False)
    return module


class Backbone(nn.Sequential):
    """The feature layers of a torchvision model, under torchvision's parameter names.

    ``skips`` names the two layers, a direct child or "features.<number>", whose outputs a decoder takes beside the
    features, and their channels.
    """

    def __init__(
        self, layers: "OrderedDict[str, nn.Module]", out_channels: int, stride: int, skips: Mapping[str, int]
    ) -> None:
        super().__init__(layers)
        self.out_channels = out_channels
        self.stride = stride
        self.skips = tuple(skips)
        self.pyramid_channels = (*skips.values(), out_channels)

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs of ``skips``, at strides 4 and 8, and the features: the finest first."""
        maps: list[Tensor] = []
        x = images
        for name, layer in self.named_children():
            parts = {name: layer} if name != "features" else {f"features.{k}": m for k, m in layer.named_children()}
            for part, module in parts.items():
                x = module(x)
                if part in self.skips:
                    maps.append(x)
        return *maps, x


class LastBlock(nn.Module):
    """A torchvision residual block without the ReLU at its end: cosines need features of both signs."""

    relu: nn.Module
    downsample: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.depth = 3 if hasattr(block, "conv3") else 2

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < self.depth:
                out = self.relu(out)
        shortcut: Tensor = self.downsample(x) if "downsample" in self._modules else x
        return out + shortcut


def build_backbone(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Build a backbone by name.

    ``resnet50``, ``resnet101`` and ``vgg16`` are those of the BiOpt paper: strides of the last stages replaced by
    dilation, the last ReLU removed, BatchNorm frozen; 417 x 417 gives 53 x 53. ``resnet18`` and ``mobilenet_v2`` are
    the small ones, treated alike; ``conv4`` is a four-block network for training from scratch on small machines. Any
    other name is one of timm's, where timm is installed; ``timm:NAME`` asks for timm's where both have the name.

    Args:
        name: see above.
        weights: None (random), a torchvision weights name such as "IMAGENET1K_V1" ("pretrained" for timm), or the path
            of a ``.pth``, ``.pt`` or ``.safetensors`` file with the model's state dict; a classifier in it is ignored.

    Returns:
        A module [B,3,h,w] -> [B,C,H,W] with int attributes ``out_channels`` and ``stride``.

    Raises:
        ValueError: an unknown name, or weights that do not fit: the message names the keys.
        FileNotFoundError: a path without a file.
        ImportError: torchvision or timm is needed and not installed.
        OSError: weights that could not be downloaded.

    Example:
        >>> import torch
        >>> from fewseg_ext.models import build_backbone
        >>> build_backbone("conv4")(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 64, 16, 16])
    """
    if name == "conv4":
        module: nn.Module = importlib.import_module("fewseg_ext.models.conv4").Conv4()
        if weights is not None:
            load_weights(module, read_weights(weights))
        return module
    if name in BACKBONES:
        return _torchvision_backbone(name, weights)
    return _timm_backbone(name, weights)


def _torchvision_backbone(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    need_torchvision(f"backbone {name!r} needs")
    from torchvision import models

    # torchvision dilates its ResNets of bottleneck blocks itself, and refuses for the others.
    options = {"replace_stride_with_dilation": [False, True, True]} if name in ("resnet50", "resnet101") else {}
    full: Any = models.get_model(name, weights=None, **options)
    layers: OrderedDict[str, nn.Module]
    if name.startswith("resnet"):
        if name == "resnet18":
            _dilate(full.layer3, 1, 2)
            _dilate(full.layer4, 2, 4)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        layers = OrderedDict((part, getattr(full, part)) for part in names)
        channels = full.fc.in_features
        wide = full.layer1[-1].expansion if hasattr(full.layer1[-1], "expansion") else 1
        skips = {"layer1": 64 * wide, "layer2": 128 * wide}
    elif name == "vgg16":
        layers, channels = OrderedDict(features=_dilate_vgg16(full.features)), 512
        skips = {"features.9": 128, "features.16": 256}
    else:
        # The last convolution, 1280 channels for the classifier, is left out with it.
        layers, channels = OrderedDict(features=full.features[:18]), 320
        skips = {"features.3": 24, "features.6": 32}
        _dilate(full.features[7:14], 1, 2)
        _dilate(full.features[14:18], 2, 4)
    backbone = Backbone(layers, channels, stride=8, skips=skips)
    if weights is not None:
        load_weights(backbone, _weights_of(name, weights), ignored=("fc.", "classifier.", "features.18."))
    if name.startswith("resnet"):
        full.layer4[-1] = LastBlock(full.layer4[-1])
    return freeze_batch_norm(backbone)


def _dilate(blocks: nn.Module, before: int, after: int) -> None:
    """Replace the stride of ``blocks`` by dilation, in place, so that every fourth (second) output stays what it was.

    Convolutions up to the strided one keep the dilation ``before`` them, those after it get ``after``.
    """
    dilation = before
    for conv in (m for m in blocks.modules() if isinstance(m, nn.Conv2d)):
        if conv.kernel_size != (1, 1):
            conv.padding = conv.dilation = (dilation, dilation)
        if conv.stride != (1, 1):
            conv.stride = (1, 1)
            dilation = after


def _dilate_vgg16(features: nn.Sequential) -> nn.Sequential:
    """VGG-16 up to its last convolution: 3 x 3 pools that keep the border, the fourth of stride 1, then dilation 2."""
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    for i in pools[:4]:
        features[i] = nn.MaxPool2d(3, stride=1 if i == pools[3] else 2, padding=1)
    for layer in features[pools[3] :]:
        if isinstance(layer, nn.Conv2d):
            layer.padding = layer.dilation = (2, 2)
    # Without the fifth pool and the ReLU before it.
    return features[: pools[4] - 1]


class TimmBackbone(nn.Module):
    """One feature map of a timm model."""

    def __init__(self, model: nn.Module, index: int, channels_last: bool, channels: Sequence[int], stride: int) -> None:
        super().__init__()
        self.model = model
        self.index = index
        self.channels_last = channels_last
        self.out_channels = channels[index]
        self.stride = stride
        # The two maps before the features, where the model has them.
        self.pyramid_channels = tuple(channels[max(index - 2, 0) : index + 1])

    def forward(self, images: Tensor) -> Tensor:
        return self._planes(self.model(images)[self.index])

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """The two maps before the features, and the features: the finest first."""
        return tuple(self._planes(x) for x in self.model(images)[max(self.index - 2, 0) : self.index + 1])

    def _planes(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if self.channels_last else x


def _timm_backbone(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    plain = name.removeprefix("timm:")
    nearest = difflib.get_close_matches(plain, BACKBONES, n=1)
    hint = f"expected one of {', '.join(BACKBONES)}" + (f" (did you mean {nearest[0]!r}?)" if nearest else "")
    try:
        import timm
    except ImportError as error:
        if plain != name:
            raise ImportError(f"backbone {name!r} needs timm: pip install timm") from error
        raise ValueError(f"backbone: {name!r} is unknown, {hint}, or a name of timm, which is not installed") from error
    if not timm.is_model(plain):
        raise ValueError(f"backbone: {name!r} is unknown, {hint}, or a name from timm.list_models()")

    options: dict[str, Any] = {"features_only": True, "pretrained": weights is not None}
    if weights is not None and _is_path(weights):
        # timm loads the layers that a feature extractor keeps and does not mind the rest; the whole model minds.
        full: Any = timm.create_model(plain, num_classes=0)
        heads = full.pretrained_cfg.get("classifier") or ()
        load_weights(
            full, read_weights(weights), tuple(f"{h}." for h in ([heads] if isinstance(heads, str) else heads))
        )
        options["pretrained_cfg_overlay"] = {"file": os.fspath(weights)}
    elif weights is not None and weights != "pretrained":
        raise ValueError(f'weights: {weights!r} is neither a .pth, .pt or .safetensors file nor "pretrained"')
    model = _timm_features(timm, plain, options)
    reductions, channels = model.feature_info.reduction(), model.feature_info.channels()
    usable = [i for i, reduction in enumerate(reductions) if reduction <= 16]
    if not usable:
        raise ValueError(f"backbone: {name!r} has no feature map of stride 16 or finer, only {reductions}")
    index = usable[-1]
    channels_last = str(getattr(model, "output_fmt", "")).endswith("NHWC")
    from timm.layers.norm_act import freeze_batch_norm_2d

    frozen = freeze_batch_norm_2d(model)
    return TimmBackbone(frozen, index, channels_last, channels, reductions[index])


def _timm_features(timm: Any, name: str, options: dict[str, Any]) -> Any:
    """timm's feature extractor at the finest output stride that the architecture can do."""
    for stride in (8, 16):
        try:
            return timm.create_model(name, output_stride=stride, **options)
        except (AssertionError, NotImplementedError, TypeError):
            # What timm's architectures answer to an output stride that they do not know.
            continue
    try:
        return timm.create_model(name, **options)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"backbone: timm's {name!r} gives no feature maps: {error}") from error


def _weights_of(name: str, weights: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a file, or of the torchvision weights of that name."""
    if _is_path(weights):
        return read_weights(weights)
    from torchvision import models

    choices = models.get_model_weights(name)
    if weights not in choices.__members__:
        raise ValueError(
            f"weights: {weights!r} is neither a .pth, .pt or .safetensors file nor one of torchvision's for {name}: "
            f"{', '.join(choices.__members__)}"
        )
    try:
        return dict(choices[str(weights)].get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise OSError(
            f"weights {weights!r} of {name}: {error}. Without network pass the path of a local file"
        ) from error


def _is_path(weights: str | os.PathLike[str]) -> bool:
    path = Path(weights)
    return path.suffix in (".pth", ".pt", ".safetensors") or len(path.parts) > 1 or path.is_file()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file, or from a ``.pth`` or ``.pt`` file without running code in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no state dict.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights: there is no file {os.fspath(path)!r}")
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = load_torch(path)
    except (ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"weights: {os.fspath(path)!r} cannot be read: it is damaged, or not a file of weights alone"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"weights: {os.fspath(path)!r} holds no state dict, expected parameter names and tensors")
    return dict(state)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], ignored: tuple[str, ...] = ()) -> None:
    """Load ``state`` into ``module``; every key must fit, but for those that start with one of ``ignored``.

    Raises:
        ValueError: keys that are missing, unexpected or of another shape; the message names the first few of each.
    """
    given = check_weights(module, state, ignored)
    try:
        module.load_state_dict(given, strict=False)
    except (RuntimeError, TypeError) as error:
        # Values that are no dense numbers: sparse, quantised, without storage.
        raise ValueError("weights: their values cannot be taken over as numbers") from error


def check_weights(module: nn.Module, state: Mapping[str, Tensor], ignored: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """What of ``state`` goes into ``module``; see `load_weights`."""
    expected = module.state_dict()
    given = {key: value for key, value in state.items() if key in expected or not key.startswith(ignored or ("\0",))}
    # Files from before PyTorch 0.4.1 have no batch counters, and a frozen BatchNorm has no use for them.
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in expected]
    misshapen = [
        f"{k} ({list(given[k].shape)} for {list(expected[k].shape)})"
        for k in expected
        if k in given and given[k].shape != expected[k].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(key[:100] for key in keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise ValueError(f"weights: the keys do not fit the {len(expected)} expected ones; {'; '.join(problems)}")
    return given
