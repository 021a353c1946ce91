/* What both programs need: memory that is given back at once, and numbers that are the same
 * everywhere. */
#ifndef NOPROP_TESTS_TOOLS_H
#define NOPROP_TESTS_TOOLS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

typedef struct Block {
  struct Block* before;
} Block;

static Block* allocated;

/* zeroed, and 64-byte aligned behind a header of its own; the program ends where there is none */
static void* allocate(int64_t count, size_t size) {
  const size_t bytes = ((size_t)count * size + 63) / 64 * 64 + 64;
  char* memory = aligned_alloc(64, bytes);
  if (memory == NULL) {
    fprintf(stderr, "no memory for %zu bytes\n", bytes);
    exit(2);
  }
  for (size_t i = 0; i < bytes; ++i) memory[i] = 0;
  Block* block = (Block*)memory;
  block->before = allocated;
  allocated = block;
  return memory + 64;
}

static void release_all(void) {
  while (allocated != NULL) {
    Block* before = allocated->before;
    free(allocated);
    allocated = before;
  }
}

/* splitmix64 (Steele et al. 2014) to [-1, 1) */
static double uniform(uint64_t* state) {
  uint64_t x = *state += UINT64_C(0x9E3779B97F4A7C15);
  x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
  return (double)((x ^ (x >> 31)) >> 11) / 4503599627370496.0 - 1.0;
}

static float* uniform_floats(int64_t count, double low, double high, uint64_t* state) {
  float* floats = allocate(count, sizeof *floats);
  for (int64_t i = 0; i < count; ++i)
    floats[i] = (float)(low + (high - low) * (uniform(state) + 1) / 2);
  return floats;
}

#endif
