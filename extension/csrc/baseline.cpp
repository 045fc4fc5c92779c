// Any processor: the compiler's own vectors of four floats, 16-bit formats by integer arithmetic.
#include "kernels.h"

namespace dicache {
namespace {

struct Lanes {
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    typedef uint32_t U __attribute__((vector_size(16)));
    struct D {
        double v[4];
    };
    static constexpr int WIDTH = 4;

    static F zero() { return F{}; }
    static D wide_zero() { return D{}; }
    static F set(float x) { return F{x, x, x, x}; }
    static F sub(F a, F b) { return a - b; }
    static F add(F a, F b) { return a + b; }
    static F mul(F a, F b) { return a * b; }
    static F abs(F a) { return (F)((I)a & 0x7fffffff); }
    static F fma(F a, F b, F c) { return a * b + c; }
    static D widen(D d, F x, F y) {
        for (int i = 0; i < WIDTH; ++i) d.v[i] += double(x[i]) + double(y[i]);
        return d;
    }
    static double sum(D d) { return (d.v[0] + d.v[2]) + (d.v[1] + d.v[3]); }

    template <int DTYPE>
    static F load(const void* p) {
        if constexpr (DTYPE == F32) {
            F x;
            __builtin_memcpy(&x, p, 16);
            return x;
        }
        uint16_t h[WIDTH];
        __builtin_memcpy(h, p, 8);
        U u{h[0], h[1], h[2], h[3]};
        return DTYPE == BF16 ? (F)(u << 16) : half(u);
    }

    // A half's exponent and mantissa, moved into place, are those of a float 2^112 times too small, subnormals too.
    static F half(U u) {
        U sign = (u & 0x8000) << 16, rest = (u & 0x7fff) << 13;
        F x = (F)rest * set(0x1p112f);
        U special = (U)(rest >= (0x7c00u << 13));  // inf and nan keep the largest exponent
        U bits = ((rest | 0x7f800000u) & special) | ((U)x & ~special);
        return (F)(bits | sign);
    }

    template <int DTYPE>
    static void store(void* p, F x) {
        if constexpr (DTYPE == F32) {
            __builtin_memcpy(p, &x, 16);
            return;
        }
        uint16_t h[WIDTH];
        for (int i = 0; i < WIDTH; ++i) {
            float v = x[i];
            uint32_t u;
            __builtin_memcpy(&u, &v, 4);
            h[i] = DTYPE == BF16 ? to_bfloat(u) : to_half(u);
        }
        __builtin_memcpy(p, h, 8);
    }

    static uint16_t to_bfloat(uint32_t u) {
        if ((u & 0x7fffffff) > 0x7f800000) return uint16_t((u >> 16) | 0x40);
        return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }

    static uint16_t to_half(uint32_t u) {
        uint32_t sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
        if (rest > 0x7f800000) return uint16_t(sign | 0x7e00 | ((rest >> 13) & 0x3ff));
        if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
        if (rest < 0x38800000) {                                 // subnormal: let the float unit round
            float v;
            __builtin_memcpy(&v, &rest, 4);
            v += 0.5f;
            __builtin_memcpy(&rest, &v, 4);
            return uint16_t(sign | (rest - 0x3f000000));
        }
        return uint16_t(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13));
    }
};

#include "lanes.inl"

}  // namespace

extern const Path baseline = DICACHE_PATH(Lanes, "baseline");

}  // namespace dicache
