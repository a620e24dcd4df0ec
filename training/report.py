"""Writes the numbers of evaluation.json and guidance.json into README.md, between its two marks.

    python report.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- numbers: written by report.py -->", "<!-- end of numbers -->"


def percent(share):
    return f"{100 * share:.1f} %"


def table(head, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def sections(evaluation, guidance):
    """The text between the marks."""
    drawn, accuracy = evaluation["drawn_with"], evaluation["accuracy"]
    yield (f"{evaluation['prompts']} prompts, one object each, of combinations no training picture had, drawn by Darkroom's engine at "
           f"{drawn['width']}x{drawn['height']}, `{drawn['sampler']}`, {drawn['steps']} steps, guidance {drawn['guidance_scale']:g}; "
           f"{evaluation['seeds']}; the model after {evaluation['training_steps']} training steps.")
    yield table(("asked for", "right"), [(name, percent(share)) for name, share in accuracy.items()])
    judge = evaluation["classifier"]
    kinds = [name for name, value in judge.items() if isinstance(value, dict)]
    yield "What the judge itself reaches, so how far these numbers can be trusted:"
    yield table(("renders", *judge[kinds[0]]), [(name, *map(percent, judge[name].values())) for name in kinds])
    for attribute in ("object", "colour"):
        names = [name for name in accuracy if name not in ("all attributes", "whole pictures")]
        rows = [(value, row["prompts"], *(percent(row[name]) for name in names)) for value, row in evaluation[f"by_{attribute}"].items()]
        yield f"By the {attribute} asked for:"
        yield table((attribute, "prompts", *(f"{name} right" for name in names)), rows)
    if guidance:
        yield (f"Guidance, on {guidance['prompts']} other held-out prompts after {guidance['training_steps']} steps; "
               f"{guidance['chosen']:g} did best and is what export.py writes:")
        yield table(("guidance", *accuracy), [(scale, *map(percent, row.values())) for scale, row in guidance["accuracy"].items()])


def refresh():
    """Rewrites README.md; does nothing before the first evaluation."""
    if not (HERE / "evaluation.json").exists():
        return
    guidance = HERE / "guidance.json"
    text = "\n\n".join(sections(json.loads((HERE / "evaluation.json").read_text()),
                                json.loads(guidance.read_text()) if guidance.exists() else None))
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    refresh()
