"""The batching policies on the real server, under the same traffic, beside diffusers that takes requests in turn.

    pip install -r training/requirements.txt
    cargo build --release
    python benches/policies.py --write docs/benchmarks.md

Jobs come one by one at random (a Poisson process) and take turns in their numbers of steps. Every server gets the same jobs at
the same moments: `darkroom serve` under each policy, and one diffusers pipeline that answers in order of arrival, in its own
process, without a network and without a store. Two checkpoints: pinhole, and pinhole with a UNet of Stable Diffusion 1.5's shape
and random weights, at a size at which reading the weights is most of a forward. Loads are told as shares of what diffusers can do.
"""

import argparse
import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

import tables
from engines import PROMPT, SAMPLER, Darkroom, Diffusers, Picture, rank

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "parity"))
import full_size  # noqa: E402

SCRIPT = "benches/policies.py"
# One guided picture has two rows.
POLICIES = {
    "`continuous`": {"WORKERS__POLICY": "continuous"},
    "`grouped`": {"WORKERS__POLICY": "grouped"},
    "one at a time": {"WORKERS__POLICY": "grouped", "WORKERS__MAX_ROWS": 2},
}
STEPS = {"pinhole": [10, 15, 25], "wide": [2, 3, 5]}
SIDES = {"pinhole": 128, "wide": 64}
# Of each load; the wide one draws few pictures in a minute.
SECONDS = {"pinhole": 60, "wide": 120}
LOADS = {"pinhole": [0.5, 0.9, 1.3], "wide": [0.7, 1.3]}
NAMES = {"pinhole": "pinhole, {side}x{side}, {steps} steps", "wide": "A UNet of SD 1.5's shape, {side}x{side}, {steps} steps"}
MASK = 2**64 - 1


def say(words):
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def wide(folder):
    """pinhole with a UNet of the shape of Stable Diffusion 1.5's and random weights."""
    shutil.copytree(ROOT / "models" / "pinhole", folder)
    own = json.loads((folder / "unet" / "config.json").read_text())
    shape = full_size.CONFIGS["sd15"] | {"cross_attention_dim": own["cross_attention_dim"], "sample_size": own["sample_size"]}
    shutil.rmtree(folder / "unet")
    full_size.write_weights(shape, folder / "unet")
    return folder


def uniform(state):
    """SplitMix64, as `darkroom bench` draws it: (53 random bits in [0, 1), the next state)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53, state


def arrivals(rate, seconds, seed):
    """When jobs come, as `darkroom bench --rate` sends them."""
    at, state, moments = 0.0, seed, []
    while True:
        drawn, state = uniform(state)
        at -= math.log(1 - drawn) / rate
        if at >= seconds:
            return moments
        moments.append(at)


def in_turn(diffusers, moments, steps):
    """diffusers, in order of arrival: seconds from each job's coming to its end."""
    began, latencies = time.perf_counter(), []
    for number, comes in enumerate(moments):
        time.sleep(max(0.0, began + comes - time.perf_counter()))
        diffusers.picture.steps = steps[number % len(steps)]
        (image,) = diffusers.draw(number, 1)
        image.save(io.BytesIO(), "png")
        latencies.append(time.perf_counter() - began - comes)
    return summary(latencies, time.perf_counter() - began, 1.0)


def summary(latencies, took, pictures):
    return {"jobs": len(latencies), "per_second": len(latencies) / took, "mean": sum(latencies) / len(latencies),
            "p95": rank(latencies, 95), "p99": rank(latencies, 99), "pictures": pictures}


def served(darkroom, threads, settings, load, steps):
    """`darkroom serve` with these settings under `darkroom bench`."""
    rate, seconds, seed = load
    drawn = darkroom.picture
    flags = [text for count in steps for text in ("--steps", count)]
    with darkroom.serving(threads, **settings) as server:
        report = json.loads(darkroom.run(
            "bench", "--json", "--url", server.url, "--rate", rate, "--duration", seconds, "--seed", seed, "--watch-every", 0,
            "--warmup", 3, "--prompt", PROMPT, "--size", f"{drawn.width}x{drawn.height}", *flags, "--sampler", SAMPLER,
            "--guidance-scale", drawn.guidance_scale))
    jobs, latency = report["jobs"], report["latency_ms"]
    if jobs["succeeded"] != len(arrivals(*load)):
        raise SystemExit(f"not all jobs succeeded: {jobs}")
    return {"jobs": latency["count"], "per_second": report["pictures_per_second"], "mean": latency["mean"] / 1e3,
            "p95": latency["p95"] / 1e3, "p99": latency["p99"] / 1e3, "pictures": report["batches"]["mean_pictures"]}


def measure(model, kind, args):
    """{(load, server): numbers}, and what diffusers can do, in jobs a second."""
    picture, steps = Picture(model), STEPS[kind]
    picture.width = picture.height = SIDES[kind]
    darkroom, diffusers = Darkroom(args.binary, model, picture), Diffusers(model, picture)
    diffusers.use_threads(args.threads)
    took = []
    for count in [*steps, *steps]:
        picture.steps, began = count, time.perf_counter()
        diffusers.draw(0, 1)
        took.append(time.perf_counter() - began)
    # The first of each also warms up.
    capacity = len(steps) / sum(took[len(steps):])
    found = {}
    for share in args.loads or LOADS[kind]:
        load = (share * capacity, args.seconds or SECONDS[kind], args.seed)
        found[share, "diffusers, in turn"] = in_turn(diffusers, arrivals(*load), steps)
        for name, settings in POLICIES.items():
            found[share, name] = served(darkroom, args.threads, settings, load, steps)
            say(f"{kind}, {share:.0%}, {name}: {found[share, name]}")
    return found, capacity


def table(found):
    rows = []
    for (share, name), one in found.items():
        reference = found[share, "diffusers, in turn"]
        ratios = " / ".join(f"{one[key] / reference[key]:.2f}" for key in ("mean", "p95", "p99"))
        rows.append((f"{share:.0%}", name, one["jobs"], f"{one['per_second']:.2f}", *(f"{one[key]:.2f}" for key in ("mean", "p95", "p99")),
                     f"{one['pictures']:.2f}", "" if one is reference else f"**{ratios}**"))
    return tables.table(("load", "", "jobs", "pictures a second", "mean s", "p95 s", "p99 s", "pictures a forward",
                         "to diffusers: mean / p95 / p99"), rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "darkroom", help="a release build")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loads", type=lambda text: [float(share) for share in text.split(",")], help=f"shares of what diffusers can do; {LOADS} unless told")
    parser.add_argument("--seconds", type=float, help=f"for which jobs come, of each load; {SECONDS} unless told")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", choices=list(STEPS))
    parser.add_argument("--write", type=Path, help="a document whose part between the marks is replaced")
    return parser.parse_args()


def main():
    args = arguments()
    other_work, parts = tables.OtherWork(), []
    with tempfile.TemporaryDirectory() as folder:
        for kind in [args.only] if args.only else STEPS:
            model = ROOT / "models" / "pinhole" if kind == "pinhole" else wide(Path(folder) / "wide")
            found, capacity = measure(model, kind, args)
            name = NAMES[kind].format(side=SIDES[kind], steps="/".join(map(str, STEPS[kind])))
            parts.append(f"#### {name}\n\nJobs came for {args.seconds or SECONDS[kind]:.0f} s; diffusers can do {capacity:.2f} a second.\n\n{table(found)}")
    host = tables.machine()
    machine = (f"{host['cores']} cores of {host['cpu']} ({host['vectors']}), {host['memory_gib']} GiB, {host['system']}, {args.threads} threads; "
               f"other work took {other_work.cores():.2f} cores meanwhile. PyTorch {torch.__version__}.")
    text = "\n\n".join([machine, *parts])
    print(text)
    if args.write:
        tables.write(args.write, text, SCRIPT)


if __name__ == "__main__":
    main()
