// Masked average pooling without the upsampled features: the masks are brought to the features' grid (by bilinear
// resizing or by its adjoint, csrc/common/bilinear.h), then each feature value is read once.

// Sums in float32 are cut into runs of this many terms, so that their rounding does not grow with the map.
constexpr int64_t kRun = 128;

template <class In>
static inline auto number(In x) {
  return x;
}
static inline float number(bool x) {
  return x ? 1.0f : 0.0f;
}

template <class In, class A>
static void resize_row(const In* mask, Bands<A> rows, Bands<A> columns, int64_t row, A* scratch, A* output_row) {
  // Along y first: whole rows of the mask are added up, which is vector code; x then works on a single row.
  const int64_t width = columns.inputs;
  for (int64_t x = 0; x < width; ++x) scratch[x] = 0;
  for (int64_t i = rows.offset[row]; i < rows.offset[row + 1]; ++i) {
    const In* source = mask + (rows.begin[row] + i - rows.offset[row]) * width;
    const A weight = rows.weight[i];
    for (int64_t x = 0; x < width; ++x) scratch[x] += weight * A(number(source[x]));
  }
  for (int64_t o = 0; o < columns.outputs; ++o) {
    const A* source = scratch + columns.begin[o];
    const A* weight = columns.weight + columns.offset[o];
    const int64_t count = columns.offset[o + 1] - columns.offset[o];
    A total = 0;
    for (int64_t i = 0; i < count; ++i) total += weight[i] * source[i];
    output_row[o] = total;
  }
}

// --- pooling -----------------------------------------------------------------------------------------------------

// NCHW: each of kRows channels is one long dot with each of kClasses weight rows, which are loaded once for all.
template <int kRows, int kClasses, class S, class A>
static void pool_planes(FeaturePlanes<S> f, const A* weights, int64_t c, A* prototypes) {
  Block<A> sums[kRows][kClasses];
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kClasses; ++k) sums[r][k] = splat(A(0));
  const S* rows = f.data + c * f.channel_stride;
  int64_t x = 0;
  for (; x + kBlock <= f.pixels; x += kBlock) {
    Block<A> w[kClasses];
#pragma GCC unroll 8
    for (int k = 0; k < kClasses; ++k) w[k] = load(weights + k * f.pixels + x);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Block<A> q = load(rows + r * f.channel_stride + x);
#pragma GCC unroll 8
      for (int k = 0; k < kClasses; ++k) multiply_add(sums[r][k], q, w[k]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kClasses; ++k) {
      A total = sum(sums[r][k]);
      for (int64_t y = x; y < f.pixels; ++y) total += weights[k * f.pixels + y] * widen(rows[r * f.channel_stride + y]);
      prototypes[k * f.channels + c + r] = total;
    }
}

// Channels-last: kBlocks blocks of channels run over the pixels, kClasses weights broadcast to each.
template <int kBlocks, int kClasses, class S, class A>
static void pool_rows(FeaturePlanes<S> f, const A* weights, int64_t c, A* prototypes) {
  Block<A> totals[kClasses][kBlocks];
  for (int k = 0; k < kClasses; ++k)
    for (int b = 0; b < kBlocks; ++b) totals[k][b] = splat(A(0));
  for (int64_t start = 0; start < f.pixels; start += kRun) {
    const int64_t stop = least(start + kRun, f.pixels);
    Block<A> sums[kClasses][kBlocks];
    for (int k = 0; k < kClasses; ++k)
      for (int b = 0; b < kBlocks; ++b) sums[k][b] = splat(A(0));
    for (int64_t x = start; x < stop; ++x) {
      const S* pixel = f.data + x * f.pixel_stride + c;
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        const Block<A> q = load(pixel + b * kBlock);
#pragma GCC unroll 8
        for (int k = 0; k < kClasses; ++k) multiply_add(sums[k][b], weights[k * f.pixels + x], q);
      }
    }
    for (int k = 0; k < kClasses; ++k)
      for (int b = 0; b < kBlocks; ++b) totals[k][b] = totals[k][b] + sums[k][b];
  }
  for (int k = 0; k < kClasses; ++k)
    for (int b = 0; b < kBlocks; ++b) store(prototypes + k * f.channels + c + b * kBlock, totals[k][b]);
}

// Channels-last, the channels that do not fill a block.
template <class S, class A>
static void pool_rest(FeaturePlanes<S> f, const A* weights, int64_t classes, int64_t first, int64_t last,
                      A* prototypes) {
  for (int64_t c = first; c < last; ++c)
    for (int64_t k = 0; k < classes; ++k) {
      A total = 0;
      for (int64_t start = 0; start < f.pixels; start += kRun) {
        A run = 0;
        for (int64_t x = start; x < least(start + kRun, f.pixels); ++x)
          run += weights[k * f.pixels + x] * widen(f.data[x * f.pixel_stride + c * f.channel_stride]);
        total += run;
      }
      prototypes[k * f.channels + c] = total;
    }
}

template <class A>
constexpr int kPoolRows = registers_for_blocks<A>() >= 8 ? 4 : 2;

template <int kClasses, class S, class A>
static void pool_classes(FeaturePlanes<S> f, const A* weights, int64_t first, int64_t last, A* prototypes) {
  int64_t c = first;
  if (f.pixel_stride == 1) {
    for (; c + kPoolRows<A> <= last; c += kPoolRows<A>) pool_planes<kPoolRows<A>, kClasses>(f, weights, c, prototypes);
    for (; c < last; ++c) pool_planes<1, kClasses>(f, weights, c, prototypes);
  } else {
    for (; c + 2 * kBlock <= last; c += 2 * kBlock) pool_rows<2, kClasses>(f, weights, c, prototypes);
    for (; c + kBlock <= last; c += kBlock) pool_rows<1, kClasses>(f, weights, c, prototypes);
    pool_rest(f, weights, kClasses, c, last, prototypes);
  }
}

template <class S, class A>
static void pool(FeaturePlanes<S> f, const A* weights, int64_t classes, int64_t first, int64_t last, A* prototypes) {
  int64_t k = 0;
  for (; k + 2 <= classes; k += 2) pool_classes<2>(f, weights + k * f.pixels, first, last, prototypes + k * f.channels);
  if (k < classes) pool_classes<1>(f, weights + k * f.pixels, first, last, prototypes + k * f.channels);
}

// --- gradient to the features ------------------------------------------------------------------------------------

// out[j] = sum_k lane[k * lane_stride + j] * scalar[k * scalar_stride] for j < count.
template <class S, class A>
static void spread_row(const A* lane, int64_t lane_stride, const A* scalar, int64_t scalar_stride, int64_t classes,
                       int64_t count, S* out) {
  int64_t j = 0;
  for (; j + kBlock <= count; j += kBlock) {
    Block<A> total = splat(A(0));
    for (int64_t k = 0; k < classes; ++k)
      multiply_add(total, scalar[k * scalar_stride], load(lane + k * lane_stride + j));
    store(out + j, total);
  }
  for (; j < count; ++j) {
    A total = 0;
    for (int64_t k = 0; k < classes; ++k) total += scalar[k * scalar_stride] * lane[k * lane_stride + j];
    narrow(total, out[j]);
  }
}

template <class S, class A>
static void spread(const A* weights, const A* gradient, int64_t classes, FeaturePlanes<S> like, int64_t first,
                   int64_t last, S* d_features) {
  const int64_t channels = like.channels, pixels = like.pixels;
  for (int64_t i = first; i < last; ++i) {
    if (like.pixel_stride == 1)
      spread_row(weights, pixels, gradient + i, channels, classes, pixels, d_features + i * pixels);
    else
      spread_row(gradient, channels, weights + i, pixels, classes, channels, d_features + i * channels);
  }
}

// --- gradient to the masks ---------------------------------------------------------------------------------------

template <class S, class A>
static A project_pixel(FeaturePlanes<S> f, const A* vector, int64_t x) {
  const S* pixel = f.data + x * f.pixel_stride;
  A total = 0;
  for (int64_t start = 0; start < f.channels; start += kRun) {
    A run = 0;
    for (int64_t c = start; c < least(start + kRun, f.channels); ++c)
      run += vector[c] * widen(pixel[c * f.channel_stride]);
    total += run;
  }
  return total;
}

template <class S, class A>
static A project_row(const S* pixel, const A* vector, int64_t channels) {
  Block<A> total = splat(A(0));
  int64_t c = 0;
  for (; c + kBlock <= channels; c += kBlock) multiply_add(total, load(vector + c), load(pixel + c));
  A result = sum(total);
  for (; c < channels; ++c) result += vector[c] * widen(pixel[c]);
  return result;
}

template <class S, class A>
static void project(FeaturePlanes<S> f, const A* vectors, int64_t classes, int64_t first, int64_t last, A* dots) {
  for (int64_t k = 0; k < classes; ++k) {
    const A* vector = vectors + k * f.channels;
    A* out = dots + k * f.pixels;
    int64_t x = first;
    if (f.pixel_stride == 1) {
      for (; x + kBlock <= last; x += kBlock) {
        Block<A> total = splat(A(0));
        for (int64_t start = 0; start < f.channels; start += kRun) {
          Block<A> run = splat(A(0));
          for (int64_t c = start; c < least(start + kRun, f.channels); ++c)
            multiply_add(run, vector[c], load(f.data + c * f.channel_stride + x));
          total = total + run;
        }
        store(out + x, total);
      }
      for (; x < last; ++x) out[x] = project_pixel(f, vector, x);
    } else {
      for (; x < last; ++x) out[x] = project_row(f.data + x * f.pixel_stride, vector, f.channels);
    }
  }
}

template <class S>
static constexpr MaskedAvgPoolBodiesOf<S> masked_avg_pool_bodies() {
  using A = Accumulator<S>;
  return {resize_row<A, A>, resize_row<bool, A>, pool<S, A>, 2 * kBlock, spread<S, A>, project<S, A>};
}
