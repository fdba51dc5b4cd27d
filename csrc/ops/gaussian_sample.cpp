// fewseg::gaussian_sample: z[b,l] = mean[b] + sqrt(variance[b]) * noise (docs/math.md, section 4).
//
//   mean, variance [B,C]    float32, float64, bfloat16 or float16; the variance may be float32 beside a 16-bit mean
//   key            [2]      int64, on the device of mean: which noise
//   result         [B,L,C]  promote_types(mean, variance)
//
// The noise of an element is a function of key, b, l and c alone (common/philox.h): the first samples are the same for
// every num_samples, and CPU and CUDA draw the same numbers. The backward draws them again instead of keeping them.
// Variances below 1e-12 are taken as 1e-12 and get no gradient.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("gaussian_sample(Tensor mean, Tensor variance, int num_samples, Tensor key) -> Tensor");
  m.def(
      "_gaussian_sample_backward(Tensor gradient, Tensor variance, Tensor key) -> (Tensor d_mean, Tensor d_variance)");
}
