// x86 with AVX-512 F and BW (2017 and later). Neither AVX512_BF16, whose conversion flushes subnormals, nor
// AVX512_FP16, whose sums would be of half precision, is of use here.
#include "kernels.h"

#include <immintrin.h>

namespace dicache {
namespace {

struct Lanes {
    using F = __m512;
    struct D {
        __m512d low, high;
    };
    static constexpr int WIDTH = 16;

    static F zero() { return _mm512_setzero_ps(); }
    static D wide_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F abs(F a) { return _mm512_abs_ps(a); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static __m512d low(F x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
    static __m512d high(F x) {
        return _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
    }
    static D widen(D d, F x, F y) {
        return {_mm512_add_pd(d.low, _mm512_add_pd(low(x), low(y))),
                _mm512_add_pd(d.high, _mm512_add_pd(high(x), high(y)))};
    }
    static double sum(D d) { return _mm512_reduce_add_pd(_mm512_add_pd(d.low, d.high)); }

    template <int DTYPE>
    static F load(const void* p) {
        if constexpr (DTYPE == F32) return _mm512_loadu_ps(p);
        __m256i h = _mm256_loadu_si256(static_cast<const __m256i*>(p));
        if constexpr (DTYPE == BF16) return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
        return _mm512_cvtph_ps(h);
    }

    template <int DTYPE>
    static void store(void* p, F x) {
        if constexpr (DTYPE == F32) {
            _mm512_storeu_ps(p, x);
            return;
        }
        __m256i h = DTYPE == BF16 ? to_bfloat(x) : _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(static_cast<__m256i*>(p), h);
    }

    // To nearest, ties to even; nan stays nan.
    static __m256i to_bfloat(F x) {
        __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    }
};

#include "lanes.inl"

}  // namespace

extern const Path avx512 = DICACHE_PATH(Lanes, "avx512");

}  // namespace dicache
