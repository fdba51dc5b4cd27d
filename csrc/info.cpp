// The pybind11 module fewseg_ext._info: what only the build knows, and what the CUDA kernels would do with a size on a
// device. It holds no operator: those are reached through torch's dispatcher, so that one build of them serves every
// Python version.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda/inner_opt_launch.h"

namespace py = pybind11;

namespace {

py::dict plan_inner_opt(int64_t B, int64_t K, int64_t C, int64_t H, int64_t W, const py::object& dtype,
                        const fewseg::DeviceLimits& limits, bool backward) {
  if (B < 0 || C < 0 || K < 1 || H < 1 || W < 1)
    throw py::value_error("B and C must not be negative, and K, H and W must be at least 1");
  std::string name = py::str(dtype);
  if (name.rfind("torch.", 0) == 0) name.erase(0, 6);
  const int bytes = name == "float64" ? 8 : name == "float32" ? 4 : name == "bfloat16" || name == "float16" ? 2 : 0;
  if (bytes == 0) throw py::value_error("dtype must be float64, float32, bfloat16 or float16, got " + name);
  const fewseg::InnerOptPlan plan =
      fewseg::plan_inner_opt({B, K, C, H * W, bytes, bytes == 8 ? 8 : 4, backward}, limits);
  py::dict result;
  result["kernel"] = plan.resident ? "resident" : "steps";
  result["chunk_pixels"] = plan.chunk_pixels;
  result["chunks"] = plan.chunks;
  result["chunks_per_block"] = plan.chunks_per_block;
  result["blocks_per_task"] = plan.blocks_per_task;
  result["tasks_at_a_time"] = plan.tasks_at_a_time;
  result["shared_bytes"] = plan.shared_bytes;
  result["staged"] = plan.staged;
  return result;
}

}  // namespace

PYBIND11_MODULE(_info, m) {
  m.doc() = "How the native libraries of fewseg_ext were built, and how the CUDA kernels are launched.";
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

  py::class_<fewseg::DeviceLimits>(m, "DeviceLimits", "What a GPU has: shared memory in bytes, the rest in pieces.")
      .def(py::init([](int multiprocessors, int64_t shared_per_block, int64_t shared_per_multiprocessor) {
             return fewseg::DeviceLimits{multiprocessors, shared_per_block, shared_per_multiprocessor, 64 * 1024, 2048};
           }),
           py::kw_only(), py::arg("multiprocessors"), py::arg("shared_per_block"),
           py::arg("shared_per_multiprocessor"));
  m.def("plan_inner_opt", &plan_inner_opt, py::arg("B"), py::arg("K"), py::arg("C"), py::arg("H"), py::arg("W"),
        py::arg("dtype"), py::arg("limits"), py::kw_only(), py::arg("backward") = false,
        "Returns how inner_opt runs on a GPU with these limits, as a dict.");
}
