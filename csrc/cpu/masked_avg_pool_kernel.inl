// Masked average pooling without the upsampled features: the masks are brought to the features' grid (by bilinear
// resizing or by its adjoint, csrc/common/bilinear.h), then each feature value is read once.

// scratch[x] += weight * source[x]. Of a bool mask the bytes are looked at: as bools, compilers took them one by one.
template <class A>
static inline void add_row(const A* __restrict source, A weight, int64_t width, A* __restrict scratch) {
  for (int64_t x = 0; x < width; ++x) scratch[x] += weight * source[x];
}
template <class A>
static inline void add_row(const bool* source, A weight, int64_t width, A* __restrict scratch) {
  const unsigned char* __restrict byte = reinterpret_cast<const unsigned char*>(source);
  for (int64_t x = 0; x < width; ++x) scratch[x] += byte[x] ? weight : A(0);
}

template <class In, class A>
static void resize_row(const In* mask, Bands<A> rows, Bands<A> columns, int64_t row, A* scratch, A* output_row) {
  // Along y first: whole rows of the mask are added up, which is vector code; x then works on a single row.
  const int64_t width = columns.inputs;
  for (int64_t x = 0; x < width; ++x) scratch[x] = 0;
  for (int64_t i = rows.offset[row]; i < rows.offset[row + 1]; ++i)
    add_row(mask + (rows.begin[row] + i - rows.offset[row]) * width, rows.weight[i], width, scratch);
  for (int64_t o = 0; o < columns.outputs; ++o) {
    const A* source = scratch + columns.begin[o];
    const A* weight = columns.weight + columns.offset[o];
    const int64_t count = columns.offset[o + 1] - columns.offset[o];
    A total = 0;
    for (int64_t i = 0; i < count; ++i) total += weight[i] * source[i];
    output_row[o] = total;
  }
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

template <class S>
static constexpr MaskedAvgPoolBodiesOf<S> masked_avg_pool_bodies() {
  using A = Accumulator<S>;
  return {resize_row<A, A>, resize_row<bool, A>, pool<S, A>, 2 * kBlock, spread<S, A>, project<S, A>};
}
