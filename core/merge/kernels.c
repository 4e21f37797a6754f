/* Streaming kernels of the merge engine.
 *
 * Every function walks over the flat elements of one tensor in index order, block by block: it reads a block of each
 * source (from memory or with pread into a small reused buffer), works on chunks that fit the first-level cache in
 * float64, and rounds once (to bfloat16 through float32, as torch does). No contraction, no reassociation: the numpy twins in core/merge give the same bits.
 *
 * Selection keys are the bits of the float32 nearest to |value| (monotone in |value|). Rank order everywhere is
 * (key descending, index ascending).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>
#define WIDE 1 /* hand-written 512-bit versions of the hottest loops; same operations, same bits */
#endif

enum { BF16 = 0, F16 = 1, F32 = 2, F64 = 3 };
enum { OK = 0, NO_MEMORY = 1, READ_FAILED = 2, WRITE_FAILED = 3, OVERFLOWED = 4, BAD_INPUT = 100 };
enum { MASK_ALL = 0, MASK_NONE = 1, MASK_RANK = 2, MASK_BITS = 3 };
enum { KEY_DELTA = 0, KEY_VARIANCE = 1 };
enum { CONSENSUS = 1, AGREEING = 2, UNWEIGHTED_SIGN = 4 };
#define CH 512
#define BLK 32768
#define LANES 32

static const int64_t SIZE[4] = {2, 2, 4, 8};

typedef struct { void *data; int64_t offset; int32_t fd; int32_t dtype; } tensor_t;

typedef struct {
    int32_t mode;
    uint32_t low, high;               /* keep ranks [removed, kept): above `low`, not above `high` */
    int64_t low_ties, high_ties;      /* how many elements equal to the key still count as above it */
    const uint8_t *bits;
    double scale, weight;
} mask_t;

/* ---- reading and writing ------------------------------------------------------------------------------------- */

typedef struct { int m; const tensor_t *in; char *space; const char **raw; int error; } reader_t;

static int reader_open(reader_t *r, int m, const tensor_t *in, int64_t block) {
    r->m = m; r->in = in; r->error = OK;
    r->raw = calloc(m + 1, sizeof(char *));
    r->space = NULL;
    return r->raw && posix_memalign((void **)&r->space, 4096, (size_t)(m + 1) * block * 8) == 0 ? OK : NO_MEMORY;
}
static void reader_close(reader_t *r) { free(r->raw); free(r->space); }

static int reader_fill(reader_t *r, int64_t start, int64_t n, int64_t block) {
    for (int i = 0; i < r->m; i++) {
        const tensor_t *t = r->in + i;
        int64_t bytes = n * SIZE[t->dtype], at = t->offset + start * SIZE[t->dtype], done = 0;
        if (t->data) { r->raw[i] = (const char *)t->data + at; continue; }
        char *buffer = r->space + (int64_t)i * block * 8;
        while (done < bytes) {
            ssize_t got = pread(t->fd, buffer + done, bytes - done, at + done);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return READ_FAILED;
            done += got;
        }
        r->raw[i] = buffer;
    }
    return OK;
}

static int put(const tensor_t *out, int64_t start, int64_t n, const char *raw) {
    int64_t bytes = n * SIZE[out->dtype], at = out->offset + start * SIZE[out->dtype], done = 0;
    if (out->data) { memcpy((char *)out->data + at, raw, bytes); return OK; }
    while (done < bytes) {
        ssize_t put_now = pwrite(out->fd, raw + done, bytes - done, at + done);
        if (put_now < 0 && errno == EINTR) continue;
        if (put_now <= 0) return WRITE_FAILED;
        done += put_now;
    }
    return OK;
}

static inline float from_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t to_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
    float f = from_bits(rest << 13) * 0x1p112f; /* subnormals included; exact */
    uint32_t u = rest >= 0x7C00 ? 0x7F800000u | ((rest & 0x3FF) << 13) : to_bits(f);
    return from_bits(u | sign);
}

#if defined(WIDE)
/* bfloat16 to float64 (minus b when given), 16 at a time; returns how many were done. */
static int64_t decode_wide(const uint16_t *restrict r, int64_t n, const double *restrict b, double *restrict x, uint64_t *bad) {
    const __m256i top = _mm256_set1_epi16(0x7F80);
    __mmask16 seen = 0;
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(r + j));
        seen |= _mm256_cmpeq_epi16_mask(_mm256_and_si256(v, top), top);
        __m512 f = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
        __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(f)), hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(f, 1));
        if (b) { lo = _mm512_sub_pd(lo, _mm512_loadu_pd(b + j)); hi = _mm512_sub_pd(hi, _mm512_loadu_pd(b + j + 8)); }
        _mm512_storeu_pd(x + j, lo);
        _mm512_storeu_pd(x + j + 8, hi);
    }
    *bad |= seen;
    return j;
}

/* float64 to bfloat16, 8 at a time; returns how many were done. */
static int64_t encode_wide(const double *restrict x, int64_t n, uint16_t *restrict r, uint64_t *bad) {
    const __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7FFF);
    const __m128i top = _mm_set1_epi16(0x7F80);
    __mmask8 seen = 0;
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
        __m512d v = _mm512_loadu_pd(x + j);
        __m256i u = _mm256_castps_si256(_mm512_cvtpd_ps(v));
        u = _mm256_add_epi32(_mm256_add_epi32(u, half), _mm256_and_si256(_mm256_srli_epi32(u, 16), one));
        __m128i w = _mm256_cvtepi32_epi16(_mm256_srli_epi32(u, 16));
        seen |= _mm_cmpeq_epi16_mask(_mm_and_si128(w, top), top);
        _mm_storeu_si128((__m128i *)(r + j), w);
    }
    *bad |= seen;
    return j;
}
#endif

/* Decode n elements; returns nonzero when one is NaN or infinite. */
static int decode(const char *raw, int dtype, int64_t n, double *restrict x) {
    uint64_t bad = 0;
#if defined(WIDE)
    if (dtype == BF16) {
        int64_t done = decode_wide((const uint16_t *)raw, n, NULL, x, &bad);
        raw += 2 * done; x += done; n -= done;
    }
#endif
    if (dtype == BF16) {
        const uint16_t *restrict r = (const uint16_t *)raw;
        uint16_t b = 0;
        for (int64_t j = 0; j < n; j++) b |= (uint16_t)((r[j] & 0x7F80) == 0x7F80);
        for (int64_t j = 0; j < n; j++) x[j] = (double)from_bits((uint32_t)r[j] << 16);
        bad |= b;
    } else if (dtype == F16) {
        const uint16_t *restrict r = (const uint16_t *)raw;
        for (int64_t j = 0; j < n; j++) { bad |= (r[j] & 0x7C00) == 0x7C00; x[j] = (double)half_to_float(r[j]); }
    } else if (dtype == F32) {
        const uint32_t *restrict r = (const uint32_t *)raw;
        uint32_t b = 0;
        for (int64_t j = 0; j < n; j++) b |= (uint32_t)((r[j] & 0x7F800000u) == 0x7F800000u);
        for (int64_t j = 0; j < n; j++) x[j] = (double)from_bits(r[j]);
        bad = b;
    } else {
        memcpy(x, raw, n * 8);
        for (int64_t j = 0; j < n; j++) { uint64_t u; memcpy(&u, x + j, 8); bad |= (u & 0x7FF0000000000000u) == 0x7FF0000000000000u; }
    }
    return bad != 0;
}

/* Decode and subtract the base's chunk. */
static int decode_delta(const char *raw, int dtype, int64_t n, const double *restrict b, double *restrict d) {
#if defined(WIDE)
    if (dtype == BF16 && n % 16 == 0) {
        uint64_t bad = 0;
        decode_wide((const uint16_t *)raw, n, b, d, &bad);
        return bad != 0;
    }
#endif
    if (decode(raw, dtype, n, d)) return 1;
    for (int64_t j = 0; j < n; j++) d[j] -= b[j];
    return 0;
}

/* Float32 bits with a sticky last bit: a second rounding to a shorter format then equals one rounding. */
static inline uint32_t to_odd(double d) {
    float f = (float)d;
    double back = (double)f;
    uint32_t u = to_bits(f);
    u -= (uint32_t)(fabs(back) > fabs(d));
    return u | (uint32_t)(back != d);
}

static inline uint16_t odd_to_half(uint32_t u) {
    uint32_t sign = (u >> 16) & 0x8000, rest = u & 0x7FFFFFFF;
    if (rest >= 0x7F800000u) return sign | (rest > 0x7F800000u ? 0x7E00 : 0x7C00);
    if (rest >= 0x47800000u) return sign | 0x7C00; /* 65536 and above */
    if (rest < 0x38800000u) { /* subnormal half: count units of 2^-24, nearest even */
        float units = from_bits(rest) * 0x1p24f;
        float whole = nearbyintf(units);
        return sign | (uint16_t)whole;
    }
    uint32_t r = rest - 0x38000000u; /* rebias */
    return sign | (uint16_t)((r + 0xFFF + ((r >> 13) & 1)) >> 13);
}

/* Round n float64 to the output format; returns nonzero when a result is not finite. */
static int encode(const double *restrict x, int dtype, int64_t n, char *raw) {
    uint64_t bad = 0;
#if defined(WIDE)
    if (dtype == BF16) {
        int64_t done = encode_wide(x, n, (uint16_t *)raw, &bad);
        raw += 2 * done; x += done; n -= done;
    }
#endif
    if (dtype == BF16) {
        uint16_t *restrict r = (uint16_t *)raw;
        uint32_t w[CH];
        for (int64_t j = 0; j < n; j++) w[j] = to_bits((float)x[j]);
        for (int64_t j = 0; j < n; j++) r[j] = (uint16_t)((w[j] + 0x7FFF + ((w[j] >> 16) & 1)) >> 16);
        uint16_t b = 0;
        for (int64_t j = 0; j < n; j++) b |= (uint16_t)((r[j] & 0x7F80) == 0x7F80);
        bad |= b;
    } else if (dtype == F16) {
        uint16_t *restrict r = (uint16_t *)raw;
        for (int64_t j = 0; j < n; j++) { r[j] = odd_to_half(to_odd(x[j])); bad |= (r[j] & 0x7C00) == 0x7C00; }
    } else if (dtype == F32) {
        float *restrict r = (float *)raw;
        for (int64_t j = 0; j < n; j++) { r[j] = (float)x[j]; bad |= (to_bits(r[j]) & 0x7F800000u) == 0x7F800000u; }
    } else {
        memcpy(raw, x, n * 8);
        for (int64_t j = 0; j < n; j++) bad |= !isfinite(x[j]);
    }
    return bad != 0;
}

static inline void key_of(const double *restrict d, int64_t n, uint32_t *restrict key) {
    for (int64_t j = 0; j < n; j++) key[j] = to_bits((float)d[j]) & 0x7FFFFFFF;
}

/* ---- masks --------------------------------------------------------------------------------------------------- */

/* The key that separates "above" from the rest in this chunk: everything >= it is above. Returns 0 when the tie quota
 * ends inside the chunk; then ties are decided one by one in `above_exactly`. */
static inline int cut(const uint32_t *restrict key, int64_t n, uint32_t at, int64_t *ties, uint32_t *least) {
    int64_t equal = 0;
    if (*ties == 0) { *least = at + 1; return 1; }
    uint32_t count = 0;
    for (int64_t j = 0; j < n; j++) count += key[j] == at;
    equal = count;
    *least = at;
    if (equal > *ties) return 0;
    *ties -= equal;
    return 1;
}

static void above_exactly(const uint32_t *key, int64_t n, uint32_t at, int64_t *ties, uint8_t *above) {
    for (int64_t j = 0; j < n; j++) {
        int tie = key[j] == at && *ties > 0;
        *ties -= tie;
        above[j] = key[j] > at || tie;
    }
}

/* keep[j] = 1 when element j has a rank inside the mask's range. */
static void rank_mask(mask_t *k, const uint32_t *restrict key, int64_t n, uint8_t *restrict keep) {
    uint32_t low, high;
    uint8_t top[CH];
    if (cut(key, n, k->low, &k->low_ties, &low)) for (int64_t j = 0; j < n; j++) keep[j] = key[j] >= low;
    else above_exactly(key, n, k->low, &k->low_ties, keep);
    if (k->high == UINT32_MAX) return;
    if (cut(key, n, k->high, &k->high_ties, &high)) for (int64_t j = 0; j < n; j++) top[j] = key[j] >= high;
    else above_exactly(key, n, k->high, &k->high_ties, top);
    for (int64_t j = 0; j < n; j++) keep[j] &= !top[j];
}

/* Bits of (word < below), lowest index in the lowest bit; n is padded to 16 by the caller's buffers. */
static inline void pack_below(const uint32_t *restrict u, int64_t n, uint32_t below, uint8_t *restrict bits) {
#if defined(WIDE)
    const __m512i limit = _mm512_set1_epi32((int)below);
    for (int64_t j = 0; j < n; j += 16) {
        __mmask16 m = _mm512_cmplt_epu32_mask(_mm512_loadu_si512(u + j), limit);
        bits[j >> 3] = (uint8_t)m;
        if (j + 8 < n) bits[(j >> 3) + 1] = (uint8_t)(m >> 8);
    }
#else
    for (int64_t j = 0; j < n; j += 8) {
        uint8_t byte = 0;
        for (int q = 0; q < 8; q++) byte |= (uint8_t)((u[j + q] < below) << q);
        bits[j >> 3] = byte;
    }
#endif
}

static inline void bit_mask(const uint8_t *restrict bits, int64_t start, int64_t n, uint8_t *restrict keep) {
    for (int64_t j = 0; j < n; j++) keep[j] = (bits[(start + j) >> 3] >> ((start + j) & 7)) & 1;
}

static inline void masked(double *restrict d, const uint8_t *restrict keep, int64_t n) {
    for (int64_t j = 0; j < n; j++) d[j] = keep[j] ? d[j] : 0.0;
}

/* d <- the masked, rescaled delta. */
static void sparsify(mask_t *k, double *restrict d, int64_t start, int64_t n) {
    uint32_t key[CH];
    uint8_t keep[CH];
    if (k->mode == MASK_NONE) { memset(d, 0, n * sizeof(double)); return; }
    if (k->mode == MASK_RANK) {
        key_of(d, n, key);
#if defined(WIDE)
        uint32_t low, high = UINT32_MAX;
        mask_t before = *k;
        if (n % 8 == 0 && cut(key, n, k->low, &k->low_ties, &low) &&
            (k->high == UINT32_MAX || cut(key, n, k->high, &k->high_ties, &high))) {
            const __m256i l = _mm256_set1_epi32((int)low), h = _mm256_set1_epi32((int)high);
            const __m512d scale = _mm512_set1_pd(k->scale);
            for (int64_t j = 0; j < n; j += 8) {
                __m256i v = _mm256_loadu_si256((const __m256i *)(key + j));
                __mmask8 in = _mm256_cmpge_epu32_mask(v, l) & _mm256_cmplt_epu32_mask(v, h);
                _mm512_storeu_pd(d + j, _mm512_maskz_mul_pd(in, _mm512_loadu_pd(d + j), scale));
            }
            return;
        }
        *k = before; /* a tie quota ends in this chunk: one by one */
#endif
        rank_mask(k, key, n, keep);
        masked(d, keep, n);
    }
#if defined(WIDE)
    if (k->mode == MASK_BITS && (start & 7) == 0 && n % 8 == 0) {
        const __m512d scale = _mm512_set1_pd(k->scale);
        const uint8_t *bits = k->bits + (start >> 3);
        for (int64_t j = 0; j < n; j += 8)
            _mm512_storeu_pd(d + j, _mm512_maskz_mul_pd(bits[j >> 3], _mm512_loadu_pd(d + j), scale));
        return;
    }
#endif
    if (k->mode == MASK_BITS) { bit_mask(k->bits, start, n, keep); masked(d, keep, n); }
    if (k->scale != 1.0) { double s = k->scale; for (int64_t j = 0; j < n; j++) d[j] *= s; }
}

/* ---- applying ------------------------------------------------------------------------------------------------ */

/* result = sum w_i x_i [/ divisor] */
static int linear_chunk(int m, const tensor_t *in, const char **raw, int64_t at, int64_t n, const mask_t *k,
                        double divisor, double *restrict r, double *restrict x) {
    for (int i = 0; i < m; i++) {
        double w = k[i].weight;
        if (decode(raw[i] + at * SIZE[in[i].dtype], in[i].dtype, n, x)) return BAD_INPUT + i;
        if (i == 0) for (int64_t j = 0; j < n; j++) r[j] = w * x[j]; /* not 0 + w x: keeps the sign of zero */
        else for (int64_t j = 0; j < n; j++) r[j] += w * x[j];
    }
    if (divisor != 1.0) for (int64_t j = 0; j < n; j++) r[j] /= divisor;
    return OK;
}

/* result = base + lambda * mixed deltas; in[m] is the base */
static int delta_chunk(int m, const tensor_t *in, const char **raw, int64_t at, int64_t start, int64_t n, mask_t *k,
                       double divisor, double lambda, int flags, double *restrict r, double *restrict x) {
    double b[CH], total[CH], den[CH];
    if (decode(raw[m] + at * SIZE[in[m].dtype], in[m].dtype, n, b)) return BAD_INPUT + m;
    memset(r, 0, n * sizeof(double));
    memset(total, 0, n * sizeof(double));
    for (int i = 0; i < m; i++) {
        double *restrict d = flags & CONSENSUS ? x + (int64_t)i * CH : x, w = k[i].weight;
        if (decode_delta(raw[i] + at * SIZE[in[i].dtype], in[i].dtype, n, b, d)) return BAD_INPUT + i;
        if (k[i].mode != MASK_ALL || k[i].scale != 1.0) sparsify(k + i, d, start, n);
        if (!(flags & CONSENSUS)) { for (int64_t j = 0; j < n; j++) r[j] += d[j] * w; continue; }
        if (!(flags & UNWEIGHTED_SIGN)) for (int64_t j = 0; j < n; j++) d[j] *= w;
        for (int64_t j = 0; j < n; j++) total[j] += d[j];
    }
    if (flags & CONSENSUS) {
        memset(den, 0, n * sizeof(double));
        for (int i = 0; i < m; i++) {
            double *restrict d = x + (int64_t)i * CH, w = k[i].weight, u = flags & UNWEIGHTED_SIGN ? w : 1.0;
            for (int64_t j = 0; j < n; j++) {
                double agree = total[j] >= 0.0 ? (d[j] > 0.0 ? 1.0 : 0.0) : (d[j] < 0.0 ? 1.0 : 0.0);
                r[j] += agree * (d[j] * u);
                den[j] += agree * w;
            }
        }
        if (flags & UNWEIGHTED_SIGN) for (int64_t j = 0; j < n; j++) r[j] /= den[j] > 1e-6 ? den[j] : 1e-6;
        else if (flags & AGREEING) for (int64_t j = 0; j < n; j++) r[j] /= den[j] == 0.0 ? 1.0 : den[j];
    } else if (divisor != 1.0) for (int64_t j = 0; j < n; j++) r[j] /= divisor;
    if (lambda != 1.0) for (int64_t j = 0; j < n; j++) r[j] *= lambda;
    for (int64_t j = 0; j < n; j++) r[j] = b[j] + r[j];
    return OK;
}

/* Elements [first, last) of the result. in: m sources, then the base when with_base. Bits count from `first`. */
int merge_apply(int m, int with_base, const tensor_t *in, mask_t *k, double divisor, double lambda, int flags,
                const tensor_t *out, int64_t first, int64_t last) {
    reader_t reader;
    int code = reader_open(&reader, m + with_base, in, BLK);
    double r[CH], *x = malloc((size_t)(m + 1) * CH * sizeof(double));
    char *result = malloc(BLK * 8);
    if (!x || !result) code = NO_MEMORY;
    for (int64_t start = first; code == OK && start < last; start += BLK) {
        int64_t n = last - start < BLK ? last - start : BLK;
        code = reader_fill(&reader, start, n, BLK);
        for (int64_t at = 0; code == OK && at < n; at += CH) {
            int64_t c = n - at < CH ? n - at : CH;
            code = with_base ? delta_chunk(m, in, reader.raw, at, start - first + at, c, k, divisor, lambda, flags, r, x)
                             : linear_chunk(m, in, reader.raw, at, c, k, divisor, r, x);
            if (code == OK && encode(r, out->dtype, c, result + at * SIZE[out->dtype])) code = OVERFLOWED;
        }
        if (code == OK) code = put(out, start, n, result);
    }
    reader_close(&reader); free(x); free(result);
    return code;
}

/* ---- statistics ---------------------------------------------------------------------------------------------- */

static inline double lanes_total(const double *lane) {
    double s = 0.0;
    for (int l = 0; l < LANES; l++) s += lane[l];
    return s;
}

/* gram[i*m+j] = <x_i, x_j> of the sources (minus the base when with_base); lane l sums the indices = l mod LANES. */
int merge_gram(int m, int with_base, const tensor_t *in, int64_t size, double *gram) {
    reader_t reader;
    int pairs = m * (m + 1) / 2, code = reader_open(&reader, m + with_base, in, BLK);
    double b[CH], *x = malloc((size_t)m * CH * sizeof(double)), *lane = calloc((size_t)pairs * LANES, sizeof(double));
    if (!x || !lane) code = NO_MEMORY;
    for (int64_t start = 0; code == OK && start < size; start += BLK) {
        int64_t n = size - start < BLK ? size - start : BLK;
        code = reader_fill(&reader, start, n, BLK);
        for (int64_t at = 0; code == OK && at < n; at += CH) {
            int64_t c = n - at < CH ? n - at : CH, padded = (c + LANES - 1) / LANES * LANES;
            if (with_base && decode(reader.raw[m] + at * SIZE[in[m].dtype], in[m].dtype, c, b)) { code = BAD_INPUT + m; break; }
            for (int i = 0; i < m && code == OK; i++) {
                double *restrict d = x + (int64_t)i * CH;
                if (decode(reader.raw[i] + at * SIZE[in[i].dtype], in[i].dtype, c, d)) { code = BAD_INPUT + i; break; }
                if (with_base) for (int64_t j = 0; j < c; j++) d[j] -= b[j];
                for (int64_t j = c; j < padded; j++) d[j] = 0.0;
            }
            if (code != OK) break;
            for (int i = 0, p = 0; i < m; i++)
                for (int i2 = 0; i2 <= i; i2++, p++) {
                    const double *restrict u = x + (int64_t)i * CH, *restrict v = x + (int64_t)i2 * CH;
                    double acc[LANES];
                    memcpy(acc, lane + (int64_t)p * LANES, sizeof acc);
                    for (int64_t j = 0; j < padded; j += LANES)
                        for (int l = 0; l < LANES; l++) acc[l] += u[j + l] * v[j + l];
                    memcpy(lane + (int64_t)p * LANES, acc, sizeof acc);
                }
        }
    }
    if (code == OK)
        for (int i = 0, p = 0; i < m; i++)
            for (int i2 = 0; i2 <= i; i2++, p++) gram[i * m + i2] = gram[i2 * m + i] = lanes_total(lane + (int64_t)p * LANES);
    reader_close(&reader); free(x); free(lane);
    return code;
}

/* Append the keys strictly between lo and hi. */
static inline int64_t append(const uint32_t *restrict key, int64_t n, uint32_t lo, uint32_t hi, uint32_t *restrict to) {
    int64_t count = 0, j = 0;
#if defined(WIDE)
    __m512i l = _mm512_set1_epi32((int)lo), h = _mm512_set1_epi32((int)hi);
    for (; j + 16 <= n; j += 16) {
        __m512i v = _mm512_loadu_si512(key + j);
        __mmask16 in = _mm512_cmpgt_epu32_mask(v, l) & _mm512_cmplt_epu32_mask(v, h);
        if (in) { _mm512_mask_compressstoreu_epi32(to + count, in, v); count += __builtin_popcount(in); }
    }
#endif
    for (; j < n; j++) if (key[j] > lo && key[j] < hi) to[count++] = key[j];
    return count;
}

/* Variance over the models of each element (population); x: m chunks of deltas. */
static void variance(int m, const double *x, int64_t n, double *restrict v) {
    double mean[CH];
    memset(mean, 0, n * sizeof(double));
    memset(v, 0, n * sizeof(double));
    for (int i = 0; i < m; i++) for (int64_t j = 0; j < n; j++) mean[j] += x[(int64_t)i * CH + j];
    for (int64_t j = 0; j < n; j++) mean[j] /= (double)m;
    for (int i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) { double e = x[(int64_t)i * CH + j] - mean[j]; v[j] += e * e; }
    for (int64_t j = 0; j < n; j++) v[j] /= (double)m;
}

typedef struct { uint32_t lo, hi; int64_t above, at_hi, at_lo, inside, room, nonzero; uint32_t *keys; } window_t;

static int window_chunk(window_t *w, const uint32_t *restrict key, int64_t n) {
    uint32_t above = 0, at_hi = 0, at_lo = 0, nonzero = 0, lo = w->lo, hi = w->hi;
    for (int64_t j = 0; j < n; j++) {
        above += key[j] > hi;
        at_hi += key[j] == hi;
        at_lo += key[j] == lo;
        nonzero += key[j] != 0;
    }
    w->above += above; w->at_hi += at_hi; w->at_lo += at_lo; w->nonzero += nonzero;
    if (w->room < n + 16) return 0; /* full: the caller counts again by histograms */
    int64_t got = hi > lo ? append(key, n, lo, hi, w->keys + w->inside) : 0;
    w->inside += got; w->room -= got;
    return 1;
}

/* Count keys around each window, of the `segment` elements at each multiple of `step` in [0, size). in: m sources then the base. kind: KEY_DELTA has m windows,
 * KEY_VARIANCE one. full[i] is set when a window's room ended. */
int merge_window(int kind, int m, const tensor_t *in, int64_t size, int64_t step, int64_t segment, window_t *w,
                 int32_t *full) {
    reader_t reader;
    int code = reader_open(&reader, m + 1, in, BLK);
    double b[CH], v[CH], *x = malloc((size_t)m * CH * sizeof(double));
    uint32_t key[CH];
    if (!x) code = NO_MEMORY;
    for (int64_t start = 0; code == OK && start < size; start += step) {
        int64_t n = size - start < segment ? size - start : segment;
        code = reader_fill(&reader, start, n, BLK);
        for (int64_t at = 0; code == OK && at < n; at += CH) {
            int64_t c = n - at < CH ? n - at : CH;
            if (decode(reader.raw[m] + at * SIZE[in[m].dtype], in[m].dtype, c, b)) { code = BAD_INPUT + m; break; }
            for (int i = 0; i < m; i++) {
                double *restrict d = x + (int64_t)i * CH;
                if (decode_delta(reader.raw[i] + at * SIZE[in[i].dtype], in[i].dtype, c, b, d)) { code = BAD_INPUT + i; break; }
                if (kind == KEY_DELTA) { key_of(d, c, key); if (!window_chunk(w + i, key, c)) full[i] = 1; }
            }
            if (code == OK && kind == KEY_VARIANCE) {
                variance(m, x, c, v);
                key_of(v, c, key);
                if (!window_chunk(w, key, c)) full[0] = 1;
            }
        }
    }
    reader_close(&reader); free(x);
    return code;
}

/* SCE: bits of the elements whose variance rank is kept (k, one mask), and per model the sum of squares of the kept
 * deltas (lane l sums the indices = l mod LANES). */
int merge_variance_mask(int m, const tensor_t *in, int64_t size, mask_t *k, uint8_t *bits, double *squares) {
    reader_t reader;
    int code = reader_open(&reader, m + 1, in, BLK);
    double b[CH], v[CH], *x = malloc((size_t)m * CH * sizeof(double)), *lane = calloc((size_t)m * LANES, sizeof(double));
    uint32_t key[CH];
    uint8_t keep[CH];
    if (!x || !lane) code = NO_MEMORY;
    for (int64_t start = 0; code == OK && start < size; start += BLK) {
        int64_t n = size - start < BLK ? size - start : BLK;
        code = reader_fill(&reader, start, n, BLK);
        for (int64_t at = 0; code == OK && at < n; at += CH) {
            int64_t c = n - at < CH ? n - at : CH, padded = (c + LANES - 1) / LANES * LANES;
            if (decode(reader.raw[m] + at * SIZE[in[m].dtype], in[m].dtype, c, b)) { code = BAD_INPUT + m; break; }
            for (int i = 0; i < m; i++) {
                double *restrict d = x + (int64_t)i * CH;
                if (decode_delta(reader.raw[i] + at * SIZE[in[i].dtype], in[i].dtype, c, b, d)) { code = BAD_INPUT + i; break; }
            }
            if (code != OK) break;
            if (k->mode == MASK_RANK) {
                variance(m, x, c, v);
                key_of(v, c, key);
                rank_mask(k, key, c, keep);
            } else memset(keep, k->mode == MASK_ALL, c);
            for (int64_t j = 0; j < c; j += 8) {
                uint8_t byte = 0;
                for (int64_t q = j; q < c && q < j + 8; q++) byte |= (uint8_t)(keep[q] << (q - j));
                bits[(start + at + j) >> 3] = byte;
            }
            for (int i = 0; i < m; i++) {
                double *restrict d = x + (int64_t)i * CH, *restrict acc = lane + (int64_t)i * LANES;
                for (int64_t j = 0; j < c; j++) d[j] = keep[j] ? d[j] : 0.0;
                for (int64_t j = c; j < padded; j++) d[j] = 0.0;
                for (int64_t j = 0; j < padded; j += LANES)
                    for (int l = 0; l < LANES; l++) acc[l] += d[j + l] * d[j + l];
            }
        }
    }
    for (int i = 0; i < m && code == OK; i++) squares[i] = lanes_total(lane + (int64_t)i * LANES);
    reader_close(&reader); free(x); free(lane);
    return code;
}

/* ---- random masks -------------------------------------------------------------------------------------------- */

#if defined(WIDE)
/* 16 consecutive counters: 64 words in order. */
static void philox_wide(uint32_t key0, uint32_t key1, uint64_t counter, uint32_t *restrict u) {
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)counter), steps);
    __mmask16 carry = _mm512_cmplt_epu32_mask(c0, _mm512_set1_epi32((int)(uint32_t)counter));
    __m512i high = _mm512_set1_epi32((int)(uint32_t)(counter >> 32));
    __m512i c1 = _mm512_mask_add_epi32(high, carry, high, _mm512_set1_epi32(1));
    __m512i c2 = _mm512_setzero_si512(), c3 = _mm512_setzero_si512();
    for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        __m512i even0 = _mm512_mul_epu32(c0, m0), odd0 = _mm512_mul_epu32(_mm512_srli_epi64(c0, 32), m0);
        __m512i even1 = _mm512_mul_epu32(c2, m1), odd1 = _mm512_mul_epu32(_mm512_srli_epi64(c2, 32), m1);
        __m512i low0 = _mm512_mask_shuffle_epi32(even0, 0xAAAA, odd0, _MM_PERM_CCAA);
        __m512i low1 = _mm512_mask_shuffle_epi32(even1, 0xAAAA, odd1, _MM_PERM_CCAA);
        __m512i high0 = _mm512_mask_shuffle_epi32(odd0, 0x5555, even0, _MM_PERM_DDBB);
        __m512i high1 = _mm512_mask_shuffle_epi32(odd1, 0x5555, even1, _MM_PERM_DDBB);
        c0 = _mm512_ternarylogic_epi32(high1, c1, _mm512_set1_epi32((int)key0), 0x96);
        c2 = _mm512_ternarylogic_epi32(high0, c3, _mm512_set1_epi32((int)key1), 0x96);
        c1 = low1;
        c3 = low0;
    }
    __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpackhi_epi32(c0, c1);
    __m512i c = _mm512_unpacklo_epi32(c2, c3), d = _mm512_unpackhi_epi32(c2, c3);
    __m512i w0 = _mm512_unpacklo_epi64(a, c), w1 = _mm512_unpackhi_epi64(a, c); /* counters 0 4 8 12 and 1 5 9 13 */
    __m512i w2 = _mm512_unpacklo_epi64(b, d), w3 = _mm512_unpackhi_epi64(b, d);
    __m512i e = _mm512_shuffle_i32x4(w0, w1, 0x44), f = _mm512_shuffle_i32x4(w2, w3, 0x44);
    __m512i g = _mm512_shuffle_i32x4(w0, w1, 0xEE), h = _mm512_shuffle_i32x4(w2, w3, 0xEE);
    _mm512_storeu_si512(u, _mm512_shuffle_i32x4(e, f, 0x88));
    _mm512_storeu_si512(u + 16, _mm512_shuffle_i32x4(e, f, 0xDD));
    _mm512_storeu_si512(u + 32, _mm512_shuffle_i32x4(g, h, 0x88));
    _mm512_storeu_si512(u + 48, _mm512_shuffle_i32x4(g, h, 0xDD));
}
#endif

/* Add |delta| of a chunk to the lanes: of all elements and of those whose bit is set. n is a multiple of LANES. */
static void add_norms(const double *restrict d, const uint8_t *restrict bits, int64_t n, double *restrict all,
                      double *restrict kept) {
#if defined(WIDE)
    __m512d a[4], k[4];
    for (int q = 0; q < 4; q++) { a[q] = _mm512_loadu_pd(all + 8 * q); k[q] = _mm512_loadu_pd(kept + 8 * q); }
    for (int64_t j = 0; j < n; j += LANES)
        for (int q = 0; q < 4; q++) {
            __m512d v = _mm512_abs_pd(_mm512_loadu_pd(d + j + 8 * q));
            a[q] = _mm512_add_pd(a[q], v);
            k[q] = _mm512_mask_add_pd(k[q], bits[(j >> 3) + q], k[q], v);
        }
    for (int q = 0; q < 4; q++) { _mm512_storeu_pd(all + 8 * q, a[q]); _mm512_storeu_pd(kept + 8 * q, k[q]); }
#else
    for (int64_t j = 0; j < n; j += LANES)
        for (int l = 0; l < LANES; l++) {
            double v = fabs(d[j + l]);
            all[l] += v;
            kept[l] += (bits[(j + l) >> 3] >> (l & 7)) & 1 ? v : 0.0;
        }
#endif
}

/* Philox4x32-10 (Salmon et al. 2011): words of the counters first/4 ... ; first and n are multiples of 4. */
static void philox(uint32_t key0, uint32_t key1, int64_t first, int64_t n, uint32_t *restrict u) {
    enum { W = 16 };
    int64_t at = 0;
#if defined(WIDE)
    for (; at + 4 * W <= n; at += 4 * W) philox_wide(key0, key1, (uint64_t)(first + at) / 4, u + at);
#endif
    for (; at < n; at += 4 * W) {
        uint64_t c0[W], c1[W], c2[W], c3[W];
        uint32_t k0 = key0, k1 = key1;
        for (int j = 0; j < W; j++) {
            uint64_t counter = (uint64_t)(first + at) / 4 + j;
            c0[j] = counter & 0xFFFFFFFFu; c1[j] = counter >> 32; c2[j] = 0; c3[j] = 0;
        }
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
            for (int j = 0; j < W; j++) {
                uint64_t p0 = (uint64_t)0xD2511F53u * (uint32_t)c0[j], p1 = (uint64_t)0xCD9E8D57u * (uint32_t)c2[j];
                c0[j] = (p1 >> 32) ^ c1[j] ^ k0; c1[j] = (uint32_t)p1;
                c2[j] = (p0 >> 32) ^ c3[j] ^ k1; c3[j] = (uint32_t)p0;
            }
        int64_t here = n - at < 4 * W ? n - at : 4 * W;
        for (int64_t j = 0; 4 * j < here; j++) {
            u[at + 4 * j] = (uint32_t)c0[j]; u[at + 4 * j + 1] = (uint32_t)c1[j];
            u[at + 4 * j + 2] = (uint32_t)c2[j]; u[at + 4 * j + 3] = (uint32_t)c3[j];
        }
    }
}

void merge_philox(uint32_t key0, uint32_t key1, int64_t first, int64_t n, uint32_t *u) { philox(key0, key1, first, n, u); }

typedef struct { uint32_t key0, key1; uint64_t below; double density, epsilon; uint8_t *bits; double all, kept; } draw_t;

/* DARE: bits of the kept elements (word < below) of [first, last), counted from `first`, when there is room for them, and
 * the sums of |delta|, of all and of the kept ones. */
int merge_drop(int m, const tensor_t *in, int64_t first, int64_t last, draw_t *draws) {
    reader_t reader;
    int code = reader_open(&reader, m + 1, in, BLK);
    double b[CH], d[CH], *lane = calloc((size_t)m * 2 * LANES, sizeof(double));
    uint32_t u[CH];
    if (!lane) code = NO_MEMORY;
    for (int64_t start = first; code == OK && start < last; start += BLK) {
        int64_t n = last - start < BLK ? last - start : BLK;
        code = reader_fill(&reader, start, n, BLK);
        for (int64_t at = 0; code == OK && at < n; at += CH) {
            int64_t c = n - at < CH ? n - at : CH, padded = (c + LANES - 1) / LANES * LANES;
            if (decode(reader.raw[m] + at * SIZE[in[m].dtype], in[m].dtype, c, b)) { code = BAD_INPUT + m; break; }
            for (int i = 0; i < m; i++) {
                draw_t *w = draws + i;
                double *restrict all = lane + (int64_t)2 * i * LANES, *restrict kept = all + LANES;
                if (decode_delta(reader.raw[i] + at * SIZE[in[i].dtype], in[i].dtype, c, b, d)) { code = BAD_INPUT + i; break; }
                for (int64_t j = c; j < padded; j++) d[j] = 0.0;
                philox(w->key0, w->key1, start + at, padded, u);
                uint8_t bits[CH / 8];
                pack_below(u, padded, (uint32_t)w->below, bits);
                add_norms(d, bits, padded, all, kept);
                if (w->bits) memcpy(w->bits + ((start - first + at) >> 3), bits, (c + 7) / 8);
            }
        }
    }
    for (int i = 0; i < m && code == OK; i++) {
        draws[i].all = lanes_total(lane + (int64_t)2 * i * LANES);
        draws[i].kept = lanes_total(lane + (int64_t)2 * i * LANES + LANES);
    }
    reader_close(&reader); free(lane);
    return code;
}

/* DELLA: keep element j of a row with probability density - epsilon + 2 epsilon rank/(n-1), rank ascending in |delta|.
 * The rank is only needed when the random word falls where it matters: first by buckets of the key, then exactly. */
enum { BUCKETS = 160 }; /* sixteenths of octaves below the row's largest key; smaller keys share the lowest */

static uint32_t rank_of(const uint32_t *restrict key, int64_t n, int64_t j) {
    uint32_t below = 0, mine = key[j];
    for (int64_t q = 0; q < j; q++) below += key[q] < mine;
    for (int64_t q = j + 1; q < n; q++) below += key[q] <= mine; /* among equals the lower index has the higher rank */
    return below;
}

/* Bits of the kept elements; key and bucket have room for a multiple of 32 elements. */
static void della_row(const uint32_t *restrict key, const uint32_t *restrict u, int64_t n, double density, double epsilon,
                      int32_t *restrict bucket, uint8_t *restrict bits) {
    uint32_t largest = 0, count[4][BUCKETS + 1], first[BUCKETS + 2], sure[BUCKETS + 1], never[BUCKETS + 1];
    double low = density - epsilon, last = n > 1 ? (double)(n - 1) : 1.0, unit = 4294967296.0;
#define CHANCE(rank) ((low + (n > 1 ? (double)(rank) / last : 0.5) * 2.0 * epsilon) * unit)
    memset(count, 0, sizeof count);
    for (int64_t j = 0; j < n; j++) largest = key[j] > largest ? key[j] : largest;
    int32_t bottom = (int32_t)(largest >> 19) - BUCKETS;
    for (int64_t j = 0; j < n; j++) {
        int32_t place = (int32_t)(key[j] >> 19) - bottom;
        bucket[j] = place > 0 ? place : 0;
    }
    for (int64_t j = 0; j < n; j++) count[j & 3][bucket[j]]++;
    first[0] = 0;
    for (int q = 0; q <= BUCKETS; q++) first[q + 1] = first[q] + count[0][q] + count[1][q] + count[2][q] + count[3][q];
    for (int q = 0; q <= BUCKETS; q++) { /* words below `sure` stay at any rank in the bucket, from `never` on none does */
        double a = CHANCE(first[q]), b = CHANCE((int64_t)first[q + 1] - (first[q + 1] > first[q]));
        sure[q] = (uint32_t)(int64_t)ceil(a < b ? a : b);
        never[q] = (uint32_t)(int64_t)ceil(a < b ? b : a);
    }
    int64_t j = 0;
#if defined(WIDE)
    for (; j + 16 <= n; j += 16) {
        __m512i word = _mm512_loadu_si512(u + j), place = _mm512_loadu_si512(bucket + j);
        __mmask16 in = _mm512_cmplt_epu32_mask(word, _mm512_i32gather_epi32(place, sure, 4));
        __mmask16 may = _mm512_cmplt_epu32_mask(word, _mm512_i32gather_epi32(place, never, 4)) & ~in;
        for (; may; may &= may - 1) {
            int at = __builtin_ctz(may);
            if ((double)u[j + at] < CHANCE(rank_of(key, n, j + at))) in |= (__mmask16)(1 << at);
        }
        bits[j >> 3] = (uint8_t)in;
        bits[(j >> 3) + 1] = (uint8_t)(in >> 8);
    }
#endif
    for (int64_t q = j; q < (n + LANES - 1) / LANES * LANES; q += 8) bits[q >> 3] = 0;
    for (; j < n; j++) {
        int keep = u[j] < sure[bucket[j]];
        if (!keep && u[j] < never[bucket[j]]) keep = (double)u[j] < CHANCE(rank_of(key, n, j));
        bits[j >> 3] |= (uint8_t)(keep << (j & 7));
    }
}

/* Rows [first, last); bits count from the first of them. */
int merge_della(int m, const tensor_t *in, int64_t first, int64_t last, int64_t cols, draw_t *draws) {
    reader_t reader;
    int64_t step = BLK / cols > 0 ? BLK / cols : 1, block = step * cols, padded = (cols + LANES - 1) / LANES * LANES;
    int code = reader_open(&reader, m + 1, in, block);
    int64_t wide = padded + CH;
    double *b = malloc(wide * 8), *d = malloc(wide * 8);
    uint32_t *key = malloc(wide * 4), *u = malloc(wide * 4 + 64);
    int32_t *bucket = malloc(wide * 4);
    uint8_t *bits = malloc(wide);
    if (!b || !d || !key || !u || !bucket || !bits) code = NO_MEMORY;
    for (int i = 0; i < m; i++) { draws[i].all = draws[i].kept = 0.0; if (draws[i].bits) memset(draws[i].bits, 0, ((last - first) * cols + 7) / 8); }
    for (int64_t row = first; code == OK && row < last; row += step) {
        int64_t here = last - row < step ? last - row : step;
        code = reader_fill(&reader, row * cols, here * cols, block);
        for (int64_t q = 0; code == OK && q < here; q++) {
            int64_t at = q * cols, flat = (row + q) * cols, head = flat & 3;
            if (decode(reader.raw[m] + at * SIZE[in[m].dtype], in[m].dtype, cols, b)) { code = BAD_INPUT + m; break; }
            for (int i = 0; i < m; i++) {
                draw_t *w = draws + i;
                double all[LANES] = {0}, kept[LANES] = {0};
                if (decode_delta(reader.raw[i] + at * SIZE[in[i].dtype], in[i].dtype, cols, b, d)) { code = BAD_INPUT + i; break; }
                for (int64_t j = cols; j < padded; j++) d[j] = 0.0;
                key_of(d, cols, key);
                philox(w->key0, w->key1, flat - head, (cols + head + 3) / 4 * 4, u);
                della_row(key, u + head, cols, w->density, w->epsilon, bucket, bits);
                add_norms(d, bits, padded, all, kept);
                w->all += lanes_total(all);
                w->kept += lanes_total(kept);
                int64_t to = flat - first * cols;
                if (!w->bits) continue;
                if ((to & 7) == 0 && (cols & 7) == 0) memcpy(w->bits + (to >> 3), bits, cols >> 3);
                else for (int64_t j = 0; j < cols; j++)
                    w->bits[(to + j) >> 3] |= (uint8_t)((bits[j >> 3] >> (j & 7) & 1) << ((to + j) & 7));
            }
        }
    }
    reader_close(&reader); free(b); free(d); free(key); free(u); free(bucket); free(bits);
    return code;
}

int merge_version(void) { return 3; }
