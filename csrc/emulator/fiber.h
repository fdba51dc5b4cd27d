// A fiber: a function with a stack of its own, entered from the host's stack and left again in its middle. For
// emulator.cpp only (it defines assembly).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#define FEWSEG_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FEWSEG_ASAN 1
#endif
#endif

#ifdef FEWSEG_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(FEWSEG_EMULATOR_UCONTEXT)
#define FEWSEG_EMULATOR_UCONTEXT
#endif

#ifdef FEWSEG_EMULATOR_UCONTEXT
#include <ucontext.h>
#else
// Saves what a function must preserve, stores the stack pointer in *save, and goes on with the stack `to`. The kernels
// leave the floating-point control words alone, so they need no saving.
extern "C" __attribute__((visibility("hidden"))) void fewseg_emulator_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.globl fewseg_emulator_switch
.hidden fewseg_emulator_switch
.type fewseg_emulator_switch, @function
fewseg_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fewseg_emulator_switch, .-fewseg_emulator_switch
)");
#endif

namespace fewseg::emulator {

// The stack that launch() was called on.
struct Host {
#ifdef FEWSEG_EMULATOR_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  // For AddressSanitizer.
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
};

class Fiber {
 public:
#ifdef FEWSEG_ASAN
  static constexpr std::size_t kStackBytes = 256 * 1024;  // its red zones make frames larger
#else
  static constexpr std::size_t kStackBytes = 64 * 1024;
#endif

  explicit Fiber(void (*entry)()) : entry_(entry), page_(std::size_t(sysconf(_SC_PAGESIZE))) {
    // From low to high: an inaccessible page, a page of canaries, the stack. A small overflow overwrites canaries,
    // which can be reported; a huge one stops the process rather than destroy something else.
    void* mapped = mmap(nullptr, bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::runtime_error("emulator: no memory for another thread's stack");
    base_ = static_cast<unsigned char*>(mapped);
    if (mprotect(base_ + page_, bytes() - page_, PROT_READ | PROT_WRITE) != 0) {
      munmap(mapped, bytes());
      throw std::runtime_error("emulator: no memory for another thread's stack");
    }
    reset();
  }
  ~Fiber() { munmap(base_, bytes()); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets what the fiber was doing: it will begin with entry() again.
  void reset() {
#ifdef FEWSEG_ASAN
    __asan_unpoison_memory_region(bottom(), kStackBytes);  // frames that were left without returning
    fake_stack_ = nullptr;
#endif
    std::memset(base_ + page_, kCanary, page_);
#ifdef FEWSEG_EMULATOR_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry_, 0);
#else
    // What the switch pops: six registers and the address to return to. Above it a null return address ends backtraces,
    // and leaves the stack pointer as it is after a call, 8 off a multiple of 16.
    void** top = reinterpret_cast<void**>(bottom() + kStackBytes);
    std::memset(top - 16, 0, 16 * sizeof(void*));
    top[-2] = reinterpret_cast<void*>(entry_);
    stack_pointer_ = top - 8;
#endif
  }

  // Host: runs the fiber until it leaves.
  void enter(Host& host) {
#ifdef FEWSEG_ASAN
    __sanitizer_start_switch_fiber(&host.fake_stack, bottom(), kStackBytes);
#endif
#ifdef FEWSEG_EMULATOR_UCONTEXT
    swapcontext(&host.context, &context_);
#else
    fewseg_emulator_switch(&host.stack_pointer, stack_pointer_);
#endif
#ifdef FEWSEG_ASAN
    __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
#endif
  }

  // Fiber: goes back to the host; returns when entered again.
  void leave(Host& host) {
#ifdef FEWSEG_ASAN
    __sanitizer_start_switch_fiber(&fake_stack_, host.bottom, host.size);
#endif
#ifdef FEWSEG_EMULATOR_UCONTEXT
    swapcontext(&context_, &host.context);
#else
    fewseg_emulator_switch(&stack_pointer_, host.stack_pointer);
#endif
    entered(host);
  }

  // To be called first of all by entry().
  void entered([[maybe_unused]] Host& host) {
#ifdef FEWSEG_ASAN
    __sanitizer_finish_switch_fiber(fake_stack_, &host.bottom, &host.size);
#endif
  }

  // Whether the stack has been too small. Of the canaries only the first word, where an overflow begins; `thorough`
  // looks at all.
  bool overflowed(bool thorough = false) const {
    const unsigned char* end = bottom();
#ifndef FEWSEG_EMULATOR_UCONTEXT
    if (stack_pointer_ < static_cast<const void*>(end)) return true;
#endif
    for (const unsigned char* byte = thorough ? base_ + page_ : end - 8; byte < end; ++byte)
      if (*byte != kCanary) return true;
    return false;
  }

 private:
  static constexpr unsigned char kCanary = 0xC5;

  std::size_t bytes() const { return 2 * page_ + kStackBytes; }
  unsigned char* bottom() const { return base_ + 2 * page_; }

  void (*entry_)();
  std::size_t page_;
  unsigned char* base_ = nullptr;
#ifdef FEWSEG_EMULATOR_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  [[maybe_unused]] void* fake_stack_ = nullptr;
};

}  // namespace fewseg::emulator
