# torch_stable_cpu: headers and library of the torch that the building Python has.
#
# Not find_package(Torch): beside a CUDA torch and a partial CUDA toolkit it is a hard error even for a CPU build, and it
# ignores CMAKE_CUDA_ARCHITECTURES. The stable ABI needs an include folder and libtorch_cpu, no more.

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

# find_spec instead of an import: seconds faster, and the same answer.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.metadata as m, importlib.util as u, os; \
print(os.path.dirname(u.find_spec('torch').origin), m.version('torch'), sep=';')"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE torch_missing ERROR_QUIET)
if(torch_missing)
  message(FATAL_ERROR "fewseg_ext: ${Python_EXECUTABLE} has no torch. Install torch >= 2.10 (pip install torch), or "
                      "build without --no-build-isolation, which installs it for the build.")
endif()
list(GET torch_facts 0 torch_folder)
list(GET torch_facts 1 FEWSEG_TORCH_VERSION)
if(FEWSEG_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "fewseg_ext needs the headers of torch 2.10 or later to build; found ${FEWSEG_TORCH_VERSION}")
endif()
message(STATUS "fewseg_ext: building against torch ${FEWSEG_TORCH_VERSION}")

add_library(torch_stable_cpu INTERFACE)
target_include_directories(torch_stable_cpu SYSTEM INTERFACE ${torch_folder}/include)
# Nothing newer than torch 2.10 is used, so the library runs under every later torch.
target_compile_definitions(torch_stable_cpu INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
# The library has to name libtorch_cpu.so as a need although few of its symbols are used directly; where it lies is
# left open (no RPATH): `import torch` has loaded it before.
target_link_libraries(torch_stable_cpu INTERFACE -Wl,--no-as-needed ${torch_folder}/lib/libtorch_cpu.so
                                                 -Wl,--as-needed)
set(CMAKE_SKIP_RPATH ON)
