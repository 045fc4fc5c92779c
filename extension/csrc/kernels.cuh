// The two operations on CUDA: one source for nvcc, for NVRTC at run time, and for a host compiler behind a shim
// (check/shim.cpp), which runs these very functions thread by thread. No headers: NVRTC may have none.
//
// Sums: a block takes 8 groups of about 2048 elements of one sample, one per warp, 64 elements per thread. A thread's
// elements are the same whether it reads 16 bytes at once or one element, and a sample's blocks do not depend on the
// batch, so its result does not either. Partial sums go to memory; the last block of a sample, told by a ticket, folds
// them in a fixed order in double and puts the ticket back to 0. One launch, no atomics on floats, no sync.
#pragma once

namespace dicache {

typedef long long Long;
typedef unsigned short Half;

enum Dtype { F32 = 0, BF16 = 1, F16 = 2 };
constexpr int SUMS = 6, WARP = 32, WARPS = 8, THREADS = WARP * WARPS, GROUP = 2048;
constexpr int MOST_TERMS = 16, MOST_COEFFICIENTS = 512, VECTORS = 4;
constexpr int WIDTH = 8, TURNS = 4, TILE = THREADS * WIDTH * TURNS;  // of a combining block

#ifdef __CUDACC__  // nvcc and NVRTC; the shim brings its own
__device__ inline float half_to_float(Half h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}
__device__ inline Half float_to_half(float x) {
    Half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
#endif

struct alignas(16) Vector {
    unsigned word[4];
};

template <int DTYPE>
struct Storage {
    typedef Half Type;
};
template <>
struct Storage<F32> {
    typedef float Type;
};

__device__ inline float decode(float x, int) { return x; }
__device__ inline float decode(Half h, int dtype) {
    return dtype == BF16 ? __uint_as_float(unsigned(h) << 16) : half_to_float(h);
}
__device__ inline void encode(float x, float* to, int) { *to = x; }
__device__ inline void encode(float x, Half* to, int dtype) {
    if (dtype == F16) {
        *to = float_to_half(x);
        return;
    }
    unsigned u = __float_as_uint(x);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    *to = Half(nan ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

__device__ inline bool aligned(const void* p) { return (reinterpret_cast<unsigned long long>(p) & 15) == 0; }

// Samples of `outer` lines of `inner` neighbouring elements; strides in elements. Lines shorter than a group share one.
struct Lines {
    const void *a, *b;
    Long samples, outer, inner, a_sample, a_outer, b_sample, b_outer;

    __device__ __host__ Long pieces() const { return (inner + GROUP - 1) / GROUP; }
    __device__ __host__ Long together() const { return inner < GROUP ? GROUP / inner : 1; }
    __device__ __host__ Long groups() const { return (outer + together() - 1) / together() * pieces(); }
    __device__ __host__ Long blocks() const { return (groups() + WARPS - 1) / WARPS; }
};

template <int DTYPE>
struct Six {
    typedef typename Storage<DTYPE>::Type Type;
    static constexpr int EACH = 16 / sizeof(Type);  // elements read at once
    float v[SUMS] = {};

    __device__ void add(Type x, Type y) {
        float a = decode(x, DTYPE), b = decode(y, DTYPE), d = a - b;
        v[0] += fabsf(d);
        v[1] += fabsf(b);
        v[2] = fmaf(d, d, v[2]);
        v[3] = fmaf(b, b, v[3]);
        v[4] = fmaf(a, b, v[4]);
        v[5] = fmaf(a, a, v[5]);
    }

    __device__ void add(const Vector& x, const Vector& y) {
        const Type *a = reinterpret_cast<const Type*>(&x), *b = reinterpret_cast<const Type*>(&y);
#pragma unroll
        for (int i = 0; i < EACH; ++i) add(a[i], b[i]);
    }

    // n <= GROUP neighbouring elements, shared out among the lanes of a warp, 16 bytes to each in turn.
    __device__ void walk(const Type* a, const Type* b, int n, int lane) {
        constexpr int step = WARP * EACH;
        int i = lane * EACH;
        if (aligned(a) && aligned(b)) {
            for (; i + (VECTORS - 1) * step + EACH <= n; i += VECTORS * step) {
                Vector x[VECTORS], y[VECTORS];
#pragma unroll
                for (int k = 0; k < VECTORS; ++k) {
                    x[k] = *reinterpret_cast<const Vector*>(a + i + k * step);
                    y[k] = *reinterpret_cast<const Vector*>(b + i + k * step);
                }
#pragma unroll
                for (int k = 0; k < VECTORS; ++k) add(x[k], y[k]);
            }
        }
        for (; i < n; i += step)
            for (int k = i; k < i + EACH && k < n; ++k) add(a[k], b[k]);
    }
};

template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
    return x;
}

// The sum over the block's threads, in a fixed order; holds in threads 0 to 5, each its own of the six.
template <class T>
__device__ inline T block_sum(const T* six, T (*shared)[SUMS]) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int j = 0; j < SUMS; ++j) {
        T x = warp_sum(six[j]);
        if (lane == 0) shared[warp][j] = x;
    }
    __syncthreads();
    T total = 0;
    for (int w = 0; threadIdx.x < SUMS && w < WARPS; ++w) total += shared[w][threadIdx.x];
    return total;
}

template <int DTYPE>
__device__ inline void sums(const Lines& at, float* partials, unsigned* tickets, float* out) {
    typedef typename Storage<DTYPE>::Type Type;
    __shared__ float narrow[WARPS][SUMS];
    __shared__ double wide[WARPS][SUMS];
    __shared__ bool last;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, j = threadIdx.x;
    const Long blocks = at.blocks(), sample = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const Long group = block * WARPS + warp;
    Six<DTYPE> six;
    if (group < at.groups()) {
        const Long pieces = at.pieces(), first = group / pieces * at.together(), start = group % pieces * GROUP;
        const Long end = first + at.together() < at.outer ? first + at.together() : at.outer;
        const int n = int(at.inner - start < GROUP ? at.inner - start : GROUP);
        const Type* a = static_cast<const Type*>(at.a) + sample * at.a_sample + start;
        const Type* b = static_cast<const Type*>(at.b) + sample * at.b_sample + start;
        for (Long line = first; line < end; ++line) six.walk(a + line * at.a_outer, b + line * at.b_outer, n, lane);
    }
    const float partial = block_sum(six.v, narrow);
    if (blocks == 1) {
        if (j < SUMS) out[sample * SUMS + j] = partial;
        return;
    }
    if (j < SUMS) partials[blockIdx.x * Long(SUMS) + j] = partial;
    __threadfence();
    __syncthreads();
    if (j == 0) last = atomicAdd(tickets + sample, 1u) == blocks - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const volatile float* mine = partials + sample * blocks * SUMS;
    double total[SUMS] = {};
    for (Long i = j; i < blocks; i += THREADS)
        for (int k = 0; k < SUMS; ++k) total[k] += mine[i * SUMS + k];
    const double sum = block_sum(total, wide);
    if (j < SUMS) out[sample * SUMS + j] = float(sum);
    if (j == 0) tickets[sample] = 0;
}

// By value in the launch: no copy to the device, so nothing to wait for.
struct Combination {
    const void* term[MOST_TERMS];
    Long stride[MOST_TERMS];  // from sample to sample, in elements
    void* out;
    Long first, samples, elements;  // this launch's samples begin at `first`
    Long terms;
    float c[MOST_COEFFICIENTS];  // (samples, terms)

    __device__ __host__ Long blocks() const { return (elements + TILE - 1) / TILE; }
};

template <int DTYPE, int OUT>
__device__ inline void combine(const Combination& task) {
    typedef typename Storage<DTYPE>::Type In;
    typedef typename Storage<OUT>::Type Out;
    const Long row = blockIdx.x / task.blocks(), sample = task.first + row;
    const Long begin = (blockIdx.x % task.blocks() * TURNS * THREADS + threadIdx.x) * WIDTH;
    const float* c = task.c + row * task.terms;
    Out* out = static_cast<Out*>(task.out) + sample * task.elements;
    for (int turn = 0; turn < TURNS; ++turn) {
        const Long at = begin + Long(turn) * THREADS * WIDTH;
        const int n = int(task.elements - at < WIDTH ? task.elements - at : WIDTH);
        if (n <= 0) return;
        float total[WIDTH];
        bool any = false;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) total[i] = 0.0f;
        for (int k = 0; k < task.terms; ++k) {
            if (c[k] == 0) continue;  // not read: it may hold anything
            const In* x = static_cast<const In*>(task.term[k]) + sample * task.stride[k] + at;
            In read[WIDTH];
            if (n == WIDTH && aligned(x)) {
#pragma unroll
                for (unsigned i = 0; i < sizeof(read) / 16; ++i)
                    reinterpret_cast<Vector*>(read)[i] = reinterpret_cast<const Vector*>(x)[i];
            } else {
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) read[i] = i < n ? x[i] : In(0);
            }
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                const float value = decode(read[i], DTYPE);
                total[i] = any ? fmaf(c[k], value, total[i]) : c[k] * value;
            }
            any = true;
        }
        alignas(16) Out write[WIDTH];
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) encode(total[i], write + i, OUT);
        if (n == WIDTH && aligned(out + at)) {
#pragma unroll
            for (unsigned i = 0; i < sizeof(write) / 16; ++i)
                reinterpret_cast<Vector*>(out + at)[i] = reinterpret_cast<const Vector*>(write)[i];
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i)
                if (i < n) out[at + i] = write[i];
        }
    }
}

}  // namespace dicache

#define DICACHE_SUMS(NAME, DTYPE)                                                                                     \
    extern "C" __global__ void __launch_bounds__(dicache::THREADS)                                                    \
        NAME(const dicache::Lines at, float* partials, unsigned* tickets, float* out) {                               \
        dicache::sums<DTYPE>(at, partials, tickets, out);                                                             \
    }
#define DICACHE_COMBINE(NAME, DTYPE, OUT)                                                                             \
    extern "C" __global__ void __launch_bounds__(dicache::THREADS) NAME(const dicache::Combination task) {            \
        dicache::combine<DTYPE, OUT>(task);                                                                           \
    }

DICACHE_SUMS(dicache_sums_0, dicache::F32)
DICACHE_SUMS(dicache_sums_1, dicache::BF16)
DICACHE_SUMS(dicache_sums_2, dicache::F16)
DICACHE_COMBINE(dicache_combine_0_0, dicache::F32, dicache::F32)
DICACHE_COMBINE(dicache_combine_1_0, dicache::BF16, dicache::BF16)
DICACHE_COMBINE(dicache_combine_1_1, dicache::BF16, dicache::F32)
DICACHE_COMBINE(dicache_combine_2_0, dicache::F16, dicache::F16)
DICACHE_COMBINE(dicache_combine_2_1, dicache::F16, dicache::F32)
