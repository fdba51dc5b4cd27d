"""The operators: ``fewseg_ext.<op>`` and ``torch.ops.fewseg.<op>``. They import nothing of the models above them."""

from fewseg_ext.ops import _library  # noqa: F401  (first: the others look their operators up in it)
from fewseg_ext.ops._checks import set_debug
from fewseg_ext.ops.cosine_cross_entropy import cosine_cross_entropy
from fewseg_ext.ops.cosine_logits import cosine_logits
from fewseg_ext.ops.gaussian_aggregate import gaussian_aggregate
from fewseg_ext.ops.gaussian_sample import gaussian_sample
from fewseg_ext.ops.inner_opt import inner_opt
from fewseg_ext.ops.masked_avg_pool import masked_avg_pool
from fewseg_ext.ops.mc_average import mc_average
from fewseg_ext.ops.mc_uncertainty import mc_uncertainty
from fewseg_ext.ops.sample_prototypes import sample_prototypes
from fewseg_ext.ops.tiled_conv2d import tiled_conv2d

__all__ = [
    "cosine_cross_entropy",
    "cosine_logits",
    "gaussian_aggregate",
    "gaussian_sample",
    "inner_opt",
    "masked_avg_pool",
    "mc_average",
    "mc_uncertainty",
    "sample_prototypes",
    "set_debug",
    "tiled_conv2d",
]
