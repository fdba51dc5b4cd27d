"""What the documentation shows runs as it stands."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import fewseg_ext.ops
from fewseg_ext.data.coco import CATEGORY_IDS
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from photo_files import box, coco_json, two_boxes, write_json, write_mask, write_photo, write_voc

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("op", sorted(set(fewseg_ext.ops.__all__) - {"set_debug"}))
def test_docstring_examples(op: str) -> None:
    result = doctest.testmod(importlib.import_module(f"fewseg_ext.ops.{op}"), raise_on_error=True)
    assert result.attempted >= 2


def test_readme_example() -> None:
    """The thirty lines that show the operators in a user's own model, with random weights instead of ImageNet's."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    first = next(snippet for snippet in snippets if "def segment" in snippet)
    assert 'weights="IMAGENET1K_V2"' in first
    names: dict = {}
    exec(first.replace('weights="IMAGENET1K_V2"', "weights=None"), names)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:48, 16:48] = True
    result = names["segment"](torch.randn(1, 3, 64, 64), mask, torch.randn(1, 3, 80, 64))
    assert result.shape == (1, 80, 64)
    assert result.dtype == torch.bool


@pytest.mark.parametrize("page", ["README.md", "docs/own_photos.md"])
def test_examples_of_own_photos(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights instead of ImageNet's, and a small size."""
    for number in range(1, 6):
        write_photo(tmp_path / f"{number}.jpg", seed=number)
        write_mask(tmp_path / f"{number}.png", two_boxes(255, 0, border=0), palette=False)
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names: dict = {}
    for snippet in snippets[:1] if page == "README.md" else snippets:
        assert snippet != snippets[0] or '"IMAGENET1K_V1")' in snippet
        exec(snippet.replace('"IMAGENET1K_V1")', "None, size=64)"), names)
    assert names["result"].mask.shape == (96, 96)


def test_example_of_vpi() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/vpi.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    assert names["output"].mutual_information.shape == (1, 64, 64)


@pytest.mark.filterwarnings("ignore:ROOT/fewshot_data has 1 of the")
def test_examples_of_the_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, on small data in the places that the page names."""
    everything = [
        {"image_id": image, "category_id": category, "segmentation": [box(0, 0, 96, 96)]}
        for image in (1, 2)
        for category in CATEGORY_IDS
    ]
    root = tmp_path / "ROOT"
    for name in ("train2014", "val2014"):
        for number in (1, 2):
            write_photo(root / name / f"{number}.jpg", seed=number)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)]
        write_json(root / "annotations" / f"instances_{name}.json", coco_json(images, everything))
    write_voc(root, {"val": {"2008_000001": two_boxes(1, 8)}, "train": {"2008_000002": two_boxes(1, 8)}})
    for folder in (root / "fewshot_data" / "bus", tmp_path / "photos" / "apple"):
        for number in (1, 2):
            write_photo(folder / f"{number}.jpg", seed=number)
            write_mask(folder / f"{number}.png", two_boxes(255, 0, border=0), palette=False)
    prepare_pascal5i(root)
    prepare_coco20i(root)

    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(), re.DOTALL)
    assert len(snippets) == 6
    names: dict = {}
    for snippet in snippets:
        exec(snippet, names)
    assert names["source"].class_names == ["apple"]
    assert names["episodes"][0]["support_images"].shape == (1, 1, 3, 384, 384)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
