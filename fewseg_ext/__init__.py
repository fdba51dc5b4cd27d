"""Few-shot segmentation: native operators for PyTorch, and the BiOpt and VPI models built on them."""

from fewseg_ext.ops import inner_opt, masked_avg_pool

__all__ = ["inner_opt", "masked_avg_pool"]
