#include "cuda_on_host.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace host_cuda {

Index thread_index, block_index, grid_size;

namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kResident = 3;  // blocks that run at the same time
constexpr size_t kStack = 128 * 1024;

[[noreturn]] void stop(const char* message) {
  std::fprintf(stderr, "host_cuda: block %u, thread %u: %s\n", block_index.x, thread_index.x, message);
  std::abort();
}

enum class Wait { nothing, block, warp, others };

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started, done;
  Wait wait;
  int shuffles;
};

struct Block {
  std::vector<Fiber> fibers = std::vector<Fiber>(kThreads);
  std::vector<char> shared;
  uint64_t exchanged[2][kWarps][kWarp];  // by the parity of the lane's shuffles
  int64_t index = -1;                    // none
  int running = 0;
};

Block blocks[kResident];
jmp_buf scheduler;
Fiber* current = nullptr;
Block* current_block = nullptr;
const std::function<void(void*)>* kernel = nullptr;
Schedule schedule = Schedule::in_order;
std::mt19937_64 generator;

void run_current() {
  (*kernel)(current_block->shared.data());
  current->done = true;
  --current_block->running;
  longjmp(scheduler, 1);
}

// Runs a fiber until it waits or ends. setjmp keeps no signal mask: switching costs no system call.
void resume(Block& block, int thread) {
  Fiber& fiber = block.fibers[thread];
  current = &fiber;
  current_block = &block;
  thread_index = {static_cast<unsigned>(thread), 0, 0};
  block_index = {static_cast<unsigned>(block.index), 0, 0};
  fiber.wait = Wait::nothing;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

void wait(Wait reason) {
  current->wait = reason;
  if (_setjmp(current->place) == 0) longjmp(scheduler, 1);
}

void start_block(Block& block, int64_t index, size_t shared_bytes) {
  block.index = index;
  block.running = kThreads;
  block.shared.assign(shared_bytes + 64, static_cast<char>(0xff));
  for (Fiber& fiber : block.fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.started = fiber.done = false;
    fiber.wait = Wait::nothing;
    fiber.shuffles = 0;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_current, 0);
  }
}

// Lets `count` fibers from `first` on past a barrier that all of them have reached. A barrier that a finished thread
// never reaches holds the others for ever.
bool release(Block& block, int first, int count, Wait barrier) {
  for (int t = first; t < first + count; ++t) {
    if (block.fibers[t].done || block.fibers[t].wait != barrier) return false;
  }
  for (int t = first; t < first + count; ++t) block.fibers[t].wait = Wait::nothing;
  return true;
}

bool runnable(const Fiber& fiber) { return !fiber.done && (fiber.wait == Wait::nothing || fiber.wait == Wait::others); }

// Runs one warp's fibers for as long as they get. Whether any did.
bool run_warp(Block& block, int warp) {
  bool ran = false;
  for (;;) {
    int order[kWarp], count = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      const int l = schedule == Schedule::reversed ? kWarp - 1 - lane : lane;
      if (runnable(block.fibers[warp * kWarp + l])) order[count++] = warp * kWarp + l;
    }
    if (schedule == Schedule::random) std::shuffle(order, order + count, generator);
    for (int i = 0; i < count; ++i) resume(block, order[i]);
    bool others = false;
    for (int i = 0; i < count; ++i) others |= block.fibers[order[i]].wait == Wait::others;
    ran |= count > 0 && !others;
    if (!release(block, warp * kWarp, kWarp, Wait::warp) || others) return ran;
    if (schedule == Schedule::random && generator() % 4 == 0) return true;  // another warp's turn
  }
}

bool run_block(Block& block) {
  bool ran = false;
  for (int w = 0; w < kWarps; ++w) {
    const int warp = schedule == Schedule::in_order ? w : schedule == Schedule::reversed ? kWarps - 1 - w
                                                                                         : static_cast<int>(generator() % kWarps);
    ran |= run_warp(block, warp);
  }
  ran |= release(block, 0, kThreads, Wait::block);
  return ran;
}

void read_environment() {
  const char* text = std::getenv("ICD_EMULATED_SCHEDULE");
  if (text == nullptr || std::strcmp(text, "in_order") == 0) return;
  if (std::strcmp(text, "reversed") == 0) return set_schedule(Schedule::reversed, 0);
  set_schedule(Schedule::random, std::stoull(text));
}

}  // namespace

void set_schedule(Schedule wanted, uint64_t seed) {
  schedule = wanted;
  generator.seed(seed);
}

void synchronize_block() { wait(Wait::block); }
void synchronize_warp() { wait(Wait::warp); }
void let_others_run() { wait(Wait::others); }

uint64_t exchange(uint64_t bits, int lane_mask) {
  const int thread = static_cast<int>(thread_index.x), warp = thread / kWarp, lane = thread % kWarp;
  // A lane can be one shuffle ahead of another, not two: two buffers are enough.
  uint64_t(&buffer)[kWarp] = current_block->exchanged[current->shuffles++ % 2][warp];
  buffer[lane] = bits;
  wait(Wait::warp);
  return buffer[lane ^ lane_mask];
}

void run_grid(int64_t count, size_t shared_bytes, const std::function<void(void*)>& body) {
  static const bool read = (read_environment(), true);
  (void)read;
  kernel = &body;
  grid_size = {static_cast<unsigned>(count), 1, 1};
  int64_t next = 0, left = count;
  int idle = 0;
  while (left > 0) {
    bool ran = false;
    for (int i = 0; i < kResident; ++i) {
      Block& block = blocks[schedule == Schedule::random ? generator() % kResident : i];
      if (block.running == 0) {
        if (next == count) continue;
        start_block(block, next++, shared_bytes);
      }
      ran |= run_block(block);
      if (block.running == 0) --left;
    }
    idle = ran ? 0 : idle + 1;
    if (idle > 1000) stop("every thread waits: a barrier not reached by all, or a counter that never comes");
  }
}

}  // namespace host_cuda
