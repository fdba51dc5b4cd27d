"""The operators: ``fewseg_ext.<op>`` and ``torch.ops.fewseg.<op>``. They import nothing of the models above them."""

from fewseg_ext.ops import _library  # noqa: F401  (first: the others look their operators up in it)
from fewseg_ext.ops._checks import set_debug
from fewseg_ext.ops.cosine_cross_entropy import cosine_cross_entropy
from fewseg_ext.ops.cosine_logits import cosine_logits
from fewseg_ext.ops.inner_opt import inner_opt
from fewseg_ext.ops.masked_avg_pool import masked_avg_pool

__all__ = ["cosine_cross_entropy", "cosine_logits", "inner_opt", "masked_avg_pool", "set_debug"]
