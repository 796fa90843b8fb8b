/* The same power as in rsa.h for processors that multiply four limbs at a time: limbs of 28 bits, of which a product fits in
   57 and a sum of 76 in 63, so that carries wait until a whole product is there. R = 2^2128.

   A row of the product adds one limb of b times all of a, one limb further along. So that every load is an aligned one, a
   factor is kept four times, shifted by none to three limbs, and four rows go together. */
#ifndef CAREGATE_RSA_AVX2_H
#define CAREGATE_RSA_AVX2_H

#include "rsa.h"

#define RSA4_LIMBS 76
#define RSA4_VECTORS (RSA4_LIMBS / 4)
#define RSA4_BITS 28
#define RSA4_MASK ((UINT64_C(1) << RSA4_BITS) - 1)
#define RSA4_ROW (RSA4_LIMBS + 4)

typedef struct {
    uint64_t by[4][RSA4_ROW];
} rsa4_shifted;

/* The modulus, -1/n mod R, and R^2 mod n. Alignment: 32 bytes. */
typedef struct {
    rsa4_shifted n, inverse;
    uint64_t rr[RSA4_LIMBS];
} rsa4_modulus;

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 7)
#include <immintrin.h>
/* PERF: `policy_rs256_unique` of `make bench`: 12.7 us a power, and 14.5 as GCC orders it for no processor in particular. */
#if defined(__clang__)
#define RSA4_TARGET __attribute__((target("avx2")))
#else
#define RSA4_TARGET __attribute__((target("avx2,tune=haswell")))
#endif
#define RSA4_ALIGNED __attribute__((aligned(32)))

#define RSA4_LOAD(at) _mm256_load_si256((const __m256i *)(at))
#define RSA4_STORE(at, x) _mm256_store_si256((__m256i *)(at), x)
#define RSA4_ALL(x) _mm256_set1_epi64x((long long)(x))

static int rsa_has_avx2(void) { return __builtin_cpu_supports("avx2"); }

RSA4_TARGET static void rsa4_shift(rsa4_shifted *shifted, const uint64_t *limbs)
{
    __m256i last1 = _mm256_setzero_si256(), last2 = last1, last3 = last1;
    int v;
    for (v = 0; v <= RSA4_VECTORS; v++) {
        const __m256i x = v < RSA4_VECTORS ? RSA4_LOAD(limbs + 4 * v) : _mm256_setzero_si256();
        const __m256i by1 = _mm256_permute4x64_epi64(x, 0x93), by2 = _mm256_permute4x64_epi64(x, 0x4e);
        const __m256i by3 = _mm256_permute4x64_epi64(x, 0x39);
        RSA4_STORE(shifted->by[0] + 4 * v, x);
        RSA4_STORE(shifted->by[1] + 4 * v, _mm256_blend_epi32(by1, last1, 0x03));
        RSA4_STORE(shifted->by[2] + 4 * v, _mm256_blend_epi32(by2, last2, 0x0f));
        RSA4_STORE(shifted->by[3] + 4 * v, _mm256_blend_epi32(by3, last3, 0x3f));
        last1 = by1, last2 = by2, last3 = by3;
    }
}

/* Add the rows 4r to 4r + 3, limbs b0 to b3 times a, to the vectors `from` to `to` of the sums. */
RSA4_TARGET static inline void rsa4_rows(uint64_t *sums, const rsa4_shifted *a, int r, int from, int to, __m256i b0,
                                         __m256i b1, __m256i b2, __m256i b3)
{
    for (; from < to; from++) {
        const uint64_t *at = a->by[0] + 4 * (from - r);
        const __m256i low = _mm256_add_epi64(_mm256_mul_epu32(b0, RSA4_LOAD(at)),
                                             _mm256_mul_epu32(b1, RSA4_LOAD(at + RSA4_ROW)));
        const __m256i high = _mm256_add_epi64(_mm256_mul_epu32(b2, RSA4_LOAD(at + 2 * RSA4_ROW)),
                                              _mm256_mul_epu32(b3, RSA4_LOAD(at + 3 * RSA4_ROW)));
        const __m256i sum = _mm256_add_epi64(RSA4_LOAD(sums + 4 * from), _mm256_add_epi64(low, high));
        RSA4_STORE(sums + 4 * from, sum);
    }
}

/* sums += a b, as far as it is in the vectors `first` to `end`. */
RSA4_TARGET static void rsa4_multiply(uint64_t *sums, const rsa4_shifted *a, const uint64_t *b, int first, int end)
{
    int r;
    for (r = 0; r < RSA4_VECTORS; r++, b += 4)
        rsa4_rows(sums, a, r, first > r ? first : r, end < r + RSA4_VECTORS + 1 ? end : r + RSA4_VECTORS + 1,
                  RSA4_ALL(b[0]), RSA4_ALL(b[1]), RSA4_ALL(b[2]), RSA4_ALL(b[3]));
}

/* sums += a a: the products of limbs in one group of four as they come, all others once and twofold. */
RSA4_TARGET static void rsa4_square(uint64_t *sums, const rsa4_shifted *shifted, const uint64_t *a)
{
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    const __m256i from1 = _mm256_cmpgt_epi64(lane, RSA4_ALL(0)), from2 = _mm256_cmpgt_epi64(lane, RSA4_ALL(1));
    const __m256i from3 = _mm256_cmpgt_epi64(lane, RSA4_ALL(2));
    int r;
    for (r = 0; r < RSA4_VECTORS; r++, a += 4) {
        const __m256i a0 = RSA4_ALL(a[0]), a1 = RSA4_ALL(a[1]), a2 = RSA4_ALL(a[2]), a3 = RSA4_ALL(a[3]);
        const __m256i own1 = _mm256_and_si256(a1, from1), own2 = _mm256_and_si256(a2, from2);
        const __m256i own3 = _mm256_and_si256(a3, from3), twice0 = _mm256_add_epi64(a0, a0);
        rsa4_rows(sums, shifted, r, 2 * r, 2 * r + 1, a0, own1, own2, own3);
        rsa4_rows(sums, shifted, r, 2 * r + 1, 2 * r + 2, twice0, _mm256_add_epi64(a1, own1), _mm256_add_epi64(a2, own2),
                  _mm256_add_epi64(a3, own3));
        rsa4_rows(sums, shifted, r, 2 * r + 2, r + RSA4_VECTORS + 1, twice0, _mm256_add_epi64(a1, a1),
                  _mm256_add_epi64(a2, a2), _mm256_add_epi64(a3, a3));
    }
}

/* Limbs of hardly more than 28 bits from sums below 2^63: carried twice, all at once. What leaves at the top is dropped. */
RSA4_TARGET static void rsa4_carry(uint64_t *limbs, const uint64_t *sums, int vectors)
{
    const __m256i mask = RSA4_ALL(RSA4_MASK);
    __m256i last1 = _mm256_setzero_si256(), last2 = last1;
    int v;
    for (v = 0; v < vectors; v++) {
        __m256i x = RSA4_LOAD(sums + 4 * v);
        const __m256i up1 = _mm256_permute4x64_epi64(_mm256_srli_epi64(x, RSA4_BITS), 0x93);
        x = _mm256_add_epi64(_mm256_and_si256(x, mask), _mm256_blend_epi32(up1, last1, 3));
        const __m256i up2 = _mm256_permute4x64_epi64(_mm256_srli_epi64(x, RSA4_BITS), 0x93);
        x = _mm256_add_epi64(_mm256_and_si256(x, mask), _mm256_blend_epi32(up2, last2, 3));
        RSA4_STORE(limbs + 4 * v, x);
        last1 = up1, last2 = up2;
    }
}

/* product = sums / R mod n, hardly more than n. q = sums (-1/n) mod R makes sums + q n a multiple of R, of which the upper
   half is wanted and of the lower one only what it carries. That is a whole number, and of it the four highest limbs leave
   out less than 2^-77: rounded up they are exact. */
RSA4_TARGET static void rsa4_reduce(uint64_t *product, uint64_t *sums, const rsa4_modulus *modulus)
{
    uint64_t q[RSA4_LIMBS] RSA4_ALIGNED, low[RSA4_LIMBS] RSA4_ALIGNED = {0}, carry = 0, rest = 0;
    int i;
    rsa4_carry(sums, sums, 2 * RSA4_VECTORS);
    rsa4_multiply(low, &modulus->inverse, sums, 0, RSA4_VECTORS);
    rsa4_carry(q, low, RSA4_VECTORS);
    rsa4_multiply(sums, &modulus->n, q, RSA4_VECTORS - 1, 2 * RSA4_VECTORS);
    for (i = RSA4_LIMBS - 4; i < RSA4_LIMBS; i++) {
        carry = (carry >> RSA4_BITS) + sums[i];
        rest |= carry & RSA4_MASK;
    }
    sums[RSA4_LIMBS] += (carry >> RSA4_BITS) + (rest != 0);
    rsa4_carry(product, sums + RSA4_LIMBS, RSA4_VECTORS);
}

RSA4_TARGET static void rsa4_times(uint64_t *product, const uint64_t *a, const uint64_t *b, const rsa4_modulus *modulus)
{
    uint64_t sums[2 * RSA4_LIMBS] RSA4_ALIGNED = {0};
    rsa4_shifted shifted RSA4_ALIGNED;
    rsa4_shift(&shifted, a);
    if (a == b)
        rsa4_square(sums, &shifted, a);
    else
        rsa4_multiply(sums, &shifted, b, 0, 2 * RSA4_VECTORS);
    rsa4_reduce(product, sums, modulus);
}

/* See rsa_power; `modulus` is the same as `wide`. */
static int rsa4_power(uint64_t *power, const uint8_t *base, const rsa_modulus *wide, const rsa4_modulus *modulus)
{
    uint64_t x[RSA4_LIMBS] RSA4_ALIGNED, y[RSA4_LIMBS] RSA4_ALIGNED;
    int i;
    rsa_load(power, base);
    if (!rsa_is_less(power, wide->n))
        return 0;
    rsa_split(x, RSA4_LIMBS, RSA4_BITS, base);
    rsa4_times(y, x, modulus->rr, modulus);
    for (i = 0; i < 16; i++)
        rsa4_times(y, y, y, modulus);
    rsa4_times(y, y, x, modulus);
    rsa_join(power, y, RSA4_LIMBS, RSA4_BITS);
    rsa_subtract_once(power, wide->n);
    return 1;
}
#undef RSA4_LOAD
#undef RSA4_STORE
#undef RSA4_ALL
#else
static int rsa_has_avx2(void) { return 0; }
static int rsa4_power(uint64_t *power, const uint8_t *base, const rsa_modulus *wide, const rsa4_modulus *modulus)
{
    (void)modulus;
    return rsa_power(power, base, wide, rsa_multiply_plain);
}
#endif
#endif
