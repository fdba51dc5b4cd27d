"""Long runs: memory does not grow."""

import gc
from pathlib import Path

import pytest

import fewseg_ext
from fewseg_ext.training.recipe import parse_arguments
from fewseg_ext.training.run import run_training
from readers import model
from support import resident_memory
from test_segmenter import photo_and_mask
from tiny import options, write_photos

ITERATIONS = 2000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["biopt", "vpi"])
def test_two_thousand_iterations_take_no_more_memory_than_three_hundred(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, validation, checkpoints and log as `fewseg train` does them."""
    root = write_photos(tmp_path / "photos")
    often = ("--run.save_every", "200", "--run.validate_every", "200", "--run.log_every", "10")
    recipe, _, _ = parse_arguments(options(method, root, ITERATIONS, *often))
    sizes: dict[int, int] = {}
    step = fewseg_ext.training.engine.Trainer.step

    def measured(trainer, batch):
        value = step(trainer, batch)
        if trainer.iteration % 100 == 0:
            gc.collect()
            sizes[trainer.iteration] = resident_memory()
        return value

    monkeypatch.setattr(fewseg_ext.training.engine.Trainer, "step", measured)
    trainer = run_training(recipe, tmp_path / "run")
    assert trainer.iteration == ITERATIONS
    early, late = max(size for n, size in sizes.items() if n <= 300), min(sizes[n] for n in (1900, 2000))
    # 1,700 losses of 32 bytes are in it; a tensor of the tiny model, or a photo, that stayed would be 10 MB or more.
    assert late - early < 8e6, sizes


@pytest.mark.slow
def test_a_thousand_photos_take_no_more_memory_than_a_hundred() -> None:
    segmenter = fewseg_ext.Segmenter(model(), size=32)
    photo, mask = photo_and_mask()
    sizes = []
    for number in range(1000):
        if number % 10 == 0:
            segmenter.fit([photo], [mask])
        segmenter.predict(photo_and_mask(number)[0])
        if number % 50 == 49:
            gc.collect()
            sizes.append(resident_memory())
    assert min(sizes[-2:]) - max(sizes[:2]) < 8e6, sizes
