"""Recipes: YAML files composed of small parts, every field of which the command line can change. Needs jsonargparse.

A recipe is a mapping with the sections ``model``, ``data``, ``training`` and ``run``, and these keys besides:

``use``     a list of recipes or parts that it starts from, each changing what the ones before it say
``beside``  what changes where another part is in use too: the batch of BiOpt beside ``5shot``, for example
``method``  the model's class: BiOpt, PrototypeBaseline or VPI

The name of a recipe is that of a file in the folder ``recipes``, the path of a file of your own, or parts joined by
slashes, as in ``biopt/pascal5i/resnet50/1shot``.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewseg_ext.files import read_text
from fewseg_ext.models.registry import MODELS
from fewseg_ext.training.config import TrainingConfig
from fewseg_ext.training.data import DataConfig

try:
    import yaml
    from jsonargparse import ArgumentParser
except ImportError as error:
    raise ImportError("recipes need jsonargparse and PyYAML: pip install 'fewseg-ext[training]'") from error

DEEPEST = 20
FOLDER = Path(__file__).with_name("recipes")
EXAMPLE = "Example: fewseg train --config laptop/biopt --out runs/biopt --training.iterations 500"


@dataclass(frozen=True)
class RunConfig:
    """What happens beside the training itself. Changing it does not change the weights.

    Args:
        save_every: Iterations between two checkpoints.
        validate_every: Iterations between two validations.
        validation_episodes: Episodes of a validation.
        log_every: Iterations between two lines of the log.
        tensorboard: Also write TensorBoard's files.
    """

    save_every: int = 500
    validate_every: int = 1000
    validation_episodes: int = 200
    log_every: int = 20
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("save_every", "validate_every", "validation_episodes", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name}: expected 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Recipe:
    """A training, completely described."""

    method: str
    model: dict[str, Any]  # the arguments of the model's class
    data: DataConfig
    training: TrainingConfig
    run: RunConfig

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are saved."""
        # YAML has no tuples.
        sections = {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
            for name in ("data", "training", "run")
            for fields in [asdict(getattr(self, name))]
        }
        return {"method": self.method, "model": dict(self.model), **sections}

    def as_yaml(self) -> str:
        """A file that ``--config`` takes."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


class UsageError(ValueError):
    """The command line or the recipe asks for something that there is not."""


def recipe_names() -> list[str]:
    """Recipes and parts of this package."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def compose(name: str) -> dict[str, Any]:
    """What a recipe says, its parts merged.

    Raises:
        UsageError: an unknown name, or a file that is no recipe.
    """
    parts: dict[str, dict[str, Any]] = {}
    _collect(name, parts, ())
    merged: dict[str, Any] = {}
    for content in parts.values():
        merged = _merge(merged, {key: value for key, value in content.items() if key not in ("use", "beside")})
    for content in parts.values():
        for other, change in content.get("beside", {}).items():
            if other in parts:
                merged = _merge(merged, change)
    # The outermost recipe has the last word.
    last = {key: value for key, value in list(parts.values())[-1].items() if key not in ("use", "beside")}
    return _merge(merged, last)


def parse_arguments(arguments: Sequence[str]) -> tuple[Recipe, str, str]:
    """The recipe of a command line, the folder of the run, and the device.

    Raises:
        UsageError: an unknown recipe or field, or a value of the wrong type.
        SystemExit: with status 0, after the help was printed.
    """
    config = _option(arguments, "--config")
    content = compose(config) if config is not None else {}
    method = str(content.pop("method", "BiOpt"))
    if method not in MODELS:
        raise UsageError(
            f"method: {method!r} is unknown{_nearest(method, MODELS)}; expected one of {', '.join(MODELS)}"
        )
    parser = make_parser(method)
    known = list(parser.get_defaults().keys())
    fields = _flatten(content)
    for field in fields:
        if field not in known:
            raise UsageError(f"{config}: unknown field {field}{_nearest(field, known)}")
    for argument in arguments:
        field = argument[2:].split("=")[0]
        if argument.startswith("--") and field not in (*known, "help", "config"):
            raise UsageError(f"unknown field --{field}{_nearest(field, known, '--')}")
    try:
        parser.parse_object(content)  # `set_defaults` does not look at the values
        parser.set_defaults(fields)
    except Exception as error:  # jsonargparse raises a different type for every way in which a value can be wrong
        raise UsageError(f"{config}: {' '.join(str(error).split())[:300]}") from error
    if config is None and not {"-h", "--help"} & set(arguments):
        raise UsageError(f"--config: give a recipe. {EXAMPLE}. Recipes and parts: {', '.join(recipe_names())}")
    try:
        values = parser.parse_args(list(arguments))
        sections = values.as_dict()
        recipe = Recipe(
            method,
            sections["model"],
            DataConfig(**_tuples(sections["data"])),
            TrainingConfig(**_tuples(sections["training"])),
            RunConfig(**sections["run"]),
        )
    except Exception as error:  # argparse's own class, or ValueError and TypeError
        raise UsageError(" ".join(str(error).split())[:1000]) from error
    return recipe, str(values.out), str(values.device)


def make_parser(method: str) -> ArgumentParser:
    """Every field with its default and its explanation, which is that of the class's docstring."""
    parser = ArgumentParser(
        prog="fewseg train",
        description="Train a model as a recipe says. Started again, it goes on from its last checkpoint.",
        epilog=EXAMPLE,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config",
        type=str,
        help="Name or file of a recipe, or parts joined by slashes. There are: " + ", ".join(recipe_names()),
    )
    parser.add_argument("--out", type=str, default="runs/train", help="Folder of the run.")
    parser.add_argument("--device", type=str, default="cpu", help='"cpu" or "cuda".')
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(TrainingConfig, "training")
    parser.add_class_arguments(RunConfig, "run")
    parser.add_argument("--model.backbone", type=str, default="resnet50", help="Name of the backbone.")
    parser.add_class_arguments(MODELS[method], "model", skip={"backbone"})
    return parser


def _collect(name: str, parts: dict[str, dict[str, Any]], within: tuple[str, ...]) -> None:
    """Adds a recipe to ``parts``, after what it uses."""
    if name in within:
        raise UsageError(f"{name}: uses itself, through {' -> '.join((*within, name))}")
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.is_file():
        content = _read(path)
    elif "/" in name and set(name.split("/")) <= set(recipe_names()):
        content = {"use": name.split("/")}
    else:
        known = recipe_names()
        # Of parts joined by slashes the unknown one is meant, unless the whole is close to a recipe.
        unknown = name if difflib.get_close_matches(name, known, 1, 0.7) else _first_unknown(name, known)
        raise UsageError(f"recipe {unknown!r} not found{_nearest(unknown, known)}; there are: {', '.join(known)}")
    for part in content.get("use", []):
        if part not in parts:
            _collect(part, parts, (*within, name))
    parts[name] = content


def _read(path: Path) -> dict[str, Any]:
    """One file, and whether it has the form of a recipe."""
    try:
        text = read_text(path)
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            # Through aliases a few lines become more than any memory holds; `use` does what a recipe needs.
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{path}: aliases (*name) are not for recipes, name a file under `use`")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # The parser's time grows with the square of the depth.
            if depth > DEEPEST:
                raise UsageError(f"{path}: nested deeper than a recipe is")
        content = yaml.safe_load(text) or {}
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: expected a mapping with the sections of a recipe")
    use, beside = content.get("use", []), content.get("beside", {})
    if not isinstance(use, list) or not all(isinstance(part, str) for part in use):
        raise UsageError(f"{path}: use: expected a list of recipes or parts")
    if not isinstance(beside, dict) or not all(isinstance(change, dict) for change in beside.values()):
        raise UsageError(f"{path}: beside: expected what changes beside other parts, by their names")
    return content


def _first_unknown(name: str, known: Sequence[str]) -> str:
    return next((part for part in name.split("/") if part not in known), name)


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As the frozen classes of the sections want them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _option(arguments: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument[len(name) + 1 :]
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def _nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """', did you mean ...?' of the whole name, or of its last part in another section."""
    names = list(names)
    found = difflib.get_close_matches(name, names, 1, 0.7)
    if not found:
        short = {known.rsplit(".", 1)[-1]: known for known in names}
        found = [short[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], short, 1)]
    return f", did you mean {prefix}{found[0]}?" if found else ""
