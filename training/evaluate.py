"""Draws captions that were held out of training through Darkroom's engine and counts which of their words came true.

    python evaluate.py --binary ../target/release/darkroom --model ../models/pinhole     writes evaluation.json, README.md
    python evaluate.py --sweep 1.5 3 5 7.5                                               writes guidance.json

Only combinations of (object, colour, place, time) that no training picture had are asked for, one object a picture, at
the model's own defaults. `classifier.py` judges. The sweep draws other held-out combinations than the evaluation.
"""

import argparse
import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import torch

import engine
import report
from classifier import ATTRIBUTES, judged, trained
from objects import OBJECTS
from scenes import COLOURS, PLACES, TIMES, held_out

HERE = Path(__file__).parent
ROUNDS, SWEEP_ROUNDS = 10, 4  # prompts of each kind


def prompts(first, count):
    """Held-out (kind, colour, place, time): rounds `first..first + count`, each with every kind once."""
    rounds = [[] for _ in range(count)]
    for kind in OBJECTS:
        unseen = [rest for rest in product(COLOURS, PLACES, TIMES) if held_out(kind, *rest)]
        random.Random(kind).shuffle(unseen)
        for row, rest in zip(rounds, unseen[first:first + count], strict=True):
            row.append((kind, *rest))
    return [wanted for row in rounds for wanted in row]


def words(wanted):
    """The caption of a combination, in the plainest of the forms training used."""
    kind, colour, place, time = wanted
    return f"{'an' if colour == 'orange' else 'a'} {colour} {kind} {PLACES[place]} {TIMES[time]}"


def requests(wanted, **fields):
    """One request a combination; the seed is its number."""
    return [{"prompt": words(one), "seed": k, **fields} for k, one in enumerate(wanted)]


def seen(url, judge, wanted, **fields):
    """What the judge sees in the engine's pictures of the combinations."""
    pictures = engine.draw(url, requests(wanted, **fields))
    for picture in pictures:
        if picture.size != (128, 128):
            raise SystemExit(f"the judge knows pictures of 128x128 only, the model drew {picture.size}")
    stack = torch.from_numpy(np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures]))
    return judged(judge, stack.permute(0, 3, 1, 2) / 127.5 - 1)


def shares(wanted, found):
    """Share of words that came true: by attribute, over all of them, and of pictures with all four right."""
    hits = np.array([[a == b for a, b in zip(one, other)] for one, other in zip(wanted, found)], dtype=float)
    by_name = {name: round(float(v), 4) for name, v in zip(ATTRIBUTES, hits.mean(0))}
    return {**by_name, "all attributes": round(float(hits.mean()), 4), "whole pictures": round(float(hits.prod(1).mean()), 4)}


def broken_down(wanted, found, attribute):
    """`shares` of the prompts that name each value of one attribute."""
    column = list(ATTRIBUTES).index(attribute)
    return {value: {"prompts": len(rows), **shares([wanted[k] for k in rows], [found[k] for k in rows])}
            for value in ATTRIBUTES[attribute]
            if (rows := [k for k, one in enumerate(wanted) if one[column] == value])}


def evaluation(url, judge, measured, card):
    """The whole of evaluation.json."""
    wanted = prompts(0, ROUNDS)
    found = seen(url, judge, wanted)
    return {"training_steps": card.get("training_steps"), "prompts": len(wanted), "seeds": "prompt k of 0.. has seed k",
            "drawn_with": engine.defaults(url), "accuracy": shares(wanted, found), "classifier": measured,
            **{f"by_{name}": broken_down(wanted, found, name) for name in ATTRIBUTES}}


def sweep(url, judge, scales, card):
    """The whole of guidance.json; chosen is what gets most attributes right, the lower of equals."""
    wanted = prompts(ROUNDS, SWEEP_ROUNDS)
    results = {}
    for scale in sorted(scales):
        results[scale] = shares(wanted, seen(url, judge, wanted, guidance_scale=scale))
        print(scale, results[scale], flush=True)
    chosen = max(results, key=lambda scale: (results[scale]["all attributes"], -scale))
    return {"training_steps": card.get("training_steps"), "prompts": len(wanted), "chosen": chosen,
            "accuracy": {str(scale): result for scale, result in results.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    engine.arguments(parser)
    parser.add_argument("--sweep", type=float, nargs="+", metavar="GUIDANCE", help="compare guidance scales instead")
    parser.add_argument("--out", type=Path, help="else evaluation.json or guidance.json here; elsewhere README.md stays as it is")
    args = parser.parse_args()
    judge, measured = trained()
    card = json.loads((args.model / "darkroom.json").read_text())
    with engine.serving(args) as url:
        result = sweep(url, judge, args.sweep, card) if args.sweep else evaluation(url, judge, measured, card)
    out = args.out or HERE / ("guidance.json" if args.sweep else "evaluation.json")
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result if args.sweep else result["accuracy"], indent=2))
    if args.out is None:
        report.refresh()


if __name__ == "__main__":
    main()
