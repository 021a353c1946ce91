// Noise: Philox4x32-10 (Salmon et al. 2011) and Box-Muller, the noisy embedding, and the chain's z.
//
//   z = signal * u_y + noise * eps + sigma * eps_1
//
// A counter gives four neighbouring columns. Where a tile has fewer counters than a thread block
// has pairs of threads, two threads share one and make two columns each.
#pragma once

#include "cuda/reduce.cuh"

namespace noprop::cuda {

constexpr uint32_t kStreamEps1 = 1, kStreamInference = 2;
constexpr uint32_t kBlockZ0 = 0xFFFF;  // of the chain's first z

struct Words {
  uint32_t r0, r1, r2, r3;
};

struct Normals {
  float first, second;
};

NOPROP_DEV Words philox(Words c, uint64_t seed) {
  uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high_0 = dev::mul_hi(c.r0, 0xD2511F53u), low_0 = c.r0 * 0xD2511F53u;
    const uint32_t high_1 = dev::mul_hi(c.r2, 0xCD9E8D57u), low_1 = c.r2 * 0xCD9E8D57u;
    c = {high_1 ^ c.r1 ^ key_0, low_1, high_0 ^ c.r3 ^ key_1, low_0};
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return c;
}

// {cos, sin}(2 pi v), v = (word >> 8) 2^-24: the quadrant and what remains of v are exact
NOPROP_DEV Normals cos_sin_turns(uint32_t word) {
  const int v = static_cast<int>(word >> 8);
  const int quadrant = (v + (1 << 21)) >> 22;
  const float r = static_cast<float>(v - (quadrant << 22)) * 0x1p-22f;  // in [-1/2, 1/2]
  const float r2 = r * r;
  // Taylor's coefficients of sin(pi/2 r) and cos(pi/2 r)
  float sine = 1.6044118e-4f * r2 - 4.6817541e-3f;
  sine = sine * r2 + 7.9692626e-2f;
  sine = sine * r2 - 6.4596409e-1f;
  sine = (sine * r2 + 1.5707963f) * r;
  float cosine = -2.5202042e-5f * r2 + 9.1926028e-4f;
  cosine = cosine * r2 - 2.0863481e-2f;
  cosine = cosine * r2 + 2.5366951e-1f;
  cosine = cosine * r2 - 1.2337006f;
  cosine = cosine * r2 + 1.0f;
  const float x = quadrant & 1 ? sine : cosine, y = quadrant & 1 ? cosine : sine;
  return {(quadrant + 1) & 2 ? -x : x, quadrant & 2 ? -y : y};
}

// two normals from two words: sqrt(-2 ln u) {cos, sin}(2 pi v)
NOPROP_DEV Normals box_muller(uint32_t r0, uint32_t r1) {
  const float u = static_cast<float>(static_cast<int>(r0 >> 8) + 1) * 0x1p-24f;  // in (0, 1]
  const float radius = dev::sqrt_rn(fmaxf(-2.0f * logf(u), 0.0f));
  const Normals turn = cos_sin_turns(r1);
  return {radius * turn.first, radius * turn.second};
}

// The position of a thread's normals: `row` of the tile, columns 4 group + 2 half + {0, 1}, for
// each half from first_half on, in steps of half_step.
struct Draw {
  int row, group, first_half, half_step;
};

// calls visit(Draw) for all that a tile of `rows` rows and D columns draws
template <typename Visit>
NOPROP_DEV void for_draws(int rows, int D, Visit visit) {
  const int groups = (D + 3) / 4;
  const int sharers = 2 * kRows * groups <= kThreads ? 2 : 1;
  const int across = groups * sharers;
  for (int item = thread_index(); item < rows * across; item += kThreads) {
    const int row = item / across, rest = item - row * across;
    visit(Draw{row, rest / sharers, rest % sharers, sharers});
  }
}

NOPROP_DEV Normals half_of(const Words& words, int half) {
  return half == 0 ? box_muller(words.r0, words.r1) : box_muller(words.r2, words.r3);
}

// A row's label. `bad` is 1 if it is out of range, 2 if its index is; such a label becomes 0.
struct Label {
  int64_t y;
  int32_t bad;
};

NOPROP_DEV Label read_label(const Program& p, const NoiseStage& s, const Coord& coord, int row) {
  Label label{0, 0};
  if (const int64_t* indices = at(s.rows, coord, p.B); indices != nullptr) {
    const int64_t index = indices[row];
    const bool found = index >= 0 && index < s.rows.rows;
    label = {found ? s.y.data[index] : 0, found ? 0 : 2};
  } else {
    label.y = at(s.y, coord)[row * s.y.stride_row];
  }
  if (label.y < 0 || label.y >= s.M) label = {0, label.bad | 1};
  return label;
}

NOPROP_DEV void noise_tile(const Program& p, const NoiseStage& s, const Coord& coord, int tile,
                           unsigned char*) {
  const int first = tile * kRows, rows = tile_rows(p, tile);
  if (warp_index() == 0) {
    Label label{0, 0};
    if (lane_index() < rows) {
      label = read_label(p, s, coord, first + lane_index());
      if (int64_t* labels = at<int64_t>(s.labels, coord)) labels[first + lane_index()] = label.y;
    }
    const int32_t bad = warp_or(label.bad);
    if (int32_t* flags = at<int32_t>(s.bad, coord); flags != nullptr && lane_index() == 0) {
      flags[tile] = bad;
    }
  }
  float *z = at<float>(s.z, coord), *eps = at<float>(s.eps, coord);
  const float *signal = at(s.signal, coord), *noise = at(s.noise, coord);
  const uint64_t seed = static_cast<uint64_t>(s.seeds[coord.i]);
  const uint32_t draw = static_cast<uint32_t>(*at(s.draw, coord));
  const uint32_t block = static_cast<uint32_t>(*at(s.block, coord));
  const bool second = s.sigma != 0.0f;
  for_draws(rows, s.D, [&](const Draw& part) {
    const int64_t row = first + part.row;
    const int64_t y = read_label(p, s, coord, static_cast<int>(row)).y;
    const float signal_b = signal[row * s.signal.stride_row],
                noise_b = noise[row * s.noise.stride_row];
    const uint32_t group = static_cast<uint32_t>(part.group);
    const uint32_t counter_row = static_cast<uint32_t>(s.first_row + row);
    const Words words = philox({group, counter_row, block | s.stream << 16, draw}, seed);
    Words words_1{};
    if (second) words_1 = philox({group, counter_row, block | kStreamEps1 << 16, draw}, seed);
    for (int half = part.first_half; half < 2; half += part.half_step) {
      const Normals e = half_of(words, half);
      const Normals e_1 = second ? half_of(words_1, half) : Normals{0.0f, 0.0f};
      for (int j = 0; j < 2; ++j) {
        const int column = 4 * part.group + 2 * half + j;
        if (column >= s.D) break;
        const float eps_d = j == 0 ? e.first : e.second;
        if (eps != nullptr) eps[row * s.D + column] = eps_d;
        if (z == nullptr) continue;
        const float u_y =
            s.W_embed == nullptr ? static_cast<float>(column == y) : s.W_embed[y * s.D + column];
        float value = signal_b * u_y + noise_b * eps_d;
        if (second) value += s.sigma * (j == 0 ? e_1.first : e_1.second);
        z[row * s.D + column] = value;
      }
    }
  });
}

NOPROP_DEV void chain_tile(const Program& p, const ChainStage& s, const Coord& coord, int tile,
                           unsigned char*) {
  const int first = tile * kRows, rows = tile_rows(p, tile);
  float* z = at<float>(s.z, coord);
  const float *before = at<const float>(s.before, coord), *u_hat = at<const float>(s.u_hat, coord);
  const uint64_t seed = static_cast<uint64_t>(s.seeds[coord.i]);
  const bool draws = before == nullptr || s.sqrt_c != nullptr;
  const uint32_t block = before == nullptr ? kBlockZ0 : static_cast<uint32_t>(coord.k);
  for_draws(rows, s.D, [&](const Draw& part) {
    const int64_t row = first + part.row;
    Words words{};
    if (draws) {
      words = philox({static_cast<uint32_t>(part.group), static_cast<uint32_t>(s.first_row + row),
                      block | kStreamInference << 16, static_cast<uint32_t>(s.sample)},
                     seed);
    }
    for (int half = part.first_half; half < 2; half += part.half_step) {
      const Normals e = draws ? half_of(words, half) : Normals{0.0f, 0.0f};
      for (int j = 0; j < 2; ++j) {
        const int column = 4 * part.group + 2 * half + j;
        if (column >= s.D) break;
        const int64_t d = row * s.D + column;
        float value = j == 0 ? e.first : e.second;
        if (before != nullptr) {
          const float noise = value;
          value = s.a[coord.k] * u_hat[d] + s.b[coord.k] * before[d];
          if (draws) value += s.sqrt_c[coord.k] * noise;
        }
        z[d] = value;
      }
    }
  });
}

}  // namespace noprop::cuda
