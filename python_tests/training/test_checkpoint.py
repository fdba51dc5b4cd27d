import os

import pytest
import torch

from fewseg_ext.training.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint


def checkpoint():
    return Checkpoint(
        model={"name": "BiOpt", "backbone": "conv4", "inner_lr": 0.1, "weights": None},
        weights={"a": torch.randn(3, 2), "b": torch.arange(4)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        iteration=3,
        history=[3.0, 2.5, 1 / 3],
        training={"lr": 1e-3, "seconds": None},
    )


def test_round_trip_is_exact(tmp_path):
    saved = checkpoint()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "new" / "model.ckpt", saved))
    assert loaded.weights.keys() == saved.weights.keys()
    assert all(torch.equal(loaded.weights[key], saved.weights[key]) for key in saved.weights)
    for field in ("model", "optimizer", "iteration", "history", "training"):
        assert getattr(loaded, field) == getattr(saved, field)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Malicious()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil.ckpt is not a checkpoint"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert os.listdir(tmp_path) == ["evil.ckpt"]


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.ckpt is not a checkpoint"):
        load_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign.ckpt is not a checkpoint of fewseg_ext \(format 1\)"):
        load_checkpoint(tmp_path / "foreign.ckpt")
    content = {"format": 1, **vars(checkpoint())}
    for change, message in (
        ({"colour": "red"}, "was written by another version of fewseg_ext"),
        ({"iteration": -1}, "or is damaged: 'iteration' is of another kind"),
    ):
        torch.save({**content, **change}, tmp_path / "changed.ckpt")
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "changed.ckpt")
    torch.save(content, tmp_path / "unfit.ckpt")
    with pytest.raises(ValueError, match=r"unfit.ckpt: weights"):
        load_model(tmp_path / "unfit.ckpt")
