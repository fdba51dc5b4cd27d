// Bodies of the cosine operators (cosine_logits, cosine_cross_entropy), one set per instruction set. A: accumulator
// type, S: storage type of the features. Symbols as in docs/math.md, section 2.
#pragma once

#include <cstdint>

#include "../common/bands.h"
#include "../common/storage.h"
#include "feature_planes.h"

namespace fewseg {

// Pixel rows of a target that is looked at through upsampled cosines. `upsampled` [K-1][H][padded w] holds the
// differences against class 0, upsampled along x only; `rows` does the other axis, from H to h.
template <class A>
struct CrossEntropyRows {
  const A* upsampled;
  int64_t others, height, width, padded_width;  // K-1, H, w, and w rounded up to whole blocks of 16
  Bands<A> rows;
  const int32_t* labels;  // [h][w], -1 where ignored
  A scale;
};

template <class S>
struct CosineBodiesOf {
  using A = Accumulator<S>;

  // cosine[k][x] = p_k . q(x) / |q(x)| and 1/|q(x)| for the pixels first..last; unit_prototypes [K][C], cosine [K][N].
  void (*cosines)(FeaturePlanes<S> features, const A* unit_prototypes, int64_t classes, int64_t first, int64_t last,
                  A* inverse_norm, A* cosine);

  // Given weight [K][N] = dLoss/dc_k(x) / |q(x)| and own [N] = -sum_k dLoss/dc_k c_k / |q|^2, for the rows first..last
  // of memory, channels of NCHW and pixels of channels-last:
  //   sums [K][C]        sum_x weight[k][x] q(x): of these channels over all pixels, or of all channels over these
  //                      pixels; null where not needed
  //   d_features         sum_k weight[k][x] p_k + own[x] q(x); null where not needed
  void (*backward)(FeaturePlanes<S> features, const A* unit_prototypes, const A* weight, const A* own, int64_t classes,
                   int64_t first, int64_t last, A* sums, S* d_features);

  // One row of the upsampling along x: output [outputs].
  void (*upsample_row)(const A* row, Bands<A> columns, A* output);

  // The cross-entropy summed over the target rows first..last; scratch [K-1][16].
  double (*loss_rows)(const CrossEntropyRows<A>& target, int64_t first, int64_t last, A* scratch);

  // The residuals factor * (s_k - [t = k]), k = 1..K-1, of the target rows first..last, all of which lie between the
  // feature rows i and i + 1, pulled down to these along y: to_row, to_next [K-1][padded w], both overwritten.
  void (*residual_rows)(const CrossEntropyRows<A>& target, int64_t first, int64_t last, A factor, A* scratch, A* to_row,
                        A* to_next);
};

struct CosineBodies {
  CosineBodiesOf<float> f32;
  CosineBodiesOf<double> f64;
  CosineBodiesOf<BFloat16> bf16;
  CosineBodiesOf<Half> f16;

  const CosineBodiesOf<float>& of(float) const { return f32; }
  const CosineBodiesOf<double>& of(double) const { return f64; }
  const CosineBodiesOf<BFloat16>& of(BFloat16) const { return bf16; }
  const CosineBodiesOf<Half>& of(Half) const { return f16; }
};

}  // namespace fewseg
