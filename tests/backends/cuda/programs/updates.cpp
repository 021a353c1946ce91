// The updates on the host, against the optimizers' formulas in float64; residency of the moments,
// and quotients and roots without branches.
#include <functional>

#include "cuda/optimizer.cuh"
#include "stage_check.h"

using namespace noprop::cuda;

namespace {

struct Reference {
  double w, m, v;
};

// the formulas of update.cuh in float64
void reference_step(UpdateRule rule, const float* rates, double g, Reference& e) {
  const double momentum = 0.9, beta_1 = 0.9, beta_2 = 0.99, eps = 1e-8;
  if (rule == UpdateRule::kAdamW) {
    e.w *= rates[1];
  } else {
    g += rates[1] * e.w;
  }
  if (rule == UpdateRule::kAdam || rule == UpdateRule::kAdamW) {
    e.m += (1 - beta_1) * (g - e.m);
    e.v = beta_2 * e.v + (1 - beta_2) * g * g;
    e.w -= rates[0] * e.m / (std::sqrt(e.v) / rates[2] + eps);
  } else if (rule == UpdateRule::kSgd) {
    e.w -= rates[0] * g;
  } else {
    e.m = momentum * e.m + g;
    e.w -= rates[0] * (rule == UpdateRule::kNesterov ? g + momentum * e.m : e.m);
  }
}

struct State {
  Floats w, m, v, vector, vector_m, vector_v, statistic, applied, applied_m, applied_v;
};

struct Update {
  UpdateRule rule = UpdateRule::kAdamW;
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
      const float here[4] = {0.01f * float(i + 1), u.rule == UpdateRule::kAdamW ? 0.999f : 0.05f,
                             0.7f, i == 1 ? 0.0f : 1.0f};  // the slice in the middle does not move
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
  if (u.rule == UpdateRule::kNone) return launch.run(what);

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
  for (UpdateRule rule : {UpdateRule::kSgd, UpdateRule::kMomentum, UpdateRule::kNesterov,
                          UpdateRule::kAdam, UpdateRule::kAdamW}) {
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
  u.rule = UpdateRule::kNone, u.blocks = 2;
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

// bit for bit, over all exponents that matter
void test_arithmetic() {
  Random random{3};
  int wrong = 0;
  for (int round = 0; round < 100000; ++round) {
    const float a = std::ldexp(random.next(), round % 150 - 90);
    const float b = std::ldexp(1.0f + std::fabs(random.next()), round % 173 % 121 - 60);
    const float v = std::ldexp(std::fabs(random.next()), round % 250 - 130);
    wrong += quotient(a, b) != a / b;
    wrong += root(v) != std::sqrt(v);
  }
  expect(wrong == 0, std::to_string(wrong) + " quotients or roots are not rounded to nearest");
  expect(root(0.0f) == 0.0f && root(INFINITY) == INFINITY && std::isnan(root(NAN)), "odd roots");
  expect(root(0x1p-149f) == std::sqrt(0x1p-149f), "root of the smallest float");
  expect(quotient(1.0f, 0.0f) == INFINITY && quotient(-1.0f, 0.0f) == -INFINITY, "quotients by 0");
  expect(quotient(1.0f, INFINITY) == 0.0f && std::isnan(quotient(0.0f, 0.0f)), "odd quotients");
  expect(quotient(1e38f, 1e-8f) == INFINITY && std::isnan(quotient(NAN, 1.0f)), "large quotients");
}

}  // namespace

int main() {
  test_updates();
  test_gradients();
  test_arithmetic();
  return report();
}
