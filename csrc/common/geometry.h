// Where the cells of a scale lie: the windows of AdaptiveAvgPool2d.
#pragma once

#include "portable.h"

namespace icd {

struct Window {
  int64_t start;
  int64_t stop;
};

// Cell `index` of `scale` along an axis of `extent` pixels: floor(index·extent/scale) .. ceil((index+1)·extent/scale).
ICD_HOST_DEVICE Window window(int64_t index, int64_t scale, int64_t extent) {
  return {index * extent / scale, ((index + 1) * extent + scale - 1) / scale};
}

ICD_HOST_DEVICE int64_t length(Window w) { return w.stop - w.start; }

}  // namespace icd
