// Cosines of every pixel with every prototype, and their backward. The features are read once forward and once back.

// --- cosines -----------------------------------------------------------------------------------------------------

// NCHW: dots with kClasses vectors, and the squares where kSquares, of the pixels first..last (whole blocks). A few
// channels at a time run over a panel of pixels, whose sums stay in L1: runs long enough for the processor to foresee.
template <int kRows, int kClasses, bool kSquares, class S, class A>
static inline void add_channels(FeaturePlanes<S> f, const A* vectors, int64_t c, int64_t first, int64_t last,
                                A* squares, A* dots) {
  const S* rows = f.data + c * f.channel_stride;
  for (int64_t x = first; x < last; x += kBlock) {
    // These channels' own sums first: fewer roundings than adding 2,000 products one by one.
    Block<A> sums[kClasses + 1];
    for (int k = 0; k <= kClasses; ++k) sums[k] = splat(A(0));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Block<A> q = load(rows + r * f.channel_stride + x);
#pragma GCC unroll 8
      for (int k = 0; k < kClasses; ++k) multiply_add(sums[k], vectors[k * f.channels + c + r], q);
      if (kSquares) multiply_add(sums[kClasses], q, q);
    }
    for (int k = 0; k < kClasses; ++k) store(dots + k * f.pixels + x, load(dots + k * f.pixels + x) + sums[k]);
    if (kSquares) store(squares + x, load(squares + x) + sums[kClasses]);
  }
}

template <int kClasses, bool kSquares, class S, class A>
static void cosine_planes(FeaturePlanes<S> f, const A* vectors, int64_t first, int64_t last, A* squares, A* dots) {
  constexpr int kRows = 8;
  constexpr int64_t kPanel = 512;
  for (int64_t start = first; start < last; start += kPanel) {
    const int64_t stop = least(start + kPanel, last);
    for (int64_t x = start; x < stop; ++x) {
      for (int k = 0; k < kClasses; ++k) dots[k * f.pixels + x] = 0;
      if (kSquares) squares[x] = 0;
    }
    int64_t c = 0;
    for (; c + kRows <= f.channels; c += kRows)
      add_channels<kRows, kClasses, kSquares>(f, vectors, c, start, stop, squares, dots);
    for (; c < f.channels; ++c) add_channels<1, kClasses, kSquares>(f, vectors, c, start, stop, squares, dots);
  }
}

// Channels-last: a pixel's channels are one run of memory.
template <class S, class A>
static A square_row(const S* pixel, int64_t channels) {
  Block<A> total = splat(A(0));
  int64_t c = 0;
  for (; c + kBlock <= channels; c += kBlock) multiply_add(total, load(pixel + c), load(pixel + c));
  A result = sum(total);
  for (; c < channels; ++c) result += widen(pixel[c]) * widen(pixel[c]);
  return result;
}

template <class S, class A>
static A square_pixel(FeaturePlanes<S> f, int64_t x) {
  const S* pixel = f.data + x * f.pixel_stride;
  A total = 0;
  for (int64_t start = 0; start < f.channels; start += kRun) {
    A run = 0;
    for (int64_t c = start; c < least(start + kRun, f.channels); ++c)
      run += widen(pixel[c * f.channel_stride]) * widen(pixel[c * f.channel_stride]);
    total += run;
  }
  return total;
}

template <class S, class A>
static void cosines(FeaturePlanes<S> f, const A* unit_prototypes, int64_t classes, int64_t first, int64_t last,
                    A* inverse_norm, A* cosine) {
  A* squares = inverse_norm;
  if (f.pixel_stride == 1) {
    int64_t x = first + (last - first) / kBlock * kBlock, k = 2;
    if (classes >= 2) {
      cosine_planes<2, true>(f, unit_prototypes, first, x, squares, cosine);
    } else {
      cosine_planes<1, true>(f, unit_prototypes, first, x, squares, cosine);
    }
    for (; k + 2 <= classes; k += 2)
      cosine_planes<2, false>(f, unit_prototypes + k * f.channels, first, x, squares, cosine + k * f.pixels);
    if (k < classes)
      cosine_planes<1, false>(f, unit_prototypes + k * f.channels, first, x, squares, cosine + k * f.pixels);
    for (; x < last; ++x) {
      squares[x] = square_pixel<S, A>(f, x);
      for (int64_t k = 0; k < classes; ++k)
        cosine[k * f.pixels + x] = project_pixel(f, unit_prototypes + k * f.channels, x);
    }
  } else {
    for (int64_t x = first; x < last; ++x) {
      const S* pixel = f.data + x * f.pixel_stride;
      squares[x] = square_row<S, A>(pixel, f.channels);
      for (int64_t k = 0; k < classes; ++k)
        cosine[k * f.pixels + x] = project_row(pixel, unit_prototypes + k * f.channels, f.channels);
    }
  }
  for (int64_t x = first; x < last; ++x) inverse_norm[x] = inverse_root(squares[x]);
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t x = first; x < last; ++x) cosine[k * f.pixels + x] *= inverse_norm[x];
}

// --- backward ----------------------------------------------------------------------------------------------------

// NCHW, the channels c..c+kRows: sums[k] = sum_x weight[k][x] q(x) of the first kClasses classes, and d_features; both
// from one read of q. sums and d_features may be null.
template <int kRows, int kClasses, class S, class A>
static void backward_planes(FeaturePlanes<S> f, const A* unit_prototypes, const A* weight, const A* own,
                            int64_t classes, int64_t c, A* sums, S* d_features) {
  Block<A> totals[kRows][kClasses];
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kClasses; ++k) totals[r][k] = splat(A(0));
  int64_t x = 0;
  for (; x + kBlock <= f.pixels; x += kBlock) {
    const Block<A> own_x = load(own + x);
    Block<A> w[kClasses];
    for (int k = 0; k < kClasses; ++k) w[k] = load(weight + k * f.pixels + x);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Block<A> q = load(f.data + (c + r) * f.pixels + x);
      Block<A> d = own_x * q;
#pragma GCC unroll 8
      for (int k = 0; k < kClasses; ++k) {
        multiply_add(totals[r][k], w[k], q);
        multiply_add(d, unit_prototypes[k * f.channels + c + r], w[k]);
      }
      if (!d_features) continue;
      for (int64_t k = kClasses; k < classes; ++k)
        multiply_add(d, unit_prototypes[k * f.channels + c + r], load(weight + k * f.pixels + x));
      store(d_features + (c + r) * f.pixels + x, d);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const S* row = f.data + (c + r) * f.pixels;
    for (int k = 0; sums && k < kClasses; ++k) {
      A total = sum(totals[r][k]);
      for (int64_t y = x; y < f.pixels; ++y) total += weight[k * f.pixels + y] * widen(row[y]);
      sums[k * f.channels + c + r] = total;
    }
    for (int64_t y = x; d_features && y < f.pixels; ++y) {
      A d = own[y] * widen(row[y]);
      for (int64_t k = 0; k < classes; ++k) d += unit_prototypes[k * f.channels + c + r] * weight[k * f.pixels + y];
      narrow(d, d_features[(c + r) * f.pixels + y]);
    }
  }
}

template <int kClasses, class S, class A>
static void backward_channels(FeaturePlanes<S> f, const A* unit_prototypes, const A* weight, const A* own,
                              int64_t classes, int64_t first, int64_t last, A* sums, S* d_features) {
  constexpr int kRows = registers_for_blocks<A>() >= 8 ? 4 : 2;
  int64_t c = first;
  for (; c + kRows <= last; c += kRows)
    backward_planes<kRows, kClasses>(f, unit_prototypes, weight, own, classes, c, sums, d_features);
  for (; c < last; ++c) backward_planes<1, kClasses>(f, unit_prototypes, weight, own, classes, c, sums, d_features);
  // The other classes' sums read these channels again.
  if (sums && classes > kClasses)
    pool(f, weight + kClasses * f.pixels, classes - kClasses, first, last, sums + kClasses * f.channels);
}

// Channels-last, the pixels x..x+kRows: sums[k] += sum over these pixels, and d_features.
template <int kRows, class S, class A>
static void backward_rows(FeaturePlanes<S> f, const A* unit_prototypes, const A* weight, const A* own, int64_t classes,
                          int64_t x, A* sums, S* d_features) {
  const S* rows = f.data + x * f.channels;
  S* out = d_features + (d_features ? x * f.channels : 0);
  int64_t c = 0;
  for (; c + kBlock <= f.channels; c += kBlock) {
    Block<A> q[kRows], d[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      q[r] = load(rows + r * f.channels + c);
      d[r] = splat(own[x + r]) * q[r];
    }
    for (int64_t k = 0; k < classes; ++k) {
      const A* w = weight + k * f.pixels + x;
      const Block<A> p = load(unit_prototypes + k * f.channels + c);
      Block<A> total = splat(A(0));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        multiply_add(total, w[r], q[r]);
        multiply_add(d[r], w[r], p);
      }
      if (sums) store(sums + k * f.channels + c, load(sums + k * f.channels + c) + total);
    }
    if (!d_features) continue;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) store(out + r * f.channels + c, d[r]);
  }
  for (; c < f.channels; ++c)
    for (int r = 0; r < kRows; ++r) {
      const A q = widen(rows[r * f.channels + c]);
      A d = own[x + r] * q;
      for (int64_t k = 0; k < classes; ++k) {
        const A w = weight[k * f.pixels + x + r];
        d += w * unit_prototypes[k * f.channels + c];
        if (sums) sums[k * f.channels + c] += w * q;
      }
      if (d_features) narrow(d, out[r * f.channels + c]);
    }
}

template <class S, class A>
static void cosine_backward(FeaturePlanes<S> f, const A* unit_prototypes, const A* weight, const A* own,
                            int64_t classes, int64_t first, int64_t last, A* sums, S* d_features) {
  if (f.pixel_stride == 1) {
    if (classes >= 2)
      backward_channels<2>(f, unit_prototypes, weight, own, classes, first, last, sums, d_features);
    else
      backward_channels<1>(f, unit_prototypes, weight, own, classes, first, last, sums, d_features);
    return;
  }
  constexpr int kRows = registers_for_blocks<A>() >= 4 ? registers_for_blocks<A>() / 2 : registers_for_blocks<A>();
  if (sums)
    for (int64_t i = 0; i < classes * f.channels; ++i) sums[i] = 0;
  int64_t x = first;
  for (; x + kRows <= last; x += kRows)
    backward_rows<kRows>(f, unit_prototypes, weight, own, classes, x, sums, d_features);
  for (; x < last; ++x) backward_rows<1>(f, unit_prototypes, weight, own, classes, x, sums, d_features);
}

template <class S>
static constexpr CosineBodiesOf<S> cosine_bodies() {
  using A = Accumulator<S>;
  return {cosines<S, A>, cosine_backward<S, A>, upsample_row<A>, loss_rows<A>, residual_rows<A>};
}
