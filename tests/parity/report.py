"""The text of docs/parity.md between its marks, made of what parity.py found."""

import math
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import diffusers
import torch
import transformers

from checkpoints import COMMITTED
from reference_samplers import SAMPLERS, SCHEDULES

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benches"))
import tables  # noqa: E402

# The bars: share of a picture's bytes that are the reference's, and the most that a byte is off.
IDENTICAL, MOST = 0.995, 1
STARTS = {"image": "image to image", "mask": "inpainting"}


def holds(cell):
    """Whether a cell keeps to the bars; a pair that both sides refuse does."""
    if "refused" in cell:
        return "reference_error" in cell
    return "reference_error" not in cell and same(cell) >= IDENTICAL and cell["most"] <= MOST


def same(cell):
    return 1 - cell["differ"] / cell["bytes"]


def told(cell):
    """A cell as a line."""
    what = f"{cell['model']} {cell['start']} {cell['sampler']} {cell['schedule']}, {cell['steps']} steps, guidance " \
           f"{cell['guidance_scale']}, {cell['width']}x{cell['height']}, seed {cell['seed']}, {cell['num_images']} pictures"
    if "bytes" in cell:
        return f"{what}: {percent(same(cell))} % identical, most {cell['most']}"
    return f"{what}: ours {cell.get('refused', 'draws')}; theirs {cell.get('reference_error', 'draws')}"


def percent(share):
    """Two digits, rounded down: 100 is said of all bytes alone."""
    return "100" if share == 1 else f"{math.floor(share * 1e4) / 100:.2f}"


def versions(binary):
    of = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.split()[-1]
    return {"Darkroom": of, "PyTorch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
            "k-diffusion": version("k-diffusion"), "Python": platform.python_version()}


def numbers(printed):
    """What the test of the samplers' numbers prints, a sampler a line: cases, and the largest deviations."""
    lines = re.findall(r"^(\w+): (\d+) cases, double (\S+), single (\S+)$", printed, re.MULTILINE)
    if not lines:
        raise SystemExit(f"the test of the samplers' numbers printed none:\n{printed}")
    merged = {}
    for sampler, count, double, single in lines:
        before = merged.get(sampler, (0, 0.0, 0.0))
        merged[sampler] = (before[0] + int(count), max(before[1], float(double)), max(before[2], float(single)))
    return merged


def small(value):
    return "0" if value == 0 else f"{value:.0e}"


def shown(cell):
    if cell is None:
        return ""
    if "refused" in cell:
        return "refused" if holds(cell) else "**refused**"
    if "reference_error" in cell:
        return "no reference"
    words = percent(same(cell)) + (f" ({cell['most']})" if cell["most"] > 1 else "")
    return words if holds(cell) else f"**{words}**"


def worst(cells):
    """Of several cells: how many, the least and the mean share, the most that a byte is off."""
    drawn = [cell for cell in cells if "bytes" in cell]
    mean = 1 - sum(cell["differ"] for cell in drawn) / sum(cell["bytes"] for cell in drawn)
    return len(drawn), sum(cell["num_images"] for cell in drawn), percent(min(map(same, drawn))), percent(mean), max(c["most"] for c in drawn)


def place(model):
    """Families in their order, each with its committed checkpoint first."""
    family = max((name for name in COMMITTED if model.startswith(name)), key=len)
    return COMMITTED.index(family), model


def summary(found):
    drawn = [cell for cell in found["cells"] if "bytes" in cell]
    cells, pictures, least, mean, most = worst(drawn)
    missed = [cell for cell in found["cells"] if not holds(cell)]
    without = [name for name in COMMITTED if not any((cell["model"], cell["part"]) == (name, "pairs") for cell in found["cells"])]
    unmeasured = f" **Not measured in these runs: {', '.join(without)}.**" if without else ""
    host = tables.machine()
    named = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    return (f"{host['cores']} cores of {host['cpu']} ({host['vectors']}), {host['memory_gib']} GiB, {host['system']}. {named}. "
            f"{found['minutes']:.0f} minutes, one thread on either side.\n\n"
            f"**{cells} requests, {pictures} pictures: {mean} % of all bytes are the reference's, of the worst request {least} %; "
            f"the most that a byte is off is {most}. {len(missed)} requests miss the bar.**{unmeasured}")


def pair_table(cells, model):
    at = {(cell["sampler"], cell["schedule"]): cell for cell in cells if cell["model"] == model and cell["start"] == "text"}
    rows = [(f"`{sampler}`", *(shown(at.get((sampler, schedule))) for schedule in SCHEDULES)) for sampler in SAMPLERS]
    return tables.table(("", *(f"`{schedule}`" for schedule in SCHEDULES)), rows)


def other_table(cells, models):
    rows = []
    for model in models:
        of = [cell for cell in cells if cell["model"] == model and cell["start"] == "text"]
        latents = [cell["latents"] for cell in of if isinstance(cell.get("latents"), float)]
        rows.append((model, *worst(of), small(max(latents)) if latents else ""))
    return tables.table(("checkpoint", "requests", "pictures", "identical, least %", "identical, mean %", "most a byte is off",
                         "last latents off"), rows)


def start_table(cells):
    rows = []
    for model in sorted({cell["model"] for cell in cells}, key=place):
        for start, words in STARTS.items():
            of = [cell for cell in cells if cell["model"] == model and cell["start"] == start and "bytes" in cell]
            if of:
                rows.append((f"{model}, {words}", *worst(of)))
    return tables.table(("", "requests", "pictures", "identical, least %", "identical, mean %", "most a byte is off"), rows)


def latents_table(cells):
    models = sorted({cell["model"] for cell in cells if cell["part"] == "pairs" and "latents" in cell}, key=place)
    rows = []
    for sampler in SAMPLERS:
        of = {model: [c["latents"] for c in cells if c["model"] == model and c["sampler"] == sampler and "latents" in c] for model in models}
        rows.append((f"`{sampler}`", *(small(max(each)) if each else "" for each in of.values())))
    return tables.table(("", *models), rows)


def missed_table(cells):
    """Those that miss the bar, and what double precision says of both sides."""
    words = lambda off: f"{percent(same(off))} ({off['most']})"
    rows = [(f"{cell['model']}, `{cell['sampler']}`, `{cell['schedule']}`, {cell['steps']} steps, guidance {cell['guidance_scale']:g}", words(cell),
             words(cell["theirs_to_double"]), words(cell["ours_to_double"])) for cell in cells]
    return tables.table(("request", "Darkroom to the reference", "the reference to itself in double precision",
                         "Darkroom to the reference in double precision"), rows)


def half_table(halves):
    rows = []
    for model in sorted({cell["model"] for cell in halves}, key=place):
        for dtype in ("float16", "bfloat16"):
            of = [cell for cell in halves if (cell["model"], cell["dtype"]) == (model, dtype)]
            decibels = [f"{min(c[side] for c in of):.1f} to {max(c[side] for c in of):.1f}" for side in ("ours", "theirs")]
            rows.append((f"{model}, {dtype}", percent(min(map(same, of))), max(cell["most"] for cell in of), *decibels))
    return tables.table(("weights", "identical to float32, least %", "most a byte is off",
                         "Darkroom to the reference in that type, dB", "the reference in float32 to itself in that type, dB"), rows)


def document(found):
    cells, parts = found["cells"], [summary(found)]
    models = sorted(dict.fromkeys(cell["model"] for cell in cells), key=place)
    of_part = lambda part: [model for model in models if any((c["model"], c["part"]) == (model, part) for c in cells)]
    committed, others = of_part("pairs"), of_part("others")
    if "numbers" in found:
        parts += ["### The samplers' numbers", tables.table(
            ("", "runs", "off in double precision", "off the reference as it runs, in single"),
            [(f"`{sampler}`", count, small(double), small(single)) for sampler, (count, double, single) in found["numbers"].items()])]
    if any(isinstance(cell.get("latents"), float) for cell in cells):
        parts += ["### Last latents", latents_table(cells)]
    parts += ["### Pictures: identical bytes, %"]
    for model in committed:
        parts += [f"#### {model}", pair_table(cells, model)]
    refused = {cell["refused"]: cell for cell in cells if "refused" in cell}
    for cell in refused.values():
        parts.append(f"Refused: {told(cell)}")
    missed = [cell for cell in cells if "theirs_to_double" in cell]
    if missed:
        parts += ["### Requests that miss the bar: identical bytes, % (most a byte is off)", missed_table(missed)]
    if others:
        parts += ["### Other checkpoints", other_table(cells, others)]
    if any(cell["start"] in STARTS for cell in cells):
        parts += ["### From a picture", start_table([cell for cell in cells if cell["start"] in STARTS])]
    if found["halves"]:
        parts += ["### Weights in half precision", half_table(found["halves"])]
    return "\n\n".join(parts)
