// The pybind11 module fewseg_ext._info: what only the build knows. It holds no operator: those are reached through
// torch's dispatcher, so that one build of them serves every Python version.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_info, m) {
  m.doc() = "How the native libraries of fewseg_ext were built.";
  m.def(
      "build",
      [] {
        py::dict result;
        result["version"] = FEWSEG_VERSION;
        result["compiler"] = FEWSEG_COMPILER;
        result["build_type"] = FEWSEG_BUILD_TYPE;
        result["torch_built_against"] = FEWSEG_TORCH_VERSION;
        result["torch_target"] = "2.10";
        result["cpu_instruction_sets"] = FEWSEG_CPU_SETS;
        result["cuda"] = FEWSEG_CUDA_SUMMARY;
        result["cuda_architectures"] = FEWSEG_CUDA_ARCHITECTURES;
        return result;
      },
      "Returns the facts of the build as a dict of strings.");
}
