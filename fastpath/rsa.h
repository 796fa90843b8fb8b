/* s^65537 mod n for an odd n of 2048 bits, in limbs of 52 bits, by Montgomery multiplication that leaves results below 2n
   (R = 2^2080 is more than 4n). Public values only: nothing here is constant in time. */
#ifndef CAREGATE_RSA_H
#define CAREGATE_RSA_H

#include <stdint.h>
#include <string.h>

#define RSA_BYTES 256
#define RSA_LIMBS 40
#define RSA_MASK ((UINT64_C(1) << 52) - 1)

__extension__ typedef unsigned __int128 rsa_wide;

/* The modulus, R^2 mod n, and -1/n mod 2^52. */
typedef struct {
    uint64_t n[RSA_LIMBS];
    uint64_t rr[RSA_LIMBS];
    uint64_t k0;
} rsa_modulus;

typedef void rsa_multiply(uint64_t *product, const uint64_t *a, const uint64_t *b, const rsa_modulus *modulus);

/* product = a b / R mod n, one limb of b at a time; a product of limbs fits in 104 bits, forty of them in 110. */
static void rsa_multiply_plain(uint64_t *product, const uint64_t *a, const uint64_t *b, const rsa_modulus *modulus)
{
    rsa_wide sums[RSA_LIMBS + 1] = {0}, carry = 0;
    int i, j;
    for (i = 0; i < RSA_LIMBS; i++) {
        uint64_t m = (((uint64_t)sums[0] + a[0] * b[i]) * modulus->k0) & RSA_MASK;
        for (j = 0; j < RSA_LIMBS; j++)
            sums[j] += (rsa_wide)a[j] * b[i] + (rsa_wide)modulus->n[j] * m;
        sums[1] += sums[0] >> 52;
        for (j = 0; j < RSA_LIMBS; j++)
            sums[j] = sums[j + 1];
    }
    for (i = 0; i < RSA_LIMBS; i++) {
        carry += sums[i];
        product[i] = (uint64_t)carry & RSA_MASK;
        carry >>= 52;
    }
}

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 7)
#include <immintrin.h>
#define RSA_TARGET __attribute__((target("avx512f,avx512ifma")))

static int rsa_has_ifma(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512ifma"); }

/* The same with the limbs of a and n in five registers each. The lowest limb is summed in `low`, beside the registers: the
   next m depends on it alone, and the way through a register takes longer. */
RSA_TARGET static void rsa_multiply_ifma(uint64_t *product, const uint64_t *a, const uint64_t *b,
                                         const rsa_modulus *modulus)
{
#define RSA_LOAD(at, k) _mm512_loadu_si512((const void *)((at) + 8 * (k)))
#define RSA_ADD(part, x, y) \
    s0 = part(s0, x##0, y), s1 = part(s1, x##1, y), s2 = part(s2, x##2, y), s3 = part(s3, x##3, y), s4 = part(s4, x##4, y)
    const __m512i zero = _mm512_setzero_si512();
    const __m512i a0 = RSA_LOAD(a, 0), a1 = RSA_LOAD(a, 1), a2 = RSA_LOAD(a, 2), a3 = RSA_LOAD(a, 3), a4 = RSA_LOAD(a, 4);
    const uint64_t *n = modulus->n;
    const __m512i n0 = RSA_LOAD(n, 0), n1 = RSA_LOAD(n, 1), n2 = RSA_LOAD(n, 2), n3 = RSA_LOAD(n, 3), n4 = RSA_LOAD(n, 4);
    __m512i s0 = zero, s1 = zero, s2 = zero, s3 = zero, s4 = zero;
    const uint64_t lowest_a = a[0], lowest_n = n[0], k0 = modulus->k0;
    uint64_t sums[RSA_LIMBS], low = 0;
    int i;
    for (i = 0; i < RSA_LIMBS; i++) {
        const __m512i factor = _mm512_set1_epi64((long long)b[i]);
        rsa_wide sum = (rsa_wide)lowest_a * b[i] + low;
        const uint64_t m = ((uint64_t)sum * k0) & RSA_MASK;
        const __m512i times = _mm512_set1_epi64((long long)m);
        sum += (rsa_wide)lowest_n * m;
        RSA_ADD(_mm512_madd52lo_epu64, a, factor);
        RSA_ADD(_mm512_madd52lo_epu64, n, times);
        s0 = _mm512_alignr_epi64(s1, s0, 1), s1 = _mm512_alignr_epi64(s2, s1, 1), s2 = _mm512_alignr_epi64(s3, s2, 1);
        s3 = _mm512_alignr_epi64(s4, s3, 1), s4 = _mm512_alignr_epi64(zero, s4, 1);
        low = (uint64_t)(sum >> 52) + (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(s0));
        RSA_ADD(_mm512_madd52hi_epu64, a, factor);
        RSA_ADD(_mm512_madd52hi_epu64, n, times);
    }
    _mm512_storeu_si512(sums, s0), _mm512_storeu_si512(sums + 8, s1), _mm512_storeu_si512(sums + 16, s2);
    _mm512_storeu_si512(sums + 24, s3), _mm512_storeu_si512(sums + 32, s4);
    product[0] = low & RSA_MASK;
    low >>= 52;
    for (i = 1; i < RSA_LIMBS; i++) {
        low += sums[i];
        product[i] = low & RSA_MASK;
        low >>= 52;
    }
#undef RSA_LOAD
#undef RSA_ADD
}
#else
static int rsa_has_ifma(void) { return 0; }
#define rsa_multiply_ifma rsa_multiply_plain
#endif

/* A number of 256 bytes in limbs of so many bits.
   NOTE: little-endian machines only, as the bucket table is. */
static void rsa_split(uint64_t *limbs, int count, int bits, const uint8_t *big_endian)
{
    uint64_t words[RSA_BYTES / 8 + 2];
    int i;
    for (i = 0; i < RSA_BYTES / 8; i++) {
        memcpy(&words[i], big_endian + RSA_BYTES - 8 * (i + 1), 8);
        words[i] = __builtin_bswap64(words[i]);
    }
    words[RSA_BYTES / 8] = words[RSA_BYTES / 8 + 1] = 0;
    for (i = 0; i < count; i++) {
        const int at = bits * i / 64, skipped = bits * i % 64;
        limbs[i] = at > RSA_BYTES / 8 ? 0
                   : (uint64_t)((words[at] | (rsa_wide)words[at + 1] << 64) >> skipped) & ((UINT64_C(1) << bits) - 1);
    }
}

static void rsa_load(uint64_t *limbs, const uint8_t *big_endian) { rsa_split(limbs, RSA_LIMBS, 52, big_endian); }

/* Limbs of 52 bits from narrower ones that may be a little over their size. */
static void rsa_join(uint64_t *limbs, const uint64_t *narrow, int count, int bits)
{
    rsa_wide held = 0;
    int i, at = 0, have = 0;
    for (i = 0; i < count && at < RSA_LIMBS; i++) {
        held += (rsa_wide)narrow[i] << have;
        have += bits;
        if (have >= 52) {
            limbs[at++] = (uint64_t)held & RSA_MASK;
            held >>= 52;
            have -= 52;
        }
    }
    while (at < RSA_LIMBS) {
        limbs[at++] = (uint64_t)held & RSA_MASK;
        held >>= 52;
    }
}

/* a < b */
static int rsa_is_less(const uint64_t *a, const uint64_t *b)
{
    int i;
    for (i = RSA_LIMBS - 1; i > 0; i--)
        if (a[i] != b[i])
            break;
    return a[i] < b[i];
}

/* Below n, from below 2n. */
static void rsa_subtract_once(uint64_t *limbs, const uint64_t *n)
{
    uint64_t borrow = 0;
    int i;
    if (rsa_is_less(limbs, n))
        return;
    for (i = 0; i < RSA_LIMBS; i++) {
        const uint64_t limb = limbs[i] - n[i] - borrow;
        limbs[i] = limb & RSA_MASK;
        borrow = limb >> 63;
    }
}

/* power = base^65537 mod n, fully reduced; 0: the base is not less than n. */
static int rsa_power(uint64_t *power, const uint8_t *base, const rsa_modulus *modulus, rsa_multiply *multiply)
{
    uint64_t x[RSA_LIMBS];
    int i;
    rsa_load(x, base);
    if (!rsa_is_less(x, modulus->n))
        return 0;
    multiply(power, x, modulus->rr, modulus);
    for (i = 0; i < 16; i++)
        multiply(power, power, power, modulus);
    multiply(power, power, x, modulus);
    rsa_subtract_once(power, modulus->n);
    return 1;
}

#endif
