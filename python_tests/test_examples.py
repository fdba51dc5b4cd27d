"""The scripts and the notebook of ``examples/`` run, on small pictures and without pretrained weights."""

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: object) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"]([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SyntheticConfig(train_classes=3, unseen_classes=2, images_per_class=3, size=64)
    return generate_synthetic(tmp_path_factory.mktemp("examples") / "pictures", config)


def test_inner_opt_in_your_model(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("inner_opt_in_your_model.py", "--weights", "none", "--photos", pictures, "--iterations", 1, "--episodes", 2)
    assert "classes never seen, after:  IoU " in capsys.readouterr().out


def test_train_on_a_folder_then_segment_one(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--iterations", 2, "--episodes", 2, "--size", 32)
    run("train_on_a_folder.py", pictures / "train", pictures / "unseen", "--out", tmp_path / "run", *small)
    assert "mean  IoU" in capsys.readouterr().out

    photos = min((pictures / "unseen").iterdir())
    label = ("--label", photos / "1.jpg", photos / "1.png", "--checkpoint", tmp_path / "run" / "last.ckpt")
    run("segment_a_folder.py", photos, *label, "--size", 32, "--out", tmp_path / "masks")
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "2.png", "2_overlay.jpg", "3.png", "3_overlay.jpg"
    }  # fmt: skip
    assert Image.open(tmp_path / "masks" / "2.png").size == (64, 64)


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "segment_photos.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum('"IMAGENET1K_V1")' in source for source in sources) == 1
    names: dict = {}
    for source in sources:
        exec(source.replace('"IMAGENET1K_V1")', "None, size=64)"), names)
    assert [Path(result.path).name for result in names["results"]] == ["3.jpg", "4.jpg"]
