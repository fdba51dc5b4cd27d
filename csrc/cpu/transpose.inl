// A square of kBlock x kBlock elements, transposed in registers: what packing NCHW features consists of.

// As wide as the instruction set shuffles well; 16-bit elements fill at most half of an AVX-512 register.
template <int kSize>
struct LaneOf;
template <>
struct LaneOf<2> {
  typedef std::uint16_t Element;
  static constexpr int kBytes = least(FEWSEG_VECTOR_BYTES, 32);
};
template <>
struct LaneOf<4> {
  typedef float Element;
  static constexpr int kBytes = FEWSEG_VECTOR_BYTES;
};
template <>
struct LaneOf<8> {
  typedef double Element;
  static constexpr int kBytes = FEWSEG_VECTOR_BYTES;
};

template <class S>
struct Lanes {
  static constexpr int kCount = LaneOf<sizeof(S)>::kBytes / sizeof(S);
  typedef typename LaneOf<sizeof(S)>::Element Vector __attribute__((vector_size(LaneOf<sizeof(S)>::kBytes)));
};

// Exchanges the blocks of kStep elements off the diagonal of every 2 x 2 blocks; steps kCount/2, ..., 2, 1 transpose.
template <int kStep, class S, int... kIndex>
static inline void exchange(typename Lanes<S>::Vector* rows, Indices<kIndex...>) {
  constexpr int kCount = Lanes<S>::kCount;
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const auto a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shufflevector(a, b, (kIndex & kStep ? kCount + kIndex - kStep : kIndex)...);
    rows[i + kStep] = __builtin_shufflevector(a, b, (kIndex & kStep ? kCount + kIndex : kIndex + kStep)...);
  }
  if constexpr (kStep > 1) exchange<kStep / 2, S>(rows, Indices<kIndex...>{});
}

// to[j * kBlock + i] = from[i * stride + j] for 0 <= i, j < kBlock.
template <class S>
static inline void transpose_block(const S* from, std::int64_t stride, S* to) {
  typedef typename Lanes<S>::Vector Vector;
  constexpr int kCount = Lanes<S>::kCount;
  for (int i = 0; i < kBlock; i += kCount)
    for (int j = 0; j < kBlock; j += kCount) {
      Vector rows[kCount];
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) __builtin_memcpy(&rows[r], from + (i + r) * stride + j, sizeof(Vector));
      exchange<kCount / 2, S>(rows, typename Count<kCount>::Type{});
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) __builtin_memcpy(to + (j + r) * kBlock + i, &rows[r], sizeof(Vector));
    }
}
