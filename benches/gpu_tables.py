"""What on_gpu.py found, as the Markdown of docs/benchmarks.md."""

import statistics

from tables import STAGES, figure, plural, ratio, spread, table

ENGINES = ("Darkroom", "diffusers", "diffusers, channels last")


def document(found):
    """The text between the marks; parts that were not measured, or that failed, are not in it or are told."""
    host = found["machine"]
    parts = []
    if found["shape"] == "tiny":
        parts.append("**A trial with a tiny checkpoint: these numbers mean nothing.**")
    parts.append(f"{host['gpu']}, driver {host['driver']}; {host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB, {host['system']}. "
                 f"Darkroom {host['darkroom']}, PyTorch {host['torch']} (cuDNN {host['cudnn']}), diffusers {host['diffusers']}, "
                 f"transformers {host['transformers']}.")
    for name, tell in {"pictures": picture_tables, "stages": stage_tables, "served": served_table, "policies": policy_table}.items():
        if name in found:
            try:
                parts.extend(tell(found[name]))
            except (KeyError, IndexError, ValueError):
                # A part that was cut off before it had what its table needs.
                found[name].setdefault("error", "not measured to its end")
            if error := found[name].get("error"):
                parts.append(f"**{name}: {error.splitlines()[0][:300]}**")
    return "\n\n".join(parts)


def picture_tables(pictures):
    titles = {"pinhole": "pinhole", "wide": "A checkpoint of Stable Diffusion 1.5's shape with random weights"}
    for name, title in titles.items():
        if name not in pictures:
            continue
        one = pictures[name]
        yield f"### The same pictures: {title}"
        yield (f"{plural(one['count'], 'picture')}, {one['picture']}, from the same seeds. Two different ones differ in "
               f"{100 * one['different']:.0f} % of their bytes.")
        rows = [(f"{pair['left']}, {pair['right']}", pair["largest"], f"{100 * pair['share']:.3f} %", f"{pair['mean']:.4f}",
                 "equal" if pair["psnr"] is None else f"{pair['psnr']:.1f}") for pair in one["pairs"]]
        yield table(("compared", "largest difference of a byte", "bytes that differ", "mean difference", "PSNR, dB"), rows)


def stage_tables(stages):
    took = {(row["dtype"], row["stage"], row["size"], row["engine"]): row["ms"] for row in stages["rows"]}
    for dtype in dict.fromkeys(row["dtype"] for row in stages["rows"]):
        engines = [name for name in ENGINES if any(key[0] == dtype and key[3] == name for key in took)]
        rows = []
        for stage, words in STAGES.items():
            for size in sorted({key[2] for key in took if key[:2] == (dtype, stage)}):
                found = {name: took.get((dtype, stage, size, name)) for name in engines}
                medians = {name: statistics.median(ms) for name, ms in found.items() if ms}
                ours = medians.get("Darkroom")
                against = [ratio(ours, medians[name]) if ours and name in medians else "" for name in engines[1:]]
                each = [figure(medians[name] / size) if stage == "unet" and name in medians else "" for name in engines]
                label = f"{words}, {plural(size, 'row')}" if stage == "unet" else words
                rows.append((label, *(spread(ms) if ms else "failed" if name == "Darkroom" else "" for name, ms in found.items()),
                             *against, *each))
        yield f"### Stages in {dtype}, milliseconds"
        yield f"{stages['picture']}."
        yield table(("", *engines, *(f"as fast as {name}" for name in engines[1:]), *(f"{name}, a row" for name in engines)), rows)


def served_table(served):
    in_turn, together = served.get("in_turn"), served.get("together")
    yield f"### Served in {served['dtype']}"
    ready = f" The server was ready {served['start_s']:.1f} s after its start." if "start_s" in served else ""
    yield f"{served['picture']}.{ready}"
    rows = []

    def row(in_flight, who, one, latency=True):
        times = [figure(one[key]) if latency else "" for key in ("p50_ms", "p95_ms")]
        against = [f"**{one['pictures_per_second'] / other['pictures_per_second']:.2f}x**" if other else "" for other in (in_turn, together)]
        rows.append((in_flight, who, figure(one["pictures_per_second"]), *times, f"{one['mean_batch']:.2f}", *against))

    for level in served["levels"]:
        row(level["in_flight"], "`darkroom serve`", level)
    if in_turn:
        row(1, "diffusers, in turn", in_turn)
    if together:
        row("", f"diffusers, {together['pictures']} of one call", together | {"mean_batch": together["pictures"]}, latency=False)
    yield table(("in flight", "", "pictures a second", "p50, ms", "p95, ms", "pictures a forward", "to diffusers in turn", "to one call"), rows)


def policy_table(policies):
    rows, first = [], policies["rows"][0]
    for one in policies["rows"]:
        ratios = " / ".join(f"{first[key] / one[key]:.2f}" for key in ("mean", "p95", "p99"))
        rows.append((one["policy"], one["jobs"], f"{one['per_second']:.2f}", *(f"{one[key]:.2f}" for key in ("mean", "p95", "p99")),
                     f"{one['pictures']:.2f}", "" if one is first else f"**{ratios}**"))
    able = f", {policies['load']:.0%} of what the best closed loop could do" if policies["able"] else ""
    yield f"### Policies in {policies['dtype']}"
    yield (f"Jobs of {'/'.join(map(str, policies['steps']))} steps in turn came for {policies['seconds']:.0f} s, {policies['rate']:.2f} a second{able}; the same "
           f"jobs at the same moments for each policy.")
    yield table(("policy", "jobs", "pictures a second", "mean s", "p95 s", "p99 s", "pictures a forward",
                 f"{first['policy']} to it: mean / p95 / p99"), rows)
