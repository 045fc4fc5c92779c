// x86 with AVX2, FMA and F16C (2013 and later).
#include "kernels.h"

#include <immintrin.h>

namespace dicache {
namespace {

struct Lanes {
    using F = __m256;
    struct D {
        __m256d low, high;
    };
    static constexpr int WIDTH = 8;

    static F zero() { return _mm256_setzero_ps(); }
    static D wide_zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
    static F set(float x) { return _mm256_set1_ps(x); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static __m256d low(F x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
    static __m256d high(F x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
    static D widen(D d, F x, F y) {
        return {_mm256_add_pd(d.low, _mm256_add_pd(low(x), low(y))),
                _mm256_add_pd(d.high, _mm256_add_pd(high(x), high(y)))};
    }
    static double sum(D d) {
        alignas(32) double v[4];
        _mm256_store_pd(v, _mm256_add_pd(d.low, d.high));
        return (v[0] + v[2]) + (v[1] + v[3]);
    }

    template <int DTYPE>
    static F load(const void* p) {
        if constexpr (DTYPE == F32) return _mm256_loadu_ps(static_cast<const float*>(p));
        __m128i h = _mm_loadu_si128(static_cast<const __m128i*>(p));
        if constexpr (DTYPE == BF16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
        return _mm256_cvtph_ps(h);
    }

    template <int DTYPE>
    static void store(void* p, F x) {
        if constexpr (DTYPE == F32) {
            _mm256_storeu_ps(static_cast<float*>(p), x);
            return;
        }
        __m128i h = DTYPE == BF16 ? to_bfloat(x) : _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128(static_cast<__m128i*>(p), h);
    }

    // To nearest, ties to even; nan stays nan.
    static __m128i to_bfloat(F x) {
        __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
        rounded = _mm256_srli_epi32(rounded, 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    }
};

#include "lanes.inl"

}  // namespace

extern const Path avx2 = DICACHE_PATH(Lanes, "avx2");

}  // namespace dicache
