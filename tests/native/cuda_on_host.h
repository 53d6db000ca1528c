// Runs CUDA kernels on the host: what their source uses of CUDA, for one thread of execution that plays all of theirs.
//
// Every CUDA thread is a fiber. A fiber runs until it has to wait (a barrier, a shuffle, another block's counter) and the
// next one is chosen by the schedule: in order, in reverse or at random. Several blocks run at the same time. A barrier
// that some thread of the block never reaches, and waiting that never ends, stop the program with a message.
//
// It proves what the kernels compute and that they synchronise enough for any of these schedules. It does not prove
// anything about a GPU's caches or speed: memory here is coherent.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>

namespace host_cuda {

struct Index {
  unsigned x, y, z;
};

extern Index thread_index, block_index, grid_size;

enum class Schedule { in_order, reversed, random };

// How the launches from now on are run. The environment variable ICD_EMULATED_SCHEDULE (in_order, reversed or a number,
// the seed of a random schedule) sets it at the start.
void set_schedule(Schedule schedule, uint64_t seed);

void synchronize_block();
void synchronize_warp();
uint64_t exchange(uint64_t bits, int lane_mask);  // the bits that the lane at `lane ^ lane_mask` gave
void let_others_run();

// Runs body(shared memory) in every thread of every block of 256 threads. Shared memory starts as garbage (0xff: NaN).
void run_grid(int64_t blocks, size_t shared_bytes, const std::function<void(void*)>& body);

}  // namespace host_cuda

#define __device__
#define __forceinline__ inline
#define __restrict__
#define threadIdx host_cuda::thread_index
#define blockIdx host_cuda::block_index
#define gridDim host_cuda::grid_size

inline double cospi(double x) { return std::cos(3.14159265358979323846 * x); }

inline void __syncthreads() { host_cuda::synchronize_block(); }
inline void __syncwarp() { host_cuda::synchronize_warp(); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { host_cuda::let_others_run(); }

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = host_cuda::exchange(bits, lane_mask);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int atomicAdd(int* counter, int value) {
  const int before = *counter;
  *counter += value;
  return before;
}
