"""What a release is made of: its version, its notes, who is to be cited, and what the distributions hold."""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import fewseg_ext

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check_dist():
    spec = importlib.util.spec_from_file_location("check_dist", ROOT / ".ci" / "check_dist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_changelog_is_about_this_version() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0].startswith(f"## {fewseg_ext.__version__}, ")


def test_the_citation_file_names_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    titles = [reference["title"] for reference in citation["references"]]
    assert len(titles) == 2
    assert titles[0].startswith("BiOpt")
    assert titles[1].startswith("Variational Prototype Inference")


def test_the_public_host_runs_the_same_check_on_the_oldest_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    oldest = re.search(r'^requires-python = ">=(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert oldest is not None
    assert oldest[1] in job["strategy"]["matrix"]["python"]


def test_the_sdist_holds_what_a_build_needs_and_no_tests(tmp_path: Path, check_dist) -> None:
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert sdist.name == f"fewseg_ext-{fewseg_ext.__version__}.tar.gz"
    assert check_dist.problems_of_sdist(sdist) == []


def test_a_wheel_with_tests_and_without_the_kernels_is_noticed(tmp_path: Path, check_dist) -> None:
    wheel = tmp_path / f"fewseg_ext-{fewseg_ext.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("fewseg_ext/__init__.py", "fewseg_ext/libfewseg_ops_emulated.so"):
            archive.writestr(name, "")
    problems = "\n".join(check_dist.problems_of_wheel(wheel))
    assert "fewseg_ext/libfewseg_ops.so is missing" in problems
    assert "libfewseg_ops_emulated.so does not belong into it" in problems
    assert "name a Linux platform" in problems
