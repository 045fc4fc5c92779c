// The CUDA kernels on the CPU, for tests: the very __global__ functions, every thread of a block a fiber of its own, so
// that barriers, shuffles, tickets and the last block's fold run as written. It shows indexing, tails, strides,
// alignment, decoding and order; it cannot show races, launches or speed.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <ucontext.h>

#define __device__
#define __host__
#define __global__
#define __shared__ static
#define __launch_bounds__(n)

namespace {

struct Index {
    unsigned x;
} threadIdx, blockIdx;

constexpr int COUNT = 256;
constexpr size_t STACK = 64 * 1024;

struct Barrier {
    int arrived = 0, generation = 0, alive = 0;
};

ucontext_t scheduler, fibers[COUNT];
bool done[COUNT];
int running;
Barrier block_barrier, warp_barriers[COUNT / 32];
double shuffled[COUNT];
void (*body)();

void pass_on() { swapcontext(&fibers[running], &scheduler); }

void meet(Barrier& barrier) {
    int generation = barrier.generation;
    if (++barrier.arrived == barrier.alive) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    while (barrier.generation == generation) pass_on();
}

void __syncthreads() { meet(block_barrier); }
void __threadfence() {}
unsigned atomicAdd(unsigned* at, unsigned x) { return (*at += x) - x; }

template <class T>
T __shfl_down_sync(unsigned, T x, int offset) {
    Barrier& warp = warp_barriers[running / 32];
    int from = running % 32 + offset < 32 ? running + offset : running;
    shuffled[running] = double(x);
    meet(warp);
    T got = T(shuffled[from]);
    meet(warp);
    return got;
}

float __uint_as_float(unsigned u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
unsigned __float_as_uint(float x) {
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
using std::fmaf;

float half_to_float(unsigned short h) {
    unsigned sign = unsigned(h & 0x8000) << 16, rest = unsigned(h & 0x7fff) << 13;
    if (rest >= 0x7c00u << 13) return __uint_as_float(sign | rest | 0x7f800000u);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));
}

unsigned short float_to_half(float x) {
    unsigned u = __float_as_uint(x), sign = u >> 16 & 0x8000;
    float size = std::fabs(x);
    if (std::isnan(x)) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | unsigned(std::nearbyint(size * 0x1p24f));
    u = (u & 0x7fffffff) - 0x38000000;
    return sign | (u + 0xfff + (u >> 13 & 1)) >> 13;
}

}  // namespace

#include "../kernels.cuh"

namespace {

void fiber() {
    body();
    done[running] = true;
    --block_barrier.alive;
    --warp_barriers[running / 32].alive;
    pass_on();
}

// The blocks come in an order of their own, as on a device: every other one first.
void launch(unsigned blocks, void (*kernel)()) {
    static std::vector<char> stacks(COUNT * STACK);
    body = kernel;
    for (unsigned turn = 0; turn < blocks; ++turn) {
        unsigned odd = blocks / 2;
        blockIdx.x = turn < odd ? 2 * turn + 1 : 2 * (turn - odd);
        block_barrier = {0, 0, COUNT};
        for (auto& warp : warp_barriers) warp = {0, 0, 32};
        for (int i = 0; i < COUNT; ++i) {
            getcontext(&fibers[i]);
            fibers[i].uc_stack = {stacks.data() + i * STACK, 0, STACK};
            makecontext(&fibers[i], fiber, 0);
            done[i] = false;
        }
        for (int left = COUNT; left > 0;)
            for (running = 0; running < COUNT; ++running) {
                if (done[running]) continue;
                threadIdx.x = running;
                swapcontext(&scheduler, &fibers[running]);
                left -= done[running];
            }
    }
}

struct {
    const dicache::Lines* at;
    const dicache::Combination* task;
    float *partials, *out;
    unsigned* tickets;
} given;

template <void (*KERNEL)(dicache::Lines, float*, unsigned*, float*)>
void sums() {
    KERNEL(*given.at, given.partials, given.tickets, given.out);
}

template <void (*KERNEL)(dicache::Combination)>
void combine() {
    KERNEL(*given.task);
}

}  // namespace

extern "C" {

int dicache_cuda_sums(int dtype, int, unsigned blocks, const dicache::Lines* at, float* partials, unsigned* tickets,
                      float* out, void*) {
    given = {at, nullptr, partials, out, tickets};
    launch(blocks, dtype == 0 ? sums<dicache_sums_0> : dtype == 1 ? sums<dicache_sums_1> : sums<dicache_sums_2>);
    return 0;
}

int dicache_cuda_combine(int dtype, int to_float, int, unsigned blocks, const dicache::Combination* task, void*) {
    given = {nullptr, task, nullptr, nullptr, nullptr};
    auto half = to_float ? combine<dicache_combine_2_1> : combine<dicache_combine_2_0>;
    auto bfloat = to_float ? combine<dicache_combine_1_1> : combine<dicache_combine_1_0>;
    launch(blocks, dtype == 0 ? combine<dicache_combine_0_0> : dtype == 1 ? bfloat : half);
    return 0;
}

const char* dicache_cuda_error(int) { return "no error"; }

}  // extern "C"
