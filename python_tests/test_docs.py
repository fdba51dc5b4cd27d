"""What the documentation shows runs as it stands."""

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

import fewseg_ext.models
from fewseg_ext.cli import app
from fewseg_ext.data.coco import CATEGORY_IDS
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from fewseg_ext.training.recipe import parse_arguments
from photo_files import box, coco_json, two_boxes, write_json, write_mask, write_photo, write_voc

ROOT = Path(__file__).resolve().parents[1]


SOURCES = [path for path in sorted((ROOT / "fewseg_ext").rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_docstring_examples(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(source.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module, raise_on_error=True)
    assert result.attempted >= 2


@pytest.mark.parametrize("name", sorted(set(fewseg_ext.__all__) - {"set_debug"}))
def test_every_operator_and_model_has_an_example(name: str) -> None:
    assert ">>> " in getattr(fewseg_ext, name).__doc__


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


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_example_of_the_quick_start() -> None:
    names: dict = {}
    exec(python_of("docs/index.md")[1], names)
    assert names["features"].grad.isfinite().all()


def test_example_of_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    """It says in a comment what it prints."""
    (snippet,) = python_of("docs/kernels.md")
    exec(snippet)
    assert capsys.readouterr().out.strip() == snippet.strip().rsplit("# ", 1)[1]


def test_own_model_shows_the_example_that_is_run() -> None:
    example = (ROOT / "examples" / "inner_opt_in_your_model.py").read_text()
    squeezed = re.sub(r"\s+", " ", example)
    snippets = python_of("docs/own_model.md")
    assert len(snippets) == 2
    for snippet in snippets:
        assert re.sub(r"\s+", " ", snippet).strip() in squeezed


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The `fewseg` commands in a page's shell blocks, word by word; not those with places to fill in."""
    # Every fence, lest the end of one block pass for the beginning of another; shell blocks have no language.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for language, block in blocks if not language for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("fewseg ") and "..." not in line]
    return [line[1:] for line in words if not any("METHOD" in word or word == "DATASET" for word in line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_have_the_options_that_pages_show(page: Path) -> None:
    for line in commands(page):
        name, *rest = line
        if name == "train":
            if "--help" not in rest:
                parse_arguments([word.replace("$fold", "0") for word in rest])
            continue
        command = typer.main.get_command(app).commands[name]
        if hasattr(command, "commands"):
            command = command.commands[rest[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - options - {"--help"}
        assert not unknown, f"{page.name}: fewseg {' '.join(line)}"


def test_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    for module in (fewseg_ext, fewseg_ext.models):
        for name in module.__all__:
            assert re.search(rf"^::: fewseg_ext\.\S*\b{name}$", page, re.MULTILINE), f"docs/reference.md lacks {name}"
            assert getattr(module, name).__doc__, f"{name} has no docstring"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    # Nothing is fetched when a page is read, and a link to a kernel leads to its source.
    page = (tmp_path / "site" / "kernels" / "index.html").read_text()
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', page)
    assert "repository/csrc/cuda/inner_opt.cuh" in page
    assert "grid_sync" in (tmp_path / "site/repository/csrc/cuda/inner_opt_resident.cuh/index.html").read_text()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
