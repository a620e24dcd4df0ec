"""Darkroom on an NVIDIA GPU beside diffusers on the same GPU: the same weights, in turn, in one run; docs/benchmarks.md is told by it.

    pip install -r training/requirements.txt
    cargo build --release --features cudnn
    python benches/on_gpu.py --json gpu.json --write docs/benchmarks.md

Four parts, each of which can be left out (`--parts`), on two models: pinhole, and a checkpoint of Stable Diffusion 1.5's shape with
random weights, which is made first. What one part found is in the file `--json` before the next begins, so that a run that is cut
off loses only the rest; a part that fails is told, and the others go on. `--from-json A --from-json B --write FILE` makes the text of earlier
runs: of two that have the same part, the later counts.

`--device cpu --shape tiny --dtypes default` tries the script where there is no GPU; the numbers mean nothing.
"""

import argparse
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path

import diffusers as diffusers_package
import numpy as np
import torch
import transformers

import gpu_checkpoint
import gpu_tables
import policies
import tables
from against_diffusers import differences, numbers, say
from engines import PROMPT, SAMPLER, Darkroom, Diffusers, Picture

ROOT = Path(__file__).resolve().parent.parent
PINHOLE = ROOT / "models" / "pinhole"
SCRIPT = "benches/on_gpu.py"
# With the share of the time left that each may take while others come after it.
PARTS = {"pictures": 0.35, "stages": 0.5, "served": 0.6, "policies": 1.0}
# "default": `darkroom` is not told.
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "default": torch.float32}
PROMPTS = [PROMPT, "a yellow boat on the sea"]
SEED = 7
# Up to here a forward is measured by a process of all, in every type; above, by one each where all together fail, and not in f32.
FEW_ROWS = 8


class Run:
    """What was asked for, what was found, and how much time is left."""

    def __init__(self, args):
        self.args, self.end = args, time.monotonic() + args.budget
        self.part_end, self.engines = self.end, {}
        self.found = {"machine": machine(), "shape": args.shape, "device": args.device}

    def left(self):
        return self.end - time.monotonic()

    def left_of_part(self):
        return self.part_end - time.monotonic()

    def save(self):
        if self.args.json:
            self.args.json.write_text(json.dumps(self.found, indent=1))

    def darkroom(self, model, picture, dtype, device=None):
        return Darkroom(self.args.binary, model, picture, device or self.args.device, None if dtype == "default" else dtype)

    def diffusers(self, model, picture, dtype):
        """One a model, read once: its files are float16, so that going to float32 and back changes nothing."""
        if model not in self.engines:
            self.engines[model] = Diffusers(model, picture, self.args.device, DTYPES[dtype])
        engine = self.engines[model]
        engine.picture = picture
        engine.use_dtype(DTYPES[dtype])
        return engine

    def served_dtype(self):
        """The type that servers compute in: the first that is not f32."""
        return next((dtype for dtype in self.args.dtypes if dtype != "f32"), self.args.dtypes[0])

    def settings(self):
        """Those of every server here."""
        own = {"WORKERS__DEVICES": json.dumps([self.args.device]), "WORKERS__MAX_ROWS": self.args.max_rows,
               "WORKERS__MAX_ROW_PIXELS": self.args.max_rows * 512 * 512}
        return own | dict(self.args.setting)


def machine():
    """What it is measured on and with."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpu, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        gpu, driver = "none", "none"
    return tables.machine() | {
        "gpu": gpu, "driver": driver, "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
        "diffusers": diffusers_package.__version__, "transformers": transformers.__version__}


def release():
    """Gives the memory that PyTorch keeps for itself back to the GPU, so that the other engine has it all."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def apart(left, right):
    """How far two lists of pictures are from each other."""
    square = float(np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in zip(left, right, strict=True)]))
    mean = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(left, right, strict=True)]))
    psnr = 10 * math.log10(255**2 / square) if square else None
    return differences(left, right) | {"mean": mean, "psnr": psnr}


def drawn(engine, prompts, count):
    """`count` pictures of each prompt."""
    pictures = []
    for prompt in prompts:
        engine.picture.prompt = prompt
        pictures += engine.pictures(SEED, count)
    return pictures


def compare(run, model, prompts, count, on_cpu):
    """Both engines in every type, on the GPU; Darkroom on the CPU too: [{left, right, largest, share, mean, psnr}], what was drawn."""
    args, picture = run.args, Picture(model)
    ours = {dtype: drawn(run.darkroom(model, picture, dtype), prompts, count) for dtype in args.dtypes}
    theirs = {dtype: drawn(run.diffusers(model, picture, dtype), prompts, count) for dtype in args.dtypes}
    first, *others = args.dtypes
    pairs = [(f"Darkroom {first}", ours[first], f"diffusers {first}", theirs[first])]
    if on_cpu:
        pairs.insert(0, ("Darkroom on the CPU", drawn(run.darkroom(model, picture, "default", "cpu"), prompts, count),
                         f"Darkroom {first}", ours[first]))
    for dtype in args.dtypes if count > 1 else []:
        alone = drawn(run.darkroom(model, picture, dtype), prompts[:1], 1)
        pairs.append((f"Darkroom {dtype}, alone", alone, f"the same among {count}", ours[dtype][:1]))
    for dtype in others:
        pairs += [(f"Darkroom {first}", ours[first], f"Darkroom {dtype}", ours[dtype]),
                  (f"diffusers {first}", theirs[first], f"diffusers {dtype}", theirs[dtype]),
                  (f"diffusers {first}", theirs[first], f"Darkroom {dtype}", ours[dtype])]
    # Two different pictures must differ, or all of this sees nothing.
    about = {"picture": str(picture), "count": len(ours[first]), "different": differences(ours[first][:1], ours[first][1:2])["share"]}
    return [{"left": left, "right": right, **apart(a, b)} for left, a, right, b in pairs], about


def pictures(run, found):
    """Whether the same pictures come out, and how far the types move them. Without TF32: f32 is the measure of the others."""
    torch.backends.cudnn.allow_tf32 = False
    try:
        for name, model, prompts, count in (("pinhole", PINHOLE, PROMPTS, run.args.pictures), ("wide", run.args.folder, [PROMPT], 4)):
            pairs, about = compare(run, model, prompts, count, on_cpu=name == "pinhole")
            found[name] = about | {"pairs": pairs}
            for pair in pairs:
                say(f"{name}: {pair}")
            run.save()
            release()
    finally:
        torch.backends.cudnn.allow_tf32 = True


def stages(run, found):
    """Both engines stage by stage: rows of {engine, dtype, stage, size, ms}."""
    args, rows = run.args, found.setdefault("rows", [])
    picture = Picture(args.folder)
    found["picture"] = str(picture)
    few, many = ([count for count in args.rows if (count <= FEW_ROWS) == small] for small in (True, False))

    def keep(engine, dtype, stage, size, ms):
        rows.append({"engine": engine, "dtype": dtype, "stage": stage, "size": size, "ms": ms})

    def ours(dtype, names, counts, repeats):
        darkroom = run.darkroom(args.folder, picture, dtype)
        for one in darkroom.stages(names, repeats, args.warmup, "--rows", ",".join(map(str, counts))):
            keep("Darkroom", dtype, one["stage"], one["rows"] or one["pictures"] or 1, one["ms"])

    def tried(work, *said):
        try:
            work(*said)
        except TimeoutError:
            raise
        except (Exception, SystemExit) as error:
            about = ", ".join(str(word) for word in said if not isinstance(word, Diffusers))
            say(f"stages, {about}: {error}")
            found.setdefault("failed", []).append(f"{about}: {str(error)[-400:]}")
            return False
        return True

    def theirs(engine, variant, dtype, stage, size, repeats):
        keep(variant, dtype, stage, size, engine.time_ms(stage, size, threads(), repeats, args.warmup + 1))

    # What decides most comes first: f16 before f32.
    for dtype in sorted(args.dtypes, key=lambda dtype: dtype == "f32"):
        tried(ours, dtype, ["text", "unet", "vae", "picture"], few, args.repeats)
        wide = many if dtype != "f32" else []
        if wide and not tried(ours, dtype, ["unet"], wide, max(2, args.repeats // 2)):
            for count in wide:
                tried(ours, dtype, ["unet"], [count], 2)
        run.save()
        engine = run.diffusers(args.folder, picture, dtype)
        for stage, size in (("text", 1), ("vae", 1), ("picture", 1), *(("unet", count) for count in [*few, *wide])):
            tried(theirs, engine, "diffusers", dtype, stage, size, args.repeats)
        if dtype != "f32":
            lay_out(engine, torch.channels_last)
            for stage, size in (("vae", 1), ("picture", 1), *(("unet", count) for count in [*few, *wide])):
                tried(theirs, engine, "diffusers, channels last", dtype, stage, size, args.repeats)
            lay_out(engine, torch.contiguous_format)
        release()
        run.save()
        say(f"stages in {dtype}: {len(rows)} rows so far")
    for row in rows:
        say(f"{row['stage']:8}{row['size']:4} {row['dtype']:8}{row['engine']:26}{statistics.median(row['ms']):10.2f} ms")


def lay_out(engine, layout):
    for network in (engine.pipe.unet, engine.pipe.vae):
        network.to(memory_format=layout)


def threads():
    return len(os.sched_getaffinity(0))


def served(run, found):
    """A closed loop on the server at several numbers in flight, and diffusers that takes requests in turn, and by the batch."""
    args, dtype = run.args, run.served_dtype()
    picture = Picture(args.folder)
    levels = found.setdefault("levels", [])
    found |= {"picture": str(picture), "dtype": dtype, "settings": run.settings(), "seconds": args.level_seconds}
    engine = run.diffusers(args.folder, picture, dtype)
    engine.use_threads(threads())
    rate = engine.closed_loop(1, 2, seed=1)["pictures_per_second"]
    found["in_turn"] = engine.closed_loop(1, max(2, round(rate * args.level_seconds)), seed=2)
    say(f"diffusers, in turn: {found['in_turn']}")
    engine.draw(1, args.together)
    began = time.perf_counter()
    engine.draw(1, args.together)
    found["together"] = {"pictures": args.together, "pictures_per_second": args.together / (time.perf_counter() - began)}
    say(f"diffusers, {args.together} of one call: {found['together']}")
    release()
    run.save()
    began = time.monotonic()
    with run.darkroom(args.folder, picture, dtype).serving(threads(), **run.settings()) as server:
        found["start_s"] = time.monotonic() - began
        say(f"the server is ready after {found['start_s']:.1f} s")
        rate = server.closed_loop(1, 2, seed=1)["pictures_per_second"]
        for in_flight in args.in_flight:
            # Whole turns of all clients, two at least: a last turn that not all are in would say less than it should.
            jobs = in_flight * max(2, round(rate * args.level_seconds / in_flight))
            if jobs / rate > run.left_of_part() - 5:
                say(f"{in_flight} in flight: {jobs} jobs would take {jobs / rate:.0f} s, {run.left_of_part():.0f} s are left")
                continue
            result = server.closed_loop(in_flight, jobs, seed=1000 + in_flight)
            rate = max(rate, result["pictures_per_second"])
            levels.append({"in_flight": in_flight, "jobs": jobs, **result})
            say(f"served: {levels[-1]}")
            run.save()
        with urllib.request.urlopen(f"{server.url}/v1/stats", timeout=10) as answer:
            found["stats"] = json.load(answer)


def the_policies(run, found):
    """The server under each policy, with the same jobs at the same moments."""
    args, picture = run.args, Picture(run.args.folder)
    levels = run.found.get("served", {}).get("levels")
    if not (args.rate or levels):
        raise SystemExit("--rate is needed where the part `served` is left out")
    # Of pictures of the steps that the closed loop drew, in those of the trace.
    able = max(level["pictures_per_second"] for level in levels) * picture.steps / statistics.mean(args.steps) if levels else None
    rate = args.rate or args.load * able
    # One at a time may not keep up, and takes longer to its end; a server's start counts too.
    seconds = min(args.policy_seconds, (run.left() / len(policies.POLICIES) - 8) / 1.5)
    if seconds < 5:
        raise SystemExit(f"{run.left():.0f} s are left: too few")
    load = (rate, seconds, args.seed)
    found |= {"rate": rate, "able": able, "load": args.load, "seconds": seconds, "steps": args.steps, "picture": str(picture),
              "dtype": run.served_dtype(), "rows": []}
    for name, settings in policies.POLICIES.items():
        darkroom = run.darkroom(args.folder, picture, run.served_dtype())
        found["rows"].append({"policy": name, **policies.served(darkroom, threads(), run.settings() | settings, load, args.steps)})
        say(f"{found['rows'][-1]}")
        run.save()


def part(run, name, work):
    """One part: its failure, or more time than its share, ends this part alone."""
    began = time.monotonic()
    found = run.found[name] = {}

    def late(*_):
        raise TimeoutError(f"{name}: its share of the time is over")

    run.part_end = began + run.left() * (1.0 if name == run.args.parts[-1] else PARTS[name])
    signal.signal(signal.SIGALRM, late)
    signal.alarm(max(1, round(run.left_of_part())))
    try:
        work(run, found)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {str(error)[-1000:]}"
    finally:
        signal.alarm(0)
    release()
    found["took_s"] = time.monotonic() - began
    say(f"{name}: {found['took_s']:.0f} s, {run.left():.0f} s are left")
    run.save()


def measure(args):
    run = Run(args)
    say(f"{run.found['machine']}")
    with tempfile.TemporaryDirectory() as scratch:
        args.folder = args.folder or Path(scratch) / "wide"
        if not (args.folder / "model_index.json").exists():
            gpu_checkpoint.make(args.folder, args.shape, args.device)
            release()
            say(f"{args.folder} is made, {run.left():.0f} s are left")
        run.found["machine"]["darkroom"] = Darkroom(args.binary, args.folder, None).version()
        works = dict(zip(PARTS, (pictures, stages, served, the_policies), strict=True))
        for name in args.parts:
            part(run, name, works[name])
    return run.found


def names(allowed):
    def parse(text):
        for name in (said := text.split(",")):
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"`{name}`; supported: {', '.join(allowed)}")
        return said

    return parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "darkroom", help="a release build with the feature cudnn")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", choices=("sd15", "tiny"), default="sd15", help="of the checkpoint with random weights")
    parser.add_argument("--folder", type=Path, help="where that checkpoint is, or is made and stays; a temporary folder unless told")
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS), help="several with commas")
    parser.add_argument("--dtypes", type=names(DTYPES), default=["f32", "f16"],
                        help="that are computed in, several with commas; the first is what the others' pictures are held against")
    parser.add_argument("--budget", type=float, default=1200, help="seconds for all of it; what has no time left is left out")
    parser.add_argument("--pictures", type=int, default=4, help="of each prompt of pinhole, that are compared")
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16, 32, 64], help="of a UNet evaluation")
    parser.add_argument("--repeats", type=int, default=5, help="of a stage")
    parser.add_argument("--warmup", type=int, default=1, help="runs of a stage before its repeats")
    parser.add_argument("--in-flight", type=numbers, default=[1, 4, 8, 16, 32], help="requests at once")
    parser.add_argument("--level-seconds", type=float, default=12, help="about, for each number in flight and for diffusers")
    parser.add_argument("--together", type=int, default=16, help="pictures of one call of diffusers")
    parser.add_argument("--max-rows", type=int, default=64, help="of a forward of the server, at 512x512")
    parser.add_argument("--setting", type=lambda text: text.split("=", 1), action="append", default=[], metavar="NAME=VALUE",
                        help="another of the servers: WORKERS__PREVIEW_EVERY=0")
    parser.add_argument("--steps", type=numbers, default=[10, 15, 25], help="that the jobs of the policies take turns in")
    parser.add_argument("--policy-seconds", type=float, default=40, help="for which jobs come, for each policy")
    parser.add_argument("--load", type=float, default=0.8, help="share of what the best of the closed loops could do")
    parser.add_argument("--rate", type=float, help="jobs a second for the policies, instead")
    parser.add_argument("--seed", type=int, default=11, help="of the moments at which jobs come")
    parser.add_argument("--json", type=Path, help="where all that was found goes")
    parser.add_argument("--from-json", type=Path, action="append", help="nothing is measured: what was found is read here")
    parser.add_argument("--write", type=Path, help="a document whose part between the marks is replaced")
    args = parser.parse_args()
    for needed in (*(args.from_json or [args.binary]), *([args.write] if args.write else [])):
        if not needed.exists():
            parser.error(f"{needed} does not exist")
    return args


def read(files):
    """The parts of several runs on one kind of machine as one."""
    found = {}
    for file in files:
        one = json.loads(file.read_text())
        if found and one["machine"] != found["machine"]:
            raise SystemExit(f"{file} was measured on {one['machine']}, and what is before it on {found['machine']}")
        found |= {name: value for name, value in one.items() if name not in PARTS or "error" not in value or name not in found}
    return found


def main():
    args = arguments()
    text = gpu_tables.document(read(args.from_json) if args.from_json else measure(args))
    print(text)
    if args.write:
        tables.write(args.write, text, SCRIPT, "gpu")


if __name__ == "__main__":
    main()
