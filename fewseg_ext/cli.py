"""The ``fewseg`` command."""

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="fewseg",
    help="Few-shot segmentation: segment a new class from one or a few labelled photos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What a user can get wrong or repair: told in a line, without a traceback.
_PLAIN_ERRORS = (ValueError, OSError, ImportError)


@app.callback()
def _commands() -> None:
    # A callback makes typer keep the name of a command even while there is only one.
    pass


@app.command(epilog="Example: fewseg info")
def info() -> None:
    """Print what was built and what runs here."""
    import torch

    import fewseg_ext
    from fewseg_ext import _info

    build = _info.build()
    chosen, usable = torch.ops.fewseg._instruction_sets().split(";")
    cuda = "yes: " + torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU is visible to torch"
    rows = {
        "fewseg_ext": f"{fewseg_ext.__version__} in {Path(fewseg_ext.__file__).parent}",
        "built with": f"{build['compiler']}, {build['build_type']}, against torch {build['torch_built_against']} "
        f"(runs under torch >= {build['torch_target']})",
        "CPU kernels built": build["cpu_instruction_sets"],
        "CUDA kernels built": build["cuda"],
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "CPU kernels used": f"{chosen} (this processor runs {usable}; FEWSEG_CPU_ISA chooses)",
        "CUDA": cuda,
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    Console().print(table)


@app.command(epilog="Example: fewseg demo --out runs/demo --seed 1")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the report and the checkpoints.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the photos, the weights and the episodes.")] = 0,
) -> None:
    """Generate photos, train a small BiOpt on them, segment classes it has never seen, draw the result."""
    from fewseg_ext.demo import run_demo

    run_demo(out, seed=seed, console=Console())


def main() -> None:
    """The entry point: exit status 0 for success, 1 for failure, 2 for bad usage."""
    try:
        app()
    except _PLAIN_ERRORS as error:
        Console(stderr=True).print(f"fewseg: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("fewseg: interrupted", style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
