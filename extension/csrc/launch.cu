// The C functions that Python calls. Tensors were checked there; launches go to torch's stream, nothing is waited for.
#include "kernels.cuh"

using dicache::Combination;
using dicache::Lines;

extern "C" {
#pragma GCC visibility push(default)

// What it was built from, to be held against the sources that are there.
const char* dicache_sources() { return DICACHE_SOURCES; }

const char* dicache_cuda_error(int status) { return cudaGetErrorString(cudaError_t(status)); }

// Whether this driver and device can run the kernels; a cudaError_t.
int dicache_cuda_usable(int device) {
    cudaFuncAttributes attributes;
    cudaError_t status = cudaSetDevice(device);
    return status ? status : cudaFuncGetAttributes(&attributes, dicache_sums_0);
}

int dicache_cuda_sums(int dtype, int device, unsigned blocks, const Lines* at, float* partials, unsigned* tickets,
                      float* out, cudaStream_t stream) {
    if (cudaError_t status = cudaSetDevice(device)) return status;
    auto kernel = dtype == 0 ? dicache_sums_0 : dtype == 1 ? dicache_sums_1 : dicache_sums_2;
    kernel<<<blocks, dicache::THREADS, 0, stream>>>(*at, partials, tickets, out);
    return cudaGetLastError();
}

int dicache_cuda_combine(int dtype, int to_float, int device, unsigned blocks, const Combination* task,
                         cudaStream_t stream) {
    if (cudaError_t status = cudaSetDevice(device)) return status;
    auto half = to_float ? dicache_combine_2_1 : dicache_combine_2_0;
    auto bfloat = to_float ? dicache_combine_1_1 : dicache_combine_1_0;
    auto kernel = dtype == 0 ? dicache_combine_0_0 : dtype == 1 ? bfloat : half;
    kernel<<<blocks, dicache::THREADS, 0, stream>>>(*task);
    return cudaGetLastError();
}

#pragma GCC visibility pop
}  // extern "C"
