// Where the cells of a scale lie: the windows of AdaptiveAvgPool2d.
//
// N is the integer that positions are counted in: 64 bits on the CPU, 32 without a sign on a GPU, which has no 64-bit
// division; (index + 1) · extent must fit in it.
#pragma once

#include "portable.h"

namespace icd {

template <typename N>
struct WindowOf {
  N start;
  N stop;
};

using Window = WindowOf<int64_t>;

// Cell `index` of `scale` along an axis of `extent` pixels: floor(index·extent/scale) .. ceil((index+1)·extent/scale).
template <typename N>
ICD_HOST_DEVICE WindowOf<N> window(N index, N scale, N extent) {
  return {index * extent / scale, ((index + 1) * extent + scale - 1) / scale};
}

// The cells of `scale` that cover a pixel of an axis of `extent` pixels: i with window(i).start <= pixel < window(i).stop.
// The same formula with cells and pixels exchanged: i·extent/scale < pixel+1 and (i+1)·extent/scale > pixel.
template <typename N>
ICD_HOST_DEVICE WindowOf<N> covering(N pixel, N scale, N extent) {
  return window(pixel, extent, scale);
}

template <typename N>
ICD_HOST_DEVICE N length(WindowOf<N> w) {
  return w.stop - w.start;
}

}  // namespace icd
