/* One step of one block in plain loops over doubles: what the kernels are compared with.
 *
 * Arrays are row-major: results and their gradients (B, width), parameters as in NopropState.
 */
#ifndef NOPROP_TESTS_PLAIN_H
#define NOPROP_TESTS_PLAIN_H

#include <math.h>

#include "noprop.h"
#include "tools.h"

enum { MAX_RESULTS = 8, PARAMS = 4 }; /* weight, bias, norm_weight, norm_bias */

typedef struct {
  double *value[MAX_RESULTS], *before[MAX_RESULTS], *x_hat[MAX_RESULTS];     /* (B, width) */
  double *mean[MAX_RESULTS], *unbiased_var[MAX_RESULTS], *rstd[MAX_RESULTS]; /* (width,) */
  double* factor[MAX_RESULTS];  /* of convolutions: dropout's, (B, width) */
  int64_t* chosen[MAX_RESULTS]; /* of convolutions: the map's pixel of each result, (B, width) */
  double* d[MAX_RESULTS];
  double* grad[MAX_RESULTS][PARAMS]; /* by layer */
} Walk;

typedef struct {
  double *p, *u_hat, *d_u_hat, *error; /* (B, M), (B, D), (B, D), (B,) */
  double* d_r;                         /* (B, M), over radius^2: of the radial head, else 0 */
  double loss;
} Head;

static double* doubles(int64_t count) { return allocate(count, sizeof(double)); }

static int64_t width_of(const NopropPlan* plan, int32_t result) {
  return result < plan->num_inputs ? plan->input_widths[result]
                                   : plan->layers[result - plan->num_inputs].width;
}

static int64_t in_width(const NopropPlan* plan, int l) {
  int64_t in = 0;
  for (int s = 0; s < plan->layers[l].num_sources; ++s)
    in += width_of(plan, plan->layers[l].sources[s]);
  return in;
}

/* weights of one output, which is a convolution's channel */
static int64_t fan_in(const NopropPlan* plan, int l) {
  const NopropLayer* layer = &plan->layers[l];
  if (layer->kind == NOPROP_DENSE) return in_width(plan, l);
  return (int64_t)layer->in.channels * layer->kernel_size * layer->kernel_size;
}

static NopropParam* param_of(NopropState* state, int p) {
  NopropParam* params[] = {&state->weight, &state->bias, &state->norm_weight, &state->norm_bias};
  return params[p];
}

static int64_t param_size(const NopropPlan* plan, int l, int p) {
  if (p >= 2 && !plan->layers[l].norm) return 0;
  const NopropLayer* layer = &plan->layers[l];
  const int64_t outputs = layer->kind == NOPROP_DENSE ? layer->width : layer->shape.channels;
  return outputs * (p == 0 ? fan_in(plan, l) : 1);
}

/* where the numbers of a slice's step are */
typedef struct {
  uint64_t seed;
  int64_t block, draw, first_row;
} Address;

/* Philox4x32-10 (Salmon et al. 2011): the words of the counter that `column` is in; b: of the batch
 */
static void words(uint32_t c[4], const Address* at, uint32_t stream, int32_t site, int64_t b,
                  int64_t column) {
  const uint64_t seed = at->seed;
  c[0] = (uint32_t)(column / 4);
  c[1] = (uint32_t)(at->first_row + b);
  c[2] = ((uint32_t)at->block & 0xffff) | stream << 16 | (uint32_t)site << 24;
  c[3] = (uint32_t)at->draw;
  uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = UINT64_C(0xD2511F53) * c[0], b = UINT64_C(0xCD9E8D57) * c[2];
    const uint32_t next[] = {(uint32_t)(b >> 32) ^ c[1] ^ key[0], (uint32_t)b,
                             (uint32_t)(a >> 32) ^ c[3] ^ key[1], (uint32_t)a};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
}

/* by Box-Muller; four columns share a counter */
static double normal(const Address* at, uint32_t stream, int64_t b, int64_t column) {
  uint32_t c[4];
  words(c, at, stream, 0, b, column);
  const uint32_t* pair = c + column % 4 / 2 * 2;
  const double radius = sqrt(-2 * log(((pair[0] >> 8) + 1.0) / 16777216));
  const double angle = 6.283185307179586 * (pair[1] >> 8) / 16777216;
  return radius * (column % 2 ? sin(angle) : cos(angle));
}

/* an activation of y, and its derivative there */
static double activate(int32_t activation, double y) {
  if (activation == NOPROP_RELU) return y > 0 ? y : 0;
  return activation == NOPROP_GELU ? y * erfc(-y * sqrt(0.5)) / 2 : y;
}

static double derivative(int32_t activation, double y) {
  if (activation == NOPROP_RELU) return y > 0;
  if (activation == NOPROP_IDENTITY) return 1;
  return erfc(-y * sqrt(0.5)) / 2 + y * exp(-y * y / 2) / sqrt(6.283185307179586);
}

/* batch norm of x_hat, which holds y on entry */
static void plain_norm(Walk* walk, int r, const NopropState* state, const NopropLayer* layer,
                       int64_t slice, int64_t B, int training) {
  const int64_t H = layer->width;
  for (int64_t o = 0; o < H; ++o) {
    double mean = 0, squares = 0;
    for (int64_t b = 0; b < B; ++b) mean += walk->x_hat[r][b * H + o] / (double)B;
    for (int64_t b = 0; b < B; ++b) squares += pow(walk->x_hat[r][b * H + o] - mean, 2);
    walk->mean[r][o] = mean;
    walk->unbiased_var[r][o] = squares / (double)(B - 1);
    const double used_mean = training ? mean : state->running_mean[slice * H + o];
    const double var = training ? squares / (double)B : state->running_var[slice * H + o];
    walk->rstd[r][o] = 1 / sqrt(var + layer->norm_eps);
    for (int64_t b = 0; b < B; ++b) {
      double* hat = &walk->x_hat[r][b * H + o];
      *hat = (*hat - used_mean) * walk->rstd[r][o];
      walk->before[r][b * H + o] =
          *hat * state->norm_weight.value[slice * H + o] + state->norm_bias.value[slice * H + o];
    }
  }
}

/* a convolution's result; address: of its dropout, or null */
static void plain_conv(Walk* walk, int r, const NopropState* state, const NopropLayer* layer,
                       int64_t slice, int64_t B, const Address* address) {
  const NopropShape in = layer->in, out = layer->shape;
  const int k = layer->kernel_size, pool = layer->pool ? layer->pool : 1,
            map_width = in.width - k + 1;
  walk->chosen[r] = allocate(B * layer->width, sizeof(int64_t));
  for (int64_t at = 0; at < B * layer->width; ++at) {
    const int64_t b = at / layer->width, feature = at % layer->width;
    const int64_t pixels = (int64_t)out.height * out.width, pixel = feature % pixels;
    const int64_t o = feature / pixels, y = pixel / out.width, x = pixel % out.width;
    const double* source = walk->value[layer->sources[0]] + b * in.channels * in.height * in.width;
    const float* weight = state->weight.value + (slice * out.channels + o) * in.channels * k * k;
    for (int q = 0; q < pool * pool; ++q) {
      const int64_t Y = y * pool + q / pool, X = x * pool + q % pool;
      double sum = state->bias.value[slice * out.channels + o];
      for (int t = 0; t < in.channels * k * k; ++t)
        sum += weight[t] * source[(t / (k * k) * in.height + Y + t / k % k) * in.width + X + t % k];
      if (q > 0 && sum <= walk->before[r][at]) continue;
      walk->before[r][at] = sum;
      walk->chosen[r][at] = Y * map_width + X;
    }
    uint32_t c[4];
    walk->factor[r][at] = 1;
    if (!address || layer->dropout <= 0) continue;
    const int64_t column = pixel * out.channels + o;
    words(c, address, 3, layer->site, b, column);
    const int kept = c[column % 4] >> 8 >= (uint32_t)(layer->dropout * 16777216.0 + 0.5);
    walk->factor[r][at] = kept ? 1 / (1 - (double)layer->dropout) : 0;
  }
}

/* adds to the gradients of weight, bias and source; d is that of the result */
static void plain_conv_backward(Walk* walk, int r, double** grad, const NopropState* state,
                                const NopropLayer* layer, int64_t slice, int64_t B) {
  const NopropShape in = layer->in, out = layer->shape;
  const int k = layer->kernel_size, map_width = in.width - k + 1, taps = in.channels * k * k;
  for (int64_t at = 0; at < B * layer->width; ++at) {
    const int64_t image = at / layer->width * in.channels * in.height * in.width;
    const int64_t o = at % layer->width / ((int64_t)out.height * out.width);
    const int64_t Y = walk->chosen[r][at] / map_width, X = walk->chosen[r][at] % map_width;
    const double d = walk->d[r][at];
    const float* weight = state->weight.value + (slice * out.channels + o) * taps;
    grad[1][o] += d;
    for (int t = 0; t < taps; ++t) {
      const int64_t from = image + (t / (k * k) * in.height + Y + t / k % k) * in.width + X + t % k;
      grad[0][o * taps + t] += d * walk->value[layer->sources[0]][from];
      walk->d[layer->sources[0]][from] += d * weight[t];
    }
  }
}

/* every result from the inputs, which lie in walk->value; address: of a training step, or null */
static void plain_forward(Walk* walk, const NopropPlan* plan, const NopropState* states,
                          int64_t slice, int64_t B, const Address* address) {
  for (int l = 0; l < plan->num_layers; ++l) {
    const NopropLayer* layer = &plan->layers[l];
    const int r = plan->num_inputs + l;
    const int64_t H = layer->width, in = in_width(plan, l);
    const float* weight = states[l].weight.value + slice * H * in;
    walk->value[r] = doubles(B * H);
    walk->before[r] = doubles(B * H);
    walk->x_hat[r] = doubles(B * H);
    walk->mean[r] = doubles(H);
    walk->unbiased_var[r] = doubles(H);
    walk->rstd[r] = doubles(H);
    walk->factor[r] = doubles(B * H);
    if (layer->kind == NOPROP_CONV2D) plain_conv(walk, r, &states[l], layer, slice, B, address);
    for (int64_t b = 0; layer->kind == NOPROP_DENSE && b < B; ++b)
      for (int64_t o = 0; o < H; ++o) {
        double y = states[l].bias.value[slice * H + o];
        int64_t column = 0;
        for (int s = 0; s < layer->num_sources; ++s) {
          const int64_t width = width_of(plan, layer->sources[s]);
          const double* source = walk->value[layer->sources[s]] + b * width;
          for (int64_t f = 0; f < width; ++f) y += weight[o * in + column++] * source[f];
        }
        walk->x_hat[r][b * H + o] = walk->before[r][b * H + o] = y;
        walk->factor[r][b * H + o] = 1;
      }
    if (layer->norm) plain_norm(walk, r, &states[l], layer, slice, B, address != NULL);
    for (int64_t at = 0; at < B * H; ++at) {
      walk->value[r][at] = activate(layer->activation, walk->before[r][at]) * walk->factor[r][at] +
                           (layer->add >= 0 ? walk->value[layer->add][at] : 0);
    }
  }
}

/* loss, errors, and the gradient of the logits into d_logits */
static void plain_head(Head* head, double* d_logits, const double* logits, const double* u_y,
                       const double* eps, const NopropObjective* objective,
                       const NopropEmbedding* embedding, const float* weight, const int64_t* y,
                       int64_t B, int64_t M) {
  const int64_t D = embedding->D;
  const int32_t kind = objective->head;
  const double rows = (double)objective->rows;
  const float* W = embedding->W;
  head->p = doubles(B * M);
  head->d_r = doubles(B * M);
  head->u_hat = doubles(B * D);
  head->d_u_hat = doubles(B * D);
  head->error = doubles(B);
  for (int64_t b = 0; b < B; ++b) {
    double *p = head->p + b * M, *d_r = head->d_r + b * M, *d = d_logits + b * M, sum = 0, dot = 0;
    double *u_hat = head->u_hat + b * D, *d_u_hat = head->d_u_hat + b * D;
    for (int64_t m = 0; m < M; ++m) sum += exp(logits[b * M + m]);
    for (int64_t m = 0; m < M; ++m)
      p[m] = kind == NOPROP_LINEAR ? logits[b * M + m] : exp(logits[b * M + m]) / sum;
    if (kind == NOPROP_CROSS_ENTROPY) {
      head->error[b] = -log(p[y[b]]);
      for (int64_t m = 0; m < M; ++m) d[m] = (p[m] - (m == y[b])) * weight[b] / rows;
    } else {
      for (int64_t e = 0; e < D; ++e) {
        u_hat[e] = W ? 0 : p[e];
        for (int64_t m = 0; W && m < M; ++m) u_hat[e] += p[m] * W[m * D + e];
      }
      if (kind == NOPROP_RADIAL) {
        const double variance = (double)objective->radius * objective->radius;
        sum = 0;
        for (int64_t m = 0; m < M; ++m) {
          double distance = 0;
          for (int64_t e = 0; e < D; ++e)
            distance += pow(u_hat[e] - (W ? W[m * D + e] : m == e), 2);
          d_r[m] = exp(-distance / (2 * variance));
          sum += d_r[m];
        }
        head->error[b] = -log(d_r[y[b]] / sum);
        for (int64_t m = 0; m < M; ++m) {
          d_r[m] = (d_r[m] / sum - (m == y[b])) * weight[b] / rows / variance;
          for (int64_t e = 0; e < D; ++e) d_u_hat[e] += d_r[m] * (W ? W[m * D + e] : m == e);
        }
      }
      for (int64_t e = 0; kind != NOPROP_RADIAL && e < D; ++e) {
        const double difference = u_hat[e] - (u_y[b * D + e] - objective->flow * eps[b * D + e]);
        head->error[b] += difference * difference;
        d_u_hat[e] = 2 * weight[b] / rows * difference;
      }
      for (int64_t m = 0; m < M; ++m) {
        d[m] = W ? 0 : d_u_hat[m];
        for (int64_t e = 0; W && e < D; ++e) d[m] += d_u_hat[e] * W[m * D + e];
        dot += p[m] * d[m];
      }
      for (int64_t m = 0; kind != NOPROP_LINEAR && m < M; ++m) d[m] = p[m] * (d[m] - dot);
    }
    head->loss += weight[b] * head->error[b] / rows;
  }
}

/* gradients of every parameter and result; walk->d of the last result holds the logits' */
static void plain_backward(Walk* walk, const NopropPlan* plan, const NopropState* states,
                           int64_t slice, int64_t B) {
  const int results = plan->num_inputs + plan->num_layers;
  for (int r = 0; r < results - 1; ++r) walk->d[r] = doubles(B * width_of(plan, r));
  for (int l = plan->num_layers - 1; l >= 0; --l) {
    const NopropLayer* layer = &plan->layers[l];
    const int r = plan->num_inputs + l;
    const int64_t H = layer->width, in = in_width(plan, l);
    const float* weight = states[l].weight.value + slice * H * in;
    double *d = walk->d[r], **grad = walk->grad[l];
    for (int p = 0; p < PARAMS; ++p) grad[p] = doubles(param_size(plan, l, p));
    for (int64_t at = 0; at < B * H; ++at) {
      if (layer->add >= 0) walk->d[layer->add][at] += d[at];
      d[at] *= derivative(layer->activation, walk->before[r][at]) * walk->factor[r][at];
    }
    if (layer->kind == NOPROP_CONV2D) {
      plain_conv_backward(walk, r, grad, &states[l], layer, slice, B);
      continue;
    }
    for (int64_t o = 0; layer->norm && o < H; ++o) {
      for (int64_t b = 0; b < B; ++b) {
        grad[2][o] += d[b * H + o] * walk->x_hat[r][b * H + o];
        grad[3][o] += d[b * H + o];
      }
      for (int64_t b = 0; b < B; ++b)
        d[b * H + o] =
            states[l].norm_weight.value[slice * H + o] * walk->rstd[r][o] *
            (d[b * H + o] - (grad[3][o] + walk->x_hat[r][b * H + o] * grad[2][o]) / (double)B);
    }
    for (int64_t b = 0; b < B; ++b)
      for (int64_t o = 0; o < H; ++o) {
        const double d_y = d[b * H + o];
        /* the batch's mean takes the bias away: its gradient is exactly zero */
        if (!layer->norm) grad[1][o] += d_y;
        int64_t column = o * in;
        for (int s = 0; s < layer->num_sources; ++s) {
          const int source = layer->sources[s];
          const int64_t width = width_of(plan, source);
          for (int64_t f = 0; f < width; ++f, ++column) {
            grad[0][column] += d_y * walk->value[source][b * width + f];
            walk->d[source][b * width + f] += d_y * weight[column];
          }
        }
      }
  }
}

/* one element's update, torch.optim's formulas; `updates` were done before */
static void plain_update(double* w, double* m, double* v, double g, const NopropUpdateRule* rule,
                         double lr, double decay, int64_t updates) {
  if (rule->kind == NOPROP_ADAMW)
    *w *= 1 - lr * decay;
  else
    g += decay * *w;
  if (rule->kind == NOPROP_SGD) {
    *m = rule->momentum * *m + g;
    *w -= lr * (rule->nesterov ? g + rule->momentum * *m : *m);
    return;
  }
  const double t = (double)(updates + 1);
  *m = rule->beta1 * *m + (1 - rule->beta1) * g;
  *v = rule->beta2 * *v + (1 - rule->beta2) * g * g;
  *w -= lr / (1 - pow(rule->beta1, t)) * *m / (sqrt(*v / (1 - pow(rule->beta2, t))) + rule->eps);
}

#endif
