"""What against_diffusers.py found, as the Markdown of docs/benchmarks.md, and what the other scripts' tables have in common."""

import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import diffusers
import torch
import transformers

END = "<!-- end of numbers -->"
STAGES = {"text": "one prompt's encoding", "unet": "UNet evaluation", "vae": "VAE decode", "picture": "whole picture"}
# Instruction sets that decide how fast f32 products are.
VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
# Cores that other work may take during a quiet run.
QUIET = 0.1


def proc(file, key):
    """The value of `key: value` in a file of /proc; empty elsewhere."""
    path = Path("/proc") / file
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def machine():
    """What it was measured on."""
    flags = proc("cpuinfo", "flags").split()
    return {"cpu": proc("cpuinfo", "model name") or platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "vectors": ", ".join(name for flag, name in VECTORS.items() if flag in flags),
            "memory_gib": round(int((proc("meminfo", "MemTotal").split() or [0])[0]) / 2**20),
            "system": f"{platform.system()} {platform.machine()}"}


class OtherWork:
    """What else the machine did meanwhile: processor time of all processes less this one's and its children's."""

    def __init__(self):
        self.began = self.now()

    @staticmethod
    def now():
        """(clock, seconds all processes worked, seconds this one and its ended children did)"""
        path = Path("/proc/stat")
        user, nice, system = path.read_text().split()[1:4] if path.exists() else (0, 0, 0)
        own = os.times()
        ticks = os.sysconf("SC_CLK_TCK")
        return time.monotonic(), (int(user) + int(nice) + int(system)) / ticks, sum(own[:4])

    def cores(self):
        """Cores that other work took since the beginning, on average; children must have ended."""
        clock, everyone, own = (now - began for now, began in zip(self.now(), self.began, strict=True))
        return max(0.0, (everyone - own) / clock)


def versions(darkroom):
    # PyTorch still calls it by its old name.
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    onednn = f"oneDNN {onednn[1]}" if onednn else "without oneDNN"
    rustc = shutil.which("rustc")
    rustc = subprocess.run([rustc, "--version"], capture_output=True, text=True).stdout.split()[1:2] if rustc else []
    return {"Darkroom": f"{darkroom.version()} (release build{', Rust ' + rustc[0] if rustc else ''})",
            "PyTorch": f"{torch.__version__} ({onednn})", "diffusers": diffusers.__version__,
            "transformers": transformers.__version__, "Python": platform.python_version()}


def table(head, rows):
    lines = (head, ["---"] + ["---:"] * (len(head) - 1), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def figure(value):
    """Three significant digits, none of them after the point from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def spread(values):
    """The median, with the least and the greatest."""
    return f"{figure(statistics.median(values))} ({figure(min(values))}–{figure(max(values))})"


def ratio(ours, theirs):
    """How many times as fast as diffusers Darkroom is: above 1, faster."""
    return f"**{theirs / ours:.2f}x**"


def plural(count, noun):
    return f"{count} {noun}{'s' * (count != 1)}"


def threads(count):
    return plural(count, "thread")


def stage_tables(stages):
    for stage, words in STAGES.items():
        rows = []
        for count in sorted({key[2] for key in stages}):
            for size in sorted({key[1] for key in stages if key[0] == stage}):
                ours, theirs = ([statistics.median(took) for took in stages[stage, size, count, name]]
                                for name in ("Darkroom", "diffusers"))
                measured = f"{threads(count)}, {plural(size, 'row' if stage == 'unet' else 'picture')}"
                middle = statistics.median(ours), statistics.median(theirs)
                each = [figure(value / size) for value in middle]
                rows.append((measured, spread(ours), spread(theirs), ratio(*middle), *each))
        if stage == "text":
            rows = [(row[0].split(",")[0], *row[1:4]) for row in rows]
        per = {"text": (), "unet": ("Darkroom, a row", "diffusers, a row")}.get(stage, ("Darkroom, each", "diffusers, each"))
        yield f"### {words[0].upper()}{words[1:]}, milliseconds"
        yield table(("", "Darkroom", "diffusers", "as fast", *per), rows)


def processor_table(processor):
    """A row's share of a UNet evaluation."""
    rows = [(name, *(figure(each[name]) for each in processor.values())) for name in ("Darkroom", "diffusers")]
    return table(("rows a forward", *processor), rows)


def served_table(served):
    rows = []
    for in_flight in sorted({key[0] for key in served}):
        median = {name: statistics.median(result["pictures_per_second"] for result in served[in_flight, name])
                  for name in ("Darkroom", "diffusers")}
        for name, server in (("Darkroom", "`darkroom serve`"), ("diffusers", "diffusers, in turn")):
            rounds = served[in_flight, name]
            spreads = [spread([result[key] for result in rounds]) for key in ("pictures_per_second", "p50_ms", "p95_ms")]
            batch = statistics.median(result["mean_batch"] for result in rounds)
            against = ratio(median["diffusers"], median["Darkroom"]) if name == "Darkroom" else ""
            rows.append((in_flight, server, *spreads, f"{batch:.2f}", against))
    return table(("in flight", "", "pictures a second", "p50, ms", "p95, ms", "pictures a forward", "as fast"), rows)


def kernel_tables(kernels):
    titles = {"conv2d": "Convolution", "linear": "Linear layer", "attention": "Attention", "geglu": "GEGLU",
              "group norm and silu": "Group norm with SiLU"}
    for group, title in titles.items():
        rows = [(name.partition("/")[2], figure(row["ours"]), figure(row["plain"]), figure(row["PyTorch"]),
                 f"{row['plain'] / row['ours']:.2f}x", ratio(row["ours"], row["PyTorch"]))
                for name, row in kernels.items() if name.startswith(f"{group}/")]
        yield table((title, "ours, ms", "candle, ms", "PyTorch, ms", "against candle", "against PyTorch"), rows)


def document(found):
    """The text between the marks."""
    host, same, served = found["machine"], found["same"], found["served"]
    parts = []
    if found["quick"]:
        parts.append("**A trial run with `--quick`: these numbers mean nothing.**")
    elif found["other_work"] > QUIET:
        parts.append(f"**Provisional: other work took {found['other_work']:.1f} cores of the machine meanwhile. "
                     "PyTorch's threads wait for each other busily, so its times with several threads would be far too long then.**")
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    parts.append(f"{host['cores']} cores of {host['cpu']} ({host['vectors']}), {host['memory_gib']} GiB, {host['system']}; other "
                 f"work took {found['other_work']:.2f} cores meanwhile. {versions}. A picture is {found['picture']}.")
    parts.append("### The same pictures")
    parts.append(table(("compared", "largest difference of a byte", "bytes that differ"),
                       [(name, apart["largest"], f"{100 * apart['share']:.3f} %") for name, apart in same.items()]))
    parts.extend(stage_tables(found["stages"]))
    parts.append("### UNet evaluation, milliseconds of processor time a row, 1 thread")
    parts.append("What other work on the machine disturbs least.")
    parts.append(processor_table(found["processor"]))
    parts.append(f"### Served, {threads(found['threads'])}")
    parts.append(served_table(served))
    memory = found["memory"]
    if all(memory.values()):
        parts.append(f"Most memory held: `darkroom serve` after this load {memory['Darkroom']:.0f} MiB, the Python process after "
                     f"all of this run {memory['diffusers']:.0f} MiB.")
    if "kernels" in found:
        parts.append(f"### Kernels, two rows, {threads(found['threads'])}")
        parts.extend(kernel_tables(found["kernels"]))
        parts.append("### Store, 10,000 jobs waiting")
        parts.append(table(("", "ms"), [(name.removeprefix("store/"), figure(ms)) for name, ms in sorted(found["store"].items())]))
    return "\n\n".join(parts)


def write(path, text, script, what="numbers"):
    """Replaces what stands between the marks of a script, named by its path in the repository."""
    mark = f"<!-- {what}: written by {script} -->"
    before, begin, rest = path.read_text().partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no `{mark}` with `{END}` after it")
    path.write_text(f"{before}{mark}\n\n{text}\n\n{END}{after}")
