/* The C interface of the CUDA kernels: facts of the devices, and the launch of a program.
 *
 * A program (cuda/program.h) is a call's stages with their addresses on the device; one launch runs
 * it. Sizes and addresses are trusted, as in noprop.h; a launch is asynchronous, allocates nothing
 * and may be captured into a graph. Functions return 0, or 1 on failure; noprop_cuda_error() then
 * has the reason.
 */
#ifndef NOPROP_CUDA_H
#define NOPROP_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  char name[256];
  int32_t major, minor; /* compute capability */
  int32_t multiprocessors;
  int32_t cooperative;  /* whether it launches grids whose thread blocks may wait for each other */
  int64_t shared_bytes; /* the most that a thread block may have */
  int64_t l2_bytes, memory_bytes;
} NopropCudaDevice;

int noprop_cuda_device_count(int32_t* count);
int noprop_cuda_device(int32_t device, NopropCudaDevice* facts);

/* Shared memory that a thread block needs beside what stays resident; precision as in program.h. */
int noprop_cuda_scratch_bytes(int32_t precision, int64_t* bytes);

/* Thread blocks that the device holds at the same time: the most that a launch may have. */
int noprop_cuda_resident_blocks(int32_t device, int32_t precision, int32_t resident_floats,
                                int32_t* blocks);

/* Clusters of `blocks` thread blocks, 1 to 8, that the device holds at the same time; refuses one
 * of compute capability below 9.0, which has none. */
int noprop_cuda_resident_clusters(int32_t device, int32_t precision, int32_t resident_floats,
                                  int32_t blocks, int32_t* clusters);

/* Launches a program of `bytes` bytes, copied before it returns, on a stream of the device.
 * Before anything is written, it refuses a program that does not fit: a grid that cannot be
 * resident as a whole, unless its groups are clusters, ... */
int noprop_cuda_launch(const void* program, int64_t bytes, int32_t device, void* stream);

/* Why this thread's last call failed; it lives until the thread's next call. */
const char* noprop_cuda_error(void);

#ifdef __cplusplus
}
#endif

#endif
