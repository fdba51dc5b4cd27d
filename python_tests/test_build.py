"""The build: what CMake decides and says, and that one wheel serves other installations."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import fewseg_ext

ROOT = Path(__file__).resolve().parents[1]
OP_TESTS = ROOT / "python_tests" / "ops"
# The oldest torch that is supported, and one between it and the one under test.
OTHER_TORCH = os.environ.get("FEWSEG_OTHER_TORCH", "2.10.0,2.13.0").split(",")
OTHER_PYTHON = ("3.10", "3.11", "3.12", "3.13")


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


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def run_op_tests(environment: Path) -> None:
    """From another folder than the root, which holds a package without kernels.

    What repeats the tests under other instruction sets is left out: their numbers depend on neither torch nor Python.
    """
    chosen = ("-m", "not slow", "-k", "not instruction_sets")
    output = run(environment / "bin" / "pytest", "-q", *chosen, OP_TESTS, cwd=environment)
    assert " passed" in output
    assert " failed" not in output


def borrowing_environment(folder: Path) -> Path:
    """A fresh environment that finds the packages of this one (torch above all) behind its own."""
    run(sys.executable, "-m", "venv", folder)
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (packages,) = folder.glob("lib/python3.*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder


def installed_in(environment: Path) -> Path:
    """The folder of the compiled operators that a process of the environment has loaded and used."""
    code = (
        "import torch, fewseg_ext\n"
        "from fewseg_ext import _info\n"
        "features = torch.randn(1, 64, 13, 13)\n"
        "target = torch.zeros(1, 13, 13, dtype=torch.long)\n"
        "assert torch.ops.fewseg.inner_opt(features, torch.randn(1, 2, 64), target).shape == (1, 2, 64)\n"
        "assert _info.build()['version'] == fewseg_ext.__version__\n"
        "print(*[line.split()[-1] for line in open('/proc/self/maps') if line.endswith('libfewseg_ops.so\\n')][:1])\n"
    )
    return Path(run(environment / "bin" / "python", "-c", code, cwd=environment).strip()).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built here, against the torch that is under test; with CUDA kernels where there is an nvcc."""
    folder = tmp_path_factory.mktemp("wheel")
    architectures = {"CUDAARCHS": os.environ.get("CUDAARCHS", "90")}
    command = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    # The build folder remembers what `make setup` has asked for.
    run(*command, "-C", "cmake.define.FEWSEG_BUILD_TESTS=OFF", PATH=path_of_tools(), **architectures)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_TORCH)
def test_one_wheel_runs_under_another_torch(version: str, tmp_path: Path, wheel: Path) -> None:
    """Built against the newest torch, run under an older one: what the stable ABI promises."""
    if torch.__version__.split("+")[0] == version:
        pytest.skip(f"torch {version} is the one under test already")
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", environment)
    run(python, "-m", "pip", "install", "-q", f"torch=={version}", "numpy", "pytest", "expecttest", "hypothesis")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    found = run(python, "-c", "import torch, fewseg_ext; print(torch.__version__)", cwd=tmp_path)
    assert found.startswith(version)
    run_op_tests(environment)


@pytest.mark.slow
def test_the_wheel_asks_for_an_old_glibc_and_for_torch_s_libraries_only(tmp_path: Path, wheel: Path) -> None:
    text = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    of_the_system = re.findall(r"(\S+\.so\.\d+) with versions", text)
    assert set(of_the_system) == {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libstdc++.so.6"}
    tag = re.search(r'platform tag to "manylinux_2_(\d+)_x86_64"', text)
    assert tag, text
    # As `make dist` does it: nothing is left that would have to be shipped beside the libraries.
    excluded = ("--exclude", "libtorch*.so", "--exclude", "libc10*.so")
    command = (sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", tmp_path, wheel)
    run(*command, PATH=path_of_tools())
    (repaired,) = tmp_path.iterdir()
    assert f"manylinux_2_{tag[1]}_x86_64" in repaired.name
    with zipfile.ZipFile(repaired) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
    assert all(name.startswith("fewseg_ext/") for name in libraries), libraries


def find_python(version: str) -> Path | None:
    """An interpreter of this version: on the PATH, or one of pyenv's."""
    candidates = [Path(shutil.which(f"python{version}") or "")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    for path in candidates:
        if path.is_file():
            asked = subprocess.run([path, "-c", "import sys, venv; print(sys.version)"], capture_output=True, text=True)
            if asked.returncode == 0 and asked.stdout.startswith(f"{version}."):
                return path
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_PYTHON)
def test_builds_and_runs_under_another_python(version: str, tmp_path: Path) -> None:
    """With the newest torch that there is for it. The CPU kernels only: no other depends on Python."""
    if sys.version.startswith(f"{version}."):
        pytest.skip(f"Python {version} is the one under test already")
    interpreter = find_python(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} here")
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    run(interpreter, "-m", "venv", environment)
    run(python, "-m", "pip", "install", "-q", "--upgrade", "pip")
    build = ("scikit-build-core>=0.11", "pybind11>=3", "cmake", "ninja")
    tests = ("pytest", "expecttest", "hypothesis")
    run(python, "-m", "pip", "install", "-q", "torch", *build, *tests)
    options = ("-C", "cmake.define.FEWSEG_CUDA=OFF", "-C", f"build-dir={tmp_path / 'build'}")
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    run(python, "-m", "pip", "install", "-q", "--no-build-isolation", *options, ROOT, PATH=path)
    assert f"Python {version}." in " ".join(run(environment / "bin" / "fewseg", "info", cwd=tmp_path).split())
    run_op_tests(environment)


@pytest.mark.slow
def test_the_sdist_builds_and_installs(tmp_path: Path) -> None:
    """What `pip install` of the sdist does: no file is missing in it."""
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    environment = borrowing_environment(tmp_path / "venv")
    install = (environment / "bin" / "python", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps")
    options = ("-C", "cmake.define.FEWSEG_CUDA=OFF")
    run(*install, *options, sdist, cwd=tmp_path, PATH=path_of_tools())
    assert installed_in(environment).is_relative_to(environment)


def path_of_tools() -> str:
    """cmake and ninja of the environment under test first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.mark.slow
def test_an_editable_installation_sees_edits_and_tells_when_the_kernels_are_old(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=ROOT)
    run("tar", "-xzf", next(tmp_path.glob("*.tar.gz")), "-C", source)
    (source,) = source.iterdir()
    environment = borrowing_environment(tmp_path / "venv")
    python = environment / "bin" / "python"
    install = (python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps")
    command = (*install, "-C", "cmake.define.FEWSEG_CUDA=OFF", "-e", source)
    run(*command, cwd=tmp_path, PATH=path_of_tools())
    assert installed_in(environment).is_relative_to(environment)

    where = (python, "-W", "error", "-c", "import fewseg_ext; print(fewseg_ext.__file__, fewseg_ext.__version__)")
    assert run(*where, cwd=tmp_path).split() == [str(source / "fewseg_ext" / "__init__.py"), fewseg_ext.__version__]
    module = source / "fewseg_ext" / "__init__.py"
    module.write_text(module.read_text().replace(f'"{fewseg_ext.__version__}"', '"9.9"'))
    assert run(*where, cwd=tmp_path).split()[-1] == "9.9"

    (source / "csrc" / "ops" / "info.cpp").touch()
    result = subprocess.run([*where[:1], *where[3:]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "csrc/ops/info.cpp is newer than the compiled kernels" in result.stderr
    run(*command, cwd=tmp_path, PATH=path_of_tools())
    assert run(*where, cwd=tmp_path).split()[-1] == "9.9"


@pytest.mark.slow
def test_plain_pip_install_works_in_a_fresh_environment(tmp_path: Path) -> None:
    """`pip install .` with build isolation: the build fetches all that it needs by itself."""
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", environment)
    architectures = {"CUDAARCHS": os.environ.get("CUDAARCHS", "90")}
    run(environment / "bin" / "python", "-m", "pip", "install", "-q", ROOT, cwd=tmp_path, **architectures)
    assert installed_in(environment).is_relative_to(environment)
    assert fewseg_ext.__version__ in run(environment / "bin" / "fewseg", "info", cwd=tmp_path)
