// What every kernel here begins with. Compiled at run time without a toolkit's headers, so conversions are written out.
// NUMBER is 32 (f32), 16 (f16) or 17 (bf16).

typedef unsigned short u16;
typedef unsigned int u32;

#if NUMBER == 32
typedef float number;
__device__ __forceinline__ float wide(number x) { return x; }
__device__ __forceinline__ number narrow(float x) { return x; }
#elif NUMBER == 16
typedef u16 number;
__device__ __forceinline__ float wide(number x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ number narrow(float x) {
    number y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
typedef u16 number;
__device__ __forceinline__ float wide(number x) { return __uint_as_float((u32)x << 16); }
// To the nearest, ties to even; what is no number stays none.
__device__ __forceinline__ number narrow(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (number)((bits >> 16) | 0x40u);
    return (number)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#endif

// Numbers that are read and written at once: 16 bytes.
#define AT_ONCE (16 / (int)sizeof(number))
struct __align__(16) Pack {
    number of[AT_ONCE];
};
__device__ __forceinline__ Pack load(const number* from) { return *reinterpret_cast<const Pack*>(from); }
__device__ __forceinline__ void store(number* to, const Pack& pack) { *reinterpret_cast<Pack*>(to) = pack; }
