"""The package built with sanitizers, beside the installed one, and how Python runs it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}


def install(folder: Path, sanitizers: str, *options: str) -> Path:
    """Builds and installs the package into ``folder``/site; ``sanitizers`` as in -fsanitize=."""
    site = folder / "site"
    settings = [f"FEWSEG_SANITIZE={sanitizers}", "FEWSEG_CUDA=OFF", *options]
    defines = [part for setting in settings for part in ("-C", f"cmake.define.{setting}")]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target", str(site)]
    build = ["-C", f"build-dir={folder / 'build'}"]
    subprocess.run([*command, *build, *defines, str(ROOT)], check=True, timeout=1800)
    return site


def environment(site: Path, sanitizer: str, **options: str) -> dict[str, str]:
    """The environment of a process whose fewseg_ext is the one in ``site``; ``options`` as ASAN_OPTIONS="..."."""
    # libstdc++ too: AddressSanitizer looks for __cxa_throw when the process starts, and Python does not link it.
    names = (RUNTIMES[sanitizer], "libstdc++.so.6")
    runtimes = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    # Python and torch leak on purpose; more memory than there is has to be torch's error, not the sanitizer's.
    may_fail = "allocator_may_return_null=1"
    asan = ":".join(("detect_leaks=0", may_fail, options.pop("ASAN_OPTIONS", "")))
    return {
        **os.environ,
        "PYTHONPATH": str(site),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": asan,
        "TSAN_OPTIONS": f"halt_on_error=1:{may_fail}",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        **options,
    }
