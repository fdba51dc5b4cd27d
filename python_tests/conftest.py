"""Fixtures shared by all tests."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=["cpu", "emulated", "cuda"],
        default="cpu",
        help="which kernels the operators' tests run: the CPU's, the CUDA kernels in the emulator, or on a GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("--backend")
    if backend == "emulated":
        assert "fewseg_ext" not in sys.modules, "too late: the library with the CPU kernels is loaded"
        os.environ["FEWSEG_EMULATE_CUDA"] = "1"
    elif backend == "cuda":
        if not torch.cuda.is_available():
            # A GPU runner that lost its GPU must not look like success.
            raise pytest.UsageError("--backend=cuda, but torch sees no GPU")
        torch.set_default_device("cuda")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--backend"))


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
