"""Checks what `make dist` wrote: one wheel and one sdist, with the right tags and everything that belongs into them."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Nothing of these in a distribution: tests and what only tests build, photos, checkpoints.
FORBIDDEN = re.compile(r"test|emulat|conftest|benchmarks/|examples/|docs/|\.(jpg|jpeg|png|ckpt|pth)$|__pycache__")
# The sources of one operator and one model stand for all of them.
IN_WHEEL = [
    "fewseg_command/__init__.py",
    "fewseg_ext/__init__.py",
    "fewseg_ext/_info.pyi",
    "fewseg_ext/data/fss1000_classes.txt",
    "fewseg_ext/evaluation/published.csv",
    "fewseg_ext/libfewseg_ops.so",
    "fewseg_ext/models/biopt.py",
    "fewseg_ext/ops/inner_opt.py",
    "fewseg_ext/py.typed",
    "fewseg_ext/training/recipes/biopt.yaml",
]
IN_SDIST = [
    "CHANGELOG.md",
    "CITATION.cff",
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "cmake/torch.cmake",
    "csrc/cpu/inner_opt_kernel.cpp",
    "csrc/cuda/inner_opt.cuh",
    "csrc/info.cpp",
    "csrc/ops/inner_opt.cpp",
    "fewseg_command/__init__.py",
    "fewseg_ext/ops/inner_opt.py",
    "pyproject.toml",
]


def version() -> str:
    """Of the sources."""
    match = re.search(r'^__version__ = "(.+)"$', (ROOT / "fewseg_ext" / "__init__.py").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


def problems_of_names(names: list[str], expected: list[str]) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in names]
    return missing + [f"{name} does not belong into it" for name in names if FORBIDDEN.search(name)]


def problems_of_wheel(path: Path) -> list[str]:
    """Of one wheel: its files, and its tags, which name one Python (because of _info) and one platform."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        info = f"fewseg_ext-{version()}.dist-info"
        found = problems_of_names(names, [*IN_WHEEL, f"{info}/METADATA", f"{info}/licenses/LICENSE"])
        metadata = archive.read(f"{info}/METADATA").decode() if f"{info}/METADATA" in names else ""
    if not any(name.startswith("fewseg_ext/_info.") and name.endswith(".so") for name in names):
        found.append("fewseg_ext/_info.*.so is missing")
    if "License-Expression: Apache-2.0" not in metadata:
        found.append("METADATA names no licence")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if not re.fullmatch(rf"fewseg_ext-{re.escape(version())}-{python}-{python}-(manylinux|linux)_\w+\.whl", path.name):
        found.append(f"the name should begin with fewseg_ext-{version()}-{python}-{python} and name a Linux platform")
    return found


def problems_of_sdist(path: Path) -> list[str]:
    top = f"fewseg_ext-{version()}/"
    with tarfile.open(path) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    names = [name.removeprefix(top) for name in files]
    found = problems_of_names(names, IN_SDIST)
    tracked = {f"csrc/{p.relative_to(ROOT / 'csrc')}" for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    found += [f"{name} is missing" for name in sorted(tracked - set(names)) if not FORBIDDEN.search(name)]
    return found + [f"{name} is compiled" for name in names if name.endswith(".so")]


def main(folder: Path) -> int:
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        print(f"{folder}: expected one wheel and one sdist, found {[p.name for p in [*wheels, *sdists]]}")
        return 1
    status = 0
    for path, problems in ((wheels[0], problems_of_wheel(wheels[0])), (sdists[0], problems_of_sdist(sdists[0]))):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {'as it should be' if not problems else 'WRONG'}")
        for problem in problems:
            print(f"  {problem}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
