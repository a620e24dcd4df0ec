"""Darkroom beside diffusers: the same weights, on the same machine, in turn, in one run; docs/benchmarks.md is written by it.

    pip install -r training/requirements.txt
    cargo build --release
    python benches/against_diffusers.py --write docs/benchmarks.md

First both draw the same pictures from the same seeds, and the run ends in an error unless they are equal but for rounding.
Then every stage is measured in rounds, one engine after the other, the order turned round each time. A cell is the median
of the rounds' medians, with the least and the greatest of them in brackets.

`--criterion` also runs the benches `kernels` and `store` and times PyTorch's operations at the shapes of `kernels`.
`--quick` runs all of it once and short, to see whether it works; its numbers mean nothing. `--json FILE` keeps the raw times.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

import criterion
import tables
from engines import Darkroom, Diffusers, Picture

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"text": [1], "unet": [1, 2, 4, 8], "vae": [1, 4], "picture": [1, 4]}
# Of a byte. Two correct engines sum in different orders, so values on the edge of rounding fall to either side; a wrong
# step, seed or prompt moves most bytes by far more.
ALLOWED = {"largest": 2, "share": 0.02}
CHECK_SEED, CHECK_PICTURES = 7, 4


def say(words):
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def differences(left, right):
    """Largest difference of a byte, and the share of bytes that differ at all."""
    apart = [np.abs(a.astype(int) - b.astype(int)) for a, b in zip(left, right, strict=True)]
    return {"largest": int(max(a.max() for a in apart)), "share": float(np.mean([(a > 0).mean() for a in apart]))}


def compare_pictures(darkroom, diffusers, server):
    """Whether both draw the same pictures; an error where they do not."""
    seeds = range(CHECK_SEED, CHECK_SEED + CHECK_PICTURES)
    ours = [darkroom.pictures(seed, 1)[0] for seed in seeds]
    theirs = [diffusers.pictures(seed, 1)[0] for seed in seeds]
    found = {
        "Darkroom, diffusers: each picture alone": differences(ours, theirs),
        "Darkroom, diffusers: together in one batch": differences(
            darkroom.pictures(CHECK_SEED, CHECK_PICTURES), diffusers.pictures(CHECK_SEED, CHECK_PICTURES)),
        "Darkroom: alone, in a batch": differences(ours, darkroom.pictures(CHECK_SEED, CHECK_PICTURES)),
        "Darkroom: alone, over HTTP": differences(ours, [server.picture(seed) for seed in seeds]),
        "diffusers: alone, in a batch": differences(theirs, diffusers.pictures(CHECK_SEED, CHECK_PICTURES)),
    }
    for name, apart in found.items():
        say(f"{name}: largest difference of a byte {apart['largest']}, {100 * apart['share']:.3f} % of bytes differ")
        if "Darkroom, diffusers" in name and any(apart[key] > ALLOWED[key] for key in ALLOWED):
            raise SystemExit(f"{name}: these are different pictures (allowed: {ALLOWED}), so the times would not compare")
    # Two different seeds must differ, or the check above sees nothing.
    if differences(ours[:1], theirs[1:2])["share"] < 0.5:
        raise SystemExit("pictures of different seeds are nearly the same: this check proves nothing")
    return found


def measure_stages(engines, args):
    """{(stage, size, threads, engine): one list of times a round}."""
    times = {}
    for number in range(args.rounds):
        turn = list(engines.items())[:: 1 if number % 2 == 0 else -1]
        for threads in args.threads:
            for stage, sizes in STAGES.items():
                repeats = args.picture_repeats if stage == "picture" else args.repeats
                for size in sizes:
                    for name, engine in turn:
                        took = engine.time_ms(stage, size, threads, repeats, args.warmup)
                        times.setdefault((stage, size, threads, name), []).append(took)
        say(f"stages, round {number + 1} of {args.rounds}")
    return times


def measure_processor(engines, args):
    """{rows: {engine: milliseconds of processor time a row}}; a UNet evaluation on one thread, as many rows in all each time."""
    rows_in_all = 16 if args.quick else 160
    return {rows: {name: engine.processor_ms("unet", rows, rows_in_all // rows) / rows for name, engine in engines.items()}
            for rows in STAGES["unet"]}


def measure_served(engines, args):
    """{(in flight, engine): one result a round}."""
    results = {}
    for number in range(args.served_rounds):
        turn = list(engines.items())[:: 1 if number % 2 == 0 else -1]
        for in_flight in args.in_flight:
            jobs = max(args.jobs_per_client * in_flight, args.least_jobs)
            for name, engine in turn:
                result = engine.closed_loop(in_flight, jobs, seed=1000 * number + 1)
                results.setdefault((in_flight, name), []).append(result)
        say(f"served, round {number + 1} of {args.served_rounds}")
    return results


def numbers(text):
    return [int(number) for number in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "darkroom", help="a release build")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "pinhole", help="a diffusers folder with darkroom.json")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=numbers, default=sorted({1, cores}),
                        help="of the stages; several with commas, the most of them for the rest")
    parser.add_argument("--rounds", type=int, default=5, help="of the stages")
    parser.add_argument("--repeats", type=int, default=5, help="of a stage in a round")
    parser.add_argument("--picture-repeats", type=int, default=1, help="of whole pictures in a round")
    parser.add_argument("--warmup", type=int, default=1, help="runs of a stage before its repeats")
    parser.add_argument("--served-rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=numbers, default=[1, 4, 16], help="requests at once; several with commas")
    parser.add_argument("--jobs-per-client", type=int, default=2)
    parser.add_argument("--least-jobs", type=int, default=16, help="of a closed loop, however few clients")
    parser.add_argument("--criterion", action="store_true", help="also run the benches kernels and store")
    parser.add_argument("--quick", action="store_true", help="all of it once and short")
    parser.add_argument("--write", type=Path, help="a document whose part between the marks is replaced")
    parser.add_argument("--json", type=Path, help="where the raw times go")
    args = parser.parse_args()
    if args.quick:
        args.rounds = args.repeats = args.picture_repeats = args.warmup = args.served_rounds = args.jobs_per_client = 1
        args.least_jobs = 2
    for needed in (args.binary, args.model / "model_index.json", *([args.write] if args.write else [])):
        if not needed.exists():
            parser.error(f"{needed} does not exist")
    return args


def main():
    args = arguments()
    if args.criterion:
        criterion.build(ROOT)
    other_work = tables.OtherWork()
    picture = Picture(args.model)
    darkroom, diffusers = Darkroom(args.binary, args.model, picture), Diffusers(args.model, picture)
    found = {"machine": tables.machine(), "versions": tables.versions(darkroom), "picture": str(picture),
             "threads": max(args.threads), "quick": args.quick}
    diffusers.use_threads(max(args.threads))
    with darkroom.serving(max(args.threads)) as server:
        found["same"] = compare_pictures(darkroom, diffusers, server)
    engines = {"Darkroom": darkroom, "diffusers": diffusers}
    found["stages"], found["processor"] = measure_stages(engines, args), measure_processor(engines, args)
    diffusers.use_threads(max(args.threads))
    with darkroom.serving(max(args.threads)) as server:
        found["served"] = measure_served({"Darkroom": server, "diffusers": diffusers}, args)
        found["memory"] = {"Darkroom": server.peak_memory_mib(), "diffusers": diffusers.peak_memory_mib()}
    if args.criterion:
        found["kernels"], found["store"] = criterion.run(ROOT, args.quick, max(args.threads))
    found["other_work"] = other_work.cores()

    text = tables.document(found)
    print(text)
    if args.json:
        keyed = {name: [[*key, value] for key, value in found[name].items()] for name in ("stages", "served")}
        args.json.write_text(json.dumps(found | keyed, indent=1))
    if args.write:
        tables.write(args.write, text, "benches/against_diffusers.py")


if __name__ == "__main__":
    main()
