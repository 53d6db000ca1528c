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

// The cells of `scale` that cover a pixel of an axis of `extent` pixels: i with window(i).start <= pixel < window(i).stop.
// The same formula with cells and pixels exchanged: i·extent/scale < pixel+1 and (i+1)·extent/scale > pixel.
ICD_HOST_DEVICE Window covering(int64_t pixel, int64_t scale, int64_t extent) { return window(pixel, extent, scale); }

ICD_HOST_DEVICE int64_t length(Window w) { return w.stop - w.start; }

}  // namespace icd
