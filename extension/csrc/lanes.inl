// The two kernels over any kind of lanes L: a vector of floats L::F, of doubles L::D, and how the three dtypes become
// floats and back. Included once per path, into that path's own namespace.
//
// Sums run in float over at most 64 elements per lane and accumulator, then in double: rounding errors stay near those
// of single float operations, and the cost per element is that of float.

template <class L>
constexpr int64_t BLOCK = 64 * 2 * L::WIDTH;

template <class L, int DTYPE>
inline typename L::F first_lanes(const char* x, int64_t n) {
    alignas(64) char whole[L::WIDTH * 4] = {};
    __builtin_memcpy(whole, x, n * (DTYPE == F32 ? 4 : 2));
    return L::template load<DTYPE>(whole);
}

// Two arrays are read, and the processor's own prefetching stops at every page: a kilobyte ahead takes 0.93 of the time
// in fp32 and 0.66 in bf16, where nothing is in the cache yet. It may run past the end, which reads nothing.
template <int64_t BYTES>
inline void ahead(const char* x) {
    for (int64_t line = 0; line < BYTES; line += 64) __builtin_prefetch(x + 1024 + line);
}

template <class L>
struct Six {
    typename L::F v[SUMS] = {L::zero(), L::zero(), L::zero(), L::zero(), L::zero(), L::zero()};

    inline void add(typename L::F a, typename L::F b) {
        typename L::F d = L::sub(a, b);
        v[0] = L::add(v[0], L::abs(d));
        v[1] = L::add(v[1], L::abs(b));
        v[2] = L::fma(d, d, v[2]);
        v[3] = L::fma(b, b, v[3]);
        v[4] = L::fma(a, b, v[4]);
        v[5] = L::fma(a, a, v[5]);
    }
};

template <class L, int DTYPE>
inline void sums(const void* pa, const void* pb, int64_t n, double* six) {
    constexpr int64_t size = DTYPE == F32 ? 4 : 2, step = L::WIDTH * size;
    const char *a = static_cast<const char*>(pa), *b = static_cast<const char*>(pb);
    typename L::D total[SUMS];
    for (auto& t : total) t = L::wide_zero();
    while (n > 0) {
        int64_t block = n < BLOCK<L> ? n : BLOCK<L>, i = 0;
        Six<L> even, odd;
        for (; i + 2 * L::WIDTH <= block; i += 2 * L::WIDTH, a += 2 * step, b += 2 * step) {
            ahead<2 * step>(a);
            ahead<2 * step>(b);
            even.add(L::template load<DTYPE>(a), L::template load<DTYPE>(b));
            odd.add(L::template load<DTYPE>(a + step), L::template load<DTYPE>(b + step));
        }
        for (; i + L::WIDTH <= block; i += L::WIDTH, a += step, b += step)
            even.add(L::template load<DTYPE>(a), L::template load<DTYPE>(b));
        if (i < block) odd.add(first_lanes<L, DTYPE>(a, block - i), first_lanes<L, DTYPE>(b, block - i));
        for (int j = 0; j < SUMS; ++j) total[j] = L::widen(total[j], even.v[j], odd.v[j]);
        n -= block;
    }
    for (int j = 0; j < SUMS; ++j) six[j] += L::sum(total[j]);
}

template <class L, int IN, int OUT>
inline void combination(const void* const* term, const float* c, int terms, void* out, int64_t n) {
    constexpr int64_t in = IN == F32 ? 4 : 2, size = OUT == F32 ? 4 : 2;
    int64_t i = 0;
    for (; i + L::WIDTH <= n; i += L::WIDTH) {
        for (int k = 0; IN != F32 && k < terms; ++k)  // in fp32 it takes 1.04 of the time here
            ahead<L::WIDTH * in>(static_cast<const char*>(term[k]) + i * in);
        typename L::F x = L::mul(L::set(c[0]), L::template load<IN>(static_cast<const char*>(term[0]) + i * in));
        for (int k = 1; k < terms; ++k)
            x = L::fma(L::set(c[k]), L::template load<IN>(static_cast<const char*>(term[k]) + i * in), x);
        L::template store<OUT>(static_cast<char*>(out) + i * size, x);
    }
    if (i == n) return;
    typename L::F x = L::mul(L::set(c[0]), first_lanes<L, IN>(static_cast<const char*>(term[0]) + i * in, n - i));
    for (int k = 1; k < terms; ++k)
        x = L::fma(L::set(c[k]), first_lanes<L, IN>(static_cast<const char*>(term[k]) + i * in, n - i), x);
    alignas(64) char whole[L::WIDTH * 4];
    L::template store<OUT>(whole, x);
    __builtin_memcpy(static_cast<char*>(out) + i * size, whole, (n - i) * size);
}

#define DICACHE_PATH(L, NAME)                                                                                       \
    {NAME,                                                                                                            \
     {sums<L, F32>, sums<L, BF16>, sums<L, F16>},                                                                     \
     {{combination<L, F32, F32>, combination<L, F32, F32>},                                                           \
      {combination<L, BF16, BF16>, combination<L, BF16, F32>},                                                        \
      {combination<L, F16, F16>, combination<L, F16, F32>}}}
