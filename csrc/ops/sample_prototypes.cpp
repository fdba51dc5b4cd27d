// fewseg::sample_prototypes: gaussian_sample of gaussian_aggregate with precision weights, in one launch (docs/math.md,
// section 4).
//
//   mean, variance [B,S,C]  float32, float64, bfloat16 or float16; the variance may be float32 beside a 16-bit mean
//   key            [2]      int64, on the device of mean: which noise
//   result         [B,L,C]  promote_types(mean, variance)
//
// The aggregated Gaussian is never rounded. Noise and small variances as in those two operators.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("sample_prototypes(Tensor mean, Tensor variance, int num_samples, Tensor key) -> Tensor");
  m.def(
      "_sample_prototypes_backward(Tensor gradient, Tensor mean, Tensor variance, Tensor key)"
      " -> (Tensor d_mean, Tensor d_variance)");
}
