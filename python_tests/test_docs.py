"""What the documentation shows runs as it stands."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import fewseg_ext.ops

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("op", sorted(set(fewseg_ext.ops.__all__) - {"set_debug"}))
def test_docstring_examples(op: str) -> None:
    result = doctest.testmod(importlib.import_module(f"fewseg_ext.ops.{op}"), raise_on_error=True)
    assert result.attempted >= 2


def test_readme_example() -> None:
    """The thirty lines that show the operators in a user's own model, with random weights instead of ImageNet's."""
    first, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert 'weights="IMAGENET1K_V2"' in first
    names: dict = {}
    exec(first.replace('weights="IMAGENET1K_V2"', "weights=None"), names)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:48, 16:48] = True
    result = names["segment"](torch.randn(1, 3, 64, 64), mask, torch.randn(1, 3, 80, 64))
    assert result.shape == (1, 80, 64)
    assert result.dtype == torch.bool


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
