/* Colour jitter of frames in one loop over blocks that stay in the first-level cache.

Loaded with ctypes by compiled.py. Each operation rounds as `carl_ray.data.augment` does with tensors: float32, no
fused multiply-add (-ffp-contract=off), so both give the same bytes. After each operation all values are integers in
[0, 255], so whatever comes before contrast, which needs the mean luma, can be stored as bytes. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#endif

#define BLOCK 1024 /* pixels: 12 KiB of float32 */
#define MOST_TAPS 256
#define INLINE static inline __attribute__((always_inline))

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE };

typedef struct {
    float red[BLOCK], green[BLOCK], blue[BLOCK];
} Planes;

/* Cut to an integer in [0, 255]. */
INLINE float cut(float value) {
    value = value < 0 ? 0 : value;
    value = value > 255 ? 255 : value;
    return (float)(int32_t)value;
}

INLINE float luma_of(float red, float green, float blue) {
    return (float)(int32_t)(red * .2989f + green * .587f + blue * .114f);
}

INLINE float offset_on_circle(float hue, float center) {
    float distance = hue - center;
    distance = distance < 0 ? -distance : distance;
    distance = distance < 1 ? 1 : distance;
    return (distance > 2 ? 2 : distance) - 1;
}

INLINE void turn_hue(Planes *planes, int count, float turn) {
    const float scale = (float)(255.999 / 255);
    for (int i = 0; i < count; i++) {
        float red = planes->red[i], green = planes->green[i], blue = planes->blue[i];
        float lowest = red < green ? red : green, highest = red < green ? green : red;
        lowest = lowest < blue ? lowest : blue;
        highest = highest < blue ? blue : highest;
        float spread = highest - lowest;
        float of_green = blue - red + 2 * spread, of_blue = red - green + 4 * spread;
        float hue = highest == green ? of_green : of_blue;
        hue = highest == red ? green - blue : hue;
        hue = hue / (spread < 1 ? 1 : spread) + turn;
        hue = hue < 0 ? hue + 6 : hue;
        hue = hue >= 6 ? hue - 6 : hue;
        planes->red[i] = (float)(int32_t)((lowest + offset_on_circle(hue, 3) * spread) * scale);
        planes->green[i] = (float)(int32_t)((highest - offset_on_circle(hue, 2) * spread) * scale);
        planes->blue[i] = (float)(int32_t)((highest - offset_on_circle(hue, 4) * spread) * scale);
    }
}

INLINE void scale_plane(float *plane, int count, float factor, float offset) {
    for (int i = 0; i < count; i++) plane[i] = cut(plane[i] * factor + offset);
}

INLINE void operate(Planes *planes, int count, int operation, double parameter, float mean) {
    const float factor = (float)parameter, rest = (float)(1 - parameter);
    switch (operation) {
    case BRIGHTNESS:
    case CONTRAST: {
        float offset = operation == CONTRAST ? mean * rest : 0;
        scale_plane(planes->red, count, factor, offset);
        scale_plane(planes->green, count, factor, offset);
        scale_plane(planes->blue, count, factor, offset);
        break;
    }
    case SATURATION:
        for (int i = 0; i < count; i++) {
            float grey = luma_of(planes->red[i], planes->green[i], planes->blue[i]) * rest;
            planes->red[i] = cut(planes->red[i] * factor + grey);
            planes->green[i] = cut(planes->green[i] * factor + grey);
            planes->blue[i] = cut(planes->blue[i] * factor + grey);
        }
        break;
    case HUE:
        turn_hue(planes, count, (float)(6 * parameter));
        break;
    default:
        for (int i = 0; i < count; i++)
            planes->red[i] = planes->green[i] = planes->blue[i] =
                luma_of(planes->red[i], planes->green[i], planes->blue[i]);
    }
}

/* Apply operations to one frame; return the sum of the luma after them if `wants_luma`. */
INLINE int64_t one_pass(const uint8_t *source, uint8_t *target, int64_t num_pixels, const uint8_t *operations,
                        const double *parameters, int num_operations, float mean, int wants_luma) {
    Planes planes;
    int64_t sum = 0;
    for (int64_t start = 0; start < num_pixels; start += BLOCK) {
        const int count = num_pixels - start < BLOCK ? (int)(num_pixels - start) : BLOCK;
        const uint8_t *from = source + 3 * start;
        uint8_t *to = target + 3 * start;
        for (int i = 0; i < count; i++) {
            planes.red[i] = from[3 * i];
            planes.green[i] = from[3 * i + 1];
            planes.blue[i] = from[3 * i + 2];
        }
        for (int number = 0; number < num_operations; number++)
            operate(&planes, count, operations[number], parameters[number], mean);
        if (wants_luma) {
            int32_t of_block = 0;
            for (int i = 0; i < count; i++)
                of_block += (int32_t)(planes.red[i] * .2989f + planes.green[i] * .587f + planes.blue[i] * .114f);
            sum += of_block;
        }
        if (num_operations || source != target)
            for (int i = 0; i < count; i++) {
                to[3 * i] = (uint8_t)(int32_t)planes.red[i];
                to[3 * i + 1] = (uint8_t)(int32_t)planes.green[i];
                to[3 * i + 2] = (uint8_t)(int32_t)planes.blue[i];
            }
    }
    return sum;
}

INLINE void all_frames(const uint8_t *source, uint8_t *target, int64_t num_frames, int64_t num_pixels,
                       const uint8_t *operations, const double *parameters, int num_operations) {
    int contrast = 0;
    while (contrast < num_operations && operations[contrast] != CONTRAST) contrast++;
    for (int64_t frame = 0; frame < num_frames; frame++) {
        const uint8_t *from = source + 3 * num_pixels * frame;
        uint8_t *to = target + 3 * num_pixels * frame;
        float mean = 0;
        if (contrast < num_operations) {
            int64_t sum = one_pass(from, to, num_pixels, operations, parameters, contrast, 0, 1);
            mean = (float)((double)sum / (double)num_pixels);
            one_pass(to, to, num_pixels, operations + contrast, parameters + contrast, num_operations - contrast,
                     mean, 0);
        } else {
            one_pass(from, to, num_pixels, operations, parameters, num_operations, 0, 0);
        }
    }
}

#if defined(__x86_64__)
AVX2 static void all_frames_avx2(
    const uint8_t *source, uint8_t *target, int64_t num_frames, int64_t num_pixels, const uint8_t *operations,
    const double *parameters, int num_operations) {
    all_frames(source, target, num_frames, num_pixels, operations, parameters, num_operations);
}
#endif

/* Changes with any function below, and with what it computes. */
int32_t carl_version(void) { return 2; }

/* Apply colour operations to RGB frames; `target` may be `source`.

operations: numbers of the enum above, each at most once; parameters: the factor of each, or the turn of the hue. */
void carl_jitter(const uint8_t *source, uint8_t *target, int64_t num_frames, int64_t num_pixels,
                 const uint8_t *operations, const double *parameters, int32_t num_operations) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        all_frames_avx2(source, target, num_frames, num_pixels, operations, parameters, num_operations);
        return;
    }
#endif
    all_frames(source, target, num_frames, num_pixels, operations, parameters, num_operations);
}

/* Weights along one side: output i is the sum of `taps` (even) pixels from `starts[i]` on, in units of 2^-precision. */
typedef struct {
    const int32_t *starts;
    const int16_t *weights;
    int32_t taps, precision;
} Side;

INLINE uint8_t to_byte(int32_t sum, int32_t precision) {
    int32_t value = sum >> precision;
    value = value < 0 ? 0 : value;
    return (uint8_t)(value > 255 ? 255 : value);
}

INLINE void resize_pixel(const uint8_t *row, uint8_t *to, int64_t width, Side side, int64_t x) {
    const int16_t *weights = side.weights + x * side.taps;
    for (int channel = 0; channel < 3; channel++) {
        int32_t sum = 1 << (side.precision - 1);
        for (int tap = 0; tap < side.taps; tap++) {
            int64_t place = side.starts[x] + tap;
            if (place < width) sum += weights[tap] * row[3 * place + channel];
        }
        to[3 * x + channel] = to_byte(sum, side.precision);
    }
}

static void resize_rows(const uint8_t *first, const uint8_t *second, uint8_t *to_first, uint8_t *to_second,
                        int64_t width, int64_t size, Side side) {
    for (int64_t x = 0; x < size; x++) {
        resize_pixel(first, to_first, width, side, x);
        resize_pixel(second, to_second, width, side, x);
    }
}

INLINE void add_rows(const uint8_t *const *rows, const int16_t *weights, int taps, int32_t precision, uint8_t *to,
                     int64_t num_values) {
    for (int64_t i = 0; i < num_values; i++) {
        int32_t sum = 1 << (precision - 1);
        for (int tap = 0; tap < taps; tap++) sum += weights[tap] * rows[tap][i];
        to[i] = to_byte(sum, precision);
    }
}

typedef void Rows(const uint8_t *, const uint8_t *, uint8_t *, uint8_t *, int64_t, int64_t, Side);

/* Resize one frame: first along rows into `scratch`, whose rows have `stride` bytes, then along columns. */
INLINE void resize_frame(const uint8_t *source, int64_t row_bytes, int64_t height, int64_t width, int64_t size,
                         Side across, Side down, uint8_t *scratch, int64_t stride, uint8_t *target, Rows rows_of) {
    for (int64_t y = 0; y < height; y += 2) {
        int64_t next = y + 1 < height ? y + 1 : y;
        rows_of(source + y * row_bytes, source + next * row_bytes, scratch + y * stride, scratch + next * stride, width,
                size, across);
    }
    const uint8_t *rows[MOST_TAPS];
    for (int64_t y = 0; y < size; y++) {
        const int16_t *weights = down.weights + y * down.taps;
        for (int tap = 0; tap < down.taps; tap++) {
            int64_t place = down.starts[y] + tap;
            rows[tap] = scratch + (place < height ? place : height - 1) * stride; /* beyond: of weight 0 */
        }
        uint8_t *to = target + 3 * size * y;
        switch (down.taps) { /* of constant length, the loop over taps is unrolled */
        case 2: add_rows(rows, weights, 2, down.precision, to, 3 * size); break;
        case 4: add_rows(rows, weights, 4, down.precision, to, 3 * size); break;
        case 6: add_rows(rows, weights, 6, down.precision, to, 3 * size); break;
        default: add_rows(rows, weights, down.taps, down.precision, to, 3 * size);
        }
    }
}

#if defined(__x86_64__)
/* Two rows at a time: a pair of taps is (r0 r1 g0 g1 b0 b1) in each half of a register. */
AVX2 static void resize_rows_avx2(const uint8_t *first, const uint8_t *second, uint8_t *to_first, uint8_t *to_second,
                                  int64_t width, int64_t size, Side side) {
    const __m128i half = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i order = _mm256_broadcastsi128_si256(half);
    const __m256i rounding = _mm256_set1_epi32(1 << (side.precision - 1));
    const __m128i precision = _mm_cvtsi32_si128(side.precision);
    for (int64_t x = 0; x < size; x++) {
        const int64_t start = side.starts[x];
        if (3 * (start + side.taps - 2) + 8 > 3 * width) { /* it would read beyond the row */
            resize_pixel(first, to_first, width, side, x);
            resize_pixel(second, to_second, width, side, x);
            continue;
        }
        __m256i sum = rounding;
        for (int tap = 0; tap < side.taps; tap += 2) {
            const int64_t place = 3 * (start + tap);
            int32_t pair;
            memcpy(&pair, side.weights + x * side.taps + tap, 4);
            __m256i pixels = _mm256_set_m128i(_mm_loadl_epi64((const __m128i *)(second + place)),
                                              _mm_loadl_epi64((const __m128i *)(first + place)));
            pixels = _mm256_shuffle_epi8(pixels, order);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pixels, _mm256_set1_epi32(pair)));
        }
        sum = _mm256_sra_epi32(sum, precision);
        sum = _mm256_packus_epi32(sum, sum);
        sum = _mm256_packus_epi16(sum, sum);
        int32_t pixel = _mm256_extract_epi32(sum, 0), other = _mm256_extract_epi32(sum, 4);
        memcpy(to_first + 3 * x, &pixel, 4); /* the fourth byte is overwritten by the next pixel, or is padding */
        memcpy(to_second + 3 * x, &other, 4);
    }
}

AVX2 static void resize_frame_avx2(const uint8_t *source, int64_t row_bytes, int64_t height, int64_t width,
                                   int64_t size, Side across, Side down, uint8_t *scratch, int64_t stride,
                                   uint8_t *target) {
    resize_frame(source, row_bytes, height, width, size, across, down, scratch, stride, target, resize_rows_avx2);
}
#endif

/* Resize RGB frames to size x size, bilinear and antialiased, in the integers of torch's kernel for bytes.

source: the first pixel of the crop; frames: bytes from there to each frame's. Returns 0 if memory is lacking. */
int32_t carl_resize(const uint8_t *source, const int64_t *frames, int64_t num_frames, int64_t row_bytes, int64_t height,
                    int64_t width, const int32_t *starts_across, const int16_t *weights_across, int32_t taps_across,
                    int32_t precision_across, const int32_t *starts_down, const int16_t *weights_down,
                    int32_t taps_down, int32_t precision_down, int64_t size, uint8_t *target) {
    const Side across = {starts_across, weights_across, taps_across, precision_across};
    const Side down = {starts_down, weights_down, taps_down, precision_down};
    const int64_t stride = 3 * size + 4;
    uint8_t *scratch = malloc((size_t)(height * stride));
    if (!scratch) return 0;
    for (int64_t number = 0; number < num_frames; number++, target += 3 * size * size) {
        const uint8_t *frame = source + frames[number];
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2")) {
            resize_frame_avx2(frame, row_bytes, height, width, size, across, down, scratch, stride, target);
            continue;
        }
#endif
        resize_frame(frame, row_bytes, height, width, size, across, down, scratch, stride, target, resize_rows);
    }
    free(scratch);
    return 1;
}
