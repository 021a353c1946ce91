// One stage of a program on the emulator, behind a C function that Python's ctypes can call.
#include "cuda/description.h"
#include "cuda/gather.cuh"
#include "cuda/head.cuh"
#include "cuda/loss.cuh"
#include "cuda/noise.cuh"
#include "cuda/norm.cuh"
#include "cuda/step_gradients.cuh"
#include "host_cuda.h"

namespace noprop::cuda {
namespace {

void run_tile(const Program& p, const Stage& s, const Coord& coord, int tile,
              unsigned char* scratch) {
  switch (s.kind) {
    case Kind::kGather:
      return gather_tile(p, s.gather, coord, tile, scratch);
    case Kind::kNoise:
      return noise_tile(p, s.noise, coord, tile, scratch);
    case Kind::kNorm:
      return norm_tile(p, s.norm, coord, tile, scratch);
    case Kind::kHead:
      return head_tile(p, s.head, coord, tile, scratch);
    case Kind::kLoss:
      return loss_tile(p, s.loss, coord, tile, scratch);
    case Kind::kRates:
      return rates_tile(p, s.rates, coord, tile, scratch);
    case Kind::kNormGradient:
      return norm_gradient_tile(p, s.norm_gradient, coord, tile, scratch);
    case Kind::kStepGradients:
      return step_gradients_tile(p, s.step_gradients, coord, tile, scratch);
    case Kind::kEmbedding:
      return embedding_tile(p, s.embedding, coord, tile, scratch);
    case Kind::kUHat:
      return u_hat_tile(p, s.u_hat, coord, tile, scratch);
    case Kind::kChain:
      return chain_tile(p, s.chain, coord, tile, scratch);
    default:
      hc::fail("stage_kernel: no stage of kind %d here", static_cast<int>(s.kind));
  }
}

void stage_kernel(const Program* program) {
  DYN_SMEM(shared);
  const Program& p = *program;
  const Stage& s = p.stages[0];
  const int group = static_cast<int>(blockIdx.x) / p.blocks;
  const int rank = static_cast<int>(blockIdx.x) % p.blocks;
  uint32_t epoch = 0;
  for (int64_t i = group; i < p.n; i += p.groups) {
    for (int k = 0; k < p.K; ++k) {
      const Coord coord{k, i, p.index[k * p.index_stride + i], group};
      for (int tile = rank; tile < s.tiles; tile += p.blocks) {
        run_tile(p, s, coord, tile, shared);
      }
      dev::group_barrier(p.barriers + group, static_cast<uint32_t>(p.blocks), epoch);
    }
  }
}

}  // namespace
}  // namespace noprop::cuda

using noprop::cuda::Description;
using noprop::cuda::Program;

// JSON, by description.h
extern "C" const char* description() {
  static const std::string text = Description::of_program();
  return text.c_str();
}

// null, or why the launch failed
extern "C" const char* run_stage(const Program* program, int seed) {
  hc::Options options;
  options.seed = static_cast<uint64_t>(seed);
  const auto blocks = static_cast<unsigned>(program->groups * program->blocks);
  const int failed = hc::launch("stage", noprop::cuda::stage_kernel, blocks, noprop::cuda::kThreads,
                                noprop::cuda::kScratchBytes, options, program);
  return failed ? hc::last_error() : nullptr;
}

// four words of Philox4x32-10, in place of its counter
extern "C" void philox_words(uint32_t* words, uint64_t seed) {
  const auto made = noprop::cuda::philox({words[0], words[1], words[2], words[3]}, seed);
  words[0] = made.r0, words[1] = made.r1, words[2] = made.r2, words[3] = made.r3;
}
