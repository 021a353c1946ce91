// A tile of a product, TILE x TILE entries of a @ b, by a thread block: bf16 or tf32 on the tensor
// cores, float32 by multiply-adds.
//
// The summed index is divided into operand tiles of kTileDepth. While one of them is multiplied
// from shared memory, the next one comes from global memory into registers. An entry has one
// accumulator, which ascends over the summed index in steps of 16 (bf16), 8 (tf32) or 1, whatever
// the tile.
#pragma once

#include "cuda/operand_tile.cuh"

namespace noprop::cuda {

// A tile of a matrix in memory, from its first entry on, with the numbers of rows and columns that
// exist. Two neighbours, the first in an even column, are one access if the addresses allow it for
// all of them.
template <typename T>
struct View {
  T* first;  // null: there is no such matrix
  int stride, rows, columns;
  bool pairs;

  NOPROP_DEV View(T* matrix, int64_t entry, int stride, int rows, int columns)
      : first(matrix == nullptr ? nullptr : matrix + entry),
        stride(stride),
        rows(rows),
        columns(columns),
        pairs(stride % 2 == 0 && columns % 2 == 0 && reinterpret_cast<uintptr_t>(first) % 8 == 0) {}
};

// The entries of a tile that a thread has, and their sums. Warps of the tensor cores have 16 MM
// rows and 8 NN columns each; of multiply-adds every thread has SIDE x SIDE entries.
template <Precision P, int TILE, Major A, Major B>
struct Product {
  using TileA = OperandTile<P, TILE, A>;
  using TileB = OperandTile<P, TILE, B>;
  using Type = typename OperandTraits<P>::Type;
  static constexpr bool kMatrix = P != Precision::kFloat32;
  static constexpr int MM = TILE / 32 > 0 ? TILE / 32 : 1, NN = MM;
  static constexpr int kAcross = TILE / (8 * NN), kUsed = TILE / (16 * MM) * kAcross;  // warps
  static constexpr int SIDE = TILE / 16;
  static constexpr int kEntries = kMatrix ? MM * NN * 4 : SIDE * SIDE;
  // entries 2 j and 2 j + 1 are neighbours, the first in an even column
  static constexpr bool kPairs = kMatrix || (B == Major::kTile && SIDE > 1);
  static constexpr int kBuffers = OperandTraits<P>::kBuffers, kStep = OperandTraits<P>::kStep,
                       kSteps = OperandTraits<P>::kSteps;
  static constexpr int kScratch = dev::Carve::cost(kBuffers * TileA::kSize * sizeof(Type)) +
                                  dev::Carve::cost(kBuffers * TileB::kSize * sizeof(Type));
  static_assert(kUsed <= kWarps);

  const int thread = thread_index(), warp = thread / kLanes;
  // of the warp's or, with multiply-adds, the thread's first entry
  const int first_row = kMatrix ? warp / kAcross * 16 * MM : thread / 16 * SIDE;
  const int first_column =
      kMatrix ? warp % kAcross * 8 * NN : thread % 16 * (B == Major::kSum ? 1 : SIDE);
  float sum[kEntries] = {};

  NOPROP_DEV bool has_entries() const { return !kMatrix || warp < kUsed; }

  NOPROP_DEV int row(int e) const {
    if (!kMatrix) return first_row + e / SIDE;
    return first_row + e / (4 * NN) * 16 + thread % kLanes / 4 + e / 2 % 2 * 8;
  }
  NOPROP_DEV int column(int e) const {
    if (!kMatrix) return first_column + e % SIDE * (B == Major::kSum ? 16 : 1);
    return first_column + e / 4 % NN * 8 + thread % 4 * 2 + e % 2;
  }

  // Reads the thread's entries of a matrix. Entries outside of it get the value of an entry inside.
  template <typename T>
  NOPROP_DEV void read(const View<T>& from, float (&to)[kEntries]) const {
    if (!has_entries() || from.first == nullptr) return;
    if (kPairs && from.pairs) {
#pragma unroll
      for (int e = 0; e < kEntries; e += 2) {
        const int r = min_of(row(e), from.rows - 1), c = min_of(column(e), from.columns - 2);
        const auto pair = neighbours<2>(from.first + r * from.stride + c);
        to[e] = pair.value[0];
        to[e + 1] = pair.value[1];
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const int r = min_of(row(e), from.rows - 1), c = min_of(column(e), from.columns - 1);
      to[e] = from.first[r * from.stride + c];
    }
  }

  // Writes nothing to a null matrix. Addresses are formed anew: if they were kept from a read
  // before the product, each would take two registers.
  NOPROP_DEV void write(const View<float>& to, const float (&value)[kEntries]) const {
    if (!has_entries() || to.first == nullptr) return;
    const int stride = dev::fresh(to.stride);
    if (kPairs && to.pairs) {
#pragma unroll
      for (int e = 0; e < kEntries; e += 2) {
        float* const at = to.first + row(e) * stride + column(e);
        const bool inside = row(e) < to.rows && column(e) < to.columns;
        if (inside) *reinterpret_cast<Neighbours<float, 2>*>(at) = {value[e], value[e + 1]};
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const bool inside = row(e) < to.rows && column(e) < to.columns;
      if (inside) to.first[row(e) * stride + column(e)] = value[e];
    }
  }

  // sum += a @ b over K summed indices
  NOPROP_DEV void add(const Operand& a, const Operand& b, int K, unsigned char* scratch) {
    dev::Carve carve{scratch};
    Type* const a_shared = carve.take<Type>(kBuffers * TileA::kSize);
    Type* const b_shared = carve.take<Type>(kBuffers * TileB::kSize);
    const bool a_aligned = is_aligned(a), b_aligned = is_aligned(b);
    TileA a_tile;
    TileB b_tile;
    // the first turn only loads, so that there is one copy of the code for all turns
#pragma unroll 1
    for (int start = -kTileDepth; start < K; start += kTileDepth) {
      const int buffer = kBuffers == 1 ? 0 : start / kTileDepth % kBuffers;
      Type* const a_now = a_shared + buffer * TileA::kSize;
      Type* const b_now = b_shared + buffer * TileB::kSize;
      if (start >= 0) {
        // with two buffers, all threads had read this one before the barrier of the previous turn
        if (kBuffers == 1 && start > 0) dev::sync_block();
        a_tile.store(a_now, thread);
        b_tile.store(b_now, thread);
        dev::sync_block();
      }
      if (start + kTileDepth < K) {
        a_tile.load(a, start + kTileDepth, K, a_aligned, thread);
        b_tile.load(b, start + kTileDepth, K, b_aligned, thread);
      }
      if (start >= 0 && has_entries()) {
        const int depth = min_of(kTileDepth, K - start);
#pragma unroll 1
        for (int first = 0; first < depth; first += kStep * kSteps) {
#pragma unroll
          for (int k = 0; k < kStep * kSteps; k += kStep) multiply(a_now, b_now, first + k);
        }
      }
    }
    dev::sync_block();
  }

  // one step from k on
  NOPROP_DEV void multiply(const float* a, const float* b, int k) {
    float left[SIDE][4], right[4][SIDE];
#pragma unroll
    for (int j = 0; j < SIDE; ++j) {
      if constexpr (A == Major::kSum) {
        const auto four = neighbours<4>(a + (first_row + j) * TileA::kStride + k);
        for (int e = 0; e < 4; ++e) left[j][e] = four.value[e];
      }
      if constexpr (B == Major::kSum) {
        const auto four = neighbours<4>(b + (first_column + j * 16) * TileB::kStride + k);
        for (int e = 0; e < 4; ++e) right[e][j] = four.value[e];
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (A == Major::kTile) {
        const auto side = neighbours<SIDE>(a + (k + e) * TileA::kStride + first_row);
        for (int j = 0; j < SIDE; ++j) left[j][e] = side.value[j];
      }
      if constexpr (B == Major::kTile) {
        const auto side = neighbours<SIDE>(b + (k + e) * TileB::kStride + first_column);
        for (int j = 0; j < SIDE; ++j) right[e][j] = side.value[j];
      }
#pragma unroll
      for (int at = 0; at < kEntries; ++at) {
        sum[at] = dev::fma_rn(left[at / SIDE][e], right[e][at % SIDE], sum[at]);
      }
    }
  }

  template <int N>
  NOPROP_DEV static Neighbours<float, N> neighbours(const float* from) {
    return *reinterpret_cast<const Neighbours<float, N>*>(from);
  }

  NOPROP_DEV void multiply(const uint32_t* a, const uint32_t* b, int k) {
    const int g = thread % kLanes / 4, t = thread % 4;
    uint32_t left[MM][4], right[NN][2];
#pragma unroll
    for (int m = 0; m < MM; ++m) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        left[m][r] = word<TileA>(a, first_row + m * 16 + g + r % 2 * 8, k + t + r / 2 * 4);
      }
    }
#pragma unroll
    for (int n = 0; n < NN; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        right[n][r] = word<TileB>(b, first_column + n * 8 + g, k + t + r * 4);
      }
    }
#pragma unroll
    for (int at = 0; at < MM * NN; ++at) {
      dev::mma_tf32(four_sums(at), left[at / NN], right[at % NN]);
    }
  }

  template <typename Tile>
  NOPROP_DEV static uint32_t word(const uint32_t* from, int index, int k) {
    return Tile::kSummed ? from[index * Tile::kStride + k] : from[k * Tile::kStride + index];
  }

  NOPROP_DEV void multiply(const uint16_t* a, const uint16_t* b, int k) {
    const int low = thread % 8, odd = thread / 8 % 2 * 8, high = thread / 16 % 2 * 8;
    uint32_t left[MM][4], right[NN][2];
#pragma unroll
    for (int m = 0; m < MM; ++m) {
      load<TileA>(left[m], a, first_row + m * 16, k, low, odd, high);
    }
    if constexpr (NN == 2) {  // (columns, k): 0 0, 0 8, 8 0, 8 8
      uint32_t both[4];
      load<TileB>(both, b, first_column, k, low, high, odd);
#pragma unroll
      for (int r = 0; r < 4; ++r) right[r / 2][r % 2] = both[r];
    } else {
      load<TileB>(right[0], b, first_column, k, low, 0, odd);
    }
#pragma unroll
    for (int at = 0; at < MM * NN; ++at) {
      dev::mma_bf16(four_sums(at), left[at / NN], right[at % NN]);
    }
  }

  // matrices at (first + down, k + along), of the lane's row `low`
  template <typename Tile, int N>
  NOPROP_DEV static void load(uint32_t (&to)[N], const uint16_t* from, int first, int k, int low,
                              int down, int along) {
    if constexpr (Tile::kSummed) {
      dev::ldmatrix<N, false>(to, from + (first + down + low) * Tile::kStride + k + along);
    } else {
      dev::ldmatrix<N, true>(to, from + (k + along + low) * Tile::kStride + first + down);
    }
  }

  NOPROP_DEV float (&four_sums(int at))[4] { return *reinterpret_cast<float (*)[4]>(sum + 4 * at); }
};

}  // namespace noprop::cuda
