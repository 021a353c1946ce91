// Programs that a launch refuses by name, before anything is written.
#include <functional>

#include "stage_check.h"

using namespace noprop::cuda;

namespace {

void refused(const char* part, const std::function<void(Launch&)>& change) {
  Launch launch(3, Precision::kFloat32, 1, 1);
  launch.add(Kind::kDense, 1).dense.tile = 16;
  change(launch);
  const int failed = noprop_cuda_launch(&launch.p, sizeof(launch.p), 0, nullptr);
  expect(failed == 1 && std::strstr(noprop_cuda_error(), part) != nullptr,
         std::string("refusal: wants '") + part + "', got '" + noprop_cuda_error() + "'");
  expect(launch.barriers[0] == 77, "refusal: something was written");
}

void test_refusals() {
  refused("holds 16 thread blocks", [](Launch& l) { l.p.groups = 4, l.p.blocks = 5; });
  refused("a cluster may have 1 to 8 thread blocks, got 9",
          [](Launch& l) { l.p.cluster = 1, l.p.blocks = 9; });
  refused("cluster of a program must be in 0..1", [](Launch& l) { l.p.cluster = 2; });
  refused("shared memory", [](Launch& l) { l.p.resident_floats = 60000; });
  refused("B of a program must be in 1..", [](Launch& l) { l.p.B = 0; });
  refused("num_stages of a program", [](Launch& l) { l.p.num_stages = kMaxStages + 1; });
  refused("precision of a program", [](Launch& l) { l.p.precision = static_cast<Precision>(3); });
  refused("tile of stage 0 must be 16, 32 or 64, got 48",
          [](Launch& l) { l.p.stages[0].dense.tile = 48; });
  refused("last stage of a program must have a barrier",
          [](Launch& l) { l.p.stages[0].barrier = 0; });
  refused("kind of stage 0", [](Launch& l) { l.p.stages[0].kind = static_cast<Kind>(99); });
  refused("resident moments of stage 0", [](Launch& l) {
    l.p.stages[0] = {};
    l.p.stages[0].kind = Kind::kUpdateWeight;
    l.p.stages[0].barrier = 1;
    l.p.hyper.rule = UpdateRule::kAdam;
    l.p.stages[0].update_weight.resident_tiles = 1;
    l.p.resident_floats = 2 * kTileH * kTileF - 1;
  });
  Launch launch(3, Precision::kFloat32, 1, 1);
  expect(noprop_cuda_launch(&launch.p, 8, 0, nullptr) == 1, "refusal: a program of 8 bytes");
  expect(noprop_cuda_launch(&launch.p, sizeof(launch.p), 1, nullptr) == 1, "refusal: device 1");
}

}  // namespace

int main() {
  test_refusals();
  return report();
}
