"""Which kernels inner_opt gets on which GPU: the limits are those of NVIDIA's tuning guides."""

import pytest
import torch

from fewseg_ext._info import DeviceLimits, plan_inner_opt

KIB = 1024
GPUS = {
    "H200": DeviceLimits(multiprocessors=132, shared_per_block=227 * KIB, shared_per_multiprocessor=228 * KIB),
    "A100": DeviceLimits(multiprocessors=108, shared_per_block=163 * KIB, shared_per_multiprocessor=164 * KIB),
    "4090": DeviceLimits(multiprocessors=128, shared_per_block=99 * KIB, shared_per_multiprocessor=100 * KIB),
    "T4": DeviceLimits(multiprocessors=40, shared_per_block=64 * KIB, shared_per_multiprocessor=64 * KIB),
}
SHARED = {"H200": 227 * KIB, "A100": 163 * KIB, "4090": 99 * KIB, "T4": 64 * KIB}
MULTIPROCESSORS = {"H200": 132, "A100": 108, "4090": 128, "T4": 40}
RESNET, VGG, COARSE = (2048, 53, 53), (512, 53, 53), (320, 41, 41)  # C, H, W

# Tasks at a time of a batch of eight, where the kernel is resident; None: two launches a step.
TABLE = [
    # K, shape, dtype            H200  A100  4090  T4
    (2, RESNET, torch.float32, (1, None, None, None)),
    (2, RESNET, torch.bfloat16, (2, 1, None, None)),
    (3, RESNET, torch.float32, (1, None, None, None)),
    (6, RESNET, torch.float32, (None, None, None, None)),
    (6, RESNET, torch.bfloat16, (1, None, None, None)),
    (2, VGG, torch.float32, (4, 2, 1, None)),
    (2, VGG, torch.bfloat16, (8, 4, 3, None)),
    (6, VGG, torch.float32, (4, 2, 1, None)),
    (2, COARSE, torch.float32, (8, 4, 4, None)),
    (2, COARSE, torch.bfloat16, (8, 8, 8, 1)),
    (6, COARSE, torch.bfloat16, (8, 8, 8, 1)),
    (2, RESNET, torch.float64, (None, None, None, None)),
]


@pytest.mark.parametrize(("classes", "shape", "dtype", "tasks"), TABLE)
def test_table(classes: int, shape: tuple, dtype: torch.dtype, tasks: tuple) -> None:
    plans = [plan_inner_opt(8, classes, *shape, dtype, limits) for limits in GPUS.values()]
    assert [plan["kernel"] == "resident" for plan in plans] == [count is not None for count in tasks]
    for plan, count in zip(plans, tasks, strict=True):
        assert plan["tasks_at_a_time"] == (8 if count is None else count)


def test_the_main_shape_on_an_h200() -> None:
    """24 pixels x 2,049 channels x 4 bytes, and 18 KB of prototypes, sums and scratch."""
    assert plan_inner_opt(1, 2, *RESNET, torch.float32, GPUS["H200"]) == {
        "kernel": "resident",
        "chunk_pixels": 24,
        "chunks": 118,
        "chunks_per_block": 1,
        "blocks_per_task": 118,
        "tasks_at_a_time": 1,
        "shared_bytes": 196_704 + 18_384,
        "staged": True,
    }


def test_without_room_for_the_smallest_chunk_it_is_read_where_it_lies() -> None:
    plan = plan_inner_opt(1, 2, *RESNET, torch.float32, GPUS["T4"])
    assert (plan["kernel"], plan["chunk_pixels"], plan["staged"]) == ("steps", 8, False)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("backward", [False, True])
def test_whatever_the_size(gpu: str, backward: bool) -> None:
    """The blocks of a resident launch fit onto the device at once, and hold all pixels."""
    residents = 0
    for classes in (2, 3, 6, 21):
        for channels in (1, 64, 320, 512, 2048):
            for side in (1, 7, 41, 53, 97, 129):
                for dtype in ("float32", "bfloat16", "float64"):
                    for tasks in (1, 2, 5, 8, 300):
                        plan = plan_inner_opt(tasks, classes, channels, side, side, dtype, GPUS[gpu], backward=backward)
                        assert plan["chunks"] == -(-side * side // plan["chunk_pixels"])
                        assert plan["blocks_per_task"] * plan["chunks_per_block"] >= plan["chunks"]
                        assert (plan["blocks_per_task"] - 1) * plan["chunks_per_block"] < plan["chunks"]
                        assert plan["shared_bytes"] <= SHARED[gpu]
                        if plan["kernel"] == "resident":
                            residents += 1
                            assert 1 <= plan["tasks_at_a_time"] <= tasks
                            assert plan["tasks_at_a_time"] * plan["blocks_per_task"] <= MULTIPROCESSORS[gpu]
                        else:
                            assert plan["chunks_per_block"] == 1
    assert residents > 500


@pytest.mark.parametrize("gpu", GPUS)
def test_bits_do_not_depend_on_the_batch(gpu: str) -> None:
    """They depend on the kernel (not even on that) and on the pixels of a chunk."""
    for classes in (2, 6):
        for shape in (RESNET, VGG, COARSE):
            for dtype in (torch.float32, torch.bfloat16):
                plans = [plan_inner_opt(tasks, classes, *shape, dtype, GPUS[gpu]) for tasks in (1, 2, 3, 8, 100)]
                assert len({(plan["kernel"], plan["chunk_pixels"]) for plan in plans}) == 1


@pytest.mark.parametrize(("gpu", "most"), [("T4", 1985), ("H200", 7201)])
def test_as_many_classes_as_a_block_has_room_for(gpu: str, most: int) -> None:
    """Beyond, the launch is refused; the backward takes half as many."""
    for classes, backward in ((most, False), (most // 2 + 1, True)):
        for more in (0, 1):
            plan = plan_inner_opt(1, classes + more, *RESNET, torch.float32, GPUS[gpu], backward=backward)
            assert (plan["shared_bytes"] <= SHARED[gpu]) == (more == 0)


def test_one_class_needs_no_pixels() -> None:
    assert plan_inner_opt(4, 1, *VGG, torch.float32, GPUS["H200"])["kernel"] == "steps"


@pytest.mark.parametrize(
    ("size", "dtype", "message"),
    [
        ((1, 2, 8, 5, 5), torch.int64, "dtype must be"),
        ((1, 0, 8, 5, 5), torch.float32, "K, H and W must be at least 1"),
    ],
)
def test_errors(size: tuple, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_inner_opt(*size, dtype, GPUS["T4"])
