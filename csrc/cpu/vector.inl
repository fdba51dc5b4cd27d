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

static inline Block<float> load(const BFloat16* p) {
  // A bfloat16 is the upper half of a float32.
  typedef std::uint16_t Narrow __attribute__((vector_size(FEWSEG_VECTOR_BYTES / 2)));
  typedef std::uint32_t Wide __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));
  using A = float;
  Block<A> result;
  FEWSEG_EACH_NATIVE
  {
    Narrow narrow;
    __builtin_memcpy(&narrow, p + i * Block<A>::kLanes, sizeof(narrow));
    const Wide wide = __builtin_convertvector(narrow, Wide) << 16;
    __builtin_memcpy(&result.part[i], &wide, sizeof(wide));
  }
  return result;
}

static inline Block<float> load(const Half* p) {
  typedef _Float16 Narrow __attribute__((vector_size(FEWSEG_VECTOR_BYTES / 2)));
  using A = float;
  Block<A> result;
  FEWSEG_EACH_NATIVE
  {
    Narrow narrow;
    __builtin_memcpy(&narrow, p + i * Block<A>::kLanes, sizeof(narrow));
    result.part[i] = __builtin_convertvector(narrow, typename Block<A>::Native);
  }
  return result;
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

template <class A>
static inline Block<A> reciprocal(const Block<A>& x) {
  Block<A> result;
  FEWSEG_EACH_NATIVE
  result.part[i] = A(1) / x.part[i];
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

// The sum of the sixteen, in a fixed order.
template <class A>
static inline A sum(const Block<A>& x) {
  A v[kBlock];
  store(v, x);
  for (int half = kBlock / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// The bits of a native vector of float32, and back.
typedef Block<float>::Native Floats;
typedef std::uint32_t Bits __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));
typedef std::int32_t Integers __attribute__((vector_size(FEWSEG_VECTOR_BYTES)));

// exp of sixteen numbers <= 0, in place. float32: 2^n times a polynomial on [-ln2/2, ln2/2], within 2 ulp; below -87
// the result is about 1e-38 instead of a denormal. float64: the library's.
static inline void exp_nonpositive(float* x) {
  Block<float> block = load(x);
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
  store(x, block);
}

static inline void exp_nonpositive(double* x) {
  for (int i = 0; i < kBlock; ++i) x[i] = __builtin_exp(x[i]);
}

// Natural logarithm of sixteen numbers >= 1, in place; float32 within 2 ulp of the larger of the result and 1.
static inline void logarithm(float* x) {
  Block<float> block = load(x);
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
  store(x, block);
}

static inline void logarithm(double* x) {
  for (int i = 0; i < kBlock; ++i) x[i] = __builtin_log(x[i]);
}

// 1/|v| from |v|^2, and 0 where |v| <= 1e-12: such a vector has no direction (docs/math.md, section 0). Written so that
// NaN stays NaN.
template <class A>
static inline A inverse_root(A square) {
  return square <= A(1e-12) * A(1e-12) ? A(0) : A(1) / A(__builtin_sqrt(square));
}

template <class T>
static constexpr T least(T x, T y) {
  return x < y ? x : y;
}
