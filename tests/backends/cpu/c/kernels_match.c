/* The kernels against plain loops in double, with every instruction set that runs here: noise,
 * forward, head, backward and update of one step, for batches and widths that fill no vector.
 *
 * Of each array, the largest error is at most TOLERANCE times its largest magnitude; zeros are
 * exact. The last line is JSON, the largest such ratio by instruction set; the exit status is 0
 * where all hold.
 */
#include "case.h"

#define TOLERANCE 1e-5 /* 84 roundings; the longest sums have 130 terms */
static double worst;   /* of this instruction set */
static int failures;

static void compare(const Case* c, const char* what, const float* got, const double* exact,
                    int64_t count) {
  double largest = 0, error = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double e = fabs(got[i] - exact[i]);
    if (fabs(exact[i]) > largest) largest = fabs(exact[i]);
    if (e > error || e != e) error = e, at = i;
    if (e != e) break;
  }
  if (error > worst * largest && largest > 0) worst = error / largest;
  if (error <= TOLERANCE * largest) return;
  ++failures;
  fprintf(stderr, "%s, %s: %s[%lld] is %.9g, must be %.9g; largest %.3g\n", c->isa, c->name, what,
          (long long)at, got[at], exact[at], largest);
}

/* parameter p of layer l, for messages */
static const char* label(const char* what, int l, int p) {
  static const char* const names[] = {"weight", "bias", "norm_weight", "norm_bias"};
  static char text[64];
  snprintf(text, sizeof text, "%s of layer %d's %s", what, l, names[p]);
  return text;
}

static void check_status(const Case* c, NopropResult result, const char* call) {
  if (result.status == NOPROP_OK) return;
  ++failures;
  fprintf(stderr, "%s, %s: %s gave status %d\n", c->isa, c->name, call, (int)result.status);
}

typedef struct {
  double *u_y, *eps, *d_signal, *d_noise, *d_W; /* (B, D), (B, D), (B,), (B,), (M, D) */
  Walk walk;
  Head head;
} Exact;

/* slice kIndex[i] in double, from the parameters as they are before the update */
static Exact plain_step(const Case* c, int i) {
  const int64_t B = c->B, M = c->M, slice = kIndex[i];
  const int last = c->plan.num_inputs + c->plan.num_layers - 1;
  Exact e = {.u_y = doubles(B * D),
             .eps = doubles(B * D),
             .d_signal = doubles(B),
             .d_noise = doubles(B),
             .d_W = doubles(M * D)};
  Walk* walk = &e.walk;
  walk->value[0] = doubles(B * F);
  walk->value[1] = doubles(B * D);
  for (int64_t at = 0; at < B * F; ++at) walk->value[0][at] = c->x[i * B * F + at];
  const Address address = {(uint64_t)c->seeds[slice], c->block[i], c->draw[i], c->drawn.first_row};
  const float *signal = c->signal + i * B, *noise = c->noise + i * B;
  const int64_t* y = c->y + i * B;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = b * D + d;
      e.u_y[at] = c->W_embed ? c->W_embed[y[b] * D + d] : (double)(y[b] == d);
      e.eps[at] = normal(&address, 0, b, d);
      walk->value[1][at] = signal[b] * e.u_y[at] + noise[b] * e.eps[at] +
                           c->noising.sigma * normal(&address, 1, b, d);
    }
  plain_forward(walk, &c->plan, c->states, slice, B, &address);
  walk->d[last] = doubles(B * M);
  plain_head(&e.head, walk->d[last], walk->value[last], e.u_y, e.eps, &c->objective, &c->embedding,
             c->weight + i * B, y, B, M);
  plain_backward(walk, &c->plan, c->states, slice, B);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t d = 0; d < D; ++d) {
      const double d_z = walk->d[1][b * D + d], d_u_hat = e.head.d_u_hat[b * D + d];
      e.d_signal[b] += d_z * e.u_y[b * D + d];
      e.d_noise[b] += d_z * e.eps[b * D + d];
      for (int64_t m = 0; m < M; ++m) {
        const double u = c->W_embed ? c->W_embed[m * D + d] : m == d;
        e.d_W[m * D + d] +=
            e.head.p[b * M + m] * d_u_hat + e.head.d_r[b * M + m] * (e.head.u_hat[b * D + d] - u);
      }
      e.d_W[y[b] * D + d] += signal[b] * d_z;
      if (c->objective.head != NOPROP_RADIAL) e.d_W[y[b] * D + d] -= d_u_hat;
    }
  return e;
}

static void compare_noise(const Case* c, const Exact* exact) {
  const int64_t size = c->B * D;
  int64_t seeds[RUN];
  for (int i = 0; i < RUN; ++i) seeds[i] = c->seeds[kIndex[i]];
  float *z = allocate(RUN * size, sizeof *z), *eps = allocate(RUN * size, sizeof *eps);
  check_status(c,
               noprop_add_noise_cpu(z, eps, seeds, &c->drawn, &c->noising, &c->embedding,
                                    &c->labels, RUN, c->B, c->M, &c->host),
               "add_noise");
  for (int i = 0; i < RUN; ++i) {
    compare(c, "eps", eps + i * size, exact[i].eps, size);
    compare(c, "z", z + i * size, exact[i].walk.value[1], size);
  }
}

/* with running statistics instead of the batch's */
static void compare_forward(Case* c) {
  const int64_t B = c->B, M = c->M;
  const int last = c->plan.num_inputs + c->plan.num_layers - 1;
  uint64_t random = 5;
  float* z = uniform_floats(RUN * B * D, -1, 1, &random);
  float* logits = allocate(RUN * B * M, sizeof *logits);
  const NopropInput inputs[2] = {c->inputs[0], {.data = z, .stride_slice = B * D}};
  check_status(c, noprop_forward_cpu(logits, NULL, &c->slices, inputs, NULL, NULL, B, 0, &c->host),
               "forward");
  for (int i = 0; i < RUN; ++i) {
    Walk walk = {.value = {doubles(B * F), doubles(B * D)}};
    for (int64_t at = 0; at < B * F; ++at) walk.value[0][at] = c->x[i * B * F + at];
    for (int64_t at = 0; at < B * D; ++at) walk.value[1][at] = z[i * B * D + at];
    plain_forward(&walk, &c->plan, c->states, kIndex[i], B, NULL);
    compare(c, "logits", logits + i * B * M, walk.value[last], B * M);
  }
}

static void compare_gradients(Case* c, const Exact* exact) {
  const int64_t B = c->B, M = c->M;
  float loss[RUN], *error = allocate(RUN * B, sizeof *error);
  uint8_t applied[RUN];
  float* d_inputs[2] = {allocate(RUN * B * F, sizeof(float)), allocate(RUN * B * D, sizeof(float))};
  float *d_signal = allocate(RUN * B, sizeof(float)), *d_noise = allocate(RUN * B, sizeof(float));
  float* d_W = c->W_embed ? allocate(RUN * M * D, sizeof(float)) : NULL;
  const NopropTrainOut out = {loss, applied, error, d_inputs, d_signal, d_noise, d_W};
  const NopropUpdateRule none = {.kind = NOPROP_NONE};
  check_status(c,
               noprop_train_cpu(&c->slices, &c->drawn, &c->noising, &c->objective, &c->embedding,
                                c->inputs, NULL, &c->labels, &none, B, 1, &out, &c->host),
               "train");
  for (int i = 0; i < RUN; ++i) {
    const Exact* e = &exact[i];
    compare(c, "loss", loss + i, &e->head.loss, 1);
    compare(c, "error", error + i * B, e->head.error, B);
    compare(c, "d_x", d_inputs[0] + i * B * F, e->walk.d[0], B * F);
    compare(c, "d_z", d_inputs[1] + i * B * D, e->walk.d[1], B * D);
    compare(c, "d_signal", d_signal + i * B, e->d_signal, B);
    compare(c, "d_noise", d_noise + i * B, e->d_noise, B);
    if (d_W) compare(c, "d_W_embed", d_W + i * M * D, e->d_W, M * D);
    for (int l = 0; l < c->plan.num_layers; ++l) {
      for (int p = 0; p < PARAMS; ++p) {
        const int64_t size = param_size(&c->plan, l, p);
        if (size == 0) continue;
        compare(c, label("gradient", l, p), param_of(&c->states[l], p)->grad + i * size,
                e->walk.grad[l][p], size);
      }
      if (!c->layers[l].norm) continue;
      const int64_t H = c->layers[l].width;
      const int r = c->plan.num_inputs + l;
      compare(c, "batch_mean", c->states[l].batch_mean + i * H, e->walk.mean[r], H);
      compare(c, "batch_var", c->states[l].batch_var + i * H, e->walk.unbiased_var[r], H);
    }
  }
}

/* what the update must leave of a parameter: value, m and v, each (SLICES, size) */
static void plain_update_param(const Case* c, const Exact* exact, int l, int p, double* after[3]) {
  const int64_t size = param_size(&c->plan, l, p);
  NopropState state = c->states[l];
  const NopropParam* param = param_of(&state, p);
  const float* before[3] = {param->value, param->m, param->v};
  for (int a = 0; a < 3; ++a)
    for (int64_t at = 0; before[a] && at < SLICES * size; ++at) after[a][at] = before[a][at];
  for (int i = 0; i < RUN; ++i)
    for (int64_t at = 0; at < size; ++at) {
      const int64_t to = kIndex[i] * size + at;
      plain_update(&after[0][to], &after[1][to], &after[2][to], exact[i].walk.grad[l][p][at],
                   &c->goal->rule, c->lr[i], c->decay[i], c->updates[kIndex[i]]);
    }
}

static void compare_update(Case* c, const Exact* exact) {
  double* after[MAX_LAYERS][PARAMS][3];
  double* running[MAX_LAYERS][2]; /* mean, var */
  for (int l = 0; l < c->plan.num_layers; ++l) {
    const int64_t H = c->layers[l].width;
    for (int p = 0; p < PARAMS; ++p) {
      const int64_t size = param_size(&c->plan, l, p);
      for (int a = 0; a < 3; ++a) after[l][p][a] = doubles(SLICES * size);
      plain_update_param(c, exact, l, p, after[l][p]);
      param_of(&c->states[l], p)->grad = NULL;
    }
    for (int a = 0; a < 2 && c->layers[l].norm; ++a) {
      const int r = c->plan.num_inputs + l;
      const float* old = a == 0 ? c->states[l].running_mean : c->states[l].running_var;
      running[l][a] = doubles(SLICES * H);
      for (int64_t at = 0; at < SLICES * H; ++at) running[l][a][at] = old[at];
      for (int i = 0; i < RUN; ++i)
        for (int64_t o = 0; o < H; ++o)
          running[l][a][kIndex[i] * H + o] +=
              0.1 * ((a == 0 ? exact[i].walk.mean : exact[i].walk.unbiased_var)[r][o] -
                     old[kIndex[i] * H + o]);
    }
  }
  float loss[RUN];
  uint8_t applied[RUN];
  const NopropTrainOut out = {.loss = loss, .applied = applied};
  NopropUpdateRule rule = c->goal->rule;
  rule.lr = c->lr;
  rule.weight_decay = c->decay;
  rule.lr_stride_slice = rule.decay_stride_slice = 1;
  const int64_t updates = c->updates[0];
  check_status(c,
               noprop_train_cpu(&c->slices, &c->drawn, &c->noising, &c->objective, &c->embedding,
                                c->inputs, NULL, &c->labels, &rule, c->B, 1, &out, &c->host),
               "train");
  if (!applied[0] || !applied[1] || c->updates[0] != updates + 1 || c->updates[1] != 4) {
    ++failures;
    fprintf(stderr, "%s, %s: wrong counts of updates\n", c->isa, c->name);
  }
  for (int l = 0; l < c->plan.num_layers; ++l) {
    NopropState* state = &c->states[l];
    for (int p = 0; p < PARAMS; ++p) {
      const int64_t size = SLICES * param_size(&c->plan, l, p);
      if (size == 0) continue;
      const NopropParam* param = param_of(state, p);
      compare(c, label("value", l, p), param->value, after[l][p][0], size);
      compare(c, label("m", l, p), param->m, after[l][p][1], size);
      if (param->v) compare(c, label("v", l, p), param->v, after[l][p][2], size);
    }
    if (!c->layers[l].norm) continue;
    const int64_t size = SLICES * (int64_t)c->layers[l].width;
    compare(c, "running_mean", state->running_mean, running[l][0], size);
    compare(c, "running_var", state->running_var, running[l][1], size);
  }
}

int main(void) {
  static const int64_t batches[] = {1, 7, 33, 130};
  int cases = 0;
  const char* between = "";
  printf("{\"worst\": {");
  for (int32_t k = 0; k < noprop_num_isas(); ++k) {
    const char* isa = noprop_isa_name(k);
    if (!noprop_isa_runs(k)) continue;
    if (!noprop_set_isa(isa) || noprop_isa_used() != k) return 2;
    worst = 0;
    for (int s = 0; s < COUNT(kShapes); ++s)
      for (int g = 0; g < COUNT(kGoals); ++g)
        for (int b = 0; b < COUNT(batches); ++b) {
          /* one row has no variance */
          if (batches[b] == 1 && kShapes[s].layers[0].norm) continue;
          Case* c = make_case(isa, &kShapes[s], &kGoals[g], batches[b]);
          const Exact exact[RUN] = {plain_step(c, 0), plain_step(c, 1)};
          compare_noise(c, exact);
          compare_forward(c);
          compare_gradients(c, exact);
          compare_update(c, exact);
          release_all();
          ++cases;
        }
    printf("%s\"%s\": %.3g", between, isa, worst);
    between = ", ";
  }
  printf("}, \"cases\": %d, \"failures\": %d}\n", cases, failures);
  return failures == 0 && cases > 0 ? 0 : 1;
}
