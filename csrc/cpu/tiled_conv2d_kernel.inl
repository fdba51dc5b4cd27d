// The sweeps of tiled_conv2d over its result: adding what z adds, and the sums of the gradient.

template <class S, class A>
static void add_rows(const S* base, const A* addend, int64_t count, int64_t rows, S* out) {
  for (int64_t r = 0; r < rows; ++r, base += count, out += count) {
    int64_t i = 0;
    for (; i + kBlock <= count; i += kBlock) store(out + i, load(base + i) + load(addend + i));
    for (; i < count; ++i) narrow(widen(base[i]) + addend[i], out[i]);
  }
}

template <class S>
static void sum_samples(const S* gradient, int64_t stride, int64_t samples, int64_t count, S* out) {
  using A = Accumulator<S>;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    Block<A> total = load(gradient + i);
    for (int64_t l = 1; l < samples; ++l) total = total + load(gradient + l * stride + i);
    store(out + i, total);
  }
  for (; i < count; ++i) {
    A total = widen(gradient[i]);
    for (int64_t l = 1; l < samples; ++l) total += widen(gradient[l * stride + i]);
    narrow(total, out[i]);
  }
}

template <class S, class A>
static void sum_runs(const S* row, const int64_t* begin, int64_t runs, A* out, int64_t out_stride) {
  for (int64_t c = 0; c < runs; ++c) {
    int64_t i = begin[c];
    Block<A> blocks = splat(A(0));
    const bool long_enough = i + kBlock <= begin[c + 1];
    for (; i + kBlock <= begin[c + 1]; i += kBlock) blocks = blocks + load(row + i);
    A total = long_enough ? sum(blocks) : A(0);
    for (; i < begin[c + 1]; ++i) total += widen(row[i]);
    out[c * out_stride] = total;
  }
}

template <class S, class A>
static void sum_rows(const S* gradient, int64_t count, int64_t rows, A* out) {
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    Block<A> total = splat(A(0));
    for (int64_t r = 0; r < rows; ++r) total = total + load(gradient + r * count + i);
    store(out + i, total);
  }
  for (; i < count; ++i) {
    A total = 0;
    for (int64_t r = 0; r < rows; ++r) total += widen(gradient[r * count + i]);
    out[i] = total;
  }
}

template <class S>
static constexpr TiledConv2dBodiesOf<S> tiled_conv2d_bodies() {
  using A = Accumulator<S>;
  return {add_rows<S, A>, sum_samples<S>, sum_runs<S, A>, sum_rows<S, A>};
}
