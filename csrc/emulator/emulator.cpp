// The scheduler: which thread of which block runs when.
//
// A warp runs until all its lanes wait or have finished, each lane until it waits itself. The forward order always goes
// on with the first warp that can run, the reverse order with the last one: as unfair as can be, so that a thread that
// relies on another one's work without waiting for it meets it undone in one of the two. The shuffled order takes any
// warp and any order of lanes each time, among a few blocks at once.
#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "block_memory.h"
#include "device_limits.h"
#include "fiber.h"
#include "order.h"
#include "report.h"

namespace fewseg::emulator {
namespace {

enum class State : uint8_t { kReady, kWaiting, kFinished };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  Fiber* fiber = nullptr;  // has one from its first wait on, until it finishes
  State state = State::kReady;
  // What it waits for.
  Operation operation{};
  Site site{};
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;
  std::vector<Copy> copies;  // asked for, and not waited for yet
};

// Sets of lanes.
struct Warp {
  unsigned ready = 0;
  unsigned at_operation = 0;
};

struct Block {
  Index3 index{};
  int finished = 0;
  // Its barrier: who is there, and what the first to arrive asked for.
  int arrived = 0, votes = 0;
  Operation operation{};
  Site site{};
  unsigned result = 0;
};

class Scheduler {
 public:
  void run(const LaunchPlan& plan, void (*body)(const void*), const void* arguments);

  // Called by the kernel's threads, on their fibers.
  unsigned block_barrier(Operation operation, bool predicate, Site site);
  void grid_barrier(Site site);
  uint64_t warp_operation(Operation operation, unsigned mask, uint64_t value, unsigned source, Site site);
  void* take_shared(int index, int64_t used, int64_t bytes);
  void copy_later(const Copy& copy);
  void make_copies();
  [[noreturn]] void fail(const std::string& what);
  void live_on_fiber();

 private:
  void run_grid();
  void place_blocks(int64_t first, int64_t count);
  void run_placed_blocks();
  void run_turn(int64_t warp);
  bool next_lane();
  bool next_lane_is_fresh();
  Fiber* fiber_for_current();

  void wait(Operation operation, Site site);
  void finish_thread();
  void make_ready(int64_t warp, unsigned lanes);
  void make_block_ready(int64_t block);
  bool complete_warp_operation(int64_t warp, const Thread& arrived);
  std::string damage(int64_t block, const std::string& when) const;
  std::map<std::string, std::vector<int64_t>> threads_by_state(int64_t first, int64_t count) const;
  std::string stalled() const;
  void forget_threads();

  bool failed() const { return exception_ || !failure_.empty(); }
  int64_t current_block() const { return current_warp_ / warps_per_block_; }
  std::string current_thread() const {
    return "block " + text(blockIdx) + ", thread " + std::to_string(threadIdx.x) + ": ";
  }

  LaunchPlan plan_;
  void (*body_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  Order order_;

  // The blocks that are on the device now, with their warps and threads in the same order.
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<BlockMemory>> memories_;
  std::vector<Warp> warps_;
  std::vector<Thread> threads_;
  std::vector<uint64_t> ready_warps_;  // one bit each
  int64_t warps_per_block_ = 1, unfinished_ = 0, at_grid_barrier_ = 0;
  Site grid_site_{};

  // What runs now.
  int64_t current_warp_ = 0;
  unsigned lanes_to_run_ = 0;  // of the current warp, in this turn
  Thread* current_ = nullptr;
  Fiber* fiber_ = nullptr;
  bool fiber_is_free_ = false;

  Host host_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
  std::string failure_;
  std::exception_ptr exception_;
};

// Host threads launch independently of each other; each keeps its stacks for the next launch.
thread_local std::unique_ptr<Scheduler> scheduler_of_host_thread;
thread_local Scheduler* running = nullptr;

Scheduler& scheduler() {
  if (!running) throw std::runtime_error("emulator: a device function was called outside of launch()");
  return *running;
}

void fiber_main() {
  running->live_on_fiber();
}

// --- on the fibers --------------------------------------------------------------------------------------------------

// Threads that never wait run one after another on the same fiber, without a switch between them.
void Scheduler::live_on_fiber() {
  fiber_->entered(host_);
  for (;;) {
    try {
      body_(arguments_);
    } catch (...) {
      exception_ = std::current_exception();
    }
    finish_thread();
    if (!failed() && next_lane_is_fresh()) {
      next_lane();
    } else {
      fiber_is_free_ = true;
      fiber_->leave(host_);
    }
  }
}

void Scheduler::copy_later(const Copy& copy) {
  const auto aligned = [&](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % std::uintptr_t(copy.bytes) == 0;
  };
  if (!aligned(copy.to) || !aligned(copy.from))
    fail("copies " + std::to_string(copy.bytes) + " bytes to or from an address that is no multiple of them");
  current_->copies.push_back(copy);
}

void Scheduler::make_copies() {
  for (const Copy& copy : current_->copies) std::memcpy(copy.to, copy.from, std::size_t(copy.bytes));
  current_->copies.clear();
}

void Scheduler::finish_thread() {
  if (!current_->copies.empty() && !failed())
    failure_ = current_thread() + "returns without having waited for its asynchronous copies";
  current_->state = State::kFinished;
  current_->fiber = nullptr;
  --unfinished_;
  const int64_t block = current_block();
  if (++blocks_[std::size_t(block)].finished == plan_.block && !failed())
    failure_ = damage(block, "when the block had finished");
}

void Scheduler::fail(const std::string& what) {
  // Thrown by run(), on the stack of launch(). This thread is never resumed.
  failure_ = current_thread() + what;
  fiber_->leave(host_);
  std::abort();
}

void Scheduler::wait(Operation operation, Site site) {
  current_->state = State::kWaiting;
  current_->operation = operation;
  current_->site = site;
  current_->fiber = fiber_;
  fiber_->leave(host_);
}

unsigned Scheduler::block_barrier(Operation operation, bool predicate, Site site) {
  const int64_t index = current_block();
  Block& block = blocks_[std::size_t(index)];
  if (block.arrived == 0) {
    block.operation = operation;
    block.site = site;
    block.votes = 0;
  } else if (block.operation != operation || !same(block.site, site)) {
    fail("divergent barrier: waits at " + text(operation, site) + ", while other threads of the block wait at " +
         text(block.operation, block.site));
  }
  block.votes += predicate;
  if (++block.arrived == plan_.block) {
    if (const std::string what = damage(index, "at " + text(operation, site)); !what.empty()) fail(what);
    block.arrived = 0;
    block.result = operation == Operation::kSyncThreadsOr    ? block.votes > 0
                   : operation == Operation::kSyncThreadsAnd ? block.votes == plan_.block
                                                             : unsigned(block.votes);
    make_block_ready(index);
  }
  wait(operation, site);
  return block.result;
}

void Scheduler::grid_barrier(Site site) {
  if (!plan_.cooperative) fail("grid_sync() in a launch that is not cooperative");
  if (at_grid_barrier_ == 0) {
    grid_site_ = site;
  } else if (!same(grid_site_, site)) {
    fail("divergent barrier: waits at " + text(Operation::kGridSync, site) +
         ", while other threads of the grid wait at " + text(Operation::kGridSync, grid_site_));
  }
  if (++at_grid_barrier_ == int64_t(threads_.size())) {
    at_grid_barrier_ = 0;
    for (int64_t block = 0; block < int64_t(blocks_.size()); ++block) {
      if (const std::string what = damage(block, "at " + text(Operation::kGridSync, site)); !what.empty()) fail(what);
      make_block_ready(block);
    }
  }
  wait(Operation::kGridSync, site);
}

uint64_t Scheduler::warp_operation(Operation operation, unsigned mask, uint64_t value, unsigned source, Site site) {
  const unsigned lane = threadIdx.x % 32;
  if (!(mask >> lane & 1))
    fail(text(operation, site) + " by a lane that its mask " + hexadecimal(mask) + " leaves out");
  const bool shuffles = operation >= Operation::kShuffle && operation <= Operation::kShuffleXor;
  if (shuffles && !(mask >> source % 32 & 1))
    fail(text(operation, site) + " reads lane " + std::to_string(source) + ", which the mask " + hexadecimal(mask) +
         " leaves out");
  Thread* self = current_;
  self->operation = operation;
  self->site = site;
  self->mask = mask;
  self->value = value;
  self->source = source % 32;
  warps_[std::size_t(current_warp_)].at_operation |= 1u << lane;
  if (complete_warp_operation(current_warp_, *self)) make_ready(current_warp_, mask);
  wait(operation, site);
  return self->result;
}

// If all lanes of the mask wait at the same operation: gives each its result. It is kept beside the value, because a
// lane may be at the next operation before another one has looked at its result.
bool Scheduler::complete_warp_operation(int64_t warp, const Thread& arrived) {
  if (arrived.mask & ~warps_[std::size_t(warp)].at_operation) return false;
  Thread* lanes = &threads_[std::size_t(warp * 32)];
  unsigned votes = 0;
  for (unsigned rest = arrived.mask; rest; rest &= rest - 1) {
    const Thread& lane = lanes[__builtin_ctz(rest)];
    if (lane.operation != arrived.operation || lane.mask != arrived.mask || !same(lane.site, arrived.site))
      return false;
    if (lane.value) votes |= rest & -rest;
  }
  for (unsigned rest = arrived.mask; rest; rest &= rest - 1) {
    Thread& lane = lanes[__builtin_ctz(rest)];
    switch (arrived.operation) {
      case Operation::kBallot:
        lane.result = votes;
        break;
      case Operation::kAny:
        lane.result = votes != 0;
        break;
      case Operation::kAll:
        lane.result = votes == arrived.mask;
        break;
      default:
        lane.result = lanes[lane.source].value;
    }
  }
  warps_[std::size_t(warp)].at_operation &= ~arrived.mask;
  return true;
}

void* Scheduler::take_shared(int index, int64_t used, int64_t bytes) {
  std::string error;
  void* array = memories_[std::size_t(current_block())]->take(index, used, bytes, error);
  if (!array) fail(error);
  return array;
}

void Scheduler::make_ready(int64_t warp, unsigned lanes) {
  warps_[std::size_t(warp)].ready |= lanes;
  ready_warps_[std::size_t(warp / 64)] |= uint64_t(1) << (warp % 64);
}

void Scheduler::make_block_ready(int64_t block) {
  for (int64_t i = 0; i < warps_per_block_; ++i) make_ready(block * warps_per_block_ + i, ~0u);
}

// --- on the host's stack --------------------------------------------------------------------------------------------

bool Scheduler::next_lane() {
  if (!lanes_to_run_) return false;
  const int lane = order_.lane(lanes_to_run_);
  lanes_to_run_ &= ~(1u << lane);
  current_ = &threads_[std::size_t(current_warp_ * 32 + lane)];
  threadIdx.x = unsigned(current_warp_ % warps_per_block_ * 32 + lane);
  return true;
}

bool Scheduler::next_lane_is_fresh() {
  return lanes_to_run_ && !threads_[std::size_t(current_warp_ * 32 + order_.lane(lanes_to_run_))].fiber;
}

Fiber* Scheduler::fiber_for_current() {
  if (current_->fiber) return current_->fiber;
  if (free_fibers_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(fiber_main));
    return fibers_.back().get();
  }
  Fiber* fiber = free_fibers_.back();
  free_fibers_.pop_back();
  return fiber;
}

void Scheduler::run_turn(int64_t warp) {
  current_warp_ = warp;
  lanes_to_run_ = warps_[std::size_t(warp)].ready;
  warps_[std::size_t(warp)].ready = 0;
  ready_warps_[std::size_t(warp / 64)] &= ~(uint64_t(1) << (warp % 64));
  blockIdx = blocks_[std::size_t(current_block())].index;
  order_.new_turn();
  while (next_lane()) {
    fiber_ = fiber_for_current();
    current_->state = State::kReady;
    fiber_is_free_ = false;
    fiber_->enter(host_);
    if (fiber_is_free_) free_fibers_.push_back(fiber_);
    if (fiber_->overflowed()) failure_ = current_thread() + "its stack overflowed";
    if (failed()) return;
  }
}

void Scheduler::run_placed_blocks() {
  while (unfinished_ > 0 && !failed()) {
    const int64_t warp = order_.warp(ready_warps_);
    if (warp < 0) {
      failure_ = stalled();
    } else {
      run_turn(warp);
    }
  }
}

void Scheduler::place_blocks(int64_t first, int64_t count) {
  blocks_.assign(std::size_t(count), Block());
  warps_.assign(std::size_t(count * warps_per_block_), Warp());
  threads_.assign(std::size_t(count * plan_.block), Thread());
  ready_warps_.assign(warps_.size() / 64 + 1, 0);
  while (int64_t(memories_.size()) < count) memories_.push_back(std::make_unique<BlockMemory>());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = plan_.cooperative ? first + i : order_.block(first + i);
    blocks_[std::size_t(i)].index = {unsigned(index % plan_.grid_x), unsigned(index / plan_.grid_x % plan_.grid_y),
                                     unsigned(index / plan_.grid_x / plan_.grid_y)};
    memories_[std::size_t(i)]->start(plan_.shared_bytes);
    make_block_ready(i);
  }
  unfinished_ = count * plan_.block;
  at_grid_barrier_ = 0;
}

void Scheduler::run_grid() {
  const int64_t blocks = plan_.grid_x * plan_.grid_y * plan_.grid_z;
  if (plan_.cooperative) {
    place_blocks(0, blocks);
    run_placed_blocks();
    return;
  }
  order_.start_blocks(blocks);
  const int64_t at_once = order_.blocks_at_once();
  for (int64_t i = 0; i < blocks && !failed(); i += at_once) {
    place_blocks(i, std::min(at_once, blocks - i));
    run_placed_blocks();
  }
}

void Scheduler::run(const LaunchPlan& plan, void (*body)(const void*), const void* arguments) {
  check_plan(plan, read_device_limits());
  order_.start();
  plan_ = plan;
  body_ = body;
  arguments_ = arguments;
  warps_per_block_ = plan.block / 32;
  blockDim = {unsigned(plan.block), 1, 1};
  gridDim = {unsigned(plan.grid_x), unsigned(plan.grid_y), unsigned(plan.grid_z)};
  threadIdx = {0, 0, 0};
  failure_.clear();
  exception_ = nullptr;

  struct Running {  // ends with the launch, however that ends
    explicit Running(Scheduler* scheduler) { running = scheduler; }
    ~Running() { running = nullptr; }
  } while_running(this);
  try {
    run_grid();
  } catch (...) {  // no memory
    exception_ = std::current_exception();
  }

  if (!failed())
    for (const auto& fiber : fibers_)
      if (fiber->overflowed(true)) failure_ = "a thread's stack overflowed during this launch";
  if (!failed()) return;
  forget_threads();
  if (exception_) std::rethrow_exception(exception_);
  throw std::runtime_error("emulator: " + failure_);
}

// After a failure: their fibers stand somewhere in the kernel.
void Scheduler::forget_threads() {
  free_fibers_.clear();
  for (const auto& fiber : fibers_) {
    fiber->reset();
    free_fibers_.push_back(fiber.get());
  }
}

// --- reports --------------------------------------------------------------------------------------------------------

std::string Scheduler::damage(int64_t block, const std::string& when) const {
  const std::string what = memories_[std::size_t(block)]->damage();
  if (what.empty()) return {};
  return "block " + text(blocks_[std::size_t(block)].index) + ": " + what + "; noticed " + when;
}

// What `count` threads do, as a sentence for each group, with how many there are.
std::map<std::string, std::vector<int64_t>> Scheduler::threads_by_state(int64_t first, int64_t count) const {
  std::map<std::string, std::vector<int64_t>> result;
  for (int64_t i = first; i < first + count; ++i) {
    const Thread& thread = threads_[std::size_t(i)];
    if (thread.state == State::kFinished) {
      result["have returned"].push_back(i);
    } else {
      const bool has_mask = thread.operation >= Operation::kSyncWarp;
      const std::string mask = has_mask ? " with mask " + hexadecimal(thread.mask) : std::string();
      result["wait at " + text(thread.operation, thread.site) + mask].push_back(i);
    }
  }
  return result;
}

// No thread can go on: says what the first block whose threads disagree waits for, or else what the grid does.
std::string Scheduler::stalled() const {
  const int64_t blocks = int64_t(blocks_.size());
  auto states = threads_by_state(0, plan_.block);
  for (int64_t block = 1; block < blocks && states.size() == 1; ++block)
    states = threads_by_state(block * plan_.block, plan_.block);
  const bool in_one_block = states.size() > 1;
  if (!in_one_block) states = threads_by_state(0, blocks * plan_.block);

  std::string result = states.size() == 1 ? "deadlock" : "divergent barrier or warp operation";
  if (in_one_block) result += " in block " + text(blocks_[std::size_t(states.begin()->second[0] / plan_.block)].index);
  const char* separator = ": ";
  for (const auto& [what, threads] : states) {
    result += separator + std::to_string(threads.size()) + " thread(s) " + what + " (the first: ";
    if (!in_one_block) result += "block " + text(blocks_[std::size_t(threads[0] / plan_.block)].index) + ", ";
    result += "thread " + std::to_string(threads[0] % plan_.block) + ")";
    separator = "; ";
  }
  return result;
}

}  // namespace

// --- interface ------------------------------------------------------------------------------------------------------

unsigned block_barrier(Operation operation, bool predicate, Site site) {
  return scheduler().block_barrier(operation, predicate, site);
}

void grid_barrier(Site site) {
  scheduler().grid_barrier(site);
}

uint64_t warp_operation(Operation operation, unsigned mask, uint64_t value, unsigned source, Site site) {
  return scheduler().warp_operation(operation, mask, value, source, site);
}

void* take_shared(int index, int64_t used, int64_t bytes) {
  return scheduler().take_shared(index, used, bytes);
}

void copy_later(void* to, const void* from, int bytes) {
  scheduler().copy_later({to, from, bytes});
}

void make_copies() {
  scheduler().make_copies();
}

void trap(Site site) {
  scheduler().fail("__trap() at line " + std::to_string(site.line));
}

void run(const LaunchPlan& plan, void (*body)(const void*), const void* arguments) {
  if (running) throw std::runtime_error("emulator: launch() inside a kernel");
  if (!scheduler_of_host_thread) scheduler_of_host_thread = std::make_unique<Scheduler>();
  scheduler_of_host_thread->run(plan, body, arguments);
}

}  // namespace fewseg::emulator

namespace fewseg {

DeviceLimits device_limits() {
  return emulator::read_device_limits();
}

}  // namespace fewseg
