// The rows of a batch, x = (data[indices] - mean) * scale in float, and checks of their contents. A
// warp has a row; it reads four neighbours at once where the addresses allow it.
#pragma once

#include "cuda/reduce.cuh"

namespace noprop::cuda {

NOPROP_DEV float to_float(float value) { return value; }
NOPROP_DEV float to_float(uint16_t value) { return dev::from_bf16(value); }
NOPROP_DEV float to_float(uint8_t value) { return static_cast<float>(value); }

// a warp gathers one row; returns 4 if an entry is not finite
template <typename T, int W>
NOPROP_DEV int32_t gather_row(float* out, const T* data, const GatherStage& s, int lane) {
  using Floats = Neighbours<float, W>;
  int32_t bad = 0;
#pragma unroll 4
  for (int column = lane * W; column < s.F; column += kLanes * W) {
    const auto x = *reinterpret_cast<const Neighbours<T, W>*>(data + column);
    Floats made, mean, scale;
    if (s.scale != nullptr) {
      mean = *reinterpret_cast<const Floats*>(s.mean + column);
      scale = *reinterpret_cast<const Floats*>(s.scale + column);
    }
    for (int j = 0; j < W; ++j) {
      float value = to_float(x.value[j]);
      if (s.scale != nullptr) value = (value - mean.value[j]) * scale.value[j];
      if (!(fabsf(value) < INFINITY)) bad = 4;
      made.value[j] = value;
    }
    if (out != nullptr) *reinterpret_cast<Floats*>(out + column) = made;
  }
  return bad;
}

// whether an address, which may be null, is a multiple of `bytes`
NOPROP_DEV bool is_multiple(const void* address, int bytes) {
  return reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(bytes) == 0;
}

template <typename T>
NOPROP_DEV void gather_rows(const Program& p, const GatherStage& s, const Coord& coord, int tile,
                            unsigned char* scratch) {
  const int first = tile * kRows, rows = tile_rows(p, tile);
  float* out = at<float>(s.out, coord);
  const T* data = at<const T>(s.data, coord);
  const int64_t* indices = at(s.rows, coord, p.B);
  const bool fours = s.F % 4 == 0 && is_multiple(data, 4 * sizeof(T)) && is_multiple(out, 16) &&
                     is_multiple(s.mean, 16) && is_multiple(s.scale, 16);
  const int lane = lane_index();
  int32_t bad = 0;
  for (int r = warp_index(); r < rows; r += kWarps) {
    int64_t source = first + r;
    if (indices != nullptr) {
      source = indices[first + r];
      if (source < 0 || source >= s.rows.rows) {
        bad |= 2;
        source = 0;
      }
    }
    float* to = out == nullptr ? nullptr : out + int64_t{first + r} * s.F;
    const T* from = data + source * s.F;
    bad |= fours ? gather_row<T, 4>(to, from, s, lane) : gather_row<T, 1>(to, from, s, lane);
  }
  if (int32_t* flags = at<int32_t>(s.bad, coord)) {
    bad = block_or(bad, scratch);
    if (thread_index() == 0) flags[tile] = bad;
  }
}

NOPROP_DEV void gather_tile(const Program& p, const GatherStage& s, const Coord& coord, int tile,
                            unsigned char* scratch) {
  switch (s.type) {
    case Type::kFloat32:
      return gather_rows<float>(p, s, coord, tile, scratch);
    case Type::kBFloat16:
      return gather_rows<uint16_t>(p, s, coord, tile, scratch);
    case Type::kUInt8:
      return gather_rows<uint8_t>(p, s, coord, tile, scratch);
  }
}

}  // namespace noprop::cuda
