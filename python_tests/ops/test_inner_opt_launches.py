"""fewseg::inner_opt on CUDA takes all steps in one launch or two launches for each: the same bits. In the emulator, on
pretended devices."""

import pytest
import torch
from torch import Tensor

from fewseg_ext import inner_opt
from fewseg_ext._info import DeviceLimits, plan_inner_opt
from samples import SAMPLES, Sample, Sizes


@pytest.fixture(autouse=True)
def _emulated_only(backend: str) -> None:
    if backend != "emulated":
        pytest.skip("needs --backend=emulated")


def problem(tasks: int, classes: int, channels: int, height: int, width: int, dtype: torch.dtype, layout: str) -> list:
    features = torch.randn(tasks, channels, height, width).to(dtype)
    if layout == "channels-last":
        features = features.contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, classes, (tasks, height, width))
    target[:, 0, 0] = 255
    return [features.requires_grad_(), torch.randn(tasks, classes, channels).requires_grad_(), target]


def run_on(device: dict[str, int], monkeypatch: pytest.MonkeyPatch, arguments: list) -> list[Tensor]:
    monkeypatch.setenv("FEWSEG_EMULATOR_DEVICE", ",".join(f"{key}={value}" for key, value in device.items()))
    result = inner_opt(*arguments, steps=4, lr=0.05)
    weights = torch.linspace(-1, 1, result.numel()).view_as(result)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), arguments[:2])]


def plans(device: dict[str, int], size: tuple, dtype: torch.dtype) -> list[tuple]:
    """The kernel and the pixels of a chunk, forward and backward."""
    both = (plan_inner_opt(*size, dtype, DeviceLimits(**device), backward=backward) for backward in (False, True))
    return [(plan["kernel"], plan["chunk_pixels"]) for plan in both]


def without_room(size: tuple, dtype: torch.dtype, chunk_pixels: int) -> dict[str, int]:
    """A device on which no task is resident, and chunks have so many pixels."""
    for shared in range(1024, 65536, 256):
        device = {"multiprocessors": 1, "shared_per_block": 65536, "shared_per_multiprocessor": shared}
        if plans(device, size, dtype) == [("steps", chunk_pixels)] * 2:
            return device
    raise AssertionError("there is no such device")


@pytest.mark.parametrize("layout", ["nchw", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "multiprocessors", "shared", "chunk_pixels"),
    [
        # B, K, C, H, W: two tasks at a time, on four blocks each with two chunks, but the last with part of one
        ((2, 2, 24, 10, 10), 8, 65536, 16),
        # One task after another in float32, two and one in bfloat16; more channels than a block has threads
        ((3, 2, 264, 8, 10), 4, 32768, 24),
        # More classes than are summed at a time, five chunks for each block
        ((1, 7, 20, 10, 10), 3, 65536, 8),
    ],
)
def test_same_bits_as_single_steps(
    size: tuple,
    multiprocessors: int,
    shared: int,
    chunk_pixels: int,
    dtype: torch.dtype,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident = {
        "multiprocessors": multiprocessors,
        "shared_per_block": shared,
        "shared_per_multiprocessor": shared + 1024,
    }
    assert plans(resident, size, dtype) == [("resident", chunk_pixels)] * 2
    steps = without_room(size, dtype, chunk_pixels)
    arguments = problem(*size, dtype, layout)
    for x, y in zip(run_on(resident, monkeypatch, arguments), run_on(steps, monkeypatch, arguments), strict=True):
        assert torch.equal(x, y)


def test_too_many_classes_are_a_plain_error() -> None:
    arguments = problem(1, 3000, 2, 3, 3, torch.float32, "nchw")
    with pytest.raises(RuntimeError, match=r"too many classes for this GPU: they take \d+ bytes of shared memory"):
        inner_opt(*arguments)


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample.feature_map], ids=lambda s: s.name)
def test_too_many_tasks_are_a_plain_error(sample: Sample) -> None:
    sizes = Sizes(tasks=65536, classes=1, channels=1, height=1, width=1, mask_height=1, mask_width=1)
    with pytest.raises(RuntimeError, match="at most 65535 tasks in a call, got 65536"):
        sample.public(*sample.arguments(sizes, torch.float32))
