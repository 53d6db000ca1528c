// Work that depends on work of other blocks, in one launch. Items are numbered phase by phase and drawn in that order by
// ticket: a block that draws a task of a phase knows that every task before it is done or held by a block that is running,
// so waiting for the phases before it always ends, however many blocks fit on the chip.
#pragma once

#include "block.cuh"

namespace icd::cuda {

struct Task {
  int phase;  // kPhases: none left
  int64_t number;  // within its phase
};

// counters: tickets, then tasks done in each phase. `ticket` is shared memory.
ICD_DEVICE Task draw_task(int* counters, const int64_t (&tasks)[kPhases], int* ticket) {
  __syncthreads();
  if (threadIdx.x == 0) *ticket = atomicAdd(counters, 1);
  __syncthreads();
  Task task = {0, *ticket};
  while (task.phase < kPhases && task.number >= tasks[task.phase]) task.number -= tasks[task.phase++];
  return task;
}

// Returns when every task of the phases before `phase` is done and what it wrote can be read.
ICD_DEVICE void wait_for_phases(int* counters, const int64_t (&tasks)[kPhases], int phase) {
  if (threadIdx.x == 0) {
    for (int before = 0; before < phase; ++before) {
      const volatile int* done = counters + 1 + before;
      while (*done < tasks[before]) __nanosleep(100);
    }
    __threadfence();
  }
  __syncthreads();
}

ICD_DEVICE void finish_task(int* counters, int phase) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counters + 1 + phase, 1);
  }
}

}  // namespace icd::cuda
