// fewseg::gaussian_aggregate: one Gaussian per task from those of its S support images (Eq. 6 of the VPI paper;
// docs/math.md, section 4), channel by channel.
//
//   mean, variance [B,S,C]  float32, float64, bfloat16 or float16; the variance may be float32 beside a 16-bit mean
//   result         two [B,C], mean and variance, both promote_types(mean, variance)
//
// mean_weighting "precision": sum_i mean_i/variance_i / sum_i 1/variance_i; "uniform": the average. variance_weighting
// "precision": S / sum_i 1/variance_i; "uniform": the average. Variances below 1e-12 are taken as 1e-12 and get no
// gradient. Sums are float64 whatever the dtype: they are short.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def(
      "gaussian_aggregate(Tensor mean, Tensor variance, str mean_weighting=\"precision\","
      " str variance_weighting=\"precision\") -> (Tensor mean, Tensor variance)");
  m.def(
      "_gaussian_aggregate_backward(Tensor d_mean, Tensor d_variance, Tensor mean, Tensor variance,"
      " str mean_weighting, str variance_weighting) -> (Tensor d_mean, Tensor d_variance)");
}
