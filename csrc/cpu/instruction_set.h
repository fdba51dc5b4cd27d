// The kernel bodies (*.inl) are compiled once per instruction set, each into a namespace of its own with its own flags;
// one table of function pointers per set is chosen when the library is first used.
//
// GCC's target_clones would be shorter, but it does not reach the inlined helpers, lambdas and templates that the
// bodies consist of.
#pragma once

#include "cosine_kernel.h"
#include "inner_opt_kernel.h"
#include "masked_avg_pool_kernel.h"
#include "monte_carlo_kernel.h"
#include "tiled_conv2d_kernel.h"

namespace fewseg {

struct KernelTable {
  const char* name;
  MaskedAvgPoolBodies masked_avg_pool;
  CosineBodies cosine;
  InnerOptBodies inner_opt;
  MonteCarloBodies monte_carlo;
  TiledConv2dBodies tiled_conv2d;
};

// The best set that this processor runs, or the one that FEWSEG_CPU_ISA=baseline|avx2|avx512 asks for. Throws where
// that set is unknown, was not built, or does not run here.
const KernelTable& kernel_table();

// Comma-separated names of the sets that this processor runs, the best first.
const char* usable_instruction_sets();

}  // namespace fewseg
