"""Without the optional packages, and without nvcc: what works all the same, and which package the rest asks for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import fewseg_ext
from fewseg_ext.training.checkpoint import Checkpoint, save_checkpoint

# One process for all of it, because importing torch takes most of the time.
PRELUDE = """
import json, os, sys

OPTIONAL = {
    "gradio", "jsonargparse", "matplotlib", "pycocotools", "scipy", "timm", "torchmetrics", "torchvision", "uvicorn",
    "yaml",
}


class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Without())
import fewseg_ext
"""

OPERATORS_AND_MODELS = """
import numpy as np
import torch
from torch import nn

features = torch.randn(2, 8, 7, 5, requires_grad=True)
masks = torch.rand(2, 2, 20, 20) < 0.5
labels = torch.randint(0, 2, (2, 20, 20))
prototypes = nn.functional.normalize(fewseg_ext.masked_avg_pool(features, masks), dim=2)
target = fewseg_ext.cosine_logits(features, prototypes).argmax(1)
prototypes = fewseg_ext.inner_opt(features, prototypes, target)
fewseg_ext.cosine_cross_entropy(features, prototypes, labels).backward()
assert features.grad.norm() > 0
samples = fewseg_ext.sample_prototypes(torch.randn(1, 3, 6), torch.ones(1, 3, 6), 4, torch.tensor([1, 2]))
assert samples.shape == (1, 4, 6)

backbone = nn.Sequential(nn.Conv2d(3, 16, 3, stride=8, padding=1), nn.Tanh())
backbone.out_channels = 16
photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
mask = np.zeros((48, 64), bool)
mask[10:30, 20:50] = True
for model in (fewseg_ext.BiOpt(backbone), fewseg_ext.PrototypeBaseline(backbone), fewseg_ext.VPI("conv4")):
    segmenter = fewseg_ext.Segmenter(model, size=64)
    segmenter.fit([photo], [mask])
    assert segmenter.predict(photo).mask.shape == (48, 64)
backbone = nn.Conv2d(3, 16, 3, stride=8, padding=1)  # a segmenter freezes its model's
images, truth = torch.randn(1, 1, 1, 3, 64, 64), torch.randint(0, 2, (1, 1, 1, 64, 64))
fewseg_ext.BiOpt(backbone)(images, truth, images[:, 0, 0], truth[:, 0, 0]).loss.backward()
assert backbone.weight.grad.norm() > 0
"""

COMMANDS = """
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from fewseg_ext.cli import main

answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with redirect_stderr(StringIO()) as errors, redirect_stdout(StringIO()) as output:
        try:
            main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code
    answers.append([status, " ".join(errors.getvalue().split()), output.getvalue()])
print(json.dumps(answers))
"""

NEEDS = {
    "demo": (["demo", "--out", "demo"], "scores need torchmetrics: pip install torchmetrics"),
    "train": (["train", "--config", "laptop/biopt", "--out", "runs"], "pip install 'fewseg-ext[training]'"),
    "evaluate": (
        ["evaluate", "model.ckpt", "--dataset", "fss1000", "--root", "photos"],
        "scores need torchmetrics: pip install torchmetrics",
    ),
    "segment": (
        ["segment", "--backbone", "resnet18", "--support", "1.png:2.png", "--query", "3.png", "--out", "masks"],
        "backbone 'resnet18' needs torchvision: pip install torchvision",
    ),
    "serve": (
        ["serve", "--checkpoint", "conv4.ckpt", "--size", "64", "--port", "0"],
        "pip install 'fewseg-ext[data]'",
    ),
    "coco20i": (["prepare", "coco20i", "coco"], "pip install 'fewseg-ext[data]'"),
    "download": (
        ["prepare", "pascal5i", "voc", "--download"],
        "--download needs torchvision: pip install torchvision",
    ),
}


def path_without_nvcc() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "nvcc").exists())


def run(code: str, folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        env={**os.environ, "PATH": path_without_nvcc()},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Status, standard error and output of every command, all run in one process in one folder."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("1.png", "2.png", "3.png"):
        Image.new("L", (16, 16), 255).save(folder / name)
    (folder / "coco").mkdir()
    model = fewseg_ext.PrototypeBaseline("conv4")
    save_checkpoint(folder / "conv4.ckpt", Checkpoint(model.config, model.state_dict()))
    before = sorted(folder.iterdir())
    commands = {"info": ["info"], **{name: arguments for name, (arguments, _) in NEEDS.items()}}
    answers = json.loads(run(COMMANDS, folder, json.dumps(list(commands.values()))))
    assert sorted(folder.iterdir()) == before, "something was written"
    return dict(zip(commands, answers, strict=True))


def test_the_operators_models_and_segmenter_work_without_any_of_them(tmp_path: Path) -> None:
    run(OPERATORS_AND_MODELS, tmp_path)


def test_info_works_without_any_of_them(answers: dict[str, list]) -> None:
    status, _, output = answers["info"]
    assert status == 0
    assert "CPU kernels used" in output


@pytest.mark.parametrize("name", NEEDS)
def test_a_command_says_which_package_it_needs_before_it_does_anything(name: str, answers: dict[str, list]) -> None:
    status, error, _ = answers[name]
    assert status == 1
    assert NEEDS[name][1] in error
    assert "Traceback" not in error


def test_a_torchvision_made_for_another_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it ends in an error of the dispatcher's, which names an operator that nobody has heard of."""

    class Unfit:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Unfit(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"installed does not fit torch .*torchvision::nms does not exist"):
        fewseg_ext.BiOpt("resnet18")
