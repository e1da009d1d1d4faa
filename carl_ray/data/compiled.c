/* Colour jitter of frames in one loop over blocks that stay in the first-level cache.

Loaded with ctypes by compiled.py. Each operation rounds as `carl_ray.data.augment` does with tensors: float32, no
fused multiply-add (-ffp-contract=off), so both give the same bytes. After each operation all values are integers in
[0, 255], so whatever comes before contrast, which needs the mean luma, can be stored as bytes. */

#include <stdint.h>

#define BLOCK 1024 /* pixels: 12 KiB of float32 */
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
__attribute__((target("avx2"))) static void all_frames_avx2(
    const uint8_t *source, uint8_t *target, int64_t num_frames, int64_t num_pixels, const uint8_t *operations,
    const double *parameters, int num_operations) {
    all_frames(source, target, num_frames, num_pixels, operations, parameters, num_operations);
}
#endif

/* Changes with any function below, and with what it computes. */
int32_t carl_version(void) { return 1; }

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
