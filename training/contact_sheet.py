"""A contact sheet of the evaluation's first prompts, one of each kind of object, as they came: nothing is chosen.

    python contact_sheet.py --binary ../target/release/darkroom --model ../models/pinhole
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import engine
from evaluate import prompts, requests

COLUMNS, GAP, LINE = 6, 12, 14
PAPER, INK = (250, 250, 248), (40, 40, 44)
LIMIT_BYTES = 600_000


def lines(text, font, width):
    """The text broken into lines of at most `width` pixels."""
    out = [""]
    for word in text.split():
        longer = f"{out[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            out[-1] = longer
        else:
            out.append(word)
    return out


def sheet(pictures, captions):
    """All pictures in rows, each with its caption beneath."""
    font = ImageFont.load_default(11)
    width, height = pictures[0].size
    cell = (width + GAP, height + 2 * LINE + GAP)
    rows = -(-len(pictures) // COLUMNS)
    out = Image.new("RGB", (COLUMNS * cell[0] + GAP, rows * cell[1] + GAP), PAPER)
    draw = ImageDraw.Draw(out)
    for k, (picture, text) in enumerate(zip(pictures, captions)):
        x, y = GAP + k % COLUMNS * cell[0], GAP + k // COLUMNS * cell[1]
        out.paste(picture, (x, y))
        for n, line in enumerate(lines(text, font, width)):
            draw.text((x, y + height + 2 + n * LINE), line, INK, font)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    engine.arguments(parser)
    default = Path(__file__).parent.parent / "docs" / "pictures" / "pinhole-contact-sheet.png"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    asked = requests(prompts(0, 1))
    with engine.serving(args) as url:
        pictures = engine.draw(url, asked)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, [request["prompt"] for request in asked]).save(args.out, optimize=True)
    size = args.out.stat().st_size
    print(f"{len(pictures)} pictures, {size} bytes: {args.out}")
    if size > LIMIT_BYTES:
        raise SystemExit(f"more than {LIMIT_BYTES} bytes; do not commit it")


if __name__ == "__main__":
    main()
