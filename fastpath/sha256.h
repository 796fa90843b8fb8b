/* SHA-256 (FIPS 180-4) by the SHA extensions of x86; processors without them are served by hashlib.

   PERF: `python -m loadtests.audit_cost`, `chain and spool`: hashlib takes half a microsecond to make its object and the
   digest's, as long as the hash of an event itself. */
#ifndef CAREGATE_SHA256_H
#define CAREGATE_SHA256_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SHA256_SIZE 32
#define SHA256_BLOCK 64

/* `used` bytes wait in `rest` for the others of their block; `size` counts all. */
typedef struct {
    uint32_t state[8];
    uint64_t size;
    size_t used;
    unsigned char rest[SHA256_BLOCK];
} sha256_sum;

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 7)
#include <cpuid.h>
#include <immintrin.h>

#define SHA256_TARGET __attribute__((target("sha,sse4.1,ssse3")))

static int sha256_here(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}

static const uint32_t sha256_first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t sha256_rounds[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The processor has the state as two halves, a b e f and c d g h, and does two rounds at a time. */
SHA256_TARGET static void sha256_blocks(uint32_t state[8], const unsigned char *at, size_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xb1);
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xf0);
    for (; blocks; blocks--, at += SHA256_BLOCK) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i words[4];
        for (int i = 0; i < 4; i++)
            words[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(at + 16 * i)), big_endian);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const __m128i last = words[(i + 3) & 3];
            __m128i sum = _mm_add_epi32(words[i & 3], _mm_load_si128((const __m128i *)(sha256_rounds + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            if (i < 12) {
                __m128i seventh = _mm_alignr_epi8(last, words[(i + 2) & 3], 4);
                __m128i next = _mm_sha256msg1_epu32(words[i & 3], words[(i + 1) & 3]);
                words[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(next, seventh), last);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    low = _mm_shuffle_epi32(abef, 0x1b);
    high = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(low, high, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(high, low, 8));
}

static void sha256_begin(sha256_sum *sum) {
    memcpy(sum->state, sha256_first, sizeof sum->state);
    sum->size = sum->used = 0;
}

static void sha256_add(sha256_sum *sum, const unsigned char *at, size_t size) {
    sum->size += size;
    if (sum->used) {
        size_t part = SHA256_BLOCK - sum->used < size ? SHA256_BLOCK - sum->used : size;
        memcpy(sum->rest + sum->used, at, part);
        sum->used += part;
        at += part;
        size -= part;
        if (sum->used < SHA256_BLOCK) return;
        sha256_blocks(sum->state, sum->rest, 1);
        sum->used = 0;
    }
    sha256_blocks(sum->state, at, size / SHA256_BLOCK);
    sum->used = size % SHA256_BLOCK;
    memcpy(sum->rest, at + (size - sum->used), sum->used);
}

static void sha256_end(sha256_sum *sum, unsigned char digest[SHA256_SIZE]) {
    const uint64_t bits = sum->size * 8;
    const size_t room = sum->used < SHA256_BLOCK - 8 ? SHA256_BLOCK : 2 * SHA256_BLOCK;
    unsigned char last[2 * SHA256_BLOCK] = {0};
    memcpy(last, sum->rest, sum->used);
    last[sum->used] = 0x80;
    for (int i = 0; i < 8; i++) last[room - 1 - i] = (unsigned char)(bits >> 8 * i);
    sha256_blocks(sum->state, last, room / SHA256_BLOCK);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) digest[4 * i + j] = (unsigned char)(sum->state[i] >> (24 - 8 * j));
}
#else
static int sha256_here(void) { return 0; }
static void sha256_begin(sha256_sum *sum) { (void)sum; }
static void sha256_add(sha256_sum *sum, const unsigned char *at, size_t size) { (void)sum, (void)at, (void)size; }
static void sha256_end(sha256_sum *sum, unsigned char digest[SHA256_SIZE]) { (void)sum, (void)digest; }
#endif

#endif
