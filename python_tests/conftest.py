"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, masks and weights; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FEWSEG_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real photos not found in {folder} (set FEWSEG_REAL_DATA)")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """FEWSEG_REQUIRE_REAL_DATA=1 turns the skip of a real-data test into a failure, so that it cannot go unnoticed."""
    report = yield
    if report.skipped and item.get_closest_marker("real_data") and os.environ.get("FEWSEG_REQUIRE_REAL_DATA"):
        report.outcome = "failed"
    return report
