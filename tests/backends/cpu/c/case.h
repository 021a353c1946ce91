/* What the kernels are compared on: five plans, four goals, made-up state and data. */
#ifndef NOPROP_TESTS_CASE_H
#define NOPROP_TESTS_CASE_H

#include <string.h>

#include "plain.h"

enum { D = 5, F = 63, SLICES = 3, RUN = 2, MAX_LAYERS = 5 };

static const int32_t kX[] = {0}, kZ[] = {1}, kXZ[] = {0, 1}, kR3[] = {3}, kR4[] = {4}, kR5[] = {5};
static const int32_t kStems[] = {2, 3}, kStemAndSum[] = {2, 4}, kR2[] = {2}, kAll[] = {3, 1, 0};
static const int32_t kInputWidths[] = {F, D};
static const int64_t kIndex[RUN] = {2, 0}; /* slices of the state that the calls run */

typedef struct {
  const char* name;
  int num_layers;
  NopropLayer layers[MAX_LAYERS]; /* the last one's width is set to the number of classes */
} Shape;

#define LAYER(from, wide, function, added, has_norm) \
  {.num_sources = COUNT(from),                       \
   .sources = from,                                  \
   .width = wide,                                    \
   .activation = function,                           \
   .add = added,                                     \
   .norm = has_norm,                                 \
   .norm_eps = 1e-5f,                                \
   .norm_momentum = 0.1f}

/* live: height and width of the map, as far as its pool reads it */
#define CONV(from, C, H, W, k, pools, O, h, w, live, drops, number) \
  {.num_sources = 1,                                                \
   .sources = from,                                                 \
   .width = O * h * w,                                              \
   .activation = NOPROP_RELU,                                       \
   .add = -1,                                                       \
   .kind = NOPROP_CONV2D,                                           \
   .in = {C, H, W},                                                 \
   .shape = {O, h, w},                                              \
   .kernel_size = k,                                                \
   .pool = pools,                                                   \
   .live_height = live(h),                                          \
   .live_width = live(w),                                           \
   .dropout = drops,                                                \
   .site = number}
#define POOLED(size) (2 * (size))
#define WHOLE(size) (size)

static const Shape kShapes[] = {
    {"two sources",
     4,
     {LAYER(kX, 19, NOPROP_RELU, -1, 0), LAYER(kZ, 19, NOPROP_RELU, 2, 0),
      LAYER(kStems, 35, NOPROP_RELU, -1, 0), LAYER(kR4, 0, NOPROP_IDENTITY, -1, 0)}},
    {"one layer", 1, {LAYER(kXZ, 0, NOPROP_IDENTITY, -1, 0)}},
    {"norm and skip",
     5,
     {LAYER(kX, 19, NOPROP_RELU, -1, 1), LAYER(kZ, 19, NOPROP_RELU, -1, 1),
      LAYER(kR3, 19, NOPROP_RELU, 3, 1), LAYER(kStemAndSum, 35, NOPROP_IDENTITY, -1, 1),
      LAYER(kR5, 0, NOPROP_IDENTITY, -1, 0)}},
    {"GELU",
     5,
     {LAYER(kX, 19, NOPROP_GELU, -1, 1), LAYER(kZ, 19, NOPROP_RELU, -1, 0),
      LAYER(kR3, 19, NOPROP_GELU, 3, 1), LAYER(kStemAndSum, 35, NOPROP_GELU, -1, 0),
      LAYER(kR5, 0, NOPROP_IDENTITY, -1, 0)}},
    {"convolutions of an image of 9 x 7",
     4,
     {CONV(kX, 1, 9, 7, 3, 2, 18, 3, 2, POOLED, 0.25f, 0),
      CONV(kR2, 18, 3, 2, 2, 0, 13, 2, 1, WHOLE, 0.25f, 1), LAYER(kAll, 19, NOPROP_RELU, -1, 0),
      LAYER(kR4, 0, NOPROP_IDENTITY, -1, 0)}},
};

typedef struct {
  const char* name;
  int32_t head;
  int64_t M;
  int has_embedding;
  float flow, sigma, radius;
  NopropUpdateRule rule;
} Goal;

#define ADAM_RULE(which) {.kind = which, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8}

static const Goal kGoals[] = {
    {"softmax, AdamW", NOPROP_SOFTMAX, 6, 1, 0, 0, 0, ADAM_RULE(NOPROP_ADAMW)},
    {"softmax on one-hot, Adam", NOPROP_SOFTMAX, D, 0, 0, 0, 0, ADAM_RULE(NOPROP_ADAM)},
    {"cross-entropy, AdamW", NOPROP_CROSS_ENTROPY, 6, 1, 0, 0, 0, ADAM_RULE(NOPROP_ADAMW)},
    {"radial, AdamW", NOPROP_RADIAL, 6, 1, 0, 0, 0.9f, ADAM_RULE(NOPROP_ADAMW)},
    {"radial on one-hot, Adam", NOPROP_RADIAL, D, 0, 0, 0, 0.7f, ADAM_RULE(NOPROP_ADAM)},
    {.name = "linear with flow, SGD",
     .head = NOPROP_LINEAR,
     .M = 6,
     .has_embedding = 1,
     .flow = 1,
     .sigma = 0.1f,
     .rule = {.kind = NOPROP_SGD, .momentum = 0.9, .nesterov = 1}},
};

typedef struct {
  char name[96];
  const char* isa;
  NopropPlan plan;
  NopropLayer layers[MAX_LAYERS];
  NopropState states[MAX_LAYERS];
  const Goal* goal;
  int64_t B, M;
  int64_t seeds[SLICES], draws[SLICES], updates[SLICES];
  int64_t draw[RUN], block[RUN];
  double lr[RUN], decay[RUN];
  float *x, *W_embed, *signal, *noise, *weight; /* x (RUN, B, F); numbers (RUN, B) */
  int64_t* y;                                   /* (RUN, B) */
  NopropSlices slices;
  NopropNoise drawn;
  NopropNoising noising;
  NopropObjective objective;
  NopropEmbedding embedding;
  NopropInput inputs[2];
  NopropLabels labels;
  NopropHost host;
} Case;

static void make_states(Case* c, uint64_t* random) {
  for (int l = 0; l < c->plan.num_layers; ++l) {
    const int64_t H = c->layers[l].width;
    NopropState* state = &c->states[l];
    for (int p = 0; p < PARAMS; ++p) {
      const int64_t size = param_size(&c->plan, l, p);
      if (size == 0) continue;
      const double scale = p == 0 ? 1.5 / sqrt((double)fan_in(&c->plan, l)) : 0.5;
      const double middle = p == 2 ? 1 : 0;
      NopropParam* param = param_of(state, p);
      param->value = uniform_floats(SLICES * size, middle - scale, middle + scale, random);
      /* moments of some steps ago: Adam's first step would make 1 of any rounding */
      param->m = uniform_floats(SLICES * size, -0.1, 0.1, random);
      if (c->goal->rule.kind != NOPROP_SGD)
        param->v = uniform_floats(SLICES * size, 0.005, 0.02, random);
      param->grad = allocate(RUN * size, sizeof(float));
    }
    if (!c->layers[l].norm) continue;
    state->running_mean = uniform_floats(SLICES * H, -1, 1, random);
    state->running_var = uniform_floats(SLICES * H, 0.5, 1.5, random);
    state->batch_mean = allocate(RUN * H, sizeof(float));
    state->batch_var = allocate(RUN * H, sizeof(float));
  }
}

static Case* make_case(const char* isa, const Shape* shape, const Goal* goal, int64_t B) {
  Case* c = allocate(1, sizeof *c);
  uint64_t random = (uint64_t)B;
  c->isa = isa;
  c->goal = goal;
  c->B = B;
  c->M = goal->M;
  snprintf(c->name, sizeof c->name, "%s, %s, B = %d", shape->name, goal->name, (int)B);
  memcpy(c->layers, shape->layers, sizeof c->layers);
  NopropLayer* last = &c->layers[shape->num_layers - 1];
  last->width = (int32_t)goal->M;
  c->plan = (NopropPlan){2, kInputWidths, 1, shape->num_layers, c->layers, NOPROP_FLOAT32};
  make_states(c, &random);
  for (int s = 0; s < SLICES; ++s) {
    c->seeds[s] = INT64_C(0x123456789abcdef) * (s + 1);
    c->draws[s] = 20 + s;
    c->updates[s] = 3 + s;
  }
  c->x = uniform_floats(RUN * B * F, -1, 1, &random);
  if (goal->has_embedding) c->W_embed = uniform_floats(goal->M * D, -1, 1, &random);
  c->signal = uniform_floats(RUN * B, 0.3, 0.9, &random);
  c->noise = uniform_floats(RUN * B, 0.3, 0.9, &random);
  c->weight = uniform_floats(RUN * B, 0.5, 1.5, &random);
  c->y = allocate(RUN * B, sizeof(int64_t));
  for (int64_t b = 0; b < RUN * B; ++b) c->y[b] = (b * 7 + b / 3) % goal->M;
  for (int i = 0; i < RUN; ++i) {
    c->draw[i] = 20 + i;
    c->block[i] = 4 + 3 * i;
    c->lr[i] = 0.1 / (1 + i);
    c->decay[i] = 0.2 + 0.1 * i;
  }
  c->slices = (NopropSlices){&c->plan, c->states, c->seeds, c->draws, c->updates, kIndex, RUN};
  c->drawn = (NopropNoise){c->draw, c->block, 0, 1, 0, 1, 0, 11};
  c->noising = (NopropNoising){
      .signal = {c->signal, 0, B, 1}, .noise = {c->noise, 0, B, 1}, .sigma = goal->sigma};
  c->objective = (NopropObjective){.weight = {c->weight, 0, B, 1},
                                   .flow = goal->flow,
                                   .head = goal->head,
                                   .rows = B + 3,
                                   .radius = goal->radius};
  c->embedding = (NopropEmbedding){.W = c->W_embed, .D = D};
  c->inputs[0] = (NopropInput){.data = c->x, .stride_slice = B * F};
  c->labels = (NopropLabels){.data = c->y, .stride_slice = B};
  c->host = (NopropHost){.threads = 2};
  return c;
}

#endif
