// fewseg::_instruction_sets: the CPU instruction sets as "chosen;usable here". An operator, because only the op library
// knows (the pybind11 module does not link to it).
#include <torch/csrc/stable/library.h>

#include <string>

#include "../cpu/instruction_set.h"

namespace {

std::string instruction_sets() {
  return std::string(fewseg::kernel_table().name) + ";" + fewseg::usable_instruction_sets();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("_instruction_sets() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fewseg, CompositeExplicitAutograd, m) {
  m.impl("_instruction_sets", TORCH_BOX(&instruction_sets));
}
