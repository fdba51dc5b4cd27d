#pragma once

// Before a function that both CPU code and kernels call.
#ifdef __CUDACC__
#define FEWSEG_ANYWHERE __host__ __device__ inline
#else
#define FEWSEG_ANYWHERE inline
#endif
