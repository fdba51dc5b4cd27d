"""A fitted segmenter in a process that has only torch and the op library."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fewseg_ext
from fewseg_ext.ops import _library
from test_segmenter import SIZE, photo_and_mask

READ = """
import sys
import torch
library, program, image, result = sys.argv[1:]
torch.ops.load_library(library)
image = torch.load(image)
if {compiled}:
    model = torch._inductor.aoti_load_package(program)
else:
    model = torch.export.load(program).module()
with torch.no_grad():
    torch.save(model(image), result)
assert "fewseg_ext" not in sys.modules
"""


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_without_this_package(compiled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=SIZE).fit(*photo_and_mask())
    photo, _ = photo_and_mask(3, SIZE, SIZE)
    # A compiled program takes its input for contiguous, whatever the strides say.
    torch.save((torch.from_numpy(photo).permute(2, 0, 1)[None] / 255).contiguous(), tmp_path / "image.pt")
    segmenter.export(tmp_path / "segmenter.pt2", steps=7, compiled=compiled)
    files = [_library._find("libfewseg_ops.so"), *(tmp_path / n for n in ("segmenter.pt2", "image.pt", "result.pt"))]
    # -I: neither the source folder nor PYTHONPATH can be imported from.
    command = [sys.executable, "-I", "-c", READ.format(compiled=compiled), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = segmenter.predict(photo, steps=7).probabilities
    np.testing.assert_allclose(torch.load(tmp_path / "result.pt")[0], expected, atol=1e-4)


def test_vpi_without_samples_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fewseg_ext.VPI("conv4", deterministic=True)
    segmenter = fewseg_ext.Segmenter(model, size=SIZE).fit(*photo_and_mask())
    segmenter.export(tmp_path / "segmenter.pt2")
    photo, _ = photo_and_mask(3, SIZE, SIZE)
    with torch.no_grad():
        program = torch.export.load(tmp_path / "segmenter.pt2").module()
        found = program(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255)
    np.testing.assert_allclose(found[0], segmenter.predict(photo).probabilities, atol=1e-4)


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    segmenter = fewseg_ext.Segmenter(fewseg_ext.VPI("conv4"), size=SIZE).fit(*photo_and_mask())
    with pytest.raises(ValueError, match="VPI draws samples"):
        segmenter.export(tmp_path / "segmenter.pt2")
    with pytest.raises(ValueError, match=r"ends in .pt2"):
        segmenter.export(tmp_path / "segmenter.onnx")
    assert not list(tmp_path.iterdir())
