// Scaled dot-product attention in half precision, keys block by block with a running softmax (Dao 2023, FlashAttention-2): scores are
// never written to memory. SIZE: numbers of a head, a multiple of 8, at most 160. Compute capability 8.0 or later.
//
// The order of all sums depends on the number of keys alone: a sample's numbers are the same in any batch.

#define INFINITE __int_as_float(0x7f800000)
#define THREADS 128
#define HEAD SIZE
// A head's numbers up to a whole number of the matrix unit's steps; what is added is zero.
#define PADDED ((HEAD + 15) / 16 * 16)
#define STEPS (PADDED / 16)
// Of a row in shared memory, so that rows of one column lie in different banks.
#define ROW (PADDED + 8)
// Tiles of 16 queries that a warp works on, and blocks of keys in shared memory: the next is read while one is worked on. Large heads
// leave registers and memory for one of each.
#ifndef TILES
#define TILES (PADDED <= 80 ? 2 : 1)
#endif
#define STAGES (PADDED <= 80 ? 2 : 1)
#define QUERIES (64 * TILES)
#ifndef KEYS
#define KEYS (PADDED <= 48 ? 32 : 64)
#endif

__device__ __forceinline__ u32 both(float low, float high) { return (u32)narrow(low) | ((u32)narrow(high) << 16); }

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four 8 by 8 matrices; each thread gives the address of a row of 16 bytes.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(address));
}

__device__ __forceinline__ void load_transposed(u32 (&out)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(address));
}

// sum (16 by 8) += a (16 by 16) b (16 by 8).
__device__ __forceinline__ void add_product(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if NUMBER == 16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ __forceinline__ float over_row(float x, bool is_sum) {
#pragma unroll
    for (int k = 1; k < 4; k *= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, k);
        x = is_sum ? x + other : fmaxf(x, other);
    }
    return x;
}

// Rows of keys or values into shared memory, zeros after the last and after a head's numbers. They are there after `wait_for`.
__device__ __forceinline__ void fill(u32 to, const number* from, int first, int keys, int width) {
#pragma unroll
    for (int part = threadIdx.x; part < KEYS * (PADDED / 8); part += THREADS) {
        int row = part / (PADDED / 8), column = part % (PADDED / 8) * 8;
        bool is_there = first + row < keys && column < HEAD;
        const number* at = is_there ? from + (long long)(first + row) * width + column : from;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(to + (row * ROW + column) * (int)sizeof(number)), "l"(at), "r"(is_there ? 16 : 0));
    }
}

__device__ __forceinline__ void end_of_block() { asm volatile("cp.async.commit_group;"); }

// Until all but the last `LATER` blocks are there.
template <int LATER> __device__ __forceinline__ void wait_for() { asm volatile("cp.async.wait_group %0;" :: "n"(LATER)); }

// The softmax of a row goes on: scores become weights, and what was summed so far is brought to the new maximum.
__device__ __forceinline__ void weigh(float (&scores)[KEYS / 8][4], float (&sums)[2 * STEPS][4], int half, float scale, float& most,
                                      float& total) {
    float high = -INFINITE;
#pragma unroll
    for (int tile = 0; tile < KEYS / 8; ++tile) high = fmaxf(high, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    high = fmaxf(most, over_row(high, false) * scale);
    float factor = exp2_of(most - high), sum = 0.0f;
    most = high;
#pragma unroll
    for (int tile = 0; tile < KEYS / 8; ++tile) {
#pragma unroll
        for (int part = 2 * half; part < 2 * half + 2; ++part) {
            scores[tile][part] = exp2_of(scores[tile][part] * scale - high);
            sum += scores[tile][part];
        }
    }
    total = total * factor + sum;
#pragma unroll
    for (int tile = 0; tile < 2 * STEPS; ++tile) {
        sums[tile][2 * half] *= factor;
        sums[tile][2 * half + 1] *= factor;
    }
}

// q, out: (N, queries, heads * HEAD), k, v: (N, keys, heads * HEAD). A block works on QUERIES queries (blockIdx.x) of one head
// (blockIdx.y) of one sample (blockIdx.z). scale: 1/sqrt(HEAD) times log2 of e.
extern "C" __global__ void __launch_bounds__(THREADS) attention(
    const number* q, const number* k, const number* v, number* out, int queries, int keys, int heads, float scale) {
    __shared__ __align__(16) number shared[STAGES * 2 * KEYS * ROW];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // A thread holds two neighbouring numbers, from `pair` on, of the rows `line` and `line + 8` of a tile.
    const int line = lane / 4, pair = lane % 4 * 2;
    const int width = heads * HEAD;
    const long long column = (long long)blockIdx.y * HEAD;
    q += (long long)blockIdx.z * queries * width + column;
    out += (long long)blockIdx.z * queries * width + column;
    k += (long long)blockIdx.z * keys * width + column;
    v += (long long)blockIdx.z * keys * width + column;
    const int first_row = (int)blockIdx.x * QUERIES + warp * 16 * TILES + line;

    const u32 address = (u32)__cvta_generic_to_shared(shared);
    const u32 block = KEYS * ROW * (u32)sizeof(number);
    fill(address, k, 0, keys, width);
    fill(address + block, v, 0, keys, width);
    end_of_block();

    u32 query[TILES][STEPS][4];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                int row = first_row + 16 * m + part % 2 * 8, at = step * 16 + part / 2 * 8 + pair;
                bool is_there = row < queries && at < HEAD;
                query[m][step][part] = is_there ? *reinterpret_cast<const u32*>(q + (long long)row * width + at) : 0u;
            }
        }
    }

    float sums[TILES][2 * STEPS][4] = {};
    float most[TILES][2], total[TILES][2];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) most[m][half] = -INFINITE, total[m][half] = 0.0f;
    }
    const int matrix = lane / 8, matrix_row = lane % 8;

    for (int first = 0, stage = 0; first < keys; first += KEYS, stage = (stage + 1) % STAGES) {
        if (STAGES == 2) {
            if (first + KEYS < keys) {
                const u32 next = address + (1 - stage) * 2 * block;
                fill(next, k, first + KEYS, keys, width);
                fill(next + block, v, first + KEYS, keys, width);
            }
            end_of_block();
        }
        wait_for<STAGES - 1>();
        __syncthreads();
        const u32 k_address = address + stage * 2 * block, v_address = k_address + block;

        float scores[TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
#pragma unroll
            for (int tile = 0; tile < KEYS / 16; ++tile) {
                u32 b[4];
                int row = tile * 16 + matrix / 2 * 8 + matrix_row, at = step * 16 + matrix % 2 * 8;
                load_matrices(b, k_address + (row * ROW + at) * (int)sizeof(number));
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_product(scores[m][2 * tile], query[m][step], b[0], b[1]);
                    add_product(scores[m][2 * tile + 1], query[m][step], b[2], b[3]);
                }
            }
        }
        if (first + KEYS > keys) {
#pragma unroll
            for (int tile = 0; tile < KEYS / 8; ++tile) {
#pragma unroll
                for (int part = 0; part < 4; ++part) {
                    if (first + tile * 8 + pair + part % 2 < keys) continue;
#pragma unroll
                    for (int m = 0; m < TILES; ++m) scores[m][tile][part] = -INFINITE;
                }
            }
        }
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            weigh(scores[m], sums[m], 0, scale, most[m][0], total[m][0]);
            weigh(scores[m], sums[m], 1, scale, most[m][1], total[m][1]);
        }
#pragma unroll
        for (int tile = 0; tile < KEYS / 16; ++tile) {
            u32 weights[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int part = 0; part < 4; ++part) {
                    const float(&of)[4] = scores[m][2 * tile + part / 2];
                    weights[m][part] = part % 2 == 0 ? both(of[0], of[1]) : both(of[2], of[3]);
                }
            }
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                u32 b[4];
                int row = tile * 16 + matrix % 2 * 8 + matrix_row, at = step * 16 + matrix / 2 * 8;
                load_transposed(b, v_address + (row * ROW + at) * (int)sizeof(number));
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_product(sums[m][2 * step], weights[m], b[0], b[1]);
                    add_product(sums[m][2 * step + 1], weights[m], b[2], b[3]);
                }
            }
        }
        __syncthreads();
        if (STAGES == 1 && first + KEYS < keys) {
            fill(address, k, first + KEYS, keys, width);
            fill(address + block, v, first + KEYS, keys, width);
            end_of_block();
        }
    }

#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + 16 * m + 8 * half;
            float factor = 1.0f / over_row(total[m][half], true);
            if (row >= queries) continue;
#pragma unroll
            for (int tile = 0; tile < 2 * STEPS; ++tile) {
                int at = tile * 8 + pair;
                if (at >= HEAD) continue;
                u32 numbers = both(sums[m][tile][2 * half] * factor, sums[m][tile][2 * half + 1] * factor);
                *reinterpret_cast<u32*>(out + (long long)row * width + at) = numbers;
            }
        }
    }
}
