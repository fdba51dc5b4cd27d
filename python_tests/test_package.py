"""The package as it is installed: what is under test, what an import pulls in, what happens without the library."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fewseg_ext
from fewseg_ext import _info
from fewseg_ext.ops import _checks, _library

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(fewseg_ext.__file__).parent


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # From another folder than the root: `python -c` looks for packages in the current one first.
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parent,
        timeout=120,
    )


def test_the_installed_package_is_under_test() -> None:
    """The root holds a folder of the same name without kernels; testing that one would test nothing."""
    assert not PACKAGE.is_relative_to(ROOT / "fewseg_ext")
    assert (PACKAGE / "libfewseg_ops.so").is_file()
    installed = {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py")}
    source = {p.relative_to(ROOT / "fewseg_ext") for p in (ROOT / "fewseg_ext").rglob("*.py")}
    assert installed == source, "the installed package is older than the source: run `make setup`"
    for file in source:
        assert (PACKAGE / file).read_text() == (ROOT / "fewseg_ext" / file).read_text(), f"{file} was not reinstalled"


def test_import_loads_nothing_optional() -> None:
    code = (
        "import sys, fewseg_ext\n"
        "optional = {'torchvision', 'torchmetrics', 'matplotlib', 'timm', 'PIL', 'rich', 'typer', 'safetensors'}\n"
        "assert not optional & set(sys.modules), optional & set(sys.modules)\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_what_is_loaded_late_is_listed_too() -> None:
    assert set(fewseg_ext.__all__) <= set(dir(fewseg_ext))


def test_debugging_is_switched_on_and_off_and_changes_no_result() -> None:
    features, prototypes = torch.randn(1, 3, 4, 4), torch.randn(1, 2, 3)
    expected = fewseg_ext.cosine_logits(features, prototypes)
    try:
        fewseg_ext.set_debug(True)
        assert _checks.debug()
        assert torch.equal(fewseg_ext.cosine_logits(features, prototypes), expected)
    finally:
        fewseg_ext.set_debug(False)
    assert not _checks.debug()


def test_without_the_library_the_import_says_how_to_build(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fewseg_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = run_python("import fewseg_ext", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "ImportError: fewseg_ext's native library is missing" in result.stderr
    assert "pip install ." in result.stderr


def test_import_in_the_source_folder_finds_the_installed_kernels() -> None:
    """`python -c` in the root finds the source package first."""
    code = "import fewseg_ext, torch; print(fewseg_ext.__file__, torch.ops.fewseg._instruction_sets())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    assert str(ROOT / "fewseg_ext") in result.stdout


def test_sources_newer_than_the_kernels_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits C++ beside an editable installation and forgets to build would test the old kernels."""
    for name in ("CMakeLists.txt", "csrc/ops/old.cpp", "csrc/cpu/edited.inl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path / "fewseg_ext")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library._warn_of_newer_sources(PACKAGE / "libfewseg_ops.so")
    (tmp_path / "csrc" / "cpu" / "edited.inl").touch()
    with pytest.warns(UserWarning, match=r"csrc/cpu/edited.inl is newer than the compiled kernels in .*fewseg_ext: "):
        _library._warn_of_newer_sources(PACKAGE / "libfewseg_ops.so")


def test_a_broken_library_is_an_import_error(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fewseg_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fewseg_ext" / "libfewseg_ops.so").write_bytes(b"not a library")
    result = run_python("import fewseg_ext", PYTHONPATH=str(tmp_path))
    assert "ImportError: fewseg_ext's native library libfewseg_ops.so does not load under torch" in result.stderr


def test_info_tells_the_build() -> None:
    build = _info.build()
    assert build["version"] == fewseg_ext.__version__
    assert build["torch_target"] == "2.10"
    chosen, usable = torch.ops.fewseg._instruction_sets().split(";")
    assert chosen in usable.split(",")
    assert set(usable.split(",")) <= set(build["cpu_instruction_sets"].split(","))


def test_unknown_instruction_set_is_an_error() -> None:
    code = "import torch, fewseg_ext; fewseg_ext.cosine_logits(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 2))"
    result = run_python(code, FEWSEG_CPU_ISA="avx1024")
    assert result.returncode != 0
    assert 'FEWSEG_CPU_ISA is "avx1024"; this processor can run:' in result.stderr


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_the_library_needs_libtorch_and_no_path() -> None:
    """No RPATH to the build machine, no libpython, no CUDA: one build serves every Python and every torch >= 2.10."""
    output = subprocess.run(
        ["readelf", "--dynamic", "--wide", PACKAGE / "libfewseg_ops.so"], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].split("]")[0] for line in output.splitlines() if "(NEEDED)" in line}
    assert "libtorch_cpu.so" in needed
    assert not any("python" in name or "cuda" in name or "libtorch.so" in name for name in needed)
    assert "RPATH" not in output
    assert "RUNPATH" not in output


LIBRARIES = ["libfewseg_ops.so", "libfewseg_ops_cuda.so", "libfewseg_ops_emulated.so"]


def unstable_symbols(library: Path) -> list[str]:
    """What a library asks of others beyond the C functions of torch's stable ABI, libc and libstdc++."""
    command = ["nm", "--dynamic", "--undefined-only", library]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Those of libc and libstdc++ have a version or are std's; those that may be missing are weak ("w").
    symbols = [name for kind, name in (line.split()[-2:] for line in output.splitlines()) if kind == "U"]
    return [name for name in symbols if "@" not in name and not re.match("(aoti_)?torch_[a-z]|_ZNK?St", name)]


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
@pytest.mark.parametrize("name", LIBRARIES)
def test_of_torch_the_stable_abi_only(name: str) -> None:
    """No C++ symbol of at::, c10:: or torch::, which change from one version to the next."""
    if not (PACKAGE / name).is_file():
        pytest.skip(f"{name} was not built")
    assert unstable_symbols(PACKAGE / name) == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_auditor_finds_nothing_newer_than_the_torch_that_is_promised(name: str) -> None:
    audit = pytest.importorskip("torch_abi_audit", reason="torch-abi-audit needs Python 3.11")
    if not (PACKAGE / name).is_file():
        pytest.skip(f"{name} was not built")
    verdict = audit.inspect_extension(PACKAGE / name).torch
    assert verdict.uses_torch
    assert verdict.stable
    assert [*verdict.unstable_symbols, *verdict.unknown_shim_symbols] == []
    assert verdict.min_torch_version == _info.build()["torch_target"] + ".0"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_a_library_that_uses_more_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text(
        'namespace at { void internal(); }\nextern "C" void torch_list_size();\n'
        "void f() { at::internal(); torch_list_size(); throw 1; }\n"
    )
    subprocess.run(["c++", "-shared", "-fPIC", tmp_path / "a.cpp", "-o", tmp_path / "a.so"], check=True)
    assert unstable_symbols(tmp_path / "a.so") == ["_ZN2at8internalEv"]


@pytest.mark.parametrize("op", ["masked_avg_pool", "cosine_logits", "cosine_cross_entropy", "inner_opt"])
def test_cuda_tensors_find_kernels_or_an_explanation(op: str) -> None:
    """A build without CUDA kernels says how to get them, instead of the dispatcher's list of backends."""
    for name in (op, f"_{op}_forward", f"_{op}_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fewseg::{name}", "CUDA")
    with pytest.raises(NotImplementedError, match=rf"fewseg_ext.{op}: got CUDA tensors.*FEWSEG_CUDA=ON"):
        _library._without_cuda(op)(torch.ones(1))


def test_cuda_kernels_are_used_where_they_were_built_and_torch_has_cuda() -> None:
    built = (PACKAGE / "libfewseg_ops_cuda.so").is_file()
    assert built == (_info.build()["cuda_architectures"] != "")
    assert _library.has_cuda_kernels == (built and torch.version.cuda is not None)
