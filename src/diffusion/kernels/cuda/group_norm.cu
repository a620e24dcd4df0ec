// Group normalisation, with SiLU where it follows. A block works on one group of one sample; sums are f32, in an order that the
// group's size alone decides.

// A block's: as many as a large group can use.
#define THREADS SIZE

// The sum over the block, to all of its threads.
__device__ float block_sum(float x) {
    __shared__ float warps[THREADS / 32];
    __shared__ float total;
#pragma unroll
    for (int k = 16; k > 0; k /= 2) x += __shfl_xor_sync(0xffffffffu, x, k);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) {
        float y = threadIdx.x < THREADS / 32 ? warps[threadIdx.x] : 0.0f;
#pragma unroll
        for (int k = 16; k > 0; k /= 2) y += __shfl_xor_sync(0xffffffffu, y, k);
        if (threadIdx.x == 0) total = y;
    }
    __syncthreads();
    return total;
}

// x: (N, channels, pixels) in groups of size numbers, size = channels / groups * pixels, one block a group. is_packed: pixels and
// with it size is a multiple of AT_ONCE.
extern "C" __global__ void __launch_bounds__(THREADS) group_norm(
    const number* x, const number* weight, const number* bias, number* out, int groups, int channels, int pixels, float eps,
    int silu, int is_packed) {
    const int a_group = channels / groups;
    const long long size = (long long)a_group * pixels;
    const number* from = x + (long long)blockIdx.x * size;
    number* to = out + (long long)blockIdx.x * size;
    const int first = (int)(blockIdx.x % groups) * a_group;
    const int step = is_packed ? AT_ONCE : 1;

    float sum = 0.0f;
    for (long long at = (long long)threadIdx.x * step; at < size; at += THREADS * step) {
        if (is_packed) {
            Pack pack = load(from + at);
            float part = 0.0f;
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) part += wide(pack.of[k]);
            sum += part;
        } else {
            sum += wide(from[at]);
        }
    }
    const float mean = block_sum(sum) / (float)size;

    float squares = 0.0f;
    for (long long at = (long long)threadIdx.x * step; at < size; at += THREADS * step) {
        if (is_packed) {
            Pack pack = load(from + at);
            float part = 0.0f;
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                float off = wide(pack.of[k]) - mean;
                part += off * off;
            }
            squares += part;
        } else {
            float off = wide(from[at]) - mean;
            squares += off * off;
        }
    }
    const float scale = rsqrtf(block_sum(squares) / (float)size + eps);

    for (long long at = (long long)threadIdx.x * step; at < size; at += THREADS * step) {
        const int channel = first + (int)(at / pixels);
        const float factor = scale * wide(weight[channel]);
        const float offset = wide(bias[channel]) - mean * factor;
        if (is_packed) {
            Pack pack = load(from + at);
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                float value = wide(pack.of[k]) * factor + offset;
                if (silu) value = value / (1.0f + __expf(-value));
                pack.of[k] = narrow(value);
            }
            store(to + at, pack);
        } else {
            float value = wide(from[at]) * factor + offset;
            if (silu) value = value / (1.0f + __expf(-value));
            to[at] = narrow(value);
        }
    }
}
