// emulator_tests CASE...: 0 if they pass; 1 with "wrong: ..." where a result is wrong; 2 with "noticed: ..." where the
// emulator reported misuse.
#include "cases.h"

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    try {
      cases::all().at(argv[i])();
    } catch (const std::logic_error& error) {
      std::printf("wrong: %s: %s\n", argv[i], error.what());
      return 1;
    } catch (const std::runtime_error& error) {
      std::printf("noticed: %s\n", error.what());
      return 2;
    }
  }
  if (argc == 1)
    for (const auto& [name, run] : cases::all()) std::printf("%s\n", name.c_str());
}
