// Compiled once per instruction set: FEWSEG_ISA names the set and its namespace, FEWSEG_VECTOR_BYTES its vectors.
#include <cstdint>

#include "instruction_set.h"

#if FEWSEG_VECTOR_BYTES >= 32
#include <immintrin.h>
#endif

#define FEWSEG_STRING_(x) #x
#define FEWSEG_STRING(x) FEWSEG_STRING_(x)

namespace fewseg {
namespace FEWSEG_ISA {

// A function that another set compiled too must not be shared with it, so everything below is static. Order matters:
// each file uses those before it.
#include "vector.inl"

#include "transpose.inl"

#include "feature_planes.inl"

#include "masked_avg_pool_kernel.inl"

#include "cross_entropy.inl"

#include "cosine_kernel.inl"

#include "inner_opt_kernel.inl"

#include "monte_carlo_kernel.inl"

#include "tiled_conv2d_kernel.inl"

// constexpr: an initialiser that ran when the library is loaded would run this set's instructions on any processor.
extern const KernelTable table;
constexpr KernelTable table = {
    FEWSEG_STRING(FEWSEG_ISA),
    {masked_avg_pool_bodies<float>(), masked_avg_pool_bodies<double>(), masked_avg_pool_bodies<BFloat16>(),
     masked_avg_pool_bodies<Half>()},
    {cosine_bodies<float>(), cosine_bodies<double>(), cosine_bodies<BFloat16>(), cosine_bodies<Half>()},
    {inner_opt_bodies<float>(), inner_opt_bodies<double>(), inner_opt_bodies<BFloat16>(), inner_opt_bodies<Half>()},
    {monte_carlo_bodies<float>(), monte_carlo_bodies<double>()},
    {tiled_conv2d_bodies<float>(), tiled_conv2d_bodies<double>(), tiled_conv2d_bodies<BFloat16>(),
     tiled_conv2d_bodies<Half>()},
};

}  // namespace FEWSEG_ISA
}  // namespace fewseg
