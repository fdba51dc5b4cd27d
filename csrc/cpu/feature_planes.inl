// What the operators do with a task's features, in both layouts: sums over the pixels, and dots with every pixel. Each
// reads the features once.

// Sums in float32 are cut into runs of this many terms, so that their rounding does not grow with the map.
constexpr int64_t kRun = 128;

// --- sums over the pixels: prototypes[k] = sum_x weights[k][x] F(x) ----------------------------------------------

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

// --- dots with every pixel: dots[k][x] = vectors[k] . F(x) ---------------------------------------------------------

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
