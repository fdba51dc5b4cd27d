"""Backbones: strides, dilations, the missing last ReLU, frozen BatchNorm, weights good and bad."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from fewseg_ext.models import backbones
from fewseg_ext.models.backbones import build_backbone, freeze_batch_norm
from fewseg_ext.models.registry import restore_model
from fewseg_ext.models.vpi import VPI

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

CHANNELS = {"resnet18": 512, "mobilenet_v2": 320, "vgg16": 512, "resnet50": 2048}
DILATED = ("resnet18", "mobilenet_v2", "resnet50")


def with_live_batch_norm(model: nn.Module) -> nn.Module:
    """Random statistics, so that a BatchNorm that is skipped or normalises the batch gives another result."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def save_full_model(name: str, path: Path) -> nn.Module:
    """torchvision's own model, classifier included, in eval mode; its state dict is at ``path``."""
    torch.manual_seed(0)
    full = with_live_batch_norm(torchvision.models.get_model(name, weights=None)).eval()
    torch.save(full.state_dict(), path)
    return full


def undilated_features(name: str, full: nn.Module, images: Tensor) -> Tensor:
    """Stride 32, before the last activation: the input of the last ReLU, or of the last 1 x 1 convolution."""
    if name == "mobilenet_v2":
        return full.features[:18](images)
    seen: list[Tensor] = []
    full.layer4[-1].relu.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    full(images)
    return seen[-1]


@pytest.mark.parametrize("name", CHANNELS)
def test_a_417_image_gives_53_x_53_features(name: str) -> None:
    backbone = build_backbone(name).eval()
    assert (backbone.out_channels, backbone.stride) == (CHANNELS[name], 8)
    with torch.inference_mode():
        assert backbone(torch.randn(1, 3, 417, 417)).shape == (1, CHANNELS[name], 53, 53)


def test_resnet101_has_its_blocks() -> None:
    backbone = build_backbone("resnet101")
    assert [len(getattr(backbone, f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 23, 3]
    assert {c.dilation[0] for c in backbone.layer4[1:].modules() if isinstance(c, nn.Conv2d)} == {1, 4}


@pytest.mark.parametrize("name", DILATED)
def test_every_fourth_dilated_feature_is_the_original_one(name: str, tmp_path: Path) -> None:
    """A trous: strides traded for dilation leave the coarse positions exactly as they were; and no last ReLU."""
    full = save_full_model(name, tmp_path / "full.pth").double()
    backbone = build_backbone(name, tmp_path / "full.pth").double().eval()
    images = torch.randn(1, 3, 97, 97, dtype=torch.float64)
    with torch.no_grad():
        coarse, fine = undilated_features(name, full, images), backbone(images)
    assert coarse.shape[-2:] == (4, 4)
    assert fine.shape[-2:] == (13, 13)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-9, atol=1e-9)
    assert (fine < 0).any()


def test_vgg16_pools_and_dilates_as_the_paper() -> None:
    layers = build_backbone("vgg16").features
    pools = [m for m in layers if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)]
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convs] == [1] * 10 + [2] * 3
    assert [m.padding for m in convs] == [m.dilation for m in convs]
    assert layers[-1] is convs[-1]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_batch_norm_stays_frozen_in_training_copies_and_pickles(name: str) -> None:
    backbone = with_live_batch_norm(build_backbone(name))
    images = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        expected = backbone.eval()(images)
        loaded = pickle.load(io.BytesIO(pickle.dumps(backbone)))
        for copied in (backbone, copy.deepcopy(backbone), loaded):
            torch.testing.assert_close(copied.train()(images), expected, rtol=0, atol=0)
            norms = [m for m in copied.modules() if isinstance(m, nn.BatchNorm2d)]
            assert copied.training
            assert norms
            assert not any(m.training for m in norms)
            assert not any(p.requires_grad for m in norms for p in m.parameters())
    assert any(p.requires_grad for p in backbone.parameters())


def test_freeze_batch_norm_takes_the_module_itself_and_refuses_strangers() -> None:
    for norm in (nn.BatchNorm1d, nn.BatchNorm3d):
        frozen = freeze_batch_norm(norm(3))
        assert not frozen.train().training
        assert freeze_batch_norm(frozen) is frozen
    with pytest.raises(TypeError, match="SyncBatchNorm"):
        freeze_batch_norm(nn.Sequential(nn.SyncBatchNorm(3)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_with_a_classifier_loads(suffix: str, tmp_path: Path) -> None:
    full = save_full_model("resnet18", tmp_path / "full.pth")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(full.state_dict(), path)
    else:
        torch.save(full.state_dict(), path)
    backbone = build_backbone("resnet18", str(path))
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, full.state_dict()[key], rtol=0, atol=0)


def test_a_saved_backbone_and_a_file_without_counters_load(tmp_path: Path) -> None:
    state = build_backbone("resnet18").state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "own.pth")
    again = build_backbone("resnet18", tmp_path / "own.pth").state_dict()
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    state = build_backbone("resnet18").state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="the keys do not fit the 120 expected ones") as error:
        build_backbone("resnet18", tmp_path / "bad.pth")
    for part in (
        "1 missing: layer1.0.conv1.weight",
        "1 unexpected: layer9.weight",
        "1 of another shape: conv1.weight ([64, 3, 3, 3] for [64, 3, 7, 7])",
    ):
        assert part in str(error.value)


def test_another_model_s_weights_are_counted_not_listed(tmp_path: Path) -> None:
    torch.save(build_backbone("mobilenet_v2").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"\d{3} missing: .*, \.\.\.; \d{3} unexpected: ") as error:
        build_backbone("resnet18", tmp_path / "other.pth")
    assert len(str(error.value)) < 500


def test_weights_errors_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nothing\.pth'"):
        build_backbone("resnet18", tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no state dict"):
        build_backbone("resnet18", tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"IMAGENET1K_V7.*IMAGENET1K_V1"):
        build_backbone("resnet18", "IMAGENET1K_V7")

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(OSError, match=r"no route to host.*pass the path of a local file"):
        build_backbone("resnet18", "IMAGENET1K_V1")


def test_torchvision_weights_come_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = save_full_model("resnet18", tmp_path / "full.pth").state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
    assert torch.equal(build_backbone("resnet18", "IMAGENET1K_V1").conv1.weight, state["conv1.weight"])


def test_an_unknown_name_lists_the_names_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet5O' is unknown.*mobilenet_v2.*vgg16.*did you mean 'resnet50'"):
        build_backbone("resnet5O")


def test_timm_s_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_backbone("timm:resnet26d")
    with pytest.raises(ValueError, match="timm, which is not installed"):
        build_backbone("resnet26d")


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet26d", 8), ("convnext_atto", 8), ("vit_tiny_patch16_224", 16), ("vgg11", 16)]
)
def test_timm_models_by_name(name: str, stride: int) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    backbone = build_backbone(name)
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 224, 224))
    assert features.shape == (1, backbone.out_channels, 224 // stride, 224 // stride)
    assert backbone.stride == stride


def test_timm_s_nhwc_maps_are_turned_and_weights_are_strict(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    swin = build_backbone("swin_tiny_patch4_window7_224")
    with torch.no_grad():
        assert swin(torch.randn(1, 3, 224, 224)).shape == (1, swin.out_channels, 14, 14)
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    torch.save(state, tmp_path / "good.pth")
    loaded = build_backbone("resnet10t", tmp_path / "good.pth").state_dict()
    weights = [k for k in loaded if k.endswith("conv1.weight")]
    assert weights
    assert all(torch.equal(loaded[k], state[k.removeprefix("model.")]) for k in weights)
    del state["layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"1 missing: layer2\.0\.conv1\.weight"):
        build_backbone("resnet10t", tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"'IMAGENET1K_V1' is neither a \.pth, \.pt or \.safetensors file nor"):
        build_backbone("resnet10t", "IMAGENET1K_V1")


def test_a_model_on_a_pyramid_of_timm_s_is_restored() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = VPI("timm:resnet10t", latent_dim=8, width=8, deterministic=True).eval()
    restored = restore_model(model.config, model.state_dict()).eval()
    photos, masks = torch.randn(2, 1, 1, 1, 3, 64, 64), torch.zeros(1, 1, 1, 64, 64, dtype=torch.long)
    masks[..., 16:40, 8:48] = 1
    with torch.no_grad():
        found = [network(photos[0], masks, photos[1, :, 0, 0]).logits for network in (model, restored)]
    assert found[0].shape == (1, 2, 64, 64)
    assert torch.equal(*found)


def test_the_package_does_not_import_torchvision_or_timm(tmp_path: Path) -> None:
    code = (
        "import sys, fewseg_ext.models; print([m for m in ('torchvision', 'timm', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_conv4_is_built_and_its_weights_load(tmp_path: Path) -> None:
    pytest.importorskip("fewseg_ext.models.conv4", reason="conv4 is not in this tree")
    backbone = build_backbone("conv4")
    torch.save(backbone.state_dict(), tmp_path / "conv4.pth")
    again = build_backbone("conv4", tmp_path / "conv4.pth").eval()
    images = torch.randn(1, 3, 32, 32)
    features = again(images)
    torch.testing.assert_close(features, backbone.eval()(images))
    assert features.shape == (1, again.out_channels, 32 // again.stride, 32 // again.stride)


def test_weights_that_are_no_plain_numbers_are_refused(tmp_path: Path) -> None:
    state = {name: value.to_sparse() for name, value in build_backbone("conv4").state_dict().items()}
    torch.save(state, tmp_path / "sparse.pth")
    with pytest.raises(ValueError, match="their values cannot be taken over as numbers"):
        build_backbone("conv4", tmp_path / "sparse.pth")


def test_names_are_those_of_the_table() -> None:
    assert set(backbones.BACKBONES) == {*CHANNELS, "resnet101", "conv4"}


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"garbage" * 9)
    with pytest.raises(ValueError, match=rf"{name}' cannot be read: it is damaged"):
        build_backbone("mobilenet_v2", tmp_path / name)
