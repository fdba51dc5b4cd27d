"""The build: what CMake decides and says, and that one wheel serves other installations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewseg_ext

ROOT = Path(__file__).resolve().parents[1]
OTHER_TORCH = os.environ.get("FEWSEG_OTHER_TORCH", "2.13.0")


def configure(build: Path, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs CMake's configuration only, as scikit-build-core would."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    command = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-Dpybind11_DIR={pybind11}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", "-DSKBUILD_PROJECT_VERSION=0.0.1", *options]
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_PATH")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path or os.environ["PATH"]])
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def path_without_nvcc(tmp_path: Path) -> str:
    """A PATH with the compilers and without nvcc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in ("c++", "g++", "gcc", "cc", "ninja", "ld", "as", "ar", "ranlib", "uname", "sh"):
            source, target = Path(directory) / program, folder / program
            if source.is_file() and not target.exists():
                target.symlink_to(source.resolve())
    return str(folder)


def test_says_what_it_decided_about_cuda(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DFEWSEG_CUDA=OFF")
    assert result.returncode == 0, result.stderr
    assert "fewseg_ext: CUDA kernels: no (FEWSEG_CUDA=OFF)" in result.stdout
    assert "fewseg_ext: building against torch " + torch.__version__.split("+")[0] in result.stdout


def test_auto_without_nvcc_builds_for_the_cpu(tmp_path: Path, path_without_nvcc: str) -> None:
    result = configure(tmp_path / "build", "-DCMAKE_CUDA_COMPILER=NOTFOUND", path=path_without_nvcc)
    assert result.returncode == 0, result.stderr
    assert "fewseg_ext: CUDA kernels: no (FEWSEG_CUDA=AUTO found no nvcc)" in result.stdout


def test_on_without_nvcc_says_how_to_get_one(tmp_path: Path, path_without_nvcc: str) -> None:
    options = ("-DFEWSEG_CUDA=ON", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    result = configure(tmp_path / "build", *options, path=path_without_nvcc)
    assert result.returncode != 0
    assert "pip install nvidia-cuda-nvcc" in " ".join(result.stderr.split())


def test_another_value_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DFEWSEG_CUDA=MAYBE")
    assert result.returncode != 0
    assert 'FEWSEG_CUDA must be AUTO, ON or OFF, not "MAYBE"' in " ".join(result.stderr.split())


# --- installations -------------------------------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=1800)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built here, against the torch that is under test."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_one_wheel_runs_under_another_torch(tmp_path: Path, wheel: Path) -> None:
    """Built against the newest torch, run under an older one: what the stable ABI promises."""
    if torch.__version__.split("+")[0] == OTHER_TORCH:
        pytest.skip(f"torch {OTHER_TORCH} is the one under test already")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", f"torch=={OTHER_TORCH}", "numpy", "pytest", "expecttest", "hypothesis")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    version = run(python, "-c", "import torch, fewseg_ext; print(torch.__version__)", cwd=tmp_path)
    assert version.startswith(OTHER_TORCH)
    tests = ROOT / "python_tests" / "ops"
    output = run(tmp_path / "venv" / "bin" / "pytest", "-q", "-m", "not slow", tests, cwd=tmp_path)
    assert " passed" in output
    assert " failed" not in output


@pytest.mark.slow
def test_plain_pip_install_works_in_a_fresh_environment(tmp_path: Path) -> None:
    """`pip install .` with build isolation: the build fetches all that it needs by itself."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", ROOT, cwd=tmp_path)
    code = (
        "import torch, fewseg_ext; print(torch.ops.fewseg.inner_opt("
        "torch.randn(1,64,13,13), torch.randn(1,2,64), torch.zeros(1,13,13,dtype=torch.long)).shape)"
    )
    assert run(python, "-c", code, cwd=tmp_path).strip() == "torch.Size([1, 2, 64])"
    info = run(tmp_path / "venv" / "bin" / "fewseg", "info", cwd=tmp_path)
    assert fewseg_ext.__version__ in info
