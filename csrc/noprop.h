/* The C interface of the kernels: raw addresses, sizes, and nothing of Python or PyTorch.
 *
 * A block is a plan of layers over named inputs; results are numbered, inputs first, then layers in
 * order. State is stacked over the N slices of an object; a call runs the n slices at positions
 * index[0..n). All floats are float32 and contiguous unless a stride says otherwise; strides count
 * elements. Nothing is allocated that outlives a call but each thread's workspace.
 *
 * Contents (labels, row indices, features that are not finite) are checked before any write. Sizes
 * and addresses are trusted: the caller has checked them, and that some layer reads each result but
 * the last. A plan has at most 128 inputs and layers, a layer at most 128 sources.
 */
#ifndef NOPROP_H
#define NOPROP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { NOPROP_SOFTMAX = 0, NOPROP_LINEAR = 1, NOPROP_CROSS_ENTROPY = 2, NOPROP_RADIAL = 3 };
enum { NOPROP_NONE = 0, NOPROP_SGD = 1, NOPROP_ADAM = 2, NOPROP_ADAMW = 3 }; /* update rules */
enum { NOPROP_IDENTITY = 0, NOPROP_RELU = 1, NOPROP_GELU = 2 };              /* activations */
enum { NOPROP_FLOAT32 = 0, NOPROP_BFLOAT16 = 1, NOPROP_UINT8 = 2 }; /* inputs, precisions */

typedef enum {
  NOPROP_OK = 0,
  NOPROP_STOPPED = 1,   /* poll asked for it; each slice is at its own `draws` */
  NOPROP_NO_MEMORY = 2, /* nothing was written */
  NOPROP_BAD_LABEL =
      3, /* where: position among the labels, value: the label; nothing was written */
  NOPROP_BAD_INDEX =
      4, /* where: position among the indices, value: the index; nothing was written */
  NOPROP_BAD_INPUT =
      5,           /* value: the input with a feature that is not finite; nothing was written */
  NOPROP_BUSY = 6, /* made by a signal handler in the middle of another call of its thread. where 0:
                    * one of them writes parameters of the other; else that many are in the middle
                    * of each other. Nothing was written */
  NOPROP_FORKED = 7, /* in the child process of a fork by a signal handler in the middle of the
                      * call: what it writes may hold a part of a step */
} NopropStatus;

typedef struct {
  NopropStatus status;
  int64_t where, value;
} NopropResult;

/* One stacked parameter: `value`, `m`, `v` (N, ...) or null; `grad` (n, ...) or null. */
typedef struct {
  float *value, *m, *v, *grad;
} NopropParam;

enum { NOPROP_DENSE = 0, NOPROP_CONV2D = 1 };

/* An image of a row: feature (channel * height + y) * width + x. */
typedef struct {
  int32_t channels, height, width;
} NopropShape;

/* NOPROP_DENSE: add + activation(norm(concat(sources) @ weight.T + bias)).
 * NOPROP_CONV2D: add + dropout(pool(activation(conv2d(source, weight) + bias))), its windows inside
 * the image and one pixel apart. What is not of a kind is 0. */
typedef struct {
  int32_t num_sources;
  const int32_t* sources;
  int32_t width; /* of the result, an image's channels * height * width */
  int32_t activation;
  int32_t add; /* a result, or -1 */
  int32_t norm;
  float norm_eps, norm_momentum;
  int32_t kind;
  NopropShape in, shape;           /* of a convolution's source and result */
  int32_t kernel_size, pool;       /* pool: 2, or 0 */
  int32_t live_height, live_width; /* the pixels before the pool that anything depends on */
  float dropout;
  int32_t site; /* of dropout's numbers */
} NopropLayer;

typedef struct {
  int32_t num_inputs;
  const int32_t* input_widths;
  int32_t z; /* the input that is the noisy embedding */
  int32_t num_layers;
  const NopropLayer* layers;
  /* NOPROP_FLOAT32, or NOPROP_BFLOAT16: the operands of the layers' products (weights, sources and
   * output gradients) are rounded to it; products, sums, all else and the state are float32. */
  int32_t precision;
} NopropPlan;

/* One layer's state; the norm's members are null without norm. The weight is (N, width, sources'
 * widths), of a convolution (N, channels, the source's, kernel_size, kernel_size), the bias (N,
 * width) or (N, channels). */
typedef struct {
  NopropParam weight, bias, norm_weight, norm_bias;
  float *running_mean, *running_var; /* (N, width) */
  float *batch_mean, *batch_var;     /* out: (n, width), or null */
} NopropState;

typedef struct {
  const NopropPlan* plan;
  const NopropState* layers;
  const int64_t* seeds; /* (N,) */
  int64_t* draws;       /* (N,) or null */
  int64_t* updates;     /* (N,) or null */
  const int64_t* index; /* (n,) */
  int64_t n;
} NopropSlices;

/* One value per step, slice and row: data[k * stride_k + i * stride_slice + b * stride_row]. */
typedef struct {
  const float* data;
  int64_t stride_k, stride_slice, stride_row;
} NopropPerRow;

/* The labels' embeddings u_y: W[y], (M, D), or one-hot where W is null. */
typedef struct {
  const float* W;
  int64_t D;
} NopropEmbedding;

/* z = signal * u_y + noise * eps + sigma * eps_1 */
typedef struct {
  NopropPerRow signal, noise;
  float sigma;
} NopropNoising;

/* error = |u_hat - (u_y - flow * eps)|^2, or of NOPROP_CROSS_ENTROPY -log softmax(logits)[y], or of
 * NOPROP_RADIAL -log softmax(r)[y] with r_m = -|u_hat - u_m|^2 / (2 radius^2);
 * loss = sum over rows of weight * error / rows */
typedef struct {
  NopropPerRow weight;
  float flow;
  int32_t head;
  int64_t rows; /* of the whole batch */
  float radius; /* of NOPROP_RADIAL, above 0 */
} NopropObjective;

/* The address of eps. block and draw are data[k * stride_k + i * stride_slice]. */
typedef struct {
  const int64_t *draw, *block;
  int64_t draw_stride_k, draw_stride_slice, block_stride_k, block_stride_slice;
  uint32_t stream;
  int64_t first_row;
} NopropNoise;

/* Rows of features: data[k * stride_k + i * stride_slice + b * width + f], or, with indices (K, R,
 * B), row indices[k, replica[i], b] of data (rows, width). A feature is (data - mean) * scale where
 * those are given. */
typedef struct {
  const void* data;
  int32_t dtype;
  int64_t stride_k, stride_slice;
  const int64_t* indices;
  const int64_t* replica;
  int64_t replicas;
  int64_t rows;
  const float *mean, *scale; /* (width,), or both null */
} NopropInput;

typedef struct {
  const int64_t* data;
  int64_t stride_k, stride_slice;
  const int64_t* indices;
  const int64_t* replica;
  int64_t replicas;
  int64_t rows;
} NopropLabels;

typedef struct {
  int32_t kind;
  const double* lr; /* lr[k * lr_stride_k + i * lr_stride_slice] */
  int64_t lr_stride_k, lr_stride_slice;
  const double* weight_decay; /* weight_decay[i * decay_stride_slice] */
  int64_t decay_stride_slice;
  double momentum, beta1, beta2, eps;
  int32_t nesterov;
} NopropUpdateRule;

/* The OpenMP runtime whose threads do the caller's other work, by OpenMP's own functions. After
 * that work its threads spin for a while, and would take processors from threads of this library:
 * so they run the tasks themselves. */
typedef struct {
  void (*parallel)(void (*run)(void*), void* data, unsigned threads,
                   unsigned flags); /* GOMP_parallel */
  int (*num_threads)(void);         /* omp_get_num_threads */
  int (*pause)(int kind);           /* omp_pause_resource_all */
} NopropOpenMP;

/* poll runs on the calling thread, several times a second; a result other than 0 stops the call. */
typedef struct {
  int32_t threads;
  int (*poll)(void*);
  void* poll_data;
  const NopropOpenMP* openmp; /* or null: threads of the library's own */
} NopropHost;

typedef struct {
  float* loss;               /* (K, n) */
  uint8_t* applied;          /* (K, n) */
  float* error;              /* (n, B) or null; like the rest below, for K = 1 */
  float** d_inputs;          /* by input: (n, B, width) or null */
  float *d_signal, *d_noise; /* (n, B) or null */
  float* d_W_embed;          /* (n, M, D) or null */
} NopropTrainOut;

/* K steps of every slice. rule.kind NOPROP_NONE writes gradients and changes no state. z is (n, B,
 * width), or null to be drawn. */
NopropResult noprop_train_cpu(const NopropSlices* slices, const NopropNoise* noise,
                              const NopropNoising* noising, const NopropObjective* objective,
                              const NopropEmbedding* embedding, const NopropInput* inputs,
                              const float* z, const NopropLabels* y, const NopropUpdateRule* rule,
                              int64_t B, int64_t K, const NopropTrainOut* out,
                              const NopropHost* host);

/* z = signal * u_y + noise * eps + sigma * eps_1: z, eps (n, B, D) or null. */
NopropResult noprop_add_noise_cpu(float* z, float* eps, const int64_t* seeds,
                                  const NopropNoise* noise, const NopropNoising* noising,
                                  const NopropEmbedding* embedding, const NopropLabels* y,
                                  int64_t n, int64_t B, int64_t M, const NopropHost* host);

/* t (K, n, B) of the rows of K steps: uniform in [0, 1), or of `strata` equal parts of it the one
 * of the row, where that is above 0. */
NopropResult noprop_draw_times_cpu(double* t, const int64_t* seeds, const NopropNoise* noise,
                                   int64_t n, int64_t B, int64_t K, int64_t strata,
                                   const NopropHost* host);

/* out (count, 2 n): the sines of t (count,) times the frequencies (n,), and then the cosines.
 * Products must be below 1e5. */
NopropResult noprop_embed_times_cpu(float* out, const double* t, int64_t count,
                                    const double* frequencies, int64_t n, const NopropHost* host);

/* gamma(t) of R replicas, learned: gamma_0 + softplus(delta) (1 - gbar(t)), where gbar is the
 * network softplus(w2) . tanh(softplus(w1) (t - 1/2) + b1), normalised to 0 at t = 0 and 1 at t
 * = 1. */
typedef struct {
  const float *w1, *b1, *w2;    /* (R, hidden) */
  const float *gamma_0, *delta; /* (R,) */
  int64_t R, hidden;
} NopropGamma;

/* The weight of a row's error: scale times SNR'(t), 1, or the smaller of SNR(t) and `most`. */
enum { NOPROP_SNR = 0, NOPROP_UNIFORM = 1, NOPROP_MIN_SNR = 2 };
typedef struct {
  int32_t kind;
  double scale, most;
} NopropWeighting;

typedef struct {
  double* net;                     /* (R, B + 2), the network at t, and then at 0 and 1 */
  double* net_slope;               /* (R, B) */
  float *signal, *noise, *weight;  /* (R, B) */
  float *last_signal, *last_noise; /* (R,), at t = 1 */
  double *prior, *alpha_bar_0;     /* (R,) */
} NopropLevels;

/* The levels at t (R, B) of a CT with a learned gamma, and KL(q(z_0 | y) || N(0, I)) of embeddings
 * (.., D) whose mean |u_y|^2 is u_squared (R,). */
NopropResult noprop_levels_cpu(const NopropLevels* out, const NopropGamma* gamma,
                               const NopropWeighting* weighting, const double* t,
                               const double* u_squared, int64_t D, int64_t B,
                               const NopropHost* host);

/* Of a loss, in the levels of its rows, and in the last one, from which each row has its z. */
typedef struct {
  const float *d_signal, *d_noise, *d_weight, *d_last_signal, *d_last_noise; /* (R, B) */
} NopropLevelsGrads;

typedef struct {
  float *w1, *b1, *w2;    /* (R, hidden) */
  float *gamma_0, *delta; /* (R,) */
} NopropGammaGrads;

/* The gradient of that loss and the prior in gamma's parameters; net and net_slope as
 * noprop_levels_cpu made them. */
NopropResult noprop_levels_gradient_cpu(const NopropGammaGrads* out, const NopropGamma* gamma,
                                        const NopropWeighting* weighting, const double* t,
                                        const double* net, const double* net_slope,
                                        const NopropLevelsGrads* given, const double* u_squared,
                                        int64_t D, int64_t B, const NopropHost* host);

/* One optimizer step of parameters (R, count) each from their `grad`, in the replicas where apply
 * (R,) is not 0 and all gradients are finite: applied (R,) says which. */
NopropResult noprop_update_shared_cpu(const NopropParam* params, const int64_t* counts,
                                      int32_t num_params, int64_t R, const uint8_t* apply,
                                      uint8_t* applied, int64_t* updates, int64_t* draws,
                                      const NopropUpdateRule* rule, const NopropHost* host);

/* Bytes of one slice's saved activations. */
int64_t noprop_saved_bytes_cpu(const NopropPlan* plan, int64_t B);

/* logits (n, B, M), or null: only the inputs are saved; inputs[i]: (n, B, width), the slice stride
 * may be 0. saved: n * saved_bytes, 64-byte aligned, or null. */
NopropResult noprop_forward_cpu(float* logits, void* saved, const NopropSlices* slices,
                                const NopropInput* inputs, const int64_t* seeds,
                                const NopropNoise* noise, int64_t B, int32_t training,
                                const NopropHost* host);

/* loss (n,), error (n, B), d_logits (n, B, M), u_hat (n, B, D), each or null, from logits (n, B, M)
 * and eps (n, B, D) or null. */
NopropResult noprop_head_cpu(float* loss, float* error, float* d_logits, float* u_hat,
                             const float* logits, const float* eps,
                             const NopropObjective* objective, const NopropEmbedding* embedding,
                             const NopropLabels* y, int64_t n, int64_t B, int64_t M,
                             const NopropHost* host);

/* Gradients of a saved forward, or, with a rule, its update in place: applied (n,) says where
 * d_logits is finite. */
NopropResult noprop_backward_cpu(const NopropSlices* slices, const void* saved,
                                 const float* d_logits, float* const* d_inputs,
                                 const NopropUpdateRule* rule, uint8_t* applied, int64_t B,
                                 int32_t training, const NopropHost* host);

/* One optimizer step of each parameter from its `grad`, where apply (n,) is not 0 and, with applied
 * (n,) or null, which says where that is, every gradient is finite. */
NopropResult noprop_update_cpu(const NopropSlices* slices, const uint8_t* apply, uint8_t* applied,
                               const NopropUpdateRule* rule, const NopropHost* host);

/* Evaluations of a chain's network. One gives k = a u_hat + b z. Where it ends a step, z = keep *
 * base + total + weight * k + sqrt_c * eps, base being z as the step began and total the sum of
 * weight * k of the step's earlier evaluations; else z = base + next * k. The last one ends. */
typedef struct {
  int64_t evaluations;
  const float *a, *b, *sqrt_c, *weight, *next, *keep; /* (evaluations,) */
  const uint8_t* ends;                                /* (evaluations,) */
  int32_t t_input; /* the input whose features are the same for all rows, or -1 */
  const float* t;  /* (evaluations, its width), or null */
} NopropChain;

/* Chains of R replicas of L = n / R blocks, and S samples; L is 1 or chain->evaluations. logits
 * (kept, S, R, B, M), u_hat and z (kept, S, R, B, D), after every evaluations / kept of them.
 * inputs[i]: (R, B, width), the replica stride may be 0. */
NopropResult noprop_predict_cpu(float* logits, float* u_hat, float* z, const NopropSlices* slices,
                                const int64_t* seeds, const NopropInput* inputs,
                                const NopropChain* chain, int32_t head,
                                const NopropEmbedding* embedding, int64_t S, int64_t R, int64_t B,
                                int64_t first_row, int32_t add_noise, int64_t kept,
                                const NopropHost* host);

/* Bytes of one thread's workspace in a call of noprop_train_cpu on n slices, of K steps whose
 * inputs are the same for all of them, which asks for no input's gradient. */
int64_t noprop_workspace_bytes_cpu(const NopropPlan* plan, int64_t n, int64_t B, int64_t D,
                                   int64_t K);

/* Bytes of the rows that noprop_train_cpu packs once for all n slices in a call of K steps whose
 * inputs are the same for all of them. */
int64_t noprop_packed_bytes_cpu(const NopropPlan* plan, int64_t n, int64_t B, int64_t K);

/* Threads that share each slice's work in noprop_train_cpu, as they do where they outnumber the
 * slices. */
int32_t noprop_team_size_cpu(const NopropPlan* plan, int64_t n, int64_t B, int32_t threads);

/* Threads that share each chain in noprop_predict_cpu, of so many chains (samples times replicas
 * times parts of a batch) of B rows each. */
int32_t noprop_crew_size_cpu(const NopropPlan* plan, int64_t chains, int64_t B, int32_t threads);

/* Names of the instruction sets, best first: built into the library, and those this processor has.
 */
int32_t noprop_num_isas(void);
const char* noprop_isa_name(int32_t i);
int32_t noprop_isa_runs(int32_t i);
int32_t noprop_isa_used(void);
/* Force one by name; null: the best that runs. 0 where it is not built or does not run here. */
int32_t noprop_set_isa(const char* name);
/* Processors that this process may use: affinity and cgroup quota. */
int32_t noprop_processors(void);
/* The threads that the system grants of `wanted` ones; a call makes do with them. */
int32_t noprop_threads(int32_t wanted);
/* Multiply-adds in registers on each of `threads` threads; returns the billions of operations done:
 * they measure the machine's peak. */
double noprop_fma_gflop(int32_t threads, int64_t rounds);

#ifdef __cplusplus
}
#endif
#endif
