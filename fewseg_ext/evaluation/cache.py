"""A cache of feature maps that is bounded in bytes."""

from collections.abc import Hashable

from torch import Tensor

Tensors = tuple[Tensor, ...]


class TensorCache:
    """Keeps tensors, some per key, until it is full, and those for good.

    Episodes draw their images at random, so it does not matter which ones are kept; and what is once here stays, so
    a data loader can be told long before not to read it.

    Args:
        max_bytes: the bound; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"cache: max_bytes must be 0 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = 0
        self._tensors: dict[Hashable, Tensors] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors

    def get(self, key: Hashable) -> Tensors | None:
        """The tensors of that key, where they are kept."""
        return self._tensors.get(key)

    def put(self, key: Hashable, tensors: Tensors) -> None:
        """Keeps copies of ``tensors`` where they fit, all or none."""
        size = sum(tensor.nbytes for tensor in tensors)
        if key not in self._tensors and self.bytes + size <= self.max_bytes:
            # Copies: a view would keep its whole base alive, and a data loader's tensor an open file.
            self._tensors[key] = tuple(tensor.clone() for tensor in tensors)
            self.bytes += size
