// A tile of a product's operand, on its way from global memory through registers to shared memory.
//
// Operands are rounded once, when they are stored. Entries outside a matrix are zero. Rows of
// memory may begin at any float, and packs of 16 bytes are read where all of them are aligned.
#pragma once

#include "cuda/coord.cuh"

namespace noprop::cuda {

constexpr int kTileDepth = 64;

// the index that is contiguous in an operand's memory: the summed one, or the product tile's own
enum class Major { kSum, kTile };

// an operand's memory from a product tile's first row or column on
struct Operand {
  const float* data;
  int64_t stride;  // between two rows of memory
  int count;       // of the tile's rows or columns, those that exist
};

// The type of an operand in shared memory and the number of its buffers; how far one step goes
// along the sum, and how many steps are unrolled.
template <Precision P>
struct OperandTraits;
template <>
struct OperandTraits<Precision::kFloat32> {
  using Type = float;
  static constexpr int kBuffers = 1, kStep = 4, kSteps = 2;
};
template <>
struct OperandTraits<Precision::kTf32> {
  using Type = uint32_t;
  static constexpr int kBuffers = 1, kStep = 8, kSteps = 4;
};
template <>
struct OperandTraits<Precision::kBFloat16> {
  using Type = uint16_t;
  static constexpr int kBuffers = 2, kStep = 16, kSteps = 2;
};

using Four = Neighbours<float, 4>;

NOPROP_DEV void store_rounded(const Four& four, float* to) { *reinterpret_cast<Four*>(to) = four; }

NOPROP_DEV void store_rounded(const Four& four, uint32_t* to) {
  Neighbours<uint32_t, 4> rounded;
#pragma unroll
  for (int e = 0; e < 4; ++e) rounded.value[e] = dev::to_tf32(four.value[e]);
  *reinterpret_cast<Neighbours<uint32_t, 4>*>(to) = rounded;
}

NOPROP_DEV void store_rounded(const Four& four, uint16_t* to) {
  *reinterpret_cast<Neighbours<uint32_t, 2>*>(to) = {dev::pack_bf16(four.value[0], four.value[1]),
                                                     dev::pack_bf16(four.value[2], four.value[3])};
}

// kRows rows of an operand's memory, kColumns of each. The stride of rows in shared memory spreads
// a fragment's reads over all banks.
template <Precision P, int TILE, Major MAJOR>
struct OperandTile {
  using Type = typename OperandTraits<P>::Type;
  static constexpr bool kSummed = MAJOR == Major::kSum;
  static constexpr int kRows = kSummed ? TILE : kTileDepth, kColumns = kSummed ? kTileDepth : TILE;
  static constexpr int kStride = kColumns + (kSummed && sizeof(Type) == 4 ? 4 : 8);
  static constexpr int kSize = kRows * kStride;
  static constexpr int kPacks = kRows * kColumns / 4 / kThreads, kAcross = kColumns / 4;
  static_assert(kPacks * 4 * kThreads == kRows * kColumns);

  // initialised, because a loop that may read them before they are loaded would keep them for good
  Four pack[kPacks] = {};

  // from summed index `start` on, of K in all
  NOPROP_DEV void load(const Operand& from, int start, int K, bool aligned, int thread) {
    const int rows = kSummed ? from.count : K - start, columns = kSummed ? K - start : from.count;
    const float* data = from.data + (kSummed ? start : start * from.stride);
    if (aligned && rows >= kRows && columns >= kColumns) {
#pragma unroll
      for (int v = 0; v < kPacks; ++v) {
        const int place = thread + v * kThreads;
        const float* first = data + place / kAcross * from.stride + place % kAcross * 4;
        pack[v] = *reinterpret_cast<const Four*>(first);
      }
      return;
    }
#pragma unroll
    for (int v = 0; v < kPacks; ++v) {
      const int place = thread + v * kThreads;
      const int row = place / kAcross, column = place % kAcross * 4;
      const int count = row < rows ? columns - column : 0;
      const float* first = data + row * from.stride + column;
      if (aligned && count >= 4) {
        pack[v] = *reinterpret_cast<const Four*>(first);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) pack[v].value[e] = e < count ? first[e] : 0.0f;
      }
    }
  }

  NOPROP_DEV void store(Type* to, int thread) const {
#pragma unroll
    for (int v = 0; v < kPacks; ++v) {
      const int place = thread + v * kThreads;
      store_rounded(pack[v], to + place / kAcross * kStride + place % kAcross * 4);
    }
  }
};

NOPROP_DEV bool is_aligned(const Operand& from) {
  return (reinterpret_cast<uintptr_t>(from.data) | static_cast<uintptr_t>(from.stride * 4)) % 16 ==
         0;
}

}  // namespace noprop::cuda
