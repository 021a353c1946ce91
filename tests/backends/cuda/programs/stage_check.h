// What the programs here share: a launch of three slices out of five that are held, values that are
// the same in every run, and a count of what failed.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/program.h"
#include "noprop_cuda.h"

namespace noprop::cuda {

inline int failures = 0, checks = 0;

inline void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

// values in -1 .. 1, the same in every run
struct Random {
  uint64_t state;
  float next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state >> 32)) / 2147483648.0f;
  }
};

// floats whose first lies `shift` floats behind an aligned address, between two of NaN
struct Floats {
  std::vector<float> all;
  int shift;
  size_t size;
  float* data() { return all.data() + 4 + shift; }
  float& operator[](size_t i) { return data()[i]; }
  Floats(size_t size, int shift, Random* random) : all(size + 12, NAN), shift(shift), size(size) {
    for (size_t i = 0; i < size; ++i) (*this)[i] = random ? random->next() : NAN;
  }
  bool fence_stands() {
    bool stands = true;
    for (size_t i = 0; i < all.size(); ++i) {
      const bool inside = i >= 4u + shift && i < 4u + shift + size;
      if (!inside) stands = stands && std::isnan(all[i]);
    }
    return stands;
  }
};

inline double rounded(float value, Precision precision) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (precision == Precision::kTf32) bits = (bits + 0x1000) & ~0x1FFFu;
  if (precision == Precision::kBFloat16) bits = (bits + 0x7FFF + (bits >> 16 & 1)) & ~0xFFFFu;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline Buffer buffer(float* data, int64_t slice, int64_t step = 0) {
  return {data, step, slice, 0};
}

inline int cdiv(int a, int b) { return (a + b - 1) / b; }

constexpr int kSlices = 3, kHeld = 5;
inline const int64_t kIndex[kSlices] = {4, 0, 2};

struct Launch {
  Program p = {};
  std::vector<uint32_t> barriers;
  Launch(int B, Precision precision, int groups, int blocks) : barriers(groups, 77) {
    p.index = kIndex;
    p.barriers = barriers.data();
    p.n = kSlices;
    p.K = 1;
    p.B = B;
    p.groups = groups;
    p.blocks = blocks;
    p.precision = precision;
  }
  Stage& add(Kind kind, int tiles) {
    Stage& stage = p.stages[p.num_stages];
    stage.kind = kind;
    stage.tiles = tiles;
    stage.first = p.num_stages++;
    stage.barrier = 1;
    stage.once = -1;
    return stage;
  }
  void run(const std::string& what) {
    const int failed = noprop_cuda_launch(&p, sizeof(p), 0, nullptr);
    expect(failed == 0, what + ": " + noprop_cuda_error());
  }
};

inline double worst_of(double worst, float got, double exact) {
  return std::isnan(got) ? INFINITY : std::fmax(worst, std::fabs(got - exact));
}

// the exit status of a program
inline int report() {
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures < 100 ? failures : 100;
}

}  // namespace noprop::cuda
