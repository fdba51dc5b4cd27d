// Sixteen numbers at a time. A Block holds sixteen accumulators in as many native vectors as the instruction set needs
// (one with AVX-512, two with AVX2, four with SSE or NEON). Included inside the namespace of one instruction set; free
// of torch and of the standard library, whose inline functions would be shared between sets.

constexpr int kBlock = 16;

template <class A>
struct Block {
  typedef A Native __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));
  static constexpr int kLanes = FEWSEG_VECTOR_BYTES / sizeof(A);
  static constexpr int kNatives = kBlock / kLanes;
  Native part[kNatives];
};

// How many Blocks a kernel can keep in registers beside a few others: what the inner loops are unrolled by.
template <class A>
constexpr int registers_for_blocks() {
  constexpr int available = (FEWSEG_VECTOR_BYTES == 64 ? 24 : 12) / Block<A>::kNatives;
  return available >= 8 ? 8 : available >= 4 ? 4 : available >= 2 ? 2 : 1;
}

#define FEWSEG_EACH_NATIVE _Pragma("GCC unroll 8") for (int i = 0; i < Block<A>::kNatives; ++i)

template <class A>
static inline Block<A> splat(A value) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = value - typename Block<A>::Native{};
  return result;
}

// Native by native: GCC copies a struct of several vectors through the stack.
template <class A>
static inline Block<A> load_natives(const A* p) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  __builtin_memcpy(&result.part[i], p + i * Block<A>::kLanes, sizeof(result.part[i]));
  return result;
}

static inline Block<float> load(const float* p) {
  return load_natives(p);
}
static inline Block<double> load(const double* p) {
  return load_natives(p);
}

// Sixteen-bit numbers, widened to a native vector of float32. By intrinsics where GCC 12 makes four instructions of
// one.
static inline Block<float>::Native widen_native(const BFloat16* p) {
  // A bfloat16 is the upper half of a float32.
  typedef std::uint32_t Wide __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));
#if FEWSEG_VECTOR_BYTES == 64
  const Wide wide = Wide(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif FEWSEG_VECTOR_BYTES == 32
  const Wide wide = Wide(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  typedef std::uint16_t Narrow __attribute__((vector_size(FEWSEG_VECTOR_BYTES / 2)));
  Narrow narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  const Wide wide = __builtin_convertvector(narrow, Wide);
#endif
  return Block<float>::Native(wide << 16);
}

static inline Block<float>::Native widen_native(const Half* p) {
#if FEWSEG_VECTOR_BYTES == 64
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif FEWSEG_VECTOR_BYTES == 32
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  typedef _Float16 Narrow __attribute__((vector_size(FEWSEG_VECTOR_BYTES / 2)));
  Narrow narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  return __builtin_convertvector(narrow, Block<float>::Native);
#endif
}

template <class S>
static inline Block<float> load_narrow(const S* p) {
  using A = float;
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = widen_native(p + i * Block<A>::kLanes);
  return result;
}
static inline Block<float> load(const BFloat16* p) {
  return load_narrow(p);
}
static inline Block<float> load(const Half* p) {
  return load_narrow(p);
}

static inline float widen(float x) {
  return x;
}
static inline double widen(double x) {
  return x;
}
static inline float widen(BFloat16 x) {
  const std::uint32_t bits = std::uint32_t(x.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
static inline float widen(Half x) {
  _Float16 half;
  __builtin_memcpy(&half, &x, 2);
  return float(half);
}

static inline void narrow(float x, float& to) {
  to = x;
}
static inline void narrow(double x, double& to) {
  to = x;
}
static inline void narrow(float x, BFloat16& to) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const bool nan = x != x;
  bits += 0x7FFF + ((bits >> 16) & 1);  // round to nearest, ties to even
  to.bits = nan ? 0x7FC0 : std::uint16_t(bits >> 16);
}
static inline void narrow(float x, Half& to) {
  const _Float16 half = _Float16(x);
  __builtin_memcpy(&to, &half, 2);
}

template <class A>
static inline void store(A* p, const Block<A>& value) {
  FEWSEG_EACH_NATIVE
  __builtin_memcpy(p + i * Block<A>::kLanes, &value.part[i], sizeof(value.part[i]));
}

static inline void store(BFloat16* p, const Block<float>& value) {
  typedef std::uint16_t Narrow __attribute__((vector_size(FEWSEG_VECTOR_BYTES / 2)));
  typedef std::uint32_t Wide __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));
  using A = float;
  FEWSEG_EACH_NATIVE
  {
    Wide bits;
    __builtin_memcpy(&bits, &value.part[i], sizeof(bits));
    const Wide nan = Wide(value.part[i] != value.part[i]);
    bits += 0x7FFF + ((bits >> 16) & 1);
    bits = (nan & 0x7FC00000) | (~nan & bits);
    const Narrow narrow = __builtin_convertvector(bits >> 16, Narrow);
    __builtin_memcpy(p + i * Block<A>::kLanes, &narrow, sizeof(narrow));
  }
}

static inline void store(Half* p, const Block<float>& value) {
  typedef _Float16 Narrow __attribute__((vector_size(FEWSEG_VECTOR_BYTES / 2)));
  using A = float;
  FEWSEG_EACH_NATIVE
  {
    const Narrow narrow = __builtin_convertvector(value.part[i], Narrow);
    __builtin_memcpy(p + i * Block<A>::kLanes, &narrow, sizeof(narrow));
  }
}

template <class A>
static inline Block<A> operator+(const Block<A>& x, const Block<A>& y) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] + y.part[i];
  return result;
}

template <class A>
static inline Block<A> operator-(const Block<A>& x, const Block<A>& y) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] - y.part[i];
  return result;
}

template <class A>
static inline Block<A> operator/(const Block<A>& x, const Block<A>& y) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] / y.part[i];
  return result;
}

// x where it is the larger, else y; so y where x is NaN.
template <class A>
static inline Block<A> maximum(const Block<A>& x, const Block<A>& y) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] > y.part[i] ? x.part[i] : y.part[i];
  return result;
}

// yes where x == value, else no.
template <class A>
static inline Block<A> where_equal(const Block<A>& x, A value, const Block<A>& yes, const Block<A>& no) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] == value ? yes.part[i] : no.part[i];
  return result;
}

// yes where x < 0, else no.
template <class A>
static inline Block<A> where_negative(const Block<A>& x, const Block<A>& yes, const Block<A>& no) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] < A(0) ? yes.part[i] : no.part[i];
  return result;
}

template <class A>
static inline Block<A> operator*(const Block<A>& x, const Block<A>& y) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] * y.part[i];
  return result;
}

// x where sign > 0, else y.
template <class A>
static inline Block<A> where_positive(const Block<A>& sign, const Block<A>& x, const Block<A>& y) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = sign.part[i] > A(0) ? x.part[i] : y.part[i];
  return result;
}

// The larger of the two; NaN where x is.
template <class A>
static inline Block<A> at_least(const Block<A>& x, A least) {
  const Block<A> other = splat(least);
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = x.part[i] < least ? other.part[i] : x.part[i];
  return result;
}

// sum += x * y, fused where the instruction set can.
template <class A>
static inline void multiply_add(Block<A>& sum, const Block<A>& x, const Block<A>& y) {
  FEWSEG_EACH_NATIVE
  sum.part[i] += x.part[i] * y.part[i];
}

template <class A>
static inline void multiply_add(Block<A>& sum, A x, const Block<A>& y) {
  FEWSEG_EACH_NATIVE
  sum.part[i] += x * y.part[i];
}

template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct Count : Count<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct Count<0, kIndex...> {
  typedef Indices<kIndex...> Type;
};

// The lower half of a vector plus its upper half, until one number is left.
template <class A, int kLanes, class V, int... kIndex>
static inline A sum_lanes(const V& v, Indices<kIndex...>) {
  if constexpr (kLanes == 2)
    return v[0] + v[1];
  else
    return sum_lanes<A, kLanes / 2>(
        __builtin_shufflevector(v, v, kIndex...) + __builtin_shufflevector(v, v, (kLanes / 2 + kIndex)...),
        typename Count<kLanes / 4>::Type{});
}

// The sum of the sixteen, in a fixed order.
template <class A>
static inline A sum(const Block<A>& x) {
  Block<A> v = x;
#pragma GCC unroll 4
  for (int half = Block<A>::kNatives / 2; half > 0; half /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) v.part[i] += v.part[i + half];
  return sum_lanes<A, Block<A>::kLanes>(v.part[0], typename Count<Block<A>::kLanes / 2>::Type{});
}

// The bits of a native vector of float32, and back.
typedef Block<float>::Native Floats;
typedef std::uint32_t Bits __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));
typedef std::int32_t Integers __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));

// exp of sixteen numbers <= 0. float32: 2^n times a polynomial on [-ln2/2, ln2/2], within 2 ulp; below -87
// the result is about 1e-38 instead of a denormal. float64: the library's.
static inline Block<float> exp_nonpositive(Block<float> block) {
  for (Floats& v : block.part) {
    const Floats clamped = v > -87.0f ? v : v * 0.0f - 87.0f;    // NaN stays NaN
    const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    const Floats n = shifted - 12582912.0f;
    const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    v = p * Floats((Bits(shifted) + 127) << 23);  // 2^n: the low bits of `shifted` hold n
  }
  return block;
}

static inline Block<double> exp_nonpositive(const Block<double>& block) {
  double x[kBlock];
  store(x, block);
  for (int i = 0; i < kBlock; ++i) x[i] = __builtin_exp(x[i]);
  return load(x);
}

template <class A>
static inline void exp_nonpositive(A* x) {
  store(x, exp_nonpositive(load(x)));
}

// Natural logarithm of sixteen numbers >= 1; float32 within 2 ulp of the larger of the result and 1.
static inline Block<float> logarithm(Block<float> block) {
  for (Floats& v : block.part) {
    // v = m 2^n with sqrt(1/2) <= m < sqrt(2)
    const Bits shifted = Bits(v) - 0x3F3504F3;
    const Floats n = __builtin_convertvector(Integers(shifted) >> 23, Floats);
    const Floats f = Floats((shifted & 0x007FFFFF) + 0x3F3504F3) - 1.0f, square = f * f;
    Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * square - 0.5f * square - n * 2.12194440e-4f;
    v = v != v ? v : p + f + n * 0.693359375f;
  }
  return block;
}

static inline Block<double> logarithm(const Block<double>& block) {
  double x[kBlock];
  store(x, block);
  for (int i = 0; i < kBlock; ++i) x[i] = __builtin_log(x[i]);
  return load(x);
}

// 1/|v| from |v|^2, and 0 where |v| <= 1e-12: such a vector has no direction (docs/math.md, section 0). Written so that
// NaN stays NaN, and so that a square that has overflowed is NaN: as 1/inf it would pass for a vector without
// direction.
template <class A>
static inline A inverse_root(A square) {
  return square <= A(1e-12) * A(1e-12) ? A(0) : A(__builtin_sqrt(square)) / square;
}

template <class T>
static constexpr T least(T x, T y) {
  return x < y ? x : y;
}
