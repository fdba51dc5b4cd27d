"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_data: needs the folder of real photos, masks and weights")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos: FEWSEG_REAL_DATA, by default ``../shared/data`` beside the repository."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("FEWSEG_REAL_DATA") or root.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder} is no folder (FEWSEG_REAL_DATA names it)")
    return folder
