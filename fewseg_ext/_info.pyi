from typing import TypedDict

import torch

def build() -> dict[str, str]:
    """Returns the facts of the build."""

class DeviceLimits:
    """What a GPU has: shared memory in bytes, as ``torch.cuda.get_device_properties`` tells it
    (``multi_processor_count``, ``shared_memory_per_block_optin``, ``shared_memory_per_multiprocessor``)."""

    def __init__(self, *, multiprocessors: int, shared_per_block: int, shared_per_multiprocessor: int) -> None: ...

class InnerOptPlan(TypedDict):
    kernel: str  # "resident": one launch for all steps; "steps": two launches a step
    chunk_pixels: int  # pixels whose sums are formed together
    chunks: int  # of a task
    chunks_per_block: int
    blocks_per_task: int  # of 256 threads
    tasks_at_a_time: int  # in one launch
    shared_bytes: int  # of a block
    staged: bool  # whether the features of a block are brought to shared memory

def plan_inner_opt(
    B: int, K: int, C: int, H: int, W: int, dtype: torch.dtype | str, limits: DeviceLimits, *, backward: bool = False
) -> InnerOptPlan:
    """Returns how the CUDA kernels of ``inner_opt`` would run with this size on such a GPU: which kernels, in chunks of
    how many pixels, with how many blocks and how much shared memory, and how many tasks at a time."""
