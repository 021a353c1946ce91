// The persistent kernel's loop. Each group of thread blocks takes its slices one after another and
// runs all K steps of each. A step is a walk over the program's stages.
//
// A thread block does its own tiles of a stage in order. A group barrier separates one block's
// writes from another block's reads. Moments that have a place in shared memory are fetched when a
// slice begins and put back when it ends.
#pragma once

#include <type_traits>

#include "cuda/dense.cuh"
#include "cuda/gather.cuh"
#include "cuda/head.cuh"
#include "cuda/loss.cuh"
#include "cuda/noise.cuh"
#include "cuda/norm.cuh"
#include "cuda/step_gradients.cuh"
#include "cuda/update.cuh"

namespace noprop::cuda {

// shared memory for one tile at a time; resident state comes after it
template <Precision P>
struct Scratch {
  static constexpr int kForward = Product<P, 64, Major::kSum, Major::kSum>::kScratch;
  static constexpr int kBackward = Product<P, 64, Major::kSum, Major::kTile>::kScratch;
  static constexpr int kUpdate = WeightSums<P>::kScratch;
  static constexpr int kMost = kForward > kBackward ? kForward : kBackward;
  static constexpr int kProducts = kMost > kUpdate ? kMost : kUpdate;
  static constexpr int kBytes = kProducts > kScratchBytes ? kProducts : kScratchBytes;
};

// Calls visit(stage, tile) for a thread block's own tiles of a stage. The stage is looked up for
// each tile, or the compiler would keep all of its fields in registers from tile to tile.
template <typename Visit>
NOPROP_DEV void own_tiles(const Program& p, int number, int rank, Visit visit) {
  const int first = rank - p.stages[number].first % p.blocks, tiles = p.stages[number].tiles;
  for (int t = first < 0 ? first + p.blocks : first; t < tiles; t += p.blocks) {
    visit(p.stages[dev::fresh(number)], t);
  }
}

// visit(size) of a tile, a constant
template <typename Visit>
NOPROP_DEV void with_tile(int size, Visit visit) {
  if (size == 16) return visit(std::integral_constant<int, 16>{});
  if (size == 32) return visit(std::integral_constant<int, 32>{});
  visit(std::integral_constant<int, 64>{});
}

NOPROP_DEV float* resident_of(const Program& p, const UpdateWeightStage& s, int tile_of_own,
                              float* resident) {
  if (tile_of_own >= s.resident_tiles) return nullptr;
  return resident + s.resident + tile_of_own * moments(p.hyper.rule) * kTileEntries;
}

template <Precision P>
NOPROP_DEV void run_stage(const Program& p, int number, const Coord& coord, int rank,
                          float* resident, unsigned char* scratch) {
  const auto each = [&](auto do_tile) { own_tiles(p, number, rank, do_tile); };
  switch (p.stages[number].kind) {
    case Kind::kGather:
      return each(
          [&](const Stage& stage, int t) { gather_tile(p, stage.gather, coord, t, scratch); });
    case Kind::kNoise:
      return each(
          [&](const Stage& stage, int t) { noise_tile(p, stage.noise, coord, t, scratch); });
    case Kind::kDense:
      return with_tile(p.stages[number].dense.tile, [&](auto size) {
        each([&](const Stage& stage, int t) {
          dense_tile<P, size.value>(p, stage.dense, coord, t, scratch);
        });
      });
    case Kind::kNorm:
      return each([&](const Stage& stage, int t) { norm_tile(p, stage.norm, coord, t, scratch); });
    case Kind::kHead:
      return each([&](const Stage& stage, int t) { head_tile(p, stage.head, coord, t, scratch); });
    case Kind::kLoss:
      return each([&](const Stage& stage, int t) { loss_tile(p, stage.loss, coord, t, scratch); });
    case Kind::kRates:
      return each(
          [&](const Stage& stage, int t) { rates_tile(p, stage.rates, coord, t, scratch); });
    case Kind::kResultGradient:
      return with_tile(p.stages[number].result_gradient.tile, [&](auto size) {
        each([&](const Stage& stage, int t) {
          result_gradient_tile<P, size.value>(p, stage.result_gradient, coord, t, scratch);
        });
      });
    case Kind::kNormGradient:
      return each([&](const Stage& stage, int t) {
        norm_gradient_tile(p, stage.norm_gradient, coord, t, scratch);
      });
    case Kind::kStepGradients:
      return each([&](const Stage& stage, int t) {
        step_gradients_tile(p, stage.step_gradients, coord, t, scratch);
      });
    case Kind::kEmbedding:
      return each([&](const Stage& stage, int t) {
        embedding_tile(p, stage.embedding, coord, t, scratch);
      });
    case Kind::kUpdateWeight: {
      int own = 0;
      return each([&](const Stage& stage, int t) {
        const UpdateWeightStage& s = stage.update_weight;
        update_weight_tile<P>(p, s, coord, t, resident_of(p, s, own++, resident), scratch);
      });
    }
    case Kind::kUpdateVector:
      return each([&](const Stage& stage, int t) {
        update_vector_tile(p, stage.update_vector, coord, t, scratch);
      });
    case Kind::kUpdateStatistic:
      return each([&](const Stage& stage, int t) {
        update_statistic_tile(p, stage.update_statistic, coord, t);
      });
    case Kind::kApply:
      return each([&](const Stage& stage, int t) { apply_tile(p, stage.apply, coord, t); });
    case Kind::kUHat:
      return each(
          [&](const Stage& stage, int t) { u_hat_tile(p, stage.u_hat, coord, t, scratch); });
    case Kind::kChain:
      return each(
          [&](const Stage& stage, int t) { chain_tile(p, stage.chain, coord, t, scratch); });
  }
}

// copies a slice's moments that stay in shared memory, to it or back
template <Precision P, bool FETCH>
NOPROP_DEV void move_resident(const Program& p, int64_t slice, int rank, float* resident) {
  for (int stage = 0; stage < p.num_stages; ++stage) {
    if (p.stages[stage].kind != Kind::kUpdateWeight) continue;
    int own = 0;
    own_tiles(p, stage, rank, [&](const Stage& each, int t) {
      const UpdateWeightStage& s = each.update_weight;
      float* const moments = resident_of(p, s, own++, resident);
      if (moments != nullptr) move_moments<P, FETCH>(p, s, slice, t, moments);
    });
  }
}

#ifdef NOPROP_CUDA_CLOCKS
constexpr bool kClocks = true;
#else
constexpr bool kClocks = false;
#endif

// adds the cycles since `since` to an entry of the program's clocks
NOPROP_DEV void lap(const Program& p, int entry, int64_t& since) {
  if (!kClocks || p.clocks == nullptr || blockIdx.x != 0 || thread_index() != 0) return;
  const int64_t now = dev::clock_now();
  p.clocks[entry] += now - since;
  since = now;
}

template <Precision P>
NOPROP_DEV void run(const Program& p, unsigned char* shared) {
  float* const resident = reinterpret_cast<float*>(shared + Scratch<P>::kBytes);
  const int g = static_cast<int>(blockIdx.x) / p.blocks;
  const int rank = static_cast<int>(blockIdx.x) % p.blocks;
  uint32_t epoch = 0;
  for (int64_t i = g; i < p.n; i += p.groups) {
    int64_t held = -1;  // the slice whose moments are here
    for (int k = 0; k < p.K; ++k) {
      const Coord coord{k, i, p.index[k * p.index_stride + i], g};
      if (coord.slice != held) {
        if (held >= 0) move_resident<P, false>(p, held, rank, resident);
        held = coord.slice;
        move_resident<P, true>(p, held, rank, resident);
      }
      int64_t since = kClocks ? dev::clock_now() : 0;
      for (int stage = 0; stage < p.num_stages; ++stage) {
        const Stage& s = p.stages[stage];
        if (s.once < 0 || s.once == k) run_stage<P>(p, stage, coord, rank, resident, shared);
        lap(p, 2 * stage, since);
        if (s.barrier == 0) continue;
        if (dev::kClusters && p.cluster) {
          dev::cluster_barrier();
        } else if (p.blocks > 1) {
          dev::group_barrier(p.barriers + g, p.blocks, epoch);
        } else {
          dev::sync_block();
        }
        lap(p, 2 * stage + 1, since);
      }
    }
    if (held >= 0) move_resident<P, false>(p, held, rank, resident);
  }
}

}  // namespace noprop::cuda
