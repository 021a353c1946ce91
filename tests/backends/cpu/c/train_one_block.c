/* Trains one NoProp block on the C interface alone, and tells the memory that it took.
 *
 * Made-up images of ten classes; a block of the plan x -> hx, z -> hz, (hx, hz) -> f -> logits with
 * AdamW. The loss must fall by LOSS_FALL, and blocks side by side on two threads must get the same
 * bits as on one, and as a block alone. The last line is JSON; the exit status is 0 where all
 * holds.
 *
 *   train_one_block [steps, 20 .. 200]
 */
#include <math.h>
#include <string.h>

#include "noprop.h"
#include "tools.h"

enum { PIXELS = 784, CLASSES = 10, HIDDEN = 256, LAYERS = 4, ROWS = 1024, BATCH = 64 };
enum { STEPS = 200, COMPARED_STEPS = 2 };
#define LOSS_FALL 10.0

static const int32_t kInputWidths[] = {PIXELS, CLASSES};
static const int32_t kFromX[] = {0}, kFromZ[] = {1}, kFromStems[] = {2, 3}, kFromF[] = {4};
static const NopropLayer kLayers[LAYERS] = {
    {.num_sources = 1, .sources = kFromX, .width = HIDDEN, .activation = NOPROP_RELU, .add = -1},
    {.num_sources = 1, .sources = kFromZ, .width = HIDDEN, .activation = NOPROP_RELU, .add = -1},
    {.num_sources = 2,
     .sources = kFromStems,
     .width = HIDDEN,
     .activation = NOPROP_RELU,
     .add = -1},
    {.num_sources = 1,
     .sources = kFromF,
     .width = CLASSES,
     .activation = NOPROP_IDENTITY,
     .add = -1},
};
static const int64_t kIn[LAYERS] = {PIXELS, CLASSES, 2 * HIDDEN, HIDDEN};
static const NopropPlan kPlan = {.num_inputs = 2,
                                 .input_widths = kInputWidths,
                                 .z = 1,
                                 .num_layers = LAYERS,
                                 .layers = kLayers,
                                 .precision = NOPROP_FLOAT32};

typedef struct {
  uint8_t* pixels;  /* (ROWS, PIXELS) */
  int64_t* labels;  /* (ROWS,) */
  int64_t* indices; /* (STEPS, BATCH) */
  int64_t* draw;    /* (STEPS,) */
  float* mean;      /* (PIXELS,) */
  float* scale;     /* (PIXELS,) */
  int64_t bytes;
} Data;

typedef struct {
  int64_t n;
  NopropState layers[LAYERS];
  int64_t seeds[2], draws[2], updates[2], index[2];
  float* loss; /* (STEPS, n) */
  uint8_t* applied;
  int64_t weight_floats;
} Blocks;

/* a picture of each class, and rows that are their class's picture in as much noise */
static Data make_data(void) {
  Data data = {
      .pixels = allocate((int64_t)ROWS * PIXELS, 1),
      .labels = allocate(ROWS, sizeof(int64_t)),
      .indices = allocate((int64_t)STEPS * BATCH, sizeof(int64_t)),
      .draw = allocate(STEPS, sizeof(int64_t)),
      .mean = allocate(PIXELS, sizeof(float)),
      .scale = allocate(PIXELS, sizeof(float)),
      .bytes = (int64_t)ROWS * PIXELS + 8 * (ROWS + STEPS * BATCH + STEPS) + 4 * 2 * PIXELS,
  };
  uint64_t state = 1;
  float* pictures = uniform_floats((int64_t)CLASSES * PIXELS, 64, 192, &state);
  for (int b = 0; b < ROWS; ++b) {
    data.labels[b] = b % CLASSES;
    for (int f = 0; f < PIXELS; ++f)
      data.pixels[b * PIXELS + f] =
          (uint8_t)(pictures[b % CLASSES * PIXELS + f] + 60 * uniform(&state));
  }
  for (int f = 0; f < PIXELS; ++f) {
    data.mean[f] = 128;
    data.scale[f] = 1.0f / 64;
  }
  for (int at = 0; at < STEPS * BATCH; ++at)
    data.indices[at] = (int64_t)((uniform(&state) + 1) / 2 * ROWS);
  for (int k = 0; k < STEPS; ++k) data.draw[k] = k;
  return data;
}

/* blocks 0 .. n, each with the weights and the seed of its number */
static Blocks* make_blocks(int64_t n) {
  Blocks* blocks = allocate(1, sizeof *blocks);
  blocks->n = n;
  uint64_t states[2] = {100, 101};
  for (int l = 0; l < LAYERS; ++l) {
    const int64_t sizes[] = {kLayers[l].width * kIn[l], kLayers[l].width};
    NopropParam* params[] = {&blocks->layers[l].weight, &blocks->layers[l].bias};
    const double bound = 1 / sqrt((double)kIn[l]);
    for (int p = 0; p < 2; ++p) {
      params[p]->value = allocate(n * sizes[p], sizeof(float));
      params[p]->m = allocate(n * sizes[p], sizeof(float));
      params[p]->v = allocate(n * sizes[p], sizeof(float));
      blocks->weight_floats += n * sizes[p];
      for (int64_t i = 0; i < n; ++i)
        for (int64_t at = 0; at < sizes[p]; ++at)
          params[p]->value[i * sizes[p] + at] = (float)(bound * uniform(&states[i]));
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    blocks->index[i] = i;
    blocks->seeds[i] = 7 + i;
  }
  blocks->loss = allocate(STEPS * n, sizeof(float));
  blocks->applied = allocate(STEPS * n, 1);
  return blocks;
}

static int train(Blocks* blocks, const Data* data, int64_t steps, int32_t threads) {
  const float signal[] = {0.7f, 0.9f}, noise[] = {0.714f, 0.436f}, weight[] = {1, 1};
  const int64_t number[] = {0, 1};
  const double lr = 1e-3, decay = 1e-3;
  const NopropSlices slices = {.plan = &kPlan,
                               .layers = blocks->layers,
                               .seeds = blocks->seeds,
                               .draws = blocks->draws,
                               .updates = blocks->updates,
                               .index = blocks->index,
                               .n = blocks->n};
  const NopropNoise drawn = {
      .draw = data->draw, .draw_stride_k = 1, .block = number, .block_stride_slice = 1};
  const NopropNoising noising = {.signal = {.data = signal, .stride_slice = 1},
                                 .noise = {.data = noise, .stride_slice = 1}};
  const NopropObjective objective = {
      .weight = {.data = weight, .stride_slice = 1}, .head = NOPROP_SOFTMAX, .rows = BATCH};
  const NopropEmbedding one_hot = {.D = CLASSES};
  const NopropInput inputs[2] = {{.data = data->pixels,
                                  .dtype = NOPROP_UINT8,
                                  .indices = data->indices,
                                  .replicas = 1,
                                  .rows = ROWS,
                                  .mean = data->mean,
                                  .scale = data->scale}};
  const NopropLabels y = {
      .data = data->labels, .indices = data->indices, .replicas = 1, .rows = ROWS};
  const NopropUpdateRule rule = {.kind = NOPROP_ADAMW,
                                 .lr = &lr,
                                 .weight_decay = &decay,
                                 .beta1 = 0.9,
                                 .beta2 = 0.999,
                                 .eps = 1e-8};
  const NopropTrainOut out = {.loss = blocks->loss, .applied = blocks->applied};
  const NopropHost host = {.threads = threads};
  const NopropResult result = noprop_train_cpu(&slices, &drawn, &noising, &objective, &one_hot,
                                               inputs, NULL, &y, &rule, BATCH, steps, &out, &host);
  if (result.status != NOPROP_OK) fprintf(stderr, "training: status %d\n", result.status);
  return result.status == NOPROP_OK;
}

/* block i of `a` and of `b`, of any numbers of blocks: the same bits everywhere? */
static int same_bits(const Blocks* a, const Blocks* b, int64_t i, int64_t steps) {
  int same = a->updates[i] == steps && b->updates[i] == steps;
  for (int l = 0; l < LAYERS; ++l) {
    const size_t sizes[] = {(size_t)(kLayers[l].width * kIn[l]), (size_t)kLayers[l].width};
    const NopropParam* of_a[] = {&a->layers[l].weight, &a->layers[l].bias};
    const NopropParam* of_b[] = {&b->layers[l].weight, &b->layers[l].bias};
    for (int p = 0; p < 2; ++p) {
      const size_t first = (size_t)i * sizes[p], bytes = sizes[p] * sizeof(float);
      same = same && memcmp(of_a[p]->value + first, of_b[p]->value + first, bytes) == 0;
      same = same && memcmp(of_a[p]->m + first, of_b[p]->m + first, bytes) == 0;
      same = same && memcmp(of_a[p]->v + first, of_b[p]->v + first, bytes) == 0;
    }
  }
  for (int64_t k = 0; k < steps; ++k) same = same && a->loss[k * a->n + i] == b->loss[k * b->n + i];
  return same;
}

/* a size of the process: its peak is VmHWM, not getrusage's, which also counts what the process was
 * before exec; RssFile is the code that has run */
static int64_t process_bytes(const char* name) {
  FILE* file = fopen("/proc/self/status", "r");
  if (file == NULL) return -1;
  char line[256];
  long long kib = -1;
  const size_t length = strlen(name);
  while (fgets(line, sizeof line, file) != NULL)
    if (strncmp(line, name, length) == 0 && sscanf(line + length, ": %lld kB", &kib) == 1) break;
  fclose(file);
  return kib < 0 ? -1 : (int64_t)kib * 1024;
}

int main(int count, char** arguments) {
  const int64_t steps = count > 1 ? atoi(arguments[1]) : STEPS;
  if (steps < 20 || steps > STEPS) return 2;
  const int64_t program = process_bytes("VmHWM"), code = process_bytes("RssFile");
  const Data data = make_data();
  Blocks* one = make_blocks(1);
  if (!train(one, &data, steps, 1)) return 1;
  const int64_t peak = process_bytes("VmHWM"), more_code = process_bytes("RssFile") - code;
  double last = 0;
  for (int64_t k = steps - 10; k < steps; ++k) last += one->loss[k] / 10;

  Blocks *alone = make_blocks(1), *on_one = make_blocks(2), *on_two = make_blocks(2);
  if (!train(alone, &data, COMPARED_STEPS, 1) || !train(on_one, &data, COMPARED_STEPS, 1) ||
      !train(on_two, &data, COMPARED_STEPS, 2))
    return 1;
  const int same = same_bits(on_one, on_two, 0, COMPARED_STEPS) &&
                   same_bits(on_one, on_two, 1, COMPARED_STEPS) &&
                   same_bits(alone, on_two, 0, COMPARED_STEPS);
  const int fell = last * LOSS_FALL < one->loss[0];
  if (!fell) fprintf(stderr, "the loss went from %g to %g only\n", one->loss[0], last);
  if (!same) fprintf(stderr, "the bits depend on threads or on other blocks\n");
  printf(
      "{\"isa\": \"%s\", \"steps\": %lld, \"first_loss\": %.6g, \"last_loss\": %.6g, "
      "\"same_bits\": %s, \"peak\": %lld, \"program\": %lld, \"code\": %lld, \"weights\": %lld, "
      "\"moments\": %lld, "
      "\"data\": %lld, \"workspace\": %lld}\n",
      noprop_isa_name(noprop_isa_used()), (long long)steps, one->loss[0], last,
      same ? "true" : "false", (long long)peak, (long long)program, (long long)more_code,
      4LL * one->weight_floats, 8LL * one->weight_floats, (long long)data.bytes,
      (long long)noprop_workspace_bytes_cpu(&kPlan, 1, BATCH, CLASSES, 1));
  release_all();
  return fell && same ? 0 : 1;
}
