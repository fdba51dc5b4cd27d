"""Copies of the models, by deepcopy and pickle, and deterministic algorithms: the same outputs, bit for bit."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fewseg_ext
from fewseg_ext.models import BiOpt, PrototypeBaseline

MODELS = [
    pytest.param(lambda: BiOpt("conv4", inner_steps=3), id="biopt"),
    pytest.param(lambda: PrototypeBaseline("conv4"), id="baseline"),
    pytest.param(lambda: fewseg_ext.VPI("conv4", latent_dim=8, width=8, num_samples=3, kl_warmup=0), id="vpi"),
]
SIZE = 32


def episode() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 1, 1, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(2, 1, 1, SIZE, SIZE, dtype=torch.uint8)
    masks[..., 4:20, 6:24] = 1
    query = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    return images, masks, query, torch.randint(0, 2, (2, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def outputs(model: torch.nn.Module) -> list[Tensor]:
    """The loss, the logits and every gradient of a step of training; VPI draws from torch's generator."""
    model.zero_grad()
    torch.manual_seed(3)
    out = model(*episode())
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert gradients
    return [out.loss.detach(), out.logits.detach(), *gradients]


def pickled(model: torch.nn.Module) -> torch.nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copies_give_the_same(make: Callable, copied: Callable) -> None:
    model = make()
    twin = copied(model)
    assert twin is not model
    expected = outputs(model)
    assert all(torch.equal(x, y) for x, y in zip(outputs(twin), expected, strict=True))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(torch.equal(x, y) for x, y in zip(outputs(model), expected, strict=True)), "the copy shares memory"


@pytest.mark.parametrize("make", MODELS)
def test_deterministic_algorithms(make: Callable) -> None:
    model = make()
    expected = outputs(model)
    torch.use_deterministic_algorithms(True)
    try:
        got = outputs(model)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
