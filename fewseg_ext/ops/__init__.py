"""Operators. Until the native library stands, the public names are the reference."""

from fewseg_ext.ops.reference import inner_opt, masked_avg_pool

__all__ = ["inner_opt", "masked_avg_pool"]
