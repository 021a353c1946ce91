// Stages with products, and the updates, against plain loops in float64 that round where the kernel
// rounds. Prints what differs; the exit status is the number of failures.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/program.h"
#include "noprop_cuda.h"

using namespace noprop::cuda;

namespace {

int failures = 0, checks = 0;

void expect(bool good, const std::string& what) {
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

double rounded(float value, Precision precision) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (precision == Precision::kTf32) bits = (bits + 0x1000) & ~0x1FFFu;
  if (precision == Precision::kBFloat16) bits = (bits + 0x7FFF + (bits >> 16 & 1)) & ~0xFFFFu;
  std::memcpy(&value, &bits, 4);
  return value;
}

Buffer buffer(float* data, int64_t slice, int64_t step = 0) {
  return {data, nullptr, step, slice, 0};
}

int cdiv(int a, int b) { return (a + b - 1) / b; }

constexpr int kSlices = 3, kHeld = 5;
const int64_t kIndex[kSlices] = {4, 0, 2};

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

double tolerance(int terms) { return 4e-7 * std::sqrt(terms) * 2; }

std::string named(const char* what, Precision precision, int a, int b, int c, int tile) {
  char text[128];
  std::snprintf(text, sizeof(text), "%s precision %d, %d %d %d, tile %d", what,
                static_cast<int>(precision), a, b, c, tile);
  return text;
}

void test_dense(Precision precision, int B, int H, std::vector<int> widths, int tile, int shift,
                bool relu) {
  const std::string what = named("dense", precision, B, H, widths[0], tile);
  Random random{static_cast<uint64_t>(B * 131 + H)};
  int in = 0;
  for (int width : widths) in += width;
  std::vector<Floats> x;
  for (int width : widths) x.emplace_back(size_t(kSlices) * B * width, shift, &random);
  Floats w(size_t(kHeld) * H * in, shift, &random), bias(size_t(kHeld) * H, 0, &random);
  Floats add(size_t(B) * H, shift, &random);
  Floats out(size_t(kSlices) * B * H, shift, nullptr), act(size_t(kSlices) * B * H, 0, nullptr);

  Launch launch(B, precision, 2, 3);
  DenseStage& s = launch.add(Kind::kDense, cdiv(B, tile) * cdiv(H, tile)).dense;
  s.out = buffer(out.data(), int64_t(B) * H);
  s.activated = buffer(act.data(), int64_t(B) * H);
  s.add = buffer(add.data(), 0);  // shared by the slices
  for (size_t j = 0; j < widths.size(); ++j) {
    s.sources[j] = buffer(x[j].data(), int64_t(B) * widths[j]);
    s.widths[j] = widths[j];
  }
  s.weight = w.data(), s.bias = bias.data();
  s.num_sources = static_cast<int>(widths.size()), s.H = H, s.in_width = in;
  s.relu = relu, s.tile = tile;
  launch.run(what);

  double worst = 0;
  for (int i = 0; i < kSlices; ++i) {
    for (int b = 0; b < B; ++b) {
      for (int h = 0; h < H; ++h) {
        double y = bias[kIndex[i] * H + h];
        int column = 0;
        for (size_t j = 0; j < widths.size(); ++j) {
          for (int f = 0; f < widths[j]; ++f, ++column) {
            y += rounded(x[j][(size_t(i) * B + b) * widths[j] + f], precision) *
                 rounded(w[(kIndex[i] * H + h) * in + column], precision);
          }
        }
        if (relu && y < 0) y = 0;
        const size_t at = (size_t(i) * B + b) * H + h;
        worst = std::fmax(worst, std::fabs(act[at] - y));
        worst = std::fmax(worst, std::fabs(out[at] - (y + add[size_t(b) * H + h])));
        if (std::isnan(out[at]) || std::isnan(act[at])) worst = INFINITY;
      }
    }
  }
  expect(worst < tolerance(in), what + ": error " + std::to_string(worst * 1e6) + "e-6");
  expect(out.fence_stands() && act.fence_stands(), what + ": writes outside");
}

void test_result_gradient(Precision precision, int B, int F, int height, int tile, int shift) {
  const std::string what = named("result gradient", precision, B, F, height, tile);
  Random random{static_cast<uint64_t>(B * 17 + F)};
  const int in[2] = {F + 3, F}, heights[2] = {height, height + 5}, column[2] = {3, 0};
  Floats d[2] = {{size_t(kSlices) * B * heights[0], shift, &random},
                 {size_t(kSlices) * B * heights[1], shift, &random}};
  Floats w[2] = {{size_t(kHeld) * heights[0] * in[0], shift, &random},
                 {size_t(kHeld) * heights[1] * in[1], 0, &random}};
  const size_t size = size_t(kSlices) * B * F;
  Floats added(size, shift, &random), act(size, shift, &random), dy(size, shift, nullptr),
      dr(size, 0, nullptr);

  Launch launch(B, precision, 3, 2);
  ResultGradientStage& s =
      launch.add(Kind::kResultGradient, cdiv(B, tile) * cdiv(F, tile)).result_gradient;
  s.d_result = buffer(dr.data(), int64_t(B) * F);
  s.d_y = buffer(dy.data(), int64_t(B) * F);
  s.activated = buffer(act.data(), int64_t(B) * F);
  for (int j = 0; j < 2; ++j) {
    s.consumers[j] = {buffer(d[j].data(), int64_t(B) * heights[j]), w[j].data(), heights[j], in[j],
                      column[j]};
  }
  s.consumers[2] = {buffer(added.data(), int64_t(B) * F), nullptr, F, 1, 0};
  s.num_consumers = 3, s.F = F, s.tile = tile;
  launch.run(what);

  double worst = 0;
  for (int i = 0; i < kSlices; ++i) {
    for (int b = 0; b < B; ++b) {
      for (int f = 0; f < F; ++f) {
        const size_t at = (size_t(i) * B + b) * F + f;
        double sum = added[at];
        for (int j = 0; j < 2; ++j) {
          for (int h = 0; h < heights[j]; ++h) {
            sum += rounded(d[j][(size_t(i) * B + b) * heights[j] + h], precision) *
                   rounded(w[j][(kIndex[i] * heights[j] + h) * in[j] + column[j] + f], precision);
          }
        }
        worst = std::fmax(worst, std::fabs(dr[at] - sum));
        worst = std::fmax(worst, std::fabs(dy[at] - (act[at] <= 0 ? 0 : sum)));
        if (std::isnan(dr[at]) || std::isnan(dy[at])) worst = INFINITY;
      }
    }
  }
  expect(worst < tolerance(2 * height), what + ": error " + std::to_string(worst * 1e6) + "e-6");
  expect(dr.fence_stands() && dy.fence_stands(), what + ": writes outside");
}

struct Reference {
  double w, m, v;
};

// the formulas of update.cuh in float64
void reference_step(Rule rule, const float* rates, double g, Reference& e) {
  const double momentum = 0.9, beta_1 = 0.9, beta_2 = 0.99, eps = 1e-8;
  if (rule == Rule::kAdamW) {
    e.w *= rates[1];
  } else {
    g += rates[1] * e.w;
  }
  if (rule == Rule::kAdam || rule == Rule::kAdamW) {
    e.m += (1 - beta_1) * (g - e.m);
    e.v = beta_2 * e.v + (1 - beta_2) * g * g;
    e.w -= rates[0] * e.m / (std::sqrt(e.v) / rates[2] + eps);
  } else if (rule == Rule::kSgd) {
    e.w -= rates[0] * g;
  } else {
    e.m = momentum * e.m + g;
    e.w -= rates[0] * (rule == Rule::kNesterov ? g + momentum * e.m : e.m);
  }
}

struct State {
  Floats w, m, v, vector, vector_m, vector_v, statistic, applied, applied_m, applied_v;
};

struct Update {
  Rule rule = Rule::kAdamW;
  Precision precision = Precision::kFloat32;
  int B = 9, H = 70, F = 75, in = 80, column = 3, shift = 1, groups = 1, blocks = 1;
  int resident_tiles = 0, K = 1;
};

constexpr int kApply = 1500;

State new_state(const Update& u) {
  Random random{5};
  const auto make = [&](size_t size) { return Floats(size, u.shift, &random); };
  const size_t weight = size_t(kHeld) * u.H * u.in, vector = size_t(kHeld) * u.H;
  State state{make(weight),
              make(weight),
              make(weight),
              make(vector),
              make(vector),
              make(vector),
              make(vector),
              make(size_t(kHeld) * kApply),
              make(size_t(kHeld) * kApply),
              make(size_t(kHeld) * kApply)};
  for (Floats* v : {&state.v, &state.vector_v, &state.applied_v}) {
    for (size_t i = 0; i < v->size; ++i) (*v)[i] = 0.01f + std::fabs((*v)[i]);
  }
  return state;
}

struct Inputs {
  Floats d_y, x, rates, batch, gradient;
  explicit Inputs(const Update& u, Random random = {9})
      : d_y(size_t(u.K) * kSlices * u.B * u.H, u.shift, &random),
        x(size_t(u.K) * u.B * u.F, u.shift, &random),  // shared by the slices
        rates(size_t(kSlices) * 4, 0, &random),
        batch(size_t(kSlices) * u.H, u.shift, &random),
        gradient(size_t(kSlices) * kApply, u.shift, &random) {
    for (int i = 0; i < kSlices; ++i) {
      const float here[4] = {0.01f * float(i + 1), u.rule == Rule::kAdamW ? 0.999f : 0.05f, 0.7f,
                             i == 1 ? 0.0f : 1.0f};  // the slice in the middle does not move
      for (int j = 0; j < 4; ++j) rates[size_t(4) * i + j] = here[j];
    }
  }
};

void launch_update(const Update& u, State& state, Inputs& in, float* grad,
                   const std::string& what) {
  Launch launch(u.B, u.precision, u.groups, u.blocks);
  launch.p.K = u.K;
  launch.p.hyper = {u.rule, 0.9f, float(1 - 0.9), 0.99f, float(1 - 0.99), 1e-8f, 0, 0};
  launch.p.resident_floats = u.resident_tiles * moments(u.rule) * kTileH * kTileF;
  const Buffer rates = buffer(in.rates.data(), 4);
  const Buffer d_y = buffer(in.d_y.data(), int64_t(u.B) * u.H, int64_t(kSlices) * u.B * u.H);

  auto& s = launch.add(Kind::kUpdateWeight, cdiv(u.H, kTileH) * cdiv(u.F, kTileF)).update_weight;
  s.param = {state.w.data(), state.m.data(), state.v.data(), grad, int64_t(u.H) * u.in};
  s.d_y = d_y, s.x = buffer(in.x.data(), 0, int64_t(u.B) * u.F), s.rates = rates;
  s.H = u.H, s.F = u.F, s.in_width = u.in, s.column = u.column;
  s.resident = 0, s.resident_tiles = u.resident_tiles;
  if (u.rule == Rule::kNone) return launch.run(what);

  auto& vector = launch.add(Kind::kUpdateVector, cdiv(u.H, kColumns)).update_vector;
  vector.param = {state.vector.data(), state.vector_m.data(), state.vector_v.data(), nullptr, u.H};
  vector.gradient = d_y, vector.rates = rates, vector.sum = Sum::kRows, vector.H = u.H;
  auto& statistic = launch.add(Kind::kUpdateStatistic, cdiv(u.H, kColumns)).update_statistic;
  statistic.running = state.statistic.data(), statistic.batch = buffer(in.batch.data(), u.H);
  statistic.rates = rates, statistic.momentum = 0.1f, statistic.H = u.H;
  auto& apply = launch.add(Kind::kApply, cdiv(kApply, kApplied)).apply;
  apply.param = {state.applied.data(), state.applied_m.data(), state.applied_v.data(), nullptr,
                 kApply};
  apply.gradient = buffer(in.gradient.data(), kApply), apply.rates = rates;
  launch.run(what);
}

double worst_of(double worst, float got, double exact) {
  return std::isnan(got) ? INFINITY : std::fmax(worst, std::fabs(got - exact));
}

// one parameter against `gradient(k, i, entry)`; entries that nobody steps must stay
double parameter_error(const Update& u, Inputs& in, State& before, Floats State::* w,
                       Floats State::* m, Floats State::* v, State& after, size_t size,
                       const std::function<double(int, int, size_t)>& gradient) {
  double worst = 0;
  for (int slice = 0; slice < kHeld; ++slice) {
    int i = -1;
    for (int j = 0; j < kSlices; ++j) i = kIndex[j] == slice ? j : i;
    for (size_t e = 0; e < size; ++e) {
      const size_t at = slice * size + e;
      Reference exact{(before.*w)[at], (before.*m)[at], (before.*v)[at]};
      for (int k = 0; k < u.K && i >= 0 && in.rates[size_t(4) * i + 3] != 0; ++k) {
        const double g = gradient(k, i, e);
        if (!std::isnan(g)) reference_step(u.rule, &in.rates[size_t(4) * i], g, exact);
      }
      worst = worst_of(worst, (after.*w)[at], exact.w);
      worst = worst_of(worst, (after.*m)[at], exact.m);
      worst = worst_of(worst, (after.*v)[at], exact.v);
    }
  }
  return worst;
}

double weight_gradient(const Update& u, Inputs& in, int k, int i, size_t e) {
  const int h = int(e) / u.in, f = int(e) % u.in - u.column;
  if (f < 0 || f >= u.F) return NAN;
  double g = 0;
  for (int b = 0; b < u.B; ++b) {
    g += rounded(in.d_y[((size_t(k) * kSlices + i) * u.B + b) * u.H + h], u.precision) *
         rounded(in.x[(size_t(k) * u.B + b) * u.F + f], u.precision);
  }
  return g;
}

State test_update(const Update& u) {
  char text[160];
  std::snprintf(text, sizeof(text),
                "update rule %d precision %d B %d, %d x %d, blocks %d, resident %d", int(u.rule),
                int(u.precision), u.B, u.H, u.F, u.blocks, u.resident_tiles);
  State before = new_state(u), after = new_state(u);
  Inputs in(u);
  launch_update(u, after, in, nullptr, text);

  const double weights =
      parameter_error(u, in, before, &State::w, &State::m, &State::v, after, size_t(u.H) * u.in,
                      [&](int k, int i, size_t e) { return weight_gradient(u, in, k, i, e); });
  const double vectors =
      parameter_error(u, in, before, &State::vector, &State::vector_m, &State::vector_v, after, u.H,
                      [&](int k, int i, size_t h) {
                        double g = 0;
                        for (int b = 0; b < u.B; ++b)
                          g += in.d_y[((size_t(k) * kSlices + i) * u.B + b) * u.H + h];
                        return g;
                      });
  const double applied = parameter_error(
      u, in, before, &State::applied, &State::applied_m, &State::applied_v, after, kApply,
      [&](int, int i, size_t e) { return in.gradient[size_t(i) * kApply + e]; });
  double statistics = 0;
  for (int i = 0; i < kSlices; ++i) {
    for (int h = 0; h < u.H; ++h) {
      const size_t at = kIndex[i] * u.H + h;
      double exact = before.statistic[at];
      for (int k = 0; k < u.K && in.rates[size_t(4) * i + 3] != 0; ++k) {
        exact += 0.1 * (in.batch[size_t(i) * u.H + h] - exact);
      }
      statistics = worst_of(statistics, after.statistic[at], exact);
    }
  }
  // after division by sqrt(v) >= 0.05 at a rate of 0.03 nothing grows; v sums g^2 of up to B^2
  const double allowed = 4e-6 * u.K * std::sqrt(u.B);
  expect(weights < allowed,
         std::string(text) + ": weights err by " + std::to_string(weights * 1e6));
  expect(vectors < allowed,
         std::string(text) + ": vectors err by " + std::to_string(vectors * 1e6));
  expect(applied < allowed,
         std::string(text) + ": applied err by " + std::to_string(applied * 1e6));
  expect(statistics < 1e-6, std::string(text) + ": statistics");
  for (Floats State::* part : {&State::w, &State::m, &State::v, &State::vector, &State::applied}) {
    expect((after.*part).fence_stands(), std::string(text) + ": writes outside");
  }
  return after;
}

bool same(State& a, State& b) {
  bool equal = true;
  for (Floats State::* part : {&State::w, &State::m, &State::v, &State::vector, &State::vector_m,
                               &State::vector_v, &State::statistic, &State::applied}) {
    equal = equal && std::memcmp((a.*part).data(), (b.*part).data(), (a.*part).size * 4) == 0;
  }
  return equal;
}

void test_updates() {
  for (Rule rule : {Rule::kSgd, Rule::kMomentum, Rule::kNesterov, Rule::kAdam, Rule::kAdamW}) {
    Update u;
    u.rule = rule, u.K = 2;
    State alone = test_update(u);
    u.blocks = 3, u.groups = 2, u.resident_tiles = 1;  // four tiles: one block has a second
    State together = test_update(u);
    expect(same(alone, together), "update: bits depend on the thread blocks");
  }
  for (Precision precision : {Precision::kTf32, Precision::kBFloat16}) {
    Update u;
    u.precision = precision, u.B = 130, u.shift = 0, u.H = 64, u.F = 72, u.blocks = 2;
    u.resident_tiles = 1;
    test_update(u);
    u.H = 7, u.F = 1, u.in = 5, u.shift = 2;
    test_update(u);
  }
}

void test_gradients() {
  Update u;
  u.rule = Rule::kNone, u.blocks = 2;
  State state = new_state(u), before = new_state(u);
  Inputs in(u);
  Floats grad(size_t(kSlices) * u.H * u.in, 0, nullptr);
  launch_update(u, state, in, grad.data(), "gradients");
  double worst = 0;
  for (int i = 0; i < kSlices; ++i) {
    for (size_t e = 0; e < size_t(u.H) * u.in; ++e) {
      const double exact = weight_gradient(u, in, 0, i, e);
      const float got = grad[size_t(i) * u.H * u.in + e];
      if (std::isnan(exact)) {
        expect(std::isnan(got), "gradients: writes outside");
      } else {
        worst = worst_of(worst, got, exact);
      }
    }
  }
  expect(worst < 1e-6, "gradients err");
  expect(same(state, before), "gradients: the state moved");
}

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
    l.p.hyper.rule = Rule::kAdam;
    l.p.stages[0].update_weight.resident_tiles = 1;
    l.p.resident_floats = 2 * kTileH * kTileF - 1;
  });
  Launch launch(3, Precision::kFloat32, 1, 1);
  expect(noprop_cuda_launch(&launch.p, 8, 0, nullptr) == 1, "refusal: a program of 8 bytes");
  expect(noprop_cuda_launch(&launch.p, sizeof(launch.p), 1, nullptr) == 1, "refusal: device 1");
}

}  // namespace

int main() {
  for (Precision precision : {Precision::kFloat32, Precision::kTf32, Precision::kBFloat16}) {
    for (int tile : {16, 32, 64}) {
      test_dense(precision, 1, 1, {1}, tile, 0, false);
      test_dense(precision, 7, 10, {33, 5}, tile, 1, true);
      test_dense(precision, 70, 68, {128}, tile, 0, true);
      test_dense(precision, 33, 65, {200, 12, 64}, tile, 0, false);
      test_result_gradient(precision, 1, 1, 1, tile, 0);
      test_result_gradient(precision, 33, 67, 70, tile, 1);
      test_result_gradient(precision, 70, 68, 128, tile, 0);
    }
  }
  test_updates();
  test_gradients();
  test_refusals();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures < 100 ? failures : 100;
}
