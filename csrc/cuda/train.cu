// The persistent kernel, once for each precision of its products.
#include "cuda/run.cuh"
#include "cuda/runtime.h"

namespace noprop::cuda {
namespace {

template <Precision P>
__global__ void __launch_bounds__(kThreads, 1) train(const __grid_constant__ Program p) {
  DYN_SMEM(shared);
  run<P>(p, shared);
}

}  // namespace

Kernel kernel_of(Precision precision) {
  switch (precision) {
    case Precision::kFloat32:
      return {reinterpret_cast<const void*>(train<Precision::kFloat32>),
              Scratch<Precision::kFloat32>::kBytes};
    case Precision::kTf32:
      return {reinterpret_cast<const void*>(train<Precision::kTf32>),
              Scratch<Precision::kTf32>::kBytes};
    default:
      return {reinterpret_cast<const void*>(train<Precision::kBFloat16>),
              Scratch<Precision::kBFloat16>::kBytes};
  }
}

}  // namespace noprop::cuda
