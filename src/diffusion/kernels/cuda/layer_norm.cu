// Layer normalisation of rows of a multiple of AT_ONCE numbers. A warp works on one row.

#define ROWS 4

__device__ __forceinline__ float over_warp(float x) {
#pragma unroll
    for (int k = 16; k > 0; k /= 2) x += __shfl_xor_sync(0xffffffffu, x, k);
    return x;
}

// x, out: (rows, width), weight, bias: (width). Blocks of 32 ROWS threads.
extern "C" __global__ void layer_norm(
    const number* x, const number* weight, const number* bias, number* out, int rows, int width, float eps) {
    const int row = (int)blockIdx.x * ROWS + threadIdx.x / 32;
    if (row >= rows) return;
    const number* from = x + (long long)row * width;
    number* to = out + (long long)row * width;
    const int first = threadIdx.x % 32 * AT_ONCE, step = 32 * AT_ONCE;

    float sum = 0.0f;
    for (int at = first; at < width; at += step) {
        Pack pack = load(from + at);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) sum += wide(pack.of[k]);
    }
    const float mean = over_warp(sum) / (float)width;
    float squares = 0.0f;
    for (int at = first; at < width; at += step) {
        Pack pack = load(from + at);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) {
            float off = wide(pack.of[k]) - mean;
            squares += off * off;
        }
    }
    const float scale = rsqrtf(over_warp(squares) / (float)width + eps);
    for (int at = first; at < width; at += step) {
        Pack pack = load(from + at), factor = load(weight + at), offset = load(bias + at);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) {
            pack.of[k] = narrow((wide(pack.of[k]) - mean) * scale * wide(factor.of[k]) + wide(offset.of[k]));
        }
        store(to + at, pack);
    }
}
