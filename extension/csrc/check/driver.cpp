// Runs every path of the library under AddressSanitizer and UBSan, and holds it against sums in double. Buffers end
// where the data ends, so reading or writing one element too far is an error. `python extension/build.py --sanitize`
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

using Body = void (*)(int64_t, int64_t, void*);
using Parallel = int32_t (*)(int64_t, int64_t, int64_t, Body, void*);
extern "C" {
const char* dicache_path(int);
int dicache_residual_sums(int, int, int64_t, int64_t, int64_t, const void*, int64_t, int64_t, const void*, int64_t,
                          int64_t, float*, Parallel);
int dicache_combine(int, int, int, int64_t, int64_t, int, const void* const*, const int64_t*, const float*, void*,
                    Parallel);
}

namespace {

int failures = 0;

// Four threads that share the units evenly.
int32_t pool(int64_t begin, int64_t end, int64_t, Body body, void* context) {
    std::vector<std::thread> threads;
    int64_t each = (end - begin + 3) / 4;
    for (int64_t at = begin; at < end; at += each)
        threads.emplace_back(body, at, at + each < end ? at + each : end, context);
    for (auto& thread : threads) thread.join();
    return 0;
}

// Numbers that bfloat16 and half hold exactly: multiples of 1/8 in [-4, 4).
float number(int64_t i, int seed) { return float(int((i * 2654435761u + seed * 40503u) >> 7 & 63) - 32) / 8; }

int64_t size_of(int dtype) { return dtype == 0 ? 4 : 2; }

void write(char* at, int dtype, float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    uint16_t h = uint16_t(u >> 16);
    if (dtype == 2) h = x == 0 ? 0 : uint16_t((u >> 16 & 0x8000) | ((u & 0x7fffffff) - 0x38000000) >> 13);
    std::memcpy(at, dtype == 0 ? static_cast<void*>(&u) : &h, size_of(dtype));
}

float read(const char* at, int dtype) {
    uint32_t u = 0;
    std::memcpy(&u, at, size_of(dtype));
    if (dtype == 1) u <<= 16;
    if (dtype == 2) u = (u & 0x7fff) ? (u & 0x8000) << 16 | ((u & 0x7fff) << 13) + 0x38000000 : 0;
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

// `samples` of `outer` lines of `inner` elements, `gap` elements between lines, `offset` elements off any alignment.
struct Buffer {
    int dtype;
    int64_t samples, outer, inner, stride, offset;
    char* bytes;

    Buffer(int dtype, int64_t samples, int64_t outer, int64_t inner, int64_t gap, int64_t offset, int seed)
        : dtype(dtype), samples(samples), outer(outer), inner(inner), stride(inner + gap), offset(offset) {
        int64_t elements = offset + samples * outer * stride - gap;
        bytes = static_cast<char*>(std::malloc(elements * size_of(dtype)));
        for (int64_t i = 0; i < elements; ++i) write(bytes + i * size_of(dtype), dtype, number(i, seed));
    }
    ~Buffer() { std::free(bytes); }
    Buffer(const Buffer&) = delete;
    const char* data() const { return bytes + offset * size_of(dtype); }
    float at(int64_t sample, int64_t line, int64_t i) const {
        return read(data() + ((sample * outer + line) * stride + i) * size_of(dtype), dtype);
    }
};

void expect(bool held, const char* what, int path, int dtype, const Buffer& a) {
    if (held) return;
    ++failures;
    std::printf("%s: path %s dtype %d samples %lld lines %lld of %lld\n", what, dicache_path(path), dtype,
                (long long)a.samples, (long long)a.outer, (long long)a.inner);
}

void sums(int path, const Buffer& a, const Buffer& b, Parallel parallel) {
    std::vector<float> out(a.samples * 6);
    int status = dicache_residual_sums(path, a.dtype, a.samples, a.outer, a.inner, a.data(), a.outer * a.stride,
                                       a.stride, b.data(), b.outer * b.stride, b.stride, out.data(), parallel);
    bool held = status == 0;
    for (int64_t s = 0; s < a.samples; ++s) {
        double want[6] = {}, size = 0;
        for (int64_t line = 0; line < a.outer; ++line)
            for (int64_t i = 0; i < a.inner; ++i) {
                double x = a.at(s, line, i), y = b.at(s, line, i), d = x - y;
                double terms[6] = {std::fabs(d), std::fabs(y), d * d, y * y, x * y, x * x};
                for (int j = 0; j < 6; ++j) want[j] += terms[j];
                size += std::fabs(x * y) + x * x + y * y + d * d;
            }
        for (int j = 0; j < 6; ++j) held &= std::fabs(out[s * 6 + j] - want[j]) <= 1e-6 * size + 1e-30;
    }
    expect(held, "sums", path, a.dtype, a);
}

void combinations(int path, const Buffer& a, const Buffer& b, int to_float, Parallel parallel) {
    int64_t elements = a.outer * a.inner;
    int out_type = to_float ? 0 : a.dtype;
    char* out = static_cast<char*>(std::malloc(a.samples * elements * size_of(out_type)));
    const void* terms[3] = {a.data(), nullptr, b.data()};  // nullptr: never read, its coefficient is 0
    int64_t strides[3] = {a.outer * a.stride, 0, b.outer * b.stride};
    std::vector<float> c(a.samples * 3, 0.0f);
    for (int64_t s = 0; s < a.samples; ++s) c[s * 3] = s % 2 ? 1.0f : 0.5f, c[s * 3 + 2] = s % 2 ? 0.0f : -2.0f;
    bool held = dicache_combine(path, a.dtype, to_float, a.samples, elements, 3, terms, strides, c.data(), out,
                                parallel) == 0;
    for (int64_t s = 0; s < a.samples; ++s)
        for (int64_t i = 0; i < elements; ++i) {
            float want = s % 2 ? a.at(s, 0, i) : 0.5f * a.at(s, 0, i) - 2 * b.at(s, 0, i);
            float got = read(out + (s * elements + i) * size_of(out_type), out_type);
            held &= std::fabs(got - want) <= (out_type == 0 ? 0 : 0.01f) * std::fabs(want);
        }
    expect(held, "combination", path, a.dtype, a);
    std::free(out);
}

}  // namespace

int main() {
    const int64_t shapes[][3] = {{1, 1, 1},    {1, 1, 7},    {3, 1, 16},     {2, 1, 33},     {2, 5, 1},   {2, 7, 31},
                                 {3, 3, 129},  {1, 1, 2047}, {2, 1, 16384},  {2, 1, 16385},  {1, 9, 4099}, {5, 1, 70001}};
    int paths = 0;
    for (; dicache_path(paths) != nullptr; ++paths)
        for (int dtype = 0; dtype < 3; ++dtype)
            for (const auto& shape : shapes)
                for (Parallel parallel : {Parallel(nullptr), Parallel(pool)}) {
                    for (int64_t gap : {0, 5})
                        sums(paths, Buffer(dtype, shape[0], shape[1], shape[2], gap, 0, 1),
                             Buffer(dtype, shape[0], shape[1], shape[2], 0, 1, 2), parallel);
                    for (int to_float : {0, 1})
                        combinations(paths, Buffer(dtype, shape[0], 1, shape[1] * shape[2], 0, 1, 1),
                                     Buffer(dtype, shape[0], 1, shape[1] * shape[2], 3, 0, 2), to_float, parallel);
                }
    std::printf("%d paths, %d failures\n", paths, failures);
    return failures != 0;
}
