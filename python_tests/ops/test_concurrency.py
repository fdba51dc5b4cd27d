"""The operators called from several Python threads at once, and from the workers of a DataLoader."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

from samples import SAMPLES
from workers import Calls, arguments_of, value_and_gradients

THREADS = 4


@pytest.fixture(autouse=True)
def _cpu_only(backend: str) -> None:
    # The emulator runs one kernel at a time; what several streams do, test_gpu.py asks a GPU.
    if backend != "cpu":
        pytest.skip("about the CPU kernels")


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def calls_at_once(rounds: int) -> None:
    """Every thread calls all operators, each in an order of its own: equal bits to calls that nothing runs beside."""
    numbers = range(len(SAMPLES))
    args = [arguments_of(i) for i in numbers]
    with ThreadPoolExecutor(1) as one:
        expected = list(one.map(value_and_gradients, numbers, args))

    def wrong(seed: int) -> list[str]:
        order = random.Random(seed).sample(numbers, len(numbers))
        return [SAMPLES[i].name for i in order if not equal(value_and_gradients(i, args[i]), expected[i])]

    with ThreadPoolExecutor(THREADS) as pool:
        assert [names for names in pool.map(wrong, range(THREADS * rounds)) if names] == []


def test_python_threads() -> None:
    calls_at_once(rounds=2)


@pytest.mark.slow
def test_python_threads_for_long() -> None:
    calls_at_once(rounds=100)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(method: str) -> None:
    data = Calls()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for number in range(len(data)):
            data[number]  # so that the threads that a fork does not copy have been there
        torch.set_num_threads(1)  # as in a worker: torch's convolution gives other bits on two
        expected = [data[number] for number in range(len(data))]
    finally:
        torch.set_num_threads(before)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=600)
    got = list(loader)
    assert len(got) == len(expected)
    assert all(equal(x, y) for x, y in zip(got, expected, strict=True))
