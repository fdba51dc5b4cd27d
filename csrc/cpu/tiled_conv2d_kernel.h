// Bodies of tiled_conv2d, one set per instruction set. A: accumulator type, S: type of the result. The small products
// with the weight are those of masked_avg_pool (project, pool, spread).
#pragma once

#include <cstdint>

#include "../common/storage.h"

namespace fewseg {

template <class S>
struct TiledConv2dBodiesOf {
  using A = Accumulator<S>;

  // out[r][i] = base[r][i] + addend[i] for i < count, rows lying behind each other.
  void (*add_rows)(const S* base, const A* addend, int64_t count, int64_t rows, S* out);

  // out[i] = sum_l gradient[l * stride + i] for i < count.
  void (*sum_samples)(const S* gradient, int64_t stride, int64_t samples, int64_t count, S* out);

  // Sums over runs of neighbours: out[c * out_stride] = sum of row[i] for begin[c] <= i < begin[c + 1].
  void (*sum_runs)(const S* row, const int64_t* begin, int64_t runs, A* out, int64_t out_stride);

  // out[i] = sum_r gradient[r][i] for i < count, over `rows` rows behind each other.
  void (*sum_rows)(const S* gradient, int64_t count, int64_t rows, A* out);
};

struct TiledConv2dBodies {
  TiledConv2dBodiesOf<float> f32;
  TiledConv2dBodiesOf<double> f64;
  TiledConv2dBodiesOf<BFloat16> bf16;
  TiledConv2dBodiesOf<Half> f16;

  const TiledConv2dBodiesOf<float>& of(float) const { return f32; }
  const TiledConv2dBodiesOf<double>& of(double) const { return f64; }
  const TiledConv2dBodiesOf<BFloat16>& of(BFloat16) const { return bf16; }
  const TiledConv2dBodiesOf<Half>& of(Half) const { return f16; }
};

}  // namespace fewseg
