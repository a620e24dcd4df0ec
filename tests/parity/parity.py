"""Darkroom beside diffusers, picture by picture: docs/parity.md is written by it.

    pip install -r training/requirements.txt scipy==1.17.1 torchsde==0.2.6 k-diffusion==0.1.1
    cargo build
    python tests/parity/parity.py --write docs/parity.md

For every family, sampler and sigma schedule both draw the same request, diffusers in this process and Darkroom as `darkroom
serve` over HTTP, and what differs is counted. The same for other checkpoints than the committed ones, made here; for pictures
that start from a picture; and for weights in half precision. `cargo test` then compares last latents and the samplers' numbers.
It ends in an error where a bar is missed. `--only NAME` takes one checkpoint's family; with `--json FILE` several runs add up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import cells  # noqa: E402
import checkpoints  # noqa: E402
import report  # noqa: E402
from report import tables  # noqa: E402
from reference import Reference  # noqa: E402
from reference_samplers import origin  # noqa: E402
from server import Refused, serving  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ["pairs", "others", "pictures", "halves", "latents", "numbers"]
HALVES = (torch.float16, torch.bfloat16)
FROM_PICTURES = ("tiny-sd", "tiny-sd2", "tiny-sdxl", "tiny-inpainting")
# Of the pictures in half precision.
SOME = [("euler", "default"), ("dpmpp_2m", "karras"), ("ddim", "default"), ("heun", "default")]


def say(words):
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def apart(ours, theirs):
    """How many bytes there are, how many differ, and the most that one does."""
    off = np.abs(ours.astype(int) - theirs.astype(int))
    return {"bytes": off.size, "differ": int((off > 0).sum()), "most": int(off.max())}


def psnr(left, right):
    """In decibels; infinite for equal pictures."""
    error = np.mean((left.astype(float) - right.astype(float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def compared(server, reference, model, cell, latents):
    """One cell: both sides draw."""
    found = {"model": model, "origin": origin(cell["sampler"], cell["schedule"])}
    found |= {key: value for key, value in cell.items() if key not in ("image", "mask")}
    try:
        theirs, last = reference.draw(cell)
    except Exception as error:
        found["reference_error"] = f"{type(error).__name__}: {error}"
        theirs = None
    try:
        ours = server.draw(model, cell)
    except Refused as refusal:
        return found | {"refused": str(refusal)}
    if theirs is None:
        return found
    if cell["start"] == "text":
        latents[str(len(latents))] = last.contiguous()
        found["latents"] = len(latents) - 1
    return found | apart(ours, theirs)


def explain(cell, asked, folder, server, reference):
    """Beside a request that misses the bar: how far both sides are from the reference in double precision."""
    try:
        exact, _ = Reference(folder, torch.float64).draw(asked)
    except Exception as error:
        return say(f"  no reference in double precision: {error!r}")
    ours, theirs = server.draw(folder.name, asked), reference.draw(asked)[0]
    cell |= {"ours_to_double": apart(ours, exact), "theirs_to_double": apart(theirs, exact)}


def run_cells(folder, server, asked, part, results, work):
    """All requests to one checkpoint. What the test of latents reads is left in a folder of its own."""
    reference, model, latents, began = Reference(folder), folder.name, {}, time.time()
    factor = reference.pipe(reference.text_to_image).vae_scale_factor
    here = []
    for cell in asked(model, factor):
        here.append({"part": part} | compared(server, reference, model, cell, latents))
        if "bytes" in here[-1] and not report.holds(here[-1]):
            explain(here[-1], cell, folder, server, reference)
    if latents:
        target = work / "latents" / model
        target.mkdir(parents=True)
        save_file(latents, target / "latents.safetensors")
        of_test = [result for result in here if "latents" in result]
        (target / "cells.json").write_text(json.dumps({"checkpoint": str(folder.resolve()), "cells": of_test}))
    missed = [each for each in here if not report.holds(each)]
    say(f"{model}, {part}: {len(here)} requests in {time.time() - began:.0f} s, {len(missed)} missed the bar")
    for each in missed:
        say(f"  {report.told(each)}")
    results += here


def in_half_precision(name, stored, dtype, server, results):
    """Pictures of weights in half precision by Darkroom, which computes in float32, beside the reference's in either type."""
    whole, half = Reference(stored), Reference(stored, dtype)
    factor = whole.pipe(whole.text_to_image).vae_scale_factor
    for cell in cells.from_noise(name, factor, SOME):
        ours, (exact, _), (rounded, _) = server.draw(stored.name, cell), whole.draw(cell), half.draw(cell)
        results.append({"model": name, "dtype": str(dtype).removeprefix("torch."), "sampler": cell["sampler"],
                        "ours": psnr(ours, rounded), "theirs": psnr(exact, rounded)} | apart(ours, exact))
    say(f"{name} in {dtype}: {min(each['ours'] for each in results if each['model'] == name):.1f} dB at least")


def cargo_test(name, *arguments, **environment):
    """Whether one test holds, and what it prints."""
    command = ["cargo", "test", "--locked", "--test", "it", name, "--", "--nocapture", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def add_latents(results, work):
    """The test draws every request once more and says how far its last latents are off."""
    holds, printed = cargo_test("golden::parity", "--ignored", DARKROOM_PARITY=str(work / "latents"))
    if not holds:
        say(f"the test of last latents fails:\n{printed}")
    found = {folder.name: json.loads((folder / "found.json").read_text()) for folder in (work / "latents").iterdir()
             if (folder / "found.json").exists()}
    for result in results:
        at = result.pop("latents", None)
        if at is not None and result["model"] in found:
            result["latents"] = found[result["model"]][at]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "debug" / "darkroom")
    parser.add_argument("--only", action="append", help="one of the committed checkpoints; may be given several times")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help="of " + ",".join(PARTS))
    parser.add_argument("--write", type=Path, help="a document whose part between the marks is replaced")
    parser.add_argument("--json", type=Path, help="where every request's numbers go; what stands there of other parts is kept")
    return parser.parse_args()


def before(args, names):
    """What earlier runs with the same `--json` found, less what this one will find."""
    if not (args.json and args.json.exists()):
        return {"cells": [], "halves": [], "minutes": 0.0}
    found = json.loads(args.json.read_text())
    part_of = {"image": "pictures", "mask": "pictures"}
    again = lambda cell: cell["family"] in names and part_of.get(cell["start"], cell["part"]) in args.parts
    found["cells"] = [cell for cell in found["cells"] if not again(cell)]
    found["halves"] = [cell for cell in found["halves"] if not ("halves" in args.parts and cell["model"] in names)]
    return found


def run_family(name, args, found):
    """Everything of one committed checkpoint and of those that are made like it."""
    number = checkpoints.COMMITTED.index(name)
    results = []
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        committed = checkpoints.as_published(checkpoints.FIXTURES / name, work / "published")
        others = [checkpoints.as_published(checkpoints.made(name, change, work, 700 + 10 * number + k), work / "published")
                  for k, change in enumerate(checkpoints.CHANGES)] if "others" in args.parts else []
        halves = {dtype: checkpoints.stored_as(committed, dtype, work) for dtype in HALVES} if "halves" in args.parts else {}
        with serving(args.binary, [committed, *others, *halves.values()]) as server:
            if "pairs" in args.parts:
                run_cells(committed, server, lambda *of: cells.from_noise(*of, cells.every_pair()), "pairs", results, work)
            for k, folder in enumerate(others):
                run_cells(folder, server, lambda *of: cells.from_noise(*of, cells.some_pairs(2 * number + k)), "others", results, work)
            if "pictures" in args.parts and name in FROM_PICTURES:
                run_cells(committed, server, cells.from_pictures, "pictures", results, work)
            for dtype, stored in halves.items():
                in_half_precision(name, stored, dtype, server, found["halves"])
        if "latents" in args.parts and (work / "latents").exists():
            add_latents(results, work)
    # Where they were not compared, what is there is a number in a file that is gone.
    results = [{key: value for key, value in each.items() if key != "latents" or isinstance(value, float)} for each in results]
    found["cells"] += [{"family": name} | each for each in results]


def main():
    args = arguments()
    torch.set_num_threads(1)
    names = args.only or checkpoints.COMMITTED
    found = before(args, names)
    for name in names:
        began = time.time()
        run_family(name, args, found)
        found["minutes"] += (time.time() - began) / 60
        if args.json:
            args.json.write_text(json.dumps(found))
    if "numbers" in args.parts:
        holds, printed = cargo_test("golden::samplers")
        found["numbers"] = report.numbers(printed)
        if not holds:
            raise SystemExit(printed)
    found["versions"] = report.versions(args.binary)
    if args.json:
        args.json.write_text(json.dumps(found))
    if args.write:
        tables.write(args.write, report.document(found), "tests/parity/parity.py")
    missed = [each for each in found["cells"] if not report.holds(each)]
    say(f"{len(found['cells'])} requests, {len(missed)} missed the bar, {found['minutes']:.0f} minutes")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
