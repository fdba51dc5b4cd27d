"""Several processes, each with its part of every batch. One process needs nothing of this."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


def mean_and_any(value: float, flag: bool, device: torch.device) -> tuple[float, bool]:
    """The mean of ``value`` over processes, and whether ``flag`` is set in any: one message, the same answer in all."""
    if world_size() == 1:
        return value, flag
    both = torch.tensor([value, float(flag)], dtype=torch.float64, device=device)
    dist.all_reduce(both)
    total, flags = both.tolist()
    return total / world_size(), flags > 0


def gather_random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The state of torch's random generators in every process, in order of rank: "cpu", and "cuda" on a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if world_size() == 1:
        return [state]
    states: list[dict[str, Tensor]] = [{} for _ in range(world_size())]
    dist.all_gather_object(states, state)
    return states


@contextmanager
def launched_by_torchrun(device: str) -> Iterator[torch.device]:
    """The device of this process; under torchrun also joins the other processes until the end of the block.

    Args:
        device: "cpu" or "cuda"; with several processes each takes the GPU of its local rank.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield torch.device(device)
        return
    chosen = torch.device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()
