"""Darkroom's GPU kernels alone, beside PyTorch's: whether they are right, and how fast. Compiles src/diffusion/kernels/cuda itself.

    pip install torch cupy-cuda13x
    python benches/gpu_kernels.py

"off" is the norm of the difference to double precision over the norm of that; the check ends in an error above what a type's rounding
allows. Times are CUDA events around ten calls.
"""

import math
from pathlib import Path

import cupy
import torch
from torch.nn import functional

SOURCES = Path(__file__).resolve().parent.parent / "src" / "diffusion" / "kernels" / "cuda"
NUMBERS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 17}
# Of a result's norm: some units of the type's last place.
ALLOWED = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
HALF = torch.float16


def kernel(file, name, dtype, size=0):
    text = (SOURCES / "numbers.cuh").read_text() + (SOURCES / f"{file}.cu").read_text()
    return cupy.RawModule(code=text, options=(f"-DNUMBER={NUMBERS[dtype]}", f"-DSIZE={size}")).get_function(name)


def pointers(*tensors):
    return tuple(cupy.uint64(tensor.data_ptr()) for tensor in tensors)


def integers(*values):
    return tuple(cupy.int32(value) for value in values)


def drawn(*shape, dtype):
    return torch.randn(shape, device="cuda", dtype=dtype)


def unwritten(shape, dtype):
    """Numbers that no result may keep."""
    return torch.full(shape, float("nan"), device="cuda", dtype=dtype)


def timed(run, repeats=10):
    run()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(repeats):
        run()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / repeats


def check(what, found, expected):
    off = ((found.double() - expected).norm() / expected.norm()).item()
    print(f"{what}: off {off:.2e}")
    if not off <= ALLOWED[found.dtype]:
        raise SystemExit(f"{what}: {off} is not rounding")


def compare(what, run, theirs):
    ours, theirs = timed(run), timed(theirs)
    print(f"    {what}: Darkroom {ours:.3f} ms, PyTorch {theirs:.3f} ms: {theirs / ours:.2f}x")


def attention(dtype, n, queries, keys, heads, size, time=False):
    q, k, v = (drawn(n, length, heads * size, dtype=dtype) for length in (queries, keys, keys))
    out, call = unwritten(q.shape, dtype), kernel("attention", "attention", dtype, size)
    # As kernels/cuda/attention.rs has them.
    block = 128 if math.ceil(size / 16) * 16 <= 80 else 64
    arguments = (*pointers(q, k, v, out), *integers(queries, keys, heads), cupy.float32(math.log2(math.e) / math.sqrt(size)))
    grid = (math.ceil(queries / block), heads, n)
    by_heads = [x.view(n, -1, heads, size).transpose(1, 2) for x in (q, k, v)]
    what = f"attention {dtype}, {n}x{heads} heads of {size}, {queries}-{keys}"
    call(grid, (128,), arguments)
    if queries * keys * n * heads <= 2**28:
        expected = functional.scaled_dot_product_attention(*(x.double() for x in by_heads))
        check(what, out, expected.transpose(1, 2).reshape(n, queries, -1))
    if time:
        compare(what, lambda: call(grid, (128,), arguments), lambda: functional.scaled_dot_product_attention(*by_heads))


def norms(dtype, shape, groups, time=False):
    x = drawn(*shape, dtype=dtype) * 3 + 1.5
    weight, bias = (drawn(shape[1], dtype=dtype) for _ in range(2))
    pixels = math.prod(shape[2:])
    threads = 1024 if x.numel() // shape[0] // groups >= 1 << 16 else 512
    out, call = unwritten(x.shape, dtype), kernel("group_norm", "group_norm", dtype, threads)
    packed = pixels % (16 // x.element_size()) == 0
    arguments = (*pointers(x, weight, bias, out), *integers(groups, shape[1], pixels), cupy.float32(1e-5), *integers(1, packed))
    grid, what = (shape[0] * groups,), f"group norm with SiLU {dtype}, {list(shape)}"
    call(grid, (threads,), arguments)
    check(what, out, functional.silu(functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)))
    if time:
        compare(what, lambda: call(grid, (threads,), arguments),
                lambda: functional.silu(functional.group_norm(x, groups, weight, bias, 1e-5)))


def layer_norm(dtype, rows, width, time=False):
    x = drawn(rows, width, dtype=dtype) * 3 + 1.5
    weight, bias = (drawn(width, dtype=dtype) for _ in range(2))
    out, call = unwritten(x.shape, dtype), kernel("layer_norm", "layer_norm", dtype)
    arguments = (*pointers(x, weight, bias, out), *integers(rows, width), cupy.float32(1e-5))
    what, grid = f"layer norm {dtype}, {rows}x{width}", (math.ceil(rows / 4),)
    call(grid, (128,), arguments)
    check(what, out, functional.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5))
    if time:
        compare(what, lambda: call(grid, (128,), arguments), lambda: functional.layer_norm(x, (width,), weight, bias, 1e-5))


def line(name, dtype, count, arguments):
    """One call of a kernel whose threads stand in a line."""
    kernel("maps", name, dtype)((math.ceil(count / 256),), (256,), arguments)


def maps(dtype):
    at_once = 16 // torch.empty(0, dtype=dtype).element_size()
    for rows, inner, name in ((3, 7, "geglu"), (4096, 1280, "geglu_packed")):
        x, out = drawn(rows, 2 * inner, dtype=dtype), unwritten((rows, inner), dtype)
        count = rows * inner // (at_once if name.endswith("packed") else 1)
        line(name, dtype, count, (*pointers(x, out), cupy.int64(rows * inner), cupy.int32(inner)))
        value, gate = x.double().chunk(2, -1)
        check(f"GEGLU {dtype}, {rows}x{inner}", out, value * functional.gelu(gate))
    for shape, inner, channels, packed in (((5, 11), 1, 11, ""), ((1000, 1280), 1, 1280, "_packed"), ((3, 5, 64), 64, 5, "_packed"),
                                           ((3, 5, 21), 21, 5, "")):
        bias, other = drawn(channels, dtype=dtype), drawn(*shape, dtype=dtype)
        for name, more in (("add_bias", ()), ("add_bias_and", (other,))):
            x = drawn(*shape, dtype=dtype)
            expected = x.double() + bias.double()[(torch.arange(x.numel(), device="cuda") // inner) % channels].view(shape)
            count = x.numel() // (at_once if packed else 1)
            line(name + packed, dtype, count, (*pointers(x, bias, *more), cupy.int64(x.numel()), *integers(inner, channels)))
            check(f"{name} {dtype}, {list(shape)}", x, expected + (other.double() if more else 0))
    for n, a, b in ((2, 31, 33), (3, 320, 4096)):
        x, out = drawn(n, a, b, dtype=dtype), unwritten((n, b, a), dtype)
        kernel("maps", "transposed", dtype)((math.ceil(b / 32), math.ceil(a / 32), n), (32, 8), (*pointers(x, out), *integers(a, b)))
        check(f"transposed {dtype}, {[n, a, b]}", out, x.double().transpose(1, 2))
    for shape, stride in (((2, 3, 9, 7), 1), ((2, 3, 9, 7), 2), ((1, 32, 64, 64), 1)):
        x = drawn(*shape, dtype=dtype)
        expected = functional.unfold(x.double(), 3, padding=1, stride=stride)
        out = unwritten(expected.shape, dtype)
        n, c, h, w = shape
        pixels, out_w = expected.shape[2], (w - 1) // stride + 1
        grid = (math.ceil(math.ceil(pixels / at_once) / 128), c * 9, n)
        kernel("maps", "patches", dtype)(grid, (128,), (*pointers(x, out), *integers(c, h, w, out_w, pixels, 3, stride, 1)))
        check(f"patches {dtype}, {list(shape)} by {stride}", out, expected)


def main():
    # Both libraries' calls in one order.
    cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream).use()
    torch.manual_seed(1)
    for dtype in NUMBERS:
        maps(dtype)
        for shape, groups in (((2, 32, 17, 15), 8), ((1, 16, 8, 8), 4), ((2, 320, 64, 64), 32), ((1, 64, 9), 32)):
            norms(dtype, shape, groups)
        layer_norm(dtype, 7, 320)
        layer_norm(dtype, 130, 1280)
        for case in ((2, 64, 64, 2, 64), (1, 100, 77, 8, 40), (3, 33, 1, 1, 8), (2, 256, 256, 8, 80), (1, 1, 130, 3, 16),
                     (2, 70, 65, 8, 160), (1, 4096, 4096, 8, 40)) if dtype != torch.float32 else ():
            attention(dtype, *case)
    for case in ((32, 4096, 4096, 8, 40), (32, 1024, 1024, 8, 80), (32, 256, 256, 8, 160), (32, 4096, 77, 8, 40), (8, 4096, 4096, 10, 64)):
        attention(HALF, *case, time=True)
    for shape in ((2, 320, 64, 64), (32, 320, 64, 64), (32, 1280, 16, 16)):
        norms(HALF, shape, 32, time=True)
    layer_norm(HALF, 131072, 320, time=True)


if __name__ == "__main__":
    main()
