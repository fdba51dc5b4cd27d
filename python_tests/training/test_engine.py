import io
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.models.biopt import BiOpt
from fewseg_ext.models.conv4 import Conv4
from fewseg_ext.models.vpi import VPI
from fewseg_ext.training.checkpoint import load_checkpoint, save_checkpoint
from fewseg_ext.training.engine import Trainer, TrainingConfig, TrainingDiverged


class Colours:
    """A red or green square, the object, on blue or grey ground."""

    class_names = ("red", "green")

    def num_images(self, class_id):
        return 4

    def read(self, class_id, index):
        labels = torch.zeros(32, 32, dtype=torch.int16)
        labels[4 + 2 * index : 18 + 2 * index, 6:24] = class_id + 1
        image = torch.full((3, 32, 32), 40, dtype=torch.uint8)
        image[2, labels == 0] = 60 + 40 * index
        image[class_id, labels > 0] = 220
        return image, labels


def episodes(count=1000):
    return EpisodeDataset(Colours(), count)


def model():
    torch.manual_seed(0)
    return BiOpt(Conv4(out_channels=16, width=8), inner_steps=2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_lowers_the_loss(optimizer):
    lr = {"adamw": 3e-3, "sgd": 3e-2}[optimizer]
    trainer = Trainer(model(), episodes(), TrainingConfig(iterations=30, batch_size=2, lr=lr, optimizer=optimizer))
    history = trainer.run()
    assert len(history) == trainer.iteration == 30
    assert sum(history[-5:]) < 0.5 * sum(history[:5])


def test_frozen_parts_keep_their_weights():
    trained = model()
    before = {name: p.clone() for name, p in trained.named_parameters()}
    config = TrainingConfig(
        iterations=2, batch_size=2, frozen=("backbone.blocks.0", "weight_generator"), weight_decay=0.1
    )
    Trainer(trained, episodes(), config).run()
    kept = {name for name, p in trained.named_parameters() if torch.equal(p, before[name])}
    assert {".".join(name.split(".")[:3]) for name in kept} == {
        "backbone.blocks.0", "weight_generator.weight", "weight_generator.bias",
    }  # fmt: skip
    assert any(name.startswith("backbone.") for name in before.keys() - kept)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (
            ("backbone.blocks.9",),
            r"the model has no part 'backbone.blocks.9'; its parts are backbone, weight_generator",
        ),
        (("backbon",), "the model has no part 'backbon'"),  # whole names only
        (("backbone", "weight_generator"), "nothing is left to train"),
    ],
)
def test_frozen_parts_that_there_are_not(frozen, message):
    with pytest.raises(ValueError, match=message):
        Trainer(model(), episodes(), TrainingConfig(iterations=1, frozen=frozen))


def test_channels_last_trains_alike():
    histories = []
    for channels_last in (False, True):
        config = TrainingConfig(iterations=3, batch_size=2, channels_last=channels_last)
        trainer = Trainer(model(), episodes(), config)
        histories.append(trainer.run())
    assert trainer.model.backbone.blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert histories[1] == pytest.approx(histories[0], rel=1e-3)


def test_the_same_settings_give_the_same_weights():
    def train(seed):
        data = EpisodeDataset(Colours(), 1000, seed=seed)
        trainer = Trainer(model(), data, TrainingConfig(iterations=4, batch_size=2))
        return trainer.run(), trainer.model.state_dict()

    first, second, other = train(0), train(0), train(1)
    assert first[0] == second[0] != other[0]
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])


def test_checkpoint_round_trip_is_exact(tmp_path):
    trainer = Trainer(model(), episodes(), TrainingConfig(iterations=3, batch_size=2))
    trainer.run()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model.ckpt", trainer.checkpoint()))
    again = BiOpt(Conv4(out_channels=16, width=8), inner_steps=2)
    again.load_state_dict(loaded.weights)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trainer.model.parameters(), strict=True))
    assert (loaded.iteration, loaded.history) == (3, trainer.history)
    assert loaded.model == trainer.model.config
    assert loaded.training["iterations"] == 3
    # What the optimiser remembers is there too: the next step is the same.
    restored = Trainer(again, episodes(), trainer.config)
    restored.optimizer.load_state_dict(loaded.optimizer)
    restored.iteration = loaded.iteration
    batch = torch.utils.data.default_collate([episodes()[6], episodes()[7]])
    assert restored.step(batch) == trainer.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trainer.model.parameters(), strict=True))


def test_a_checkpoint_of_another_number_of_processes_goes_on():
    """With new random numbers: those of the checkpoint are other processes'."""
    config = TrainingConfig(iterations=2, batch_size=2)
    checkpoint = Trainer(model(), episodes(), config).checkpoint()
    for states, kept in ((checkpoint.random_states, True), (checkpoint.random_states * 2, False)):
        trainer = Trainer(model(), episodes(), config)
        trainer.restore(replace(checkpoint, random_states=states))
        assert (trainer._random_state is not None) == kept
        trainer.run()
        assert trainer.iteration == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"weight": torch.ones(3)}}, "of another model or optimizer"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "of another model or optimizer"),
        ({"random_states": [{"cpu": torch.ones(3)}]}, "state of the random numbers is damaged"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message):
    config = TrainingConfig(iterations=1, batch_size=2)
    trainer = Trainer(model(), episodes(), config)
    checkpoint = replace(trainer.checkpoint(), **change)
    with pytest.raises(ValueError, match=message):
        (trainer.restore(checkpoint), trainer.run())


class Scripted(nn.Module):
    """Has the loss values it is told to have, and notes which queries it sees."""

    def __init__(self, values=(1.0,), pause=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.values, self.pause, self.seen = values, pause, []

    def forward(self, support_images, support_masks, query_images, query_masks):
        time.sleep(self.pause)
        self.seen.append(query_images.mean((1, 2, 3)))
        return SimpleNamespace(loss=self.weight * self.values[(len(self.seen) - 1) % len(self.values)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    scripted = Scripted([1.0, value])
    after_step = []
    trainer = Trainer(scripted, episodes(), TrainingConfig(iterations=5, batch_size=1))
    trainer.optimizer.register_step_post_hook(lambda *_: after_step.append(scripted.weight.item()))
    with pytest.raises(TrainingDiverged, match=r"loss became (nan|inf) in iteration 2; a lower learning rate"):
        trainer.run()
    assert [scripted.weight.item()] == after_step


def test_a_budget_of_seconds_is_kept():
    trainer = Trainer(Scripted(pause=0.02), episodes(), TrainingConfig(seconds=0.5, batch_size=1))
    trainer.run()
    assert 0.5 <= trainer.seconds < 2
    assert 3 <= trainer.iteration <= 25


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_class", [BiOpt, VPI])
def test_mixed_precision_trains_and_keeps_weights_in_float32(precision, model_class):
    torch.manual_seed(0)
    # The scale of float16 begins too large, and halves until the gradients are finite.
    config = TrainingConfig(iterations=6, batch_size=2, precision=precision)
    trainer = Trainer(model_class(Conv4(out_channels=16, width=8)), episodes(), config)
    before = trainer.model.backbone.blocks[0][0].weight.clone()
    dtypes = []
    trainer.model.backbone.blocks[3].register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    assert all(math.isfinite(loss) for loss in trainer.run())
    assert not torch.equal(trainer.model.backbone.blocks[0][0].weight, before)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.scaler.is_enabled() == (precision == "float16")
    assert all(buffer.isfinite().all() for buffer in trainer.model.state_dict().values())
    assert set(dtypes) == {getattr(torch, precision)}


def test_batches_are_consecutive_and_wrap_around():
    data = episodes(5)
    queries = [data[i]["query_images"].mean() for i in range(5)]
    scripted = Scripted()
    Trainer(scripted, data, TrainingConfig(iterations=4, batch_size=2)).run()
    expected = [queries[i % 5] for i in range(8)]
    torch.testing.assert_close(torch.cat(scripted.seen), torch.stack(expected))


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = TrainingConfig(iterations=10, warmup=0.2)
    factors = [config.lr_factor(done) for done in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)]
    assert factors == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0, 0.0])
    assert TrainingConfig(iterations=10, warmup=0.0).lr_factor(0.0) == 1.0


def test_steps_and_constant_rates():
    config = TrainingConfig(iterations=10, schedule="step", decay_at=(4, 8), decay_factor=0.5, warmup=0.0)
    assert [config.lr_factor(i / 10, i) for i in (0, 3, 4, 7, 8)] == [1, 1, 0.5, 0.5, 0.25]
    config = TrainingConfig(iterations=10, schedule="constant", warmup=0.2)
    assert [config.lr_factor(i / 10, i) for i in (0, 2, 9)] == [0.1, 1, 1]


def test_the_schedule_reaches_the_optimizer():
    rates = []
    trainer = Trainer(Scripted(), episodes(), TrainingConfig(iterations=4, batch_size=1, lr=0.5, warmup=0.0))
    trainer.optimizer.register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    trainer.run()
    assert rates == pytest.approx([0.5, 0.4267767, 0.25, 0.0732233])


def test_backbone_and_head_have_their_own_learning_rates():
    config = TrainingConfig(iterations=2, batch_size=1, lr=0.5, head_lr=0.01, warmup=0.0)
    trainer = Trainer(model(), episodes(), config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step(torch.utils.data.default_collate([episodes()[0]]))
    # The first step of AdamW moves every weight with a gradient by the learning rate, whatever the gradient is.
    moved = {
        name: (p.detach() - before[name] * (1 - config.weight_decay * rate)).abs().max().item() / rate
        for name, p in trainer.model.named_parameters()
        for rate in [0.5 if name.startswith("backbone.") else 0.01]
    }
    assert len(moved) > 4
    assert moved == pytest.approx(dict.fromkeys(moved, 1.0), rel=0.01)


def test_the_bar_shows_loss_speed_and_time_left():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=140)
    Trainer(Scripted([0.625]), episodes(), TrainingConfig(iterations=4, batch_size=1), console=console).run("fitting")
    shown = stream.getvalue()
    for part in ("fitting", "4/4", "loss 0.62", "images/s", "left"):
        assert part in shown


def test_without_console_nothing_is_shown(capsys):
    Trainer(Scripted(), episodes(), TrainingConfig(iterations=2, batch_size=1)).run()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either iterations or seconds"),
        ({"iterations": 1, "seconds": 1.0}, "either iterations or seconds"),
        ({"iterations": 0}, "budget must be positive"),
        ({"seconds": -1.0}, "budget must be positive"),
        ({"iterations": 1, "optimizer": "magic"}, "'magic'"),
        ({"iterations": 1, "batch_size": 0}, "batch_size must be at least 1"),
        ({"iterations": 1, "schedule": "step"}, "needs rising iterations in decay_at"),
        ({"iterations": 1, "precision": "int8"}, "'int8'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


def test_support_first_trains_the_support_term_alone_to_begin_with():
    class Output:
        def __init__(self, weight):
            self.losses = {"support": weight.pow(2).sum(), "final": (weight - 5).pow(2).sum()}
            self.loss = sum(self.losses.values())

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, *_):
            return Output(self.weight)

    batch = dict.fromkeys(("support_images", "support_masks", "query_images", "query_masks"), torch.zeros(1))
    trainer = Trainer(Model(), [0] * 4, TrainingConfig(iterations=4, batch_size=1, support_first=0.5))
    trainer.iteration = 1
    assert trainer.step(batch) == pytest.approx(1.0)
    assert trainer.step(batch) > 10
