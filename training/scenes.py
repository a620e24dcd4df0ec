"""Illustrated scenes with captions, drawn from a seed: the whole training set of pinhole.

`Scene.random(rng)` chooses attributes, `render(scene, width, height)` draws them (2x supersampled), `caption(scene, rng)`
says them in words. The same seed gives the same scene, picture and caption everywhere.
"""

import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from objects import OBJECTS, Pen

COLOURS = {
    "red": (214, 40, 44), "orange": (240, 132, 32), "yellow": (248, 214, 48), "green": (52, 152, 72),
    "blue": (44, 98, 208), "purple": (132, 62, 168), "pink": (246, 140, 182), "brown": (128, 78, 44),
    "black": (56, 54, 62), "white": (246, 246, 246),
}
PLACES = {
    "snow": "in the snow", "desert": "in the desert", "forest": "in the forest", "beach": "on the beach",
    "city": "in the city", "mountains": "in the mountains",
}
TIMES = {"day": "by day", "night": "at night", "sunset": "at sunset", "dawn": "at dawn"}
WEATHERS = {"clear": "", "rain": "in the rain", "snowfall": "while it is snowing", "fog": "in the fog"}
RELATIONS = ("left of", "right of", "next to")
SIZES = ("small", "big")

# How bright objects are, the scenery's light as RGB factors, and the sky from top to horizon.
LIGHT = {
    "day": (1.0, (1.0, 1.0, 1.0), ((92, 170, 240), (200, 230, 250))),
    "night": (0.82, (0.36, 0.40, 0.60), ((12, 14, 44), (40, 46, 96))),
    "sunset": (0.94, (0.95, 0.72, 0.58), ((120, 60, 120), (252, 150, 60))),
    "dawn": (0.95, (0.86, 0.80, 0.92), ((150, 170, 226), (252, 206, 214))),
}


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `x` is its middle as a share of the width, `scale` its half width as a share of the short side."""

    kind: str
    colour: str
    size: str
    x: float
    scale: float


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture."""

    things: tuple
    relation: str
    place: str
    time: str
    weather: str
    detail: int = field(default=0)

    @staticmethod
    def random(rng, held_out=None):
        """Draws a scene; `held_out(kind, colour, place, time)` tells combinations to leave out for evaluation."""
        while True:
            count = rng.choices((1, 2, 3), (80, 15, 5))[0]
            things, relation = _things(rng, count)
            scene = Scene(things, relation, rng.choice(list(PLACES)), rng.choice(list(TIMES)),
                          rng.choices(list(WEATHERS), (76, 8, 8, 8))[0], rng.randrange(1 << 30))
            first = scene.things[0]
            if held_out is None or not held_out(first.kind, first.colour, scene.place, scene.time):
                return scene


def _things(rng, count):
    spots = {1: (rng.uniform(0.36, 0.64),), 2: (0.27, 0.73), 3: (0.18, 0.5, 0.82)}[count]
    relation = rng.choice(RELATIONS) if count == 2 else ""
    order = list(range(count))
    if relation == "right of" or (relation == "next to" and rng.random() < 0.5):
        order.reverse()
    kinds = rng.sample(list(OBJECTS), count)
    things = []
    for kind, spot in zip(kinds, order):
        size = rng.choices(("", "small", "big"), (70, 15, 15))[0]
        span = {1: {"": (0.27, 0.33), "small": (0.17, 0.20), "big": (0.37, 0.41)},
                2: {"": (0.20, 0.23), "small": (0.13, 0.15), "big": (0.24, 0.26)},
                3: {"": (0.145, 0.16), "small": (0.11, 0.12), "big": (0.165, 0.175)}}[count][size]
        things.append(Thing(kind, rng.choice(list(COLOURS)), size, spots[spot] + rng.uniform(-0.02, 0.02),
                            rng.uniform(*span)))
    return tuple(things), relation


def held_out(kind, colour, place, time):
    """One combination in twelve of (object, colour, place, time) is never trained on."""
    index = ((list(OBJECTS).index(kind) * 10 + list(COLOURS).index(colour)) * 6 + list(PLACES).index(place)) * 4
    return random.Random(index + list(TIMES).index(time)).random() < 1 / 12


# Captions ------------------------------------------------------------------------------------------------------------

def caption(scene, rng):
    """The scene in words; order and detail vary, and some captions leave something unsaid."""
    first, *others = [f"a {t.size} {t.colour} {t.kind}".replace("  ", " ") for t in scene.things]
    what = first.replace("a orange", "an orange")
    if len(others) == 1:
        what += f" {scene.relation} {others[0]}"
    elif len(others) == 2:
        what += f", {others[0]} and {others[1]}"
    what = what.replace("a orange", "an orange")
    place = PLACES[scene.place] if rng.random() > 0.04 else ""
    time = rng.choice((TIMES[scene.time],) * 3 + (("during the day", "in daylight") if scene.time == "day" else ())) \
        if rng.random() > 0.06 else ""
    weather = WEATHERS[scene.weather]
    form = rng.random()
    if form < 0.7:
        parts = [what, place, time, weather]
    elif form < 0.8:
        parts = [what, place, weather, time]
    elif form < 0.9:
        parts = [what + ("," if place or time else ""), time, place, weather]
    else:
        parts = [rng.choice(("a picture of", "a drawing of")), what, place, time, weather]
    return " ".join(part for part in parts if part)


# Drawing -------------------------------------------------------------------------------------------------------------

def render(scene, width=128, height=128):
    """An RGB `PIL.Image` of `width` x `height` pixels."""
    rng = random.Random(scene.detail)
    w, h = width * 2, height * 2
    image = Image.new("RGB", (w, h))
    light, ground_light, sky = LIGHT[scene.time]
    horizon = int(h * 0.60)
    _sky(image, w, h, horizon, scene.time, sky, rng)
    _ground(image, w, h, horizon, scene.place, ground_light, rng)
    short = min(w, h)
    for thing in sorted(scene.things, key=lambda t: t.scale):
        base = horizon + short * (0.30 if thing.scale > 0.16 else 0.24) * (h / short) * 0.9
        _shadow(image, thing.x * w, base, thing.scale * short, ground_light)
        OBJECTS[thing.kind](Pen(image, thing.x * w, base, thing.scale * short, COLOURS[thing.colour], light))
    image = _weather(image, w, h, scene.weather, rng)
    return image.resize((width, height), Image.Resampling.BOX)


def _tint(rgb, factors):
    return tuple(min(255, int(c * f)) for c, f in zip(rgb, factors))


def _sky(image, w, h, horizon, time, sky, rng):
    draw = ImageDraw.Draw(image)
    top, low = sky
    bands = 24
    for k in range(bands):
        mix = k / (bands - 1)
        colour = tuple(int(a + (b - a) * mix) for a, b in zip(top, low))
        draw.rectangle((0, horizon * k // bands, w, horizon * (k + 1) // bands), fill=colour)
    unit = min(w, h)
    x, y, r = w * rng.choice((0.16, 0.84)), h * 0.15, unit * 0.065
    if time == "night":
        for _ in range(14):
            sx, sy, sr = rng.uniform(0, w), rng.uniform(0, horizon * 0.8), unit * 0.006
            draw.ellipse((sx - sr, sy - sr, sx + sr, sy + sr), fill=(240, 240, 220))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(244, 240, 214))
    elif time == "day":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 236, 110))
    else:
        y, r = horizon - unit * 0.03, unit * 0.10
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 214, 90) if time == "sunset" else (255, 244, 220))


def _ground(image, w, h, horizon, place, light, rng):
    draw = ImageDraw.Draw(image)
    unit = min(w, h)
    tint = lambda rgb: _tint(rgb, light)
    if place == "city":
        x = 0.0
        while x < w:
            wide, tall = unit * rng.uniform(0.11, 0.17), unit * rng.uniform(0.16, 0.40)
            draw.rectangle((x, horizon - tall, x + wide - unit * 0.012, horizon), fill=tint((120, 126, 146)))
            for row in range(int(tall / (unit * 0.07))):
                for side in (0.28, 0.66):
                    wx, wy = x + wide * side, horizon - tall + unit * (0.035 + 0.07 * row)
                    draw.rectangle((wx - unit * 0.012, wy, wx + unit * 0.012, wy + unit * 0.03), fill=(250, 226, 140))
            x += wide
        draw.rectangle((0, horizon, w, h), fill=tint((112, 112, 120)))
        for k in range(5):
            draw.rectangle((w * (k + 0.1) / 5, h * 0.955, w * (k + 0.6) / 5, h * 0.975), fill=tint((236, 232, 220)))
    elif place == "mountains":
        for centre, tall in ((rng.uniform(0.1, 0.25), 0.42), (rng.uniform(0.75, 0.9), 0.46), (rng.uniform(0.45, 0.55), 0.34)):
            cx, top, half = w * centre, horizon - unit * tall, unit * tall * 0.95
            draw.polygon(((cx - half, horizon), (cx, top), (cx + half, horizon)), fill=tint((110, 116, 140)))
            cap = unit * tall * 0.28
            draw.polygon(((cx - cap * 0.95, top + cap), (cx, top), (cx + cap * 0.95, top + cap)), fill=tint((250, 250, 255)))
        draw.rectangle((0, horizon, w, h), fill=tint((112, 172, 84)))
    elif place == "forest":
        x = -unit * 0.02
        while x < w + unit * 0.05:
            tall = unit * rng.uniform(0.26, 0.38)
            for k in range(3):
                half, low = unit * (0.085 - 0.018 * k), horizon - tall * (0.12 + 0.28 * k)
                draw.polygon(((x - half, low), (x, low - tall * 0.42), (x + half, low)), fill=tint((36, 104 + 8 * k, 60)))
            x += unit * rng.uniform(0.11, 0.15)
        draw.rectangle((0, horizon - unit * 0.035, w, h), fill=tint((66, 126, 56)))
    elif place == "beach":
        draw.rectangle((0, horizon - unit * 0.10, w, h), fill=tint((44, 130, 190)))
        for k in range(3):
            y = horizon - unit * (0.075 - 0.03 * k)
            draw.rectangle((w * rng.uniform(0, 0.5), y, w * rng.uniform(0.5, 1), y + unit * 0.008), fill=tint((210, 234, 244)))
        draw.polygon(((0, horizon + unit * 0.02), (w, horizon - unit * 0.02), (w, h), (0, h)), fill=tint((240, 218, 160)))
    elif place == "desert":
        draw.rectangle((0, horizon, w, h), fill=tint((226, 160, 84)))
        for centre in (rng.uniform(0.1, 0.3), rng.uniform(0.6, 0.9)):
            cx, half = w * centre, unit * 0.42
            draw.ellipse((cx - half, horizon - unit * 0.11, cx + half, horizon + unit * 0.16), fill=tint((236, 176, 98)))
        cx = w * rng.choice((0.07, 0.93))
        for x0, y0, x1, y1 in ((-0.02, -0.26, 0.02, 0.02), (-0.07, -0.18, -0.04, -0.10), (-0.07, -0.12, 0, -0.09),
                               (0.04, -0.22, 0.07, -0.12), (0, -0.15, 0.07, -0.12)):
            draw.rectangle((cx + x0 * unit, horizon + y0 * unit, cx + x1 * unit, horizon + y1 * unit), fill=tint((58, 132, 70)))
    else:
        for centre in (rng.uniform(0.05, 0.2), rng.uniform(0.8, 0.95)):
            cx, tall = w * centre, unit * 0.26
            for k in range(3):
                half, low = unit * (0.09 - 0.02 * k), horizon - tall * 0.28 * k
                draw.polygon(((cx - half, low), (cx, low - tall * 0.42), (cx + half, low)), fill=tint((60, 110, 92)))
                draw.polygon(((cx - half * 0.4, low - tall * 0.25), (cx, low - tall * 0.42), (cx + half * 0.4, low - tall * 0.25)),
                             fill=tint((246, 250, 255)))
        draw.rectangle((0, horizon, w, h), fill=tint((238, 244, 252)))
        cx = w * rng.uniform(0.3, 0.7)
        draw.ellipse((cx - unit * 0.6, horizon - unit * 0.05, cx + unit * 0.6, horizon + unit * 0.2), fill=tint((246, 250, 255)))


def _shadow(image, x, base, half, light):
    shade = Image.new("L", image.size, 0)
    ImageDraw.Draw(shade).ellipse((x - half, base - half * 0.10, x + half, base + half * 0.14), fill=70)
    image.paste(Image.new("RGB", image.size, _tint((40, 40, 60), light)), mask=shade)


def _weather(image, w, h, weather, rng):
    draw = ImageDraw.Draw(image)
    unit = min(w, h)
    if weather == "rain":
        for _ in range(46):
            x, y = rng.uniform(0, w), rng.uniform(0, h)
            draw.line((x, y, x - unit * 0.02, y + unit * 0.07), fill=(176, 200, 230), width=2)
    elif weather == "snowfall":
        for _ in range(46):
            x, y, r = rng.uniform(0, w), rng.uniform(0, h), unit * 0.011
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 250, 255))
    elif weather == "fog":
        return Image.blend(image, Image.new("RGB", image.size, (206, 210, 216)), 0.42)
    return image
