// Dense layers and gradients of results on the host, against plain loops in float64 that round
// where the kernel rounds.
#include "stage_check.h"

using namespace noprop::cuda;

namespace {

double tolerance(int terms) { return 4e-7 * std::sqrt(terms) * 2; }

std::string named(const char* what, Precision precision, int a, int b, int c, int tile) {
  char text[128];
  std::snprintf(text, sizeof(text), "%s precision %d, %d %d %d, tile %d", what,
                static_cast<int>(precision), a, b, c, tile);
  return text;
}

double normal_distribution(double y) { return 0.5 * std::erfc(-y * std::sqrt(0.5)); }

double activate(Activation activation, double y) {
  if (activation == Activation::kRelu) return y < 0 ? 0 : y;
  return activation == Activation::kGelu ? y * normal_distribution(y) : y;
}

double activation_gradient(Activation activation, double d, double kept) {
  if (activation == Activation::kRelu) return kept <= 0 ? 0 : d;
  if (activation == Activation::kNone) return d;
  return d * (normal_distribution(kept) + kept * std::exp(-kept * kept / 2) * 0.39894228040143268);
}

void test_dense(Precision precision, int B, int H, std::vector<int> widths, int tile, int shift,
                Activation activation) {
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
  s.kept = buffer(act.data(), int64_t(B) * H);
  s.add = buffer(add.data(), 0);  // shared by the slices
  for (size_t j = 0; j < widths.size(); ++j) {
    s.sources[j] = buffer(x[j].data(), int64_t(B) * widths[j]);
    s.widths[j] = widths[j];
  }
  s.weight = w.data(), s.bias = bias.data();
  s.num_sources = static_cast<int>(widths.size()), s.H = H, s.in_width = in;
  s.activation = activation, s.tile = tile;
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
        const size_t at = (size_t(i) * B + b) * H + h;
        const double result = activate(activation, y);
        worst =
            std::fmax(worst, std::fabs(act[at] - (activation == Activation::kGelu ? y : result)));
        worst = std::fmax(worst, std::fabs(out[at] - (result + add[size_t(b) * H + h])));
        if (std::isnan(out[at]) || std::isnan(act[at])) worst = INFINITY;
      }
    }
  }
  expect(worst < tolerance(in), what + ": error " + std::to_string(worst * 1e6) + "e-6");
  expect(out.fence_stands() && act.fence_stands(), what + ": writes outside");
}

void test_result_gradient(Precision precision, int B, int F, int height, int tile, int shift,
                          Activation activation) {
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
  s.kept = buffer(act.data(), int64_t(B) * F);
  for (int j = 0; j < 2; ++j) {
    s.consumers[j] = {buffer(d[j].data(), int64_t(B) * heights[j]), w[j].data(), heights[j], in[j],
                      column[j]};
  }
  s.consumers[2] = {buffer(added.data(), int64_t(B) * F), nullptr, F, 1, 0};
  s.num_consumers = 3, s.F = F, s.activation = activation, s.tile = tile;
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
        worst = std::fmax(worst, std::fabs(dy[at] - activation_gradient(activation, sum, act[at])));
        if (std::isnan(dr[at]) || std::isnan(dy[at])) worst = INFINITY;
      }
    }
  }
  expect(worst < tolerance(2 * height), what + ": error " + std::to_string(worst * 1e6) + "e-6");
  expect(dr.fence_stands() && dy.fence_stands(), what + ": writes outside");
}

}  // namespace

// with an argument only what takes no time under a sanitizer
int main(int arguments, char**) {
  for (Precision precision : {Precision::kFloat32, Precision::kTf32, Precision::kBFloat16}) {
    for (int tile : {16, 32, 64}) {
      test_dense(precision, 1, 1, {1}, tile, 0, Activation::kNone);
      test_dense(precision, 7, 10, {33, 5}, tile, 1, Activation::kRelu);
      test_dense(precision, 7, 10, {33, 5}, tile, 1, Activation::kGelu);
      test_result_gradient(precision, 1, 1, 1, tile, 0, Activation::kNone);
      test_result_gradient(precision, 17, 20, 70, tile, 0, Activation::kRelu);
      test_result_gradient(precision, 17, 20, 70, tile, 0, Activation::kGelu);
      if (arguments > 1) continue;
      test_dense(precision, 70, 68, {128}, tile, 0, Activation::kGelu);
      test_dense(precision, 33, 65, {200, 12, 64}, tile, 0, Activation::kNone);
      test_result_gradient(precision, 33, 67, 70, tile, 1, Activation::kGelu);
      test_result_gradient(precision, 70, 68, 128, tile, 0, Activation::kRelu);
    }
  }
  return report();
}
