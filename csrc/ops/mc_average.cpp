// fewseg::mc_average: the mean over L samples of softmax(upsampled logits) (Eq. 5 of the VPI paper; docs/math.md,
// section 4). Neither upsampled logits nor the probabilities of a single sample are ever stored.
//
//   logits [B,L,K,H,W]  float32, float64, bfloat16 or float16
//   size   h, w         of the result; bilinear, align_corners=False; None: H, W
//   result [B,K,h,w]    in the dtype of the logits
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("mc_average(Tensor logits, SymInt[2]? size=None) -> Tensor");
  m.def("_mc_average_backward(Tensor gradient, Tensor logits) -> Tensor");
}
