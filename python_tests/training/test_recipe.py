"""Recipes: composition, overrides, errors, help."""

import itertools
from pathlib import Path

import pytest
import torch
import yaml

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.models.registry import MODELS
from fewseg_ext.training.engine import Trainer
from fewseg_ext.training.recipe import Recipe, UsageError, compose, make_parser, parse_arguments

METHODS, BACKBONES, SHOTS = ("biopt", "vpi"), ("vgg16", "resnet50", "resnet101"), ("1shot", "5shot")
DATA = ("pascal5i", "coco20i-a", "coco20i-b", "fss1000")


class NoPhotos:
    class_names = ("a", "b")

    def num_images(self, class_id: int) -> int:
        return 2


def parse(*arguments: str) -> Recipe:
    return parse_arguments(arguments)[0]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_settings_of_the_papers(method: str, data: str) -> None:
    for backbone, shots in itertools.product(BACKBONES, SHOTS):
        recipe = parse("--config", f"{method}/{data}/{backbone}/{shots}", "--data.root", "photos")
        training = recipe.training
        assert recipe.model["backbone"] == backbone
        assert recipe.model["weights"] == "IMAGENET1K_V1"
        assert recipe.data.shots == int(shots[0])
        assert recipe.data.name == data.split("-")[0]
        assert recipe.data.variant == ("B" if data.endswith("b") else "A")
        assert (training.warmup, training.support_first, training.max_grad_norm) == (0, 0, None)
        coco = data.startswith("coco")
        if method == "biopt":
            assert (training.optimizer, training.lr, training.momentum, training.weight_decay) == (
                "sgd",
                7e-3,
                0.9,
                5e-4,
            )
            assert training.batch_size == (8 if shots == "1shot" else 2)
            assert training.iterations == (20_000 if coco else 10_000)
            factors = [training.lr_factor(0.5, iteration) for iteration in (9_999, 10_000)]
            assert factors == pytest.approx([1, 0.1] if coco else [1, 1])
            assert (recipe.data.size, recipe.data.augmentation, recipe.method) == (417, "biopt", "BiOpt")
        else:
            assert (training.optimizer, training.lr, training.head_lr) == ("adam", 1e-6, 1e-5)
            assert (training.batch_size, training.iterations, training.lr_factor(0.9, 36_000)) == (16, 40_000, 1)
            assert (recipe.data.size, recipe.data.augmentation, recipe.method) == (384, "vpi", "VPI")


@pytest.mark.parametrize("name", ["baseline", "init", "dagger", "first-order", "inopt", "vpi", "vpi-deterministic"])
def test_ablations_differ_in_nothing_but_the_model(name: str) -> None:
    """The settings of benchmarks/paper_experiments.py, on the whole of a data set and any backbone."""
    recipe = parse("--config", f"ablation-{name}/pascal5i/resnet50/1shot", "--data.root", "photos")
    other = parse(
        "--config", f"ablation-{'vpi' if 'vpi' in name else 'inopt'}/pascal5i/resnet50/1shot", "--data.root", "photos"
    )
    assert (recipe.data, recipe.training, recipe.run) == (other.data, other.training, other.run)
    assert recipe.model["backbone"] == "resnet50"
    assert (recipe.data.name, recipe.data.validation_classes) == ("pascal5i", 3)
    # Parts that a backbone does not have would be an error when the training begins.
    torch.manual_seed(0)
    model = MODELS[recipe.method](**{**recipe.model, "weights": None})
    Trainer(model, EpisodeDataset(NoPhotos(), 4), recipe.training)
    trained = {name.split(".")[1] for name, p in model.backbone.named_parameters("backbone") if p.requires_grad}
    assert trained == (set() if "vpi" in name else {"layer3", "layer4"})


def test_lists_of_a_recipe_are_tuples_and_survive_the_file(tmp_path: Path) -> None:
    recipe = parse(
        *("--config", "laptop/biopt", "--data.without", "[cat,dog]", "--training.frozen", "[backbone.0,backbone.1]")
    )
    assert recipe.data.without == ("cat", "dog")
    assert recipe.training.frozen == ("backbone.0", "backbone.1")
    (tmp_path / "recipe.yaml").write_text(recipe.as_yaml())
    assert parse("--config", str(tmp_path / "recipe.yaml")) == recipe


def test_the_command_line_has_the_last_word_and_the_result_is_a_recipe(tmp_path: Path) -> None:
    changed = parse(
        "--config=vpi/coco20i-b/vgg16/5shot", "--data.root", "x", "--training.lr=3e-4", "--model.latent_dim", "64"
    )
    assert (changed.training.lr, changed.model["latent_dim"]) == (3e-4, 64)
    (tmp_path / "recipe.yaml").write_text(changed.as_yaml())
    assert parse("--config", str(tmp_path / "recipe.yaml")) == changed


def test_own_recipes_use_parts_and_change_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    content = {"use": ["biopt", "pascal5i", "resnet50", "5shot"], "training": {"batch_size": 4}, "data": {"root": "x"}}
    path.write_text(yaml.safe_dump(content))
    recipe = parse("--config", str(path))
    assert (recipe.training.batch_size, recipe.data.shots, recipe.data.family) == (4, 5, "P2")
    path.write_text(yaml.safe_dump({"use": [str(path)]}))
    with pytest.raises(UsageError, match=r"uses itself"):
        compose(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "laptop/biopt", "--training.itertions", "3"],
            "--training.itertions, did you mean --training.iterations?",
        ),
        (["--config", "laptop/biopt", "--optimizer.lr", "3"], "--optimizer.lr, did you mean --training.lr?"),
        (["--config", "laptop/vpi", "--model.inner_steps", "3"], "unknown field --model.inner_steps"),
        (["--config", "laptop/bipot"], "'laptop/bipot' not found, did you mean laptop/biopt?"),
        (["--config", "biopt/pascal5/resnet50/1shot"], "'pascal5' not found, did you mean pascal5i?"),
        (["--config", "laptop/biopt", "--training.lr", "fast"], "training.lr"),
        (["--config", "laptop/biopt", "--training.lr", "-1"], "lr must be a positive number"),
        (["--config", "laptop/biopt", "--data.name", "imagenet"], "data.name"),
        (["--config", "biopt/pascal5i/resnet50/1shot"], "give the folder of pascal5i"),
        (["--config", "laptop/biopt", "--run.save_every", "0"], "run.save_every: expected 1 or more, got 0"),
        ([], "--config: give a recipe"),
        (["--config"], "--config: give a recipe"),
    ],
)
def test_errors_say_what_was_meant(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    assert message in str(error.value)


def test_mistakes_in_a_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("use: [laptop/biopt]\ntraining: {wamrup: 0.1}\n")
    with pytest.raises(UsageError, match=r"mine.yaml: unknown field training.wamrup, did you mean training.warmup\?"):
        parse("--config", str(path))
    path.write_text("use: [laptop/biopt]\nmethod: BiOtp\n")
    with pytest.raises(UsageError, match="'BiOtp' is unknown, did you mean BiOpt"):
        parse("--config", str(path))
    path.write_text("use: [laptop/biopt]\ntraining: {iterations: many}\n")
    with pytest.raises(UsageError, match=r"mine.yaml: .*iterations"):
        parse("--config", str(path))
    for text, message in (
        ("[laptop/biopt]", "expected a mapping with the sections of a recipe"),
        ("use: laptop/biopt", "use: expected a list of recipes or parts"),
        ("beside: [5shot]", "beside: expected what changes beside other parts"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"mine.yaml: {message}"):
            parse("--config", str(path))


@pytest.mark.parametrize("method", ["BiOpt", "PrototypeBaseline", "VPI"])
def test_help_explains_every_field(method: str) -> None:
    parser = make_parser(method)
    explained = {action.dest: action.help for action in parser._actions}
    fields = list(parser.get_defaults().keys())
    assert len(fields) > 40
    for field in fields:
        assert len(str(explained[field] or "").split()) > 1, field


def test_help_shows_the_values_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--config", "laptop/biopt", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "Part of the budget, 0 to 1, in which only the support prototypes' loss trains. (type: float, default: 0.9)"
        in text
    )
