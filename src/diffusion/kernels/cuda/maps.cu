// Work on single numbers: biases, gates, transposes, patches.

// x[i] += bias[(i / inner) % channels], count of x a multiple of AT_ONCE. inner is 1 and channels a multiple of AT_ONCE, or inner
// is a multiple of AT_ONCE.
extern "C" __global__ void add_bias_packed(number* x, const number* bias, long long count, int inner, int channels) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * AT_ONCE;
    if (at >= count) return;
    Pack pack = load(x + at);
    if (inner == 1) {
        Pack added = load(bias + (int)(at % channels));
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) pack.of[k] = narrow(wide(pack.of[k]) + wide(added.of[k]));
    } else {
        float added = wide(bias[(int)((at / inner) % channels)]);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) pack.of[k] = narrow(wide(pack.of[k]) + added);
    }
    store(x + at, pack);
}

// The same with another tensor of the shape of x added.
extern "C" __global__ void add_bias_and_packed(
    number* x, const number* bias, const number* other, long long count, int inner, int channels) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * AT_ONCE;
    if (at >= count) return;
    Pack pack = load(x + at), besides = load(other + at);
    if (inner == 1) {
        Pack added = load(bias + (int)(at % channels));
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) pack.of[k] = narrow(wide(pack.of[k]) + wide(added.of[k]) + wide(besides.of[k]));
    } else {
        float added = wide(bias[(int)((at / inner) % channels)]);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) pack.of[k] = narrow(wide(pack.of[k]) + added + wide(besides.of[k]));
    }
    store(x + at, pack);
}

// Both, whatever the sizes.
extern "C" __global__ void add_bias_and(
    number* x, const number* bias, const number* other, long long count, int inner, int channels) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    x[at] = narrow(wide(x[at]) + wide(bias[(int)((at / inner) % channels)]) + wide(other[at]));
}

extern "C" __global__ void add_bias(number* x, const number* bias, long long count, int inner, int channels) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    x[at] = narrow(wide(x[at]) + wide(bias[(int)((at / inner) % channels)]));
}

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// x: (rows, 2 inner), values and then gates -> values * GELU(gates): (rows, inner). inner is a multiple of AT_ONCE.
extern "C" __global__ void geglu_packed(const number* x, number* out, long long count, int inner) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * AT_ONCE;
    if (at >= count) return;
    long long from = at / inner * inner + at;
    Pack value = load(x + from), gate = load(x + from + inner);
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) value.of[k] = narrow(wide(value.of[k]) * gelu(wide(gate.of[k])));
    store(out + at, value);
}

// The same, whatever the sizes.
extern "C" __global__ void geglu(const number* x, number* out, long long count, int inner) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    long long from = at / inner * inner + at;
    out[at] = narrow(wide(x[from]) * gelu(wide(x[from + inner])));
}

// x: (N, a, b) -> (N, b, a). Blocks of 32 by 8 threads, tiles of 32 by 32.
extern "C" __global__ void transposed(const number* x, number* out, int a, int b) {
    __shared__ number tile[32][33];
    const long long sample = (long long)blockIdx.z * a * b;
    int column = blockIdx.x * 32 + threadIdx.x;
#pragma unroll
    for (int k = threadIdx.y; k < 32; k += 8) {
        int row = blockIdx.y * 32 + k;
        if (row < a && column < b) tile[k][threadIdx.x] = x[sample + (long long)row * b + column];
    }
    __syncthreads();
    int row = blockIdx.y * 32 + threadIdx.x;
#pragma unroll
    for (int k = threadIdx.y; k < 32; k += 8) {
        int line = blockIdx.x * 32 + k;
        if (row < a && line < b) out[sample + (long long)line * a + row] = tile[threadIdx.x][k];
    }
}

// What a convolution looks at: x (N, channels, h, w) -> (N, channels * kernel * kernel, pixels), zeros outside of the map. A thread
// works on AT_ONCE neighbouring outputs (blockIdx.x) of one weight (blockIdx.y) of one sample (blockIdx.z).
extern "C" __global__ void patches(
    const number* x, number* out, int channels, int h, int w, int out_w, int pixels, int kernel, int stride, int padding) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * AT_ONCE;
    if (first >= pixels) return;
    const int weight = blockIdx.y, channel = weight / (kernel * kernel);
    const int above = weight / kernel % kernel - padding, left = weight % kernel - padding;
    x += ((long long)blockIdx.z * channels + channel) * h * w;
    out += ((long long)blockIdx.z * gridDim.y + weight) * pixels;
    Pack pack;
    int line = first / out_w, column = first % out_w;
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
        const int y = line * stride + above, z = column * stride + left;
        const bool is_there = y >= 0 && y < h && z >= 0 && z < w && first + k < pixels;
        pack.of[k] = is_there ? x[(long long)y * w + z] : (number)0;
        if (++column == out_w) column = 0, ++line;
    }
    if (pixels % AT_ONCE == 0) {
        store(out + first, pack);
    } else {
        for (int k = 0; k < AT_ONCE && first + k < pixels; ++k) out[first + k] = pack.of[k];
    }
}
