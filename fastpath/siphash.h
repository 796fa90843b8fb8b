/* SipHash-2-4 with 64 or 128 bits of output. Little-endian machines only, as the tables that it fills are.
   Source: Aumasson, Bernstein: SipHash, a fast short-input PRF, and the authors' note on 128 bits. */
#ifndef CAREGATE_SIPHASH_H
#define CAREGATE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SIP_TURN(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))

static inline void sip_round(uint64_t *v)
{
    v[0] += v[1], v[2] += v[3];
    v[1] = SIP_TURN(v[1], 13) ^ v[0], v[3] = SIP_TURN(v[3], 16) ^ v[2];
    v[0] = SIP_TURN(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = SIP_TURN(v[1], 17) ^ v[2], v[3] = SIP_TURN(v[3], 21) ^ v[0];
    v[2] = SIP_TURN(v[2], 32);
}

static inline void sip_absorb(uint64_t *v, uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
}

static inline uint64_t sip_finish(uint64_t *v)
{
    int i;
    for (i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static inline void sip_text(uint64_t *v, const uint64_t *key, const uint8_t *text, size_t size)
{
    uint64_t word, last = (uint64_t)size << 56;
    v[0] ^= key[0] ^ UINT64_C(0x736F6D6570736575), v[1] ^= key[1] ^ UINT64_C(0x646F72616E646F6D);
    v[2] ^= key[0] ^ UINT64_C(0x6C7967656E657261), v[3] ^= key[1] ^ UINT64_C(0x7465646279746573);
    for (; size >= 8; text += 8, size -= 8) {
        memcpy(&word, text, 8);
        sip_absorb(v, word);
    }
    word = 0;
    memcpy(&word, text, size);
    sip_absorb(v, word | last);
}

static inline uint64_t siphash64(const uint64_t *key, const uint8_t *text, size_t size)
{
    uint64_t v[4] = {0};
    sip_text(v, key, text, size);
    v[2] ^= 0xFF;
    return sip_finish(v);
}

static inline void siphash128(uint64_t *hash, const uint64_t *key, const uint8_t *text, size_t size)
{
    uint64_t v[4] = {0, 0xEE, 0, 0};
    sip_text(v, key, text, size);
    v[2] ^= 0xEE;
    hash[0] = sip_finish(v);
    v[1] ^= 0xDD;
    hash[1] = sip_finish(v);
}
#endif
