# Decides about the CUDA library and says so in one line. Sets FEWSEG_CUDA_SUMMARY and FEWSEG_CUDA_ARCHITECTURES.

set(FEWSEG_CUDA_SOURCES "") # csrc/cuda/*_kernel.cu, listed by name; none in this version
set(FEWSEG_CUDA_ARCHITECTURES "")

if(NOT FEWSEG_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FEWSEG_CUDA must be AUTO, ON or OFF, not \"${FEWSEG_CUDA}\"")
endif()

if(FEWSEG_CUDA STREQUAL "OFF")
  set(FEWSEG_CUDA_SUMMARY "no (FEWSEG_CUDA=OFF)")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    if(FEWSEG_CUDA STREQUAL "ON")
      message(FATAL_ERROR "FEWSEG_CUDA=ON, but no nvcc was found. Install one (pip install nvidia-cuda-nvcc, or the "
                          "CUDA toolkit) and put it on the PATH or name it in CUDACXX; or set FEWSEG_CUDA=OFF.")
    endif()
    set(FEWSEG_CUDA_SUMMARY "no (FEWSEG_CUDA=AUTO found no nvcc)")
  elseif(NOT FEWSEG_CUDA_SOURCES)
    if(FEWSEG_CUDA STREQUAL "ON")
      message(FATAL_ERROR "FEWSEG_CUDA=ON, but this version of fewseg_ext has no CUDA kernels yet.")
    endif()
    set(FEWSEG_CUDA_SUMMARY "no (nvcc found, but this version has no CUDA kernels yet)")
  endif()
endif()
message(STATUS "fewseg_ext: CUDA kernels: ${FEWSEG_CUDA_SUMMARY}")
