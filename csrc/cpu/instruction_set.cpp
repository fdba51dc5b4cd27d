#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fewseg {

namespace baseline {
extern const KernelTable table;
}
#if FEWSEG_X86_SETS
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif

namespace {

struct InstructionSet {
  const KernelTable* table;
  bool usable;
};

// Best first.
const InstructionSet* instruction_sets(int& count) {
#if FEWSEG_X86_SETS
  static const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const InstructionSet sets[] = {
      {&avx512::table, has_avx512}, {&avx2::table, has_avx2}, {&baseline::table, true}};
#else
  static const InstructionSet sets[] = {{&baseline::table, true}};
#endif
  count = sizeof(sets) / sizeof(sets[0]);
  return sets;
}

std::string usable_names() {
  int count = 0;
  const InstructionSet* sets = instruction_sets(count);
  std::string result;
  for (int i = 0; i < count; ++i) {
    if (!sets[i].usable) continue;
    if (!result.empty()) result += ',';
    result += sets[i].table->name;
  }
  return result;
}

const KernelTable& choose() {
  int count = 0;
  const InstructionSet* sets = instruction_sets(count);
  const char* wanted = std::getenv("FEWSEG_CPU_ISA");
  for (int i = 0; i < count; ++i) {
    if (!sets[i].usable) continue;
    if (!wanted || !*wanted || std::string(wanted) == sets[i].table->name) return *sets[i].table;
  }
  throw std::runtime_error("FEWSEG_CPU_ISA is \"" + std::string(wanted) +
                           "\"; this processor can run: " + usable_instruction_sets());
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable& table = choose();
  return table;
}

const char* usable_instruction_sets() {
  static const std::string text = usable_names();
  return text.c_str();
}

}  // namespace fewseg
