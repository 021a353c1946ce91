// One stage of a program on the emulator, behind a C function that Python's ctypes can call.
#include "cuda/description.h"
#include "cuda/run.cuh"
#include "host_cuda.h"

namespace noprop::cuda {
namespace {

constexpr Precision kPrecision = Precision::kFloat32;

void stage_kernel(const Program* program) {
  DYN_SMEM(shared);
  run<kPrecision>(*program, shared);
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
  const int failed =
      hc::launch("stage", noprop::cuda::stage_kernel, blocks, noprop::cuda::kThreads,
                 noprop::cuda::Scratch<noprop::cuda::kPrecision>::kBytes, options, program);
  return failed ? hc::last_error() : nullptr;
}

// four words of Philox4x32-10, in place of its counter
extern "C" void philox_words(uint32_t* words, uint64_t seed) {
  const auto made = noprop::cuda::philox({words[0], words[1], words[2], words[3]}, seed);
  words[0] = made.r0, words[1] = made.r1, words[2] = made.r2, words[3] = made.r3;
}
