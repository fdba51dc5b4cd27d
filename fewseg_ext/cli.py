"""The ``fewseg`` command."""

import io
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fewseg_ext.interruptions import told_in_a_line

app = typer.Typer(
    name="fewseg",
    help="Few-shot segmentation: segment a new class from one or a few labelled photos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

prepare = typer.Typer(
    help="Build and verify the lists and masks of a benchmark.",
    epilog="Example: fewseg prepare pascal5i data",
    no_args_is_help=True,
)
app.add_typer(prepare, name="prepare")

Root = Annotated[Path, typer.Argument(help="The folder with the data set's own files; see docs/datasets.md.")]
Out = Annotated[Path | None, typer.Option(help="What is written; by default a folder fewseg_... inside ROOT.")]
Download = Annotated[bool, typer.Option("--download", help="First fetch what is not in ROOT, with torchvision.")]

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
    """Generate photos, train three small models on them, segment classes it has never seen, draw the result."""
    from fewseg_ext.demo import run_demo

    run_demo(out, seed=seed, console=Console())


@prepare.command("pascal5i", epilog="Example: fewseg prepare pascal5i data --lists published_lists")
def prepare_pascal5i(
    root: Root,
    out: Out = None,
    download: Download = False,
    lists: Annotated[Path | None, typer.Option(help="Folder of published list files to compare with.")] = None,
) -> None:
    """PASCAL-5i from the VOC 2012 devkit with SegmentationClassAug, or with SBD's .mat files."""
    from fewseg_ext.data.prepare import pascal5i

    console = Console()
    pascal5i.prepare_pascal5i(root, out, download=download, lists=lists, console=console).print(console)


@prepare.command("coco20i", epilog="Example: fewseg prepare coco20i data/coco --year 2014")
def prepare_coco20i(
    root: Root,
    out: Out = None,
    year: Annotated[int, typer.Option(help="2014, which the papers use, or 2017.")] = 2014,
    download: Download = False,
) -> None:
    """COCO-20i, both splits, from the photos and the official JSON of instances."""
    from fewseg_ext.data.coco import YEARS
    from fewseg_ext.data.prepare import coco20i

    if year not in YEARS:
        raise typer.BadParameter(f"{year} is neither 2014 nor 2017", param_hint="--year")
    console = Console()
    coco20i.prepare_coco20i(root, out, year=year, download=download, console=console).print(console)


@prepare.command("fss1000", epilog="Example: fewseg prepare fss1000 data/fewshot_data")
def prepare_fss1000(root: Root, out: Out = None, download: Download = False) -> None:
    """FSS-1000 from its class folders."""
    from fewseg_ext.data.prepare import fss1000

    console = Console()
    fss1000.prepare_fss1000(root, out, download=download, console=console).print(console)


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def train(context: typer.Context) -> None:
    """Train a model as a recipe says; started again, go on from the last checkpoint."""
    from fewseg_ext.training.engine import TrainingDiverged
    from fewseg_ext.training.recipe import UsageError, parse_arguments
    from fewseg_ext.training.run import STOPPED_STATUS, TrainingStopped, run_training

    try:
        recipe, out, device = parse_arguments(context.args)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        run_training(recipe, out, device=device, console=Console())
    except TrainingStopped as error:
        Console(stderr=True).print(f"fewseg: {error}", markup=False, highlight=False)
        raise typer.Exit(STOPPED_STATUS) from error
    except TrainingDiverged as error:
        raise ValueError(str(error)) from error


@app.command(
    epilog="Example: fewseg evaluate runs/demo/biopt.ckpt --dataset fss1000 --root runs/demo/data/unseen --size 128"
)
def evaluate(
    dataset: Annotated[str, typer.Option(help="Name of the data set.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    checkpoint: Annotated[
        str | None, typer.Argument(help='Checkpoint; for several folds with "{fold}" in its name.', show_default=False)
    ] = None,
    fold: Annotated[str, typer.Option(help='A number, several like "0,2", or "all".')] = "all",
    classes: Annotated[
        str | None, typer.Option(help='Some classes by name, "cat,cow", of all folds together.', show_default=False)
    ] = None,
    year: Annotated[int | None, typer.Option(help="Of COCO: 2014 (default) or 2017.", show_default=False)] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="The --out of `fewseg prepare`, if not inside ROOT.", show_default=False)
    ] = None,
    ways: Annotated[int, typer.Option(help="Classes per episode.")] = 1,
    shots: Annotated[int, typer.Option(help="Labelled images per class.")] = 1,
    episodes: Annotated[int, typer.Option(help="Episodes per seed.")] = 1000,
    every_image: Annotated[
        bool, typer.Option("--every-image", help="Every image is the query once, as on FSS-1000, for each seed.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 5,
    size: Annotated[int, typer.Option(help="Side to which images are squashed for the model.")] = 417,
    multi_scale: Annotated[bool, typer.Option("--multi-scale", help="Query at scales 0.7, 1 and 1.3.")] = False,
    ignored: Annotated[str, typer.Option(help='Pixels labelled 255: "removed" or "background".')] = "removed",
    backbone: Annotated[str | None, typer.Option(help="Instead of a checkpoint: a backbone without training.")] = None,
    weights: Annotated[str | None, typer.Option(help="Its weights: a file, or a name of torchvision's.")] = None,
    method: Annotated[str, typer.Option(help='With a backbone: "biopt" or "baseline".')] = "biopt",
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    cache_mib: Annotated[int, typer.Option(help="Memory for features and labels that are kept.")] = 2048,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the report, the chart and the examples.")] = Path(
        "runs/evaluation"
    ),
) -> None:
    """Score a model on few-shot episodes, beside the papers' figures; write JSON, CSV, Markdown and pictures."""
    from fewseg_ext.evaluation.command import ModelChoice, parse_folds, run_evaluation
    from fewseg_ext.evaluation.protocol import MULTI_SCALE, EvaluationProtocol

    try:
        choice = ModelChoice(checkpoint, backbone, weights, method)
        names = None if classes is None else [name.strip() for name in classes.split(",")]
        folds = parse_folds(fold, dataset, names)
        protocol = EvaluationProtocol(
            episodes=None if every_image else episodes,
            seeds=tuple(range(seeds)),
            ways=ways,
            shots=shots,
            input_size=size,
            scales=MULTI_SCALE if multi_scale else (1.0,),
            ignored=ignored,  # type: ignore[arg-type]  # checked there
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run_evaluation(
        out,
        choice,
        dataset,
        root,
        folds,
        protocol,
        classes=names,
        year=year,
        prepared=prepared,
        device=device,
        num_workers=workers,
        cache_bytes=cache_mib * 2**20,
        console=Console(),
    )


@app.command(
    epilog="Example: fewseg segment --checkpoint runs/demo/biopt.ckpt --size 128 "
    "--support runs/demo/data/unseen/ringed_star/1.jpg:runs/demo/data/unseen/ringed_star/1.png "
    "--query runs/demo/data/unseen/ringed_star --out runs/segment"
)
def segment(
    support: Annotated[
        list[str],
        typer.Option(
            metavar="IMG:MASK",
            help="A labelled photo and its mask, of one object (0 and 1, or 0 and 255) or a label map; again for more. "
            "NAME=IMG:MASK gives the class a name, which several classes need.",
        ),
    ],
    query: Annotated[list[Path], typer.Option(metavar="PATH", help="A photo or a folder of photos; again for more.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[PATH]...", help="More photos or folders.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A trained model.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead: a pretrained network of torchvision or timm.")] = None,
    weights: Annotated[
        str, typer.Option(help='Its weights: a file, or a name of torchvision\'s ("pretrained" for timm).')
    ] = "IMAGENET1K_V1",
    size: Annotated[int, typer.Option(help="Side to which photos are squashed for the model.")] = 417,
    steps: Annotated[int | None, typer.Option(help="Inner steps instead of the model's own.")] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Name of label 1, 2, ... of label maps.")] = None,
    batch_size: Annotated[int, typer.Option(help="Photos that go through the network together.")] = 4,
    coco: Annotated[bool, typer.Option("--coco", help="Also write annotations.json, in COCO's format.")] = False,
    labelme: Annotated[bool, typer.Option("--labelme", help="Also write labelme/*.json, for LabelMe 5.2+.")] = False,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
) -> None:
    """Segment your own photos after one or a few labelled ones; a run that was stopped goes on where it was."""
    from fewseg_ext.segment.command import find_photos, parse_support, run_segment
    from fewseg_ext.segmenter import Segmenter

    try:
        supports = [parse_support(text) for text in support]
        if (checkpoint is None) == (backbone is None):
            raise ValueError("give either --checkpoint or --backbone")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    photos = find_photos([*query, *(more or [])], supports)
    if checkpoint is not None:
        segmenter = Segmenter.from_checkpoint(checkpoint, device, size)
    else:
        assert backbone is not None
        segmenter = Segmenter.from_pretrained_backbone(backbone, weights, device, size)
    summary = run_segment(
        out,
        segmenter,
        supports,
        photos,
        class_names=class_name,
        steps=steps,
        batch_size=batch_size,
        coco=coco,
        labelme=labelme,
        console=Console(),
    )
    for path, problem in summary.failures.items():
        _tell(problem if path in problem else f"{path}: {problem}")
    if summary.failures:
        raise typer.Exit(1)


@app.command(epilog="Example: fewseg serve --checkpoint runs/demo/biopt.ckpt --size 128")
def serve(
    checkpoint: Annotated[Path | None, typer.Option(help="A trained model.")] = None,
    backbone: Annotated[
        str, typer.Option(help="Without a checkpoint: a pretrained network of torchvision or timm.")
    ] = "mobilenet_v2",
    weights: Annotated[
        str, typer.Option(help='Its weights: a file, or a name of torchvision\'s ("pretrained" for timm).')
    ] = "IMAGENET1K_V1",
    size: Annotated[int, typer.Option(help="Side to which photos are squashed for the model.")] = 417,
    host: Annotated[str, typer.Option(help="Where to listen; other than here a token is required.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 7860,
    token: Annotated[
        str | None, typer.Option(envvar="FEWSEG_TOKEN", help="What visitors must know; else one is made up.")
    ] = None,
    max_photos: Annotated[int, typer.Option(help="Of one visitor.", min=1)] = 24,
    max_megabytes: Annotated[int, typer.Option(help="Of one file.", min=1)] = 20,
    max_megapixels: Annotated[int, typer.Option(help="Of one photo.", min=1)] = 50,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
) -> None:
    """Open a web page on this computer to label photos, segment others and correct the masks."""
    from fewseg_ext.segmenter import Segmenter
    from fewseg_ext.web.limits import Limits
    from fewseg_ext.web.server import serve as run_server

    if checkpoint is not None:
        segmenter = Segmenter.from_checkpoint(checkpoint, device, size)
        trained = f"as trained in {checkpoint.name}"
    else:
        segmenter = Segmenter.from_pretrained_backbone(backbone, weights, device, size)
        trained = f"on the features of {backbone} ({Path(weights).name}), not trained for segmentation"
    about = f"{type(segmenter.model).__name__} {trained}; photos are seen at {size} x {size} pixels, on {device}."
    limits = Limits(max_photos, max_megabytes, max_megapixels)
    run_server(segmenter, about, host=host, port=port, token=token, limits=limits, console=Console())


def main() -> None:
    """The command: exit status 0 for success, 1 for failure, 2 for bad usage; 130 and 143 for Ctrl+C and SIGTERM.

    Before this line torch is imported, for a second or two in which Python itself answers Ctrl+C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be text in any encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    with told_in_a_line():
        try:
            app()
        except _PLAIN_ERRORS as error:
            _tell(str(error))
            sys.exit(1)
        except MemoryError:
            _tell("not enough memory")
            sys.exit(1)


def _tell(problem: str) -> None:
    """A problem in one line, however a library had written it."""
    text = f"fewseg: {' '.join(problem.split())}"
    Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
