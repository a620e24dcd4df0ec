"""The criterion benches `kernels` and `store`, and PyTorch's operations at the shapes of `kernels`."""

import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

ROWS = 2  # as in kernels.rs


def build(root):
    """Compiles both, before anything is measured."""
    subprocess.run(["cargo", "bench", "--locked", "--bench", "kernels", "--bench", "store", "--no-run"], cwd=root, check=True)


def run(root, quick, threads):
    """Medians in milliseconds: {"conv2d/SHAPE": {"ours": .., "plain": .., "PyTorch": ..}}, and the store's {NAME: ..}."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--", "--quick"] if quick else []
        for bench in ("kernels", "store"):
            subprocess.run(["cargo", "bench", "--locked", "--bench", bench, *flags], cwd=root, check=True,
                           env=os.environ | {"CRITERION_HOME": folder, "RAYON_NUM_THREADS": str(threads)},
                           stdout=subprocess.DEVNULL)
        medians = {}
        for file in Path(folder).glob("**/new/estimates.json"):
            name = json.loads((file.parent / "benchmark.json").read_text())["full_id"]
            medians[name] = json.loads(file.read_text())["median"]["point_estimate"] / 1e6
    store = {name: ms for name, ms in medians.items() if name.startswith("store/")}
    kernels = {}
    for name, ms in sorted(medians.items()):
        shape, _, which = name.rpartition("/")
        if which in ("ours", "plain"):
            kernels.setdefault(shape, {})[which] = ms
    torch.set_num_threads(threads)
    for shape, row in kernels.items():
        row["PyTorch"] = median_ms(operation(shape), 0.05 if quick else 1.0)
    return kernels, store


def operation(shape):
    """PyTorch's counterpart of a kernel, by the sizes its name tells: `conv2d/pinhole 80-80 16px stride 2`."""
    group, _, name = shape.partition("/")
    if group == "conv2d":
        inputs, outputs, side = map(int, re.search(r" (\d+)-(\d+) (\d+)px", name).groups())
        kernel, stride = (1 if name.endswith("1x1") else 3), (2 if name.endswith("stride 2") else 1)
        x, bias = torch.randn(ROWS, inputs, side, side), torch.randn(outputs)
        weight = torch.randn(outputs, inputs, kernel, kernel)
        return lambda: functional.conv2d(x, weight, bias, stride, kernel // 2)
    if group == "linear":
        tokens, inputs, outputs = map(int, re.search(r" (\d+)x(\d+)-(\d+)$", name).groups())
        x, weight, bias = torch.randn(ROWS, tokens, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        return lambda: functional.linear(x, weight, bias)
    if group == "attention":
        heads, width, queries, keys = map(int, re.search(r" (\d+)x(\d+) (\d+)-(\d+)$", name).groups())
        # As diffusers: tokens side by side, heads are a view.
        q, k, v = (torch.randn(ROWS, tokens, heads * width).view(ROWS, tokens, heads, width).transpose(1, 2)
                   for tokens in (queries, keys, keys))
        return lambda: functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(ROWS, queries, -1)
    if group == "geglu":
        tokens, inner = map(int, re.search(r" (\d+)x(\d+)$", name).groups())
        x = torch.randn(ROWS, tokens, 2 * inner)

        def gated():
            values, gates = x.chunk(2, dim=-1)
            return values * functional.gelu(gates)
        return gated
    channels, side = map(int, re.search(r" (\d+) (\d+)px$", name).groups())
    x, weight, bias = torch.randn(ROWS, channels, side, side), torch.randn(channels), torch.randn(channels)
    groups = 8 if name.startswith("pinhole") else 32
    return lambda: functional.silu(functional.group_norm(x, groups, weight, bias, 1e-5))


@torch.inference_mode()
def median_ms(work, seconds):
    """Of as many runs as fit, five at least; a third of the time goes to warming up first."""
    def for_a_while(limit):
        took, end = [], time.perf_counter() + limit
        while len(took) < 5 or time.perf_counter() < end:
            began = time.perf_counter()
            work()
            took.append((time.perf_counter() - began) * 1e3)
        return took
    for_a_while(seconds / 3)
    return statistics.median(for_a_while(seconds))
