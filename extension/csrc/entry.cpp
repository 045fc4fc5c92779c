// The C functions that Python calls. Shapes, strides and dtypes were checked there; here are only raw pointers.
//
// Work is cut into chunks of CHUNK elements of one sample, whatever the number of threads and whatever else is in the
// batch, and partial sums are folded in the order of the chunks: a sample's result depends on nothing but its values
// and its own layout.
#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace {

using namespace dicache;

constexpr int64_t CHUNK = 16384, GRAIN = 2;  // torch's own grain is 32,768 elements
constexpr int OK = 0, OUT_OF_MEMORY = 1, POOL_FAILED = 2;

struct Choice {
    const Path* path;
    bool (*supported)();  // asked here, in code that every processor can run
};

const Choice PATHS[] = {
    {&baseline, [] { return true; }},
#ifdef DICACHE_X86
    {&avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }},
    {&avx512, [] { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }},
#endif
};
constexpr int COUNT = sizeof(PATHS) / sizeof(PATHS[0]);

// torch_parallel_for of libtorch_cpu, torch's own thread pool; null for one thread.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using Parallel = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

int run(Parallel parallel, int64_t units, Body body, void* context) {
    if (parallel != nullptr && units > GRAIN) return parallel(0, units, GRAIN, body, context) == 0 ? OK : POOL_FAILED;
    body(0, units, context);
    return OK;
}

int64_t chunks_of(int64_t elements) { return (elements + CHUNK - 1) / CHUNK; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Operand {
    const char* data;
    int64_t sample, outer;  // strides in bytes
};

struct Sums {
    SumsOf kernel;
    int64_t size, inner, elements, chunks;
    Operand a, b;
    double* partials;

    // One chunk, line after line of `inner` neighbouring elements.
    void chunk(int64_t unit) const {
        int64_t sample = unit / chunks, at = unit % chunks * CHUNK, end = smaller(at + CHUNK, elements);
        double* six = partials + unit * SUMS;
        std::memset(six, 0, SUMS * sizeof(double));
        while (at < end) {
            int64_t line = at / inner, column = at % inner, n = smaller(end - at, inner - column);
            kernel(a.data + sample * a.sample + line * a.outer + column * size,
                   b.data + sample * b.sample + line * b.outer + column * size, n, six);
            at += n;
        }
    }

    void fold(int64_t sample, float* out) const {
        double six[SUMS] = {};
        for (int64_t c = sample * chunks; c < (sample + 1) * chunks; ++c)
            for (int j = 0; j < SUMS; ++j) six[j] += partials[c * SUMS + j];
        for (int j = 0; j < SUMS; ++j) out[sample * SUMS + j] = float(six[j]);
    }
};

struct Combination {
    CombinationOf kernel;
    int64_t in, out_size, elements, chunks;
    int terms;
    const void* const* term;
    const int64_t* sample_stride;  // of every term, in bytes
    const float* c;                // (samples, terms)
    char* out;

    void chunk(int64_t unit) const {
        int64_t sample = unit / chunks, at = unit % chunks * CHUNK, n = smaller(CHUNK, elements - at);
        const void* read[MOST_TERMS];
        float weight[MOST_TERMS];
        int used = 0;
        for (int k = 0; k < terms; ++k) {
            float w = c[sample * terms + k];
            if (w == 0) continue;  // not read: it may hold anything
            read[used] = static_cast<const char*>(term[k]) + sample * sample_stride[k] + at * in;
            weight[used++] = w;
        }
        char* target = out + (sample * elements + at) * out_size;
        if (used == 0)
            std::memset(target, 0, n * out_size);
        else if (used == 1 && weight[0] == 1 && in == out_size)
            std::memcpy(target, read[0], n * in);
        else
            kernel(read, weight, used, target, n);
    }
};

template <class Task>
void chunks(int64_t begin, int64_t end, void* task) {
    for (int64_t unit = begin; unit < end; ++unit) static_cast<const Task*>(task)->chunk(unit);
}

}  // namespace

extern "C" {
#pragma GCC visibility push(default)

// What it was built from, to be held against the sources that are there.
const char* dicache_sources() { return DICACHE_SOURCES; }

// The name of path `index`, null where this processor cannot run it or there is none.
const char* dicache_path(int index) {
    return index >= 0 && index < COUNT && PATHS[index].supported() ? PATHS[index].path->name : nullptr;
}

// Samples of `outer` lines of `inner` neighbouring elements; strides in elements. `out` is (samples, 6).
int dicache_residual_sums(int path, int dtype, int64_t samples, int64_t outer, int64_t inner, const void* a,
                          int64_t a_sample, int64_t a_outer, const void* b, int64_t b_sample, int64_t b_outer,
                          float* out, Parallel parallel) {
    int64_t size = dtype == F32 ? 4 : 2, elements = outer * inner, each = chunks_of(elements);
    double small[16 * SUMS];
    bool fits = samples * each <= 16;
    void* room = fits ? small : std::malloc(samples * each * SUMS * sizeof(double));
    if (room == nullptr) return OUT_OF_MEMORY;
    Sums task{PATHS[path].path->sums[dtype], size, inner, elements, each,
              {static_cast<const char*>(a), a_sample * size, a_outer * size},
              {static_cast<const char*>(b), b_sample * size, b_outer * size},
              static_cast<double*>(room)};
    int status = run(parallel, samples * each, chunks<Sums>, &task);
    for (int64_t sample = 0; status == OK && sample < samples; ++sample) task.fold(sample, out);
    if (!fits) std::free(room);
    return status;
}

// out[s] = sum_k c[s, k] term_k[s]; `out` is contiguous, each term's samples are, `stride` in elements.
int dicache_combine(int path, int dtype, int to_float, int64_t samples, int64_t elements, int terms,
                    const void* const* term, const int64_t* stride, const float* c, void* out, Parallel parallel) {
    int64_t size = dtype == F32 ? 4 : 2, bytes[MOST_TERMS];
    for (int k = 0; k < terms; ++k) bytes[k] = stride[k] * size;
    Combination task{PATHS[path].path->combination[dtype][to_float], size, to_float ? 4 : size, elements,
                     chunks_of(elements), terms, term, bytes, c, static_cast<char*>(out)};
    return run(parallel, samples * task.chunks, chunks<Combination>, &task);
}

#pragma GCC visibility pop
}  // extern "C"
