// Bodies of masked average pooling, one set per instruction set. A: accumulator type, S: storage type of the features.
#pragma once

#include <cstdint>

#include "../common/bands.h"
#include "../common/storage.h"
#include "feature_planes.h"

namespace fewseg {

template <class S>
struct MaskedAvgPoolBodiesOf {
  using A = Accumulator<S>;

  // One row of a resized mask: output_row [columns.outputs]; scratch [columns.inputs].
  void (*resize_mask_row)(const A* mask, Bands<A> rows, Bands<A> columns, int64_t row, A* scratch, A* output_row);
  void (*resize_bool_row)(const bool* mask, Bands<A> rows, Bands<A> columns, int64_t row, A* scratch, A* output_row);

  // prototypes[k][c] = sum_x weights[k][x] F(c, x) for the channels first..last; weights [K][N], prototypes [K][C].
  // `first` is a multiple of pool_unit.
  void (*pool)(FeaturePlanes<S> features, const A* weights, int64_t classes, int64_t first, int64_t last,
               A* prototypes);
  int64_t pool_unit;

  // dF(c, x) = sum_k weights[k][x] gradient[k][c] for the channels (NCHW) or pixels (channels-last) first..last.
  void (*spread)(const A* weights, const A* gradient, int64_t classes, FeaturePlanes<S> like, int64_t first,
                 int64_t last, S* d_features);

  // dots[k][x] = sum_c vectors[k][c] F(c, x) for the pixels first..last; vectors [K][C], dots [K][N].
  void (*project)(FeaturePlanes<S> features, const A* vectors, int64_t classes, int64_t first, int64_t last, A* dots);
};

struct MaskedAvgPoolBodies {
  MaskedAvgPoolBodiesOf<float> f32;
  MaskedAvgPoolBodiesOf<double> f64;
  MaskedAvgPoolBodiesOf<BFloat16> bf16;
  MaskedAvgPoolBodiesOf<Half> f16;

  const MaskedAvgPoolBodiesOf<float>& of(float) const { return f32; }
  const MaskedAvgPoolBodiesOf<double>& of(double) const { return f64; }
  const MaskedAvgPoolBodiesOf<BFloat16>& of(BFloat16) const { return bf16; }
  const MaskedAvgPoolBodiesOf<Half>& of(Half) const { return f16; }
};

}  // namespace fewseg
