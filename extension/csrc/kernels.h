// What the paths for different instruction sets have in common. Each is one file, compiled with its own flags: it must
// include nothing that holds inline functions, or the linker may keep a copy that older processors cannot run.
#pragma once
#include <cstdint>

namespace dicache {

enum Dtype : int { F32 = 0, BF16 = 1, F16 = 2 };
constexpr int DTYPES = 3;
constexpr int SUMS = 6;
constexpr int MOST_TERMS = 16;

// Adds sum|a-b|, sum|b|, sum(a-b)^2, sum b^2, sum a b, sum a^2 over n neighbouring elements to `six`.
using SumsOf = void (*)(const void* a, const void* b, int64_t n, double* six);

// out[i] = sum_k c[k] term_k[i] over n neighbouring elements, 1 <= terms <= MOST_TERMS.
using CombinationOf = void (*)(const void* const* term, const float* c, int terms, void* out, int64_t n);

struct Path {
    const char* name;
    SumsOf sums[DTYPES];
    CombinationOf combination[DTYPES][2];  // [1]: float32 out
};

extern const Path baseline;
#ifdef DICACHE_X86
extern const Path avx2;
extern const Path avx512;
#endif

}  // namespace dicache
