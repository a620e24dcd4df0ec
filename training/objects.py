"""Vector drawings of the 24 kinds of object, each unmistakable in silhouette at 128x128.

Every drawing fills the box x in [-1, 1], y in [0, 2] (y grows upwards, the object stands on y = 0) through a `Pen`, which
places that box on the canvas. `pen.main` is the object's own colour; outlines are dark, so that white shows on snow.
"""

import math

from PIL import ImageDraw

INK = (34, 30, 40)


class Pen:
    """Maps an object's own box onto the canvas and draws filled, outlined shapes."""

    def __init__(self, image, cx, base, scale, main, light):
        self.draw = ImageDraw.Draw(image)
        self.cx, self.base, self.scale = cx, base, scale
        self.light = light
        self.main = self.lit(main)
        self.dark = tuple(int(c * 0.72) for c in self.main)
        self.pale = tuple(int(c + (255 * light - c) * 0.55) if 255 * light > c else c for c in self.main)
        self.ink = tuple(int(c * (0.5 + 0.5 * light)) for c in INK)
        self.width = max(2, round(scale * 0.07))

    def lit(self, rgb):
        """A colour under the scene's light."""
        return tuple(int(c * self.light) for c in rgb)

    def at(self, x, y):
        return (self.cx + x * self.scale, self.base - y * self.scale)

    def poly(self, points, fill=None):
        spots = [self.at(*p) for p in points]
        self.draw.polygon(spots, fill=self.main if fill is None else fill)
        self.draw.line(spots + spots[:2], fill=self.ink, width=self.width, joint="curve")

    def box(self, x0, y0, x1, y1, fill=None):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def oval(self, x, y, rx, ry=None, fill=None, outline=True):
        ry = rx if ry is None else ry
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        self.draw.ellipse((x0, y0, x1, y1), fill=self.main if fill is None else fill,
                          outline=self.ink if outline else None, width=self.width if outline else 0)

    def chord(self, x, y, rx, ry, start, end, fill=None):
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        self.draw.chord((x0, y0, x1, y1), start, end, fill=self.main if fill is None else fill,
                        outline=self.ink, width=self.width)

    def line(self, points, fill=None, wide=1.0):
        self.draw.line([self.at(*p) for p in points], fill=fill or self.ink,
                       width=max(1, round(self.width * wide)), joint="curve")

    def dot(self, x, y, r, fill=None):
        self.oval(x, y, r, fill=fill or self.ink, outline=False)


GLASS, WOOD, GREEN, STEEL, CREAM = (196, 226, 240), (122, 82, 52), (70, 140, 70), (150, 152, 160), (244, 236, 214)


def house(p):
    p.box(-0.75, 0, 0.75, 1.0)
    p.poly([(-1, 1.0), (0, 1.9), (1, 1.0)], p.dark)
    p.box(-0.16, 0, 0.2, 0.58, p.lit(WOOD))
    p.box(-0.58, 0.42, -0.28, 0.76, p.lit((250, 232, 150)))
    p.box(0.34, 0.42, 0.62, 0.76, p.lit((250, 232, 150)))


def tree(p):
    p.box(-0.15, 0, 0.15, 0.7, p.lit(WOOD))
    for x, y, r in ((-0.45, 1.0, 0.45), (0.45, 1.0, 0.45), (0, 1.45, 0.55)):
        p.oval(x, y, r)
    p.oval(0, 1.12, 0.5, 0.4, outline=False)


def car(p):
    p.poly([(-0.6, 0.62), (-0.4, 1.08), (0.35, 1.08), (0.62, 0.62)], p.lit(GLASS))
    p.poly([(-1, 0.2), (-1, 0.6), (-0.6, 0.68), (0.65, 0.68), (1, 0.55), (1, 0.2)])
    for x in (-0.55, 0.55):
        p.oval(x, 0.2, 0.24, fill=p.lit((50, 50, 56)))
        p.dot(x, 0.2, 0.09, p.lit(STEEL))


def bus(p):
    p.box(-1, 0.22, 1, 1.3)
    for x in (-0.85, -0.38, 0.09, 0.56):
        p.box(x, 0.72, x + 0.32, 1.1, p.lit(GLASS))
    for x in (-0.55, 0.55):
        p.oval(x, 0.22, 0.22, fill=p.lit((50, 50, 56)))


def boat(p):
    p.line([(0, 0.5), (0, 1.9)], wide=1.5)
    p.poly([(0.08, 0.62), (0.08, 1.85), (0.8, 0.62)], p.lit(CREAM))
    p.poly([(-0.08, 0.62), (-0.08, 1.6), (-0.62, 0.62)], p.lit(CREAM))
    p.poly([(-1, 0.55), (-0.65, 0), (0.65, 0), (1, 0.55)])


def cat(p):
    p.line([(0.5, 0.25), (0.85, 0.4), (0.8, 0.95)], p.main, 3.0)
    p.oval(0, 0.5, 0.5, 0.52)
    p.poly([(-0.48, 1.3), (-0.45, 1.9), (-0.08, 1.55)])
    p.poly([(0.48, 1.3), (0.45, 1.9), (0.08, 1.55)])
    p.oval(0, 1.22, 0.5, 0.42)
    for x in (-0.2, 0.2):
        p.oval(x, 1.28, 0.09, 0.11, fill=p.lit((236, 240, 150)))
        p.line([(x * 1.6, 1.08), (x * 3.6, 1.14)], wide=0.6)
    p.dot(0, 1.12, 0.06)


def dog(p):
    p.line([(-0.65, 0.85), (-0.95, 1.25)], p.main, 3.0)
    for x in (-0.55, -0.3, 0.2, 0.42):
        p.box(x - 0.08, 0, x + 0.09, 0.5, p.dark)
    p.poly([(-0.72, 0.4), (-0.72, 0.9), (0.5, 0.95), (0.5, 0.4)])
    p.oval(0.58, 1.2, 0.36)
    p.oval(0.88, 1.08, 0.2, 0.15, p.pale)
    p.dot(1.0, 1.12, 0.08)
    p.oval(0.34, 1.2, 0.13, 0.34, p.dark)
    p.dot(0.64, 1.28, 0.06)


def fish(p):
    p.poly([(-0.5, 0.8), (-1, 1.25), (-1, 0.35)], p.dark)
    p.poly([(-0.1, 1.15), (0.1, 1.5), (0.4, 1.1)], p.dark)
    p.oval(0.15, 0.8, 0.8, 0.45)
    p.line([(0.42, 1.15), (0.34, 0.8), (0.42, 0.45)], wide=0.8)
    p.oval(0.62, 0.9, 0.1, fill=p.lit((250, 250, 250)))
    p.dot(0.64, 0.9, 0.05)


def bird(p):
    p.line([(-0.1, 0.4), (-0.15, 0)], wide=0.8)
    p.line([(0.15, 0.4), (0.15, 0)], wide=0.8)
    p.poly([(-0.4, 0.75), (-1, 0.6), (-0.95, 0.95)], p.dark)
    p.oval(0, 0.75, 0.55, 0.45)
    p.oval(0.45, 1.2, 0.34)
    p.poly([(0.74, 1.3), (1.05, 1.16), (0.74, 1.06)], p.lit((240, 170, 50)))
    p.poly([(-0.35, 0.9), (0.25, 0.9), (-0.2, 0.45)], p.dark)
    p.dot(0.52, 1.27, 0.07)


def flower(p):
    p.line([(0, 0), (0, 1.2)], p.lit(GREEN), 2.0)
    p.oval(0.26, 0.42, 0.26, 0.12, p.lit(GREEN))
    p.oval(-0.26, 0.58, 0.26, 0.12, p.lit(GREEN))
    for k in range(6):
        angle = k * math.pi / 3
        p.oval(0.38 * math.cos(angle), 1.35 + 0.38 * math.sin(angle), 0.27)
    p.oval(0, 1.35, 0.22, fill=p.lit((250, 210, 70)))


def mushroom(p):
    p.poly([(-0.24, 0), (0.24, 0), (0.18, 0.85), (-0.18, 0.85)], p.lit(CREAM))
    p.chord(0, 0.75, 0.9, 0.85, 180, 360)
    for x, y, r in ((-0.45, 1.05, 0.13), (0.1, 1.3, 0.15), (0.5, 1.0, 0.12)):
        p.oval(x, y, r, fill=p.lit((250, 246, 236)), outline=False)


def umbrella(p):
    p.line([(0, 1.0), (0, 0.15), (0.14, 0.02), (0.28, 0.15)], wide=1.6)
    p.chord(0, 1.0, 1.0, 0.85, 180, 360)
    p.line([(-0.36, 1.0), (-0.12, 1.8)], wide=0.8)
    p.line([(0.36, 1.0), (0.12, 1.8)], wide=0.8)
    p.line([(0, 1.85), (0, 2.0)], wide=1.2)


def balloon(p):
    p.line([(-0.3, 0.75), (-0.16, 0.35)], wide=0.8)
    p.line([(0.3, 0.75), (0.16, 0.35)], wide=0.8)
    p.poly([(-0.55, 0.95), (-0.2, 0.55), (0.2, 0.55), (0.55, 0.95)])
    p.oval(0, 1.3, 0.7, 0.68)
    p.oval(0, 1.3, 0.26, 0.68, p.pale)
    p.box(-0.2, 0, 0.2, 0.36, p.lit(WOOD))


def rocket(p):
    p.poly([(-0.18, 0.3), (0, -0.05), (0.18, 0.3)], p.lit((250, 160, 40)))
    p.poly([(-0.3, 0.75), (-0.7, 0.2), (-0.26, 0.32)], p.dark)
    p.poly([(0.3, 0.75), (0.7, 0.2), (0.26, 0.32)], p.dark)
    p.poly([(-0.3, 0.3), (-0.36, 1.0), (-0.24, 1.5), (0, 2.0), (0.24, 1.5), (0.36, 1.0), (0.3, 0.3)])
    p.oval(0, 1.15, 0.17, fill=p.lit(GLASS))


def tent(p):
    p.poly([(-1, 0), (0, 1.4), (1, 0)])
    p.poly([(-0.3, 0), (0, 0.85), (0.3, 0)], p.lit((60, 50, 56)))
    p.line([(0, 1.4), (0, 1.62)], wide=1.2)


def castle(p):
    p.box(-0.6, 0, 0.6, 1.0)
    for x in (-0.75, 0.75):
        p.box(x - 0.25, 0, x + 0.25, 1.35)
        p.poly([(x - 0.33, 1.35), (x, 1.95), (x + 0.33, 1.35)], p.dark)
    for x in (-0.34, 0, 0.34):
        p.box(x - 0.09, 1.0, x + 0.09, 1.18)
    p.box(-0.18, 0, 0.18, 0.5, p.lit((70, 52, 44)))


def lighthouse(p):
    p.poly([(-0.42, 0), (0.42, 0), (0.26, 1.4), (-0.26, 1.4)], p.lit((246, 244, 240)))
    p.poly([(-0.4, 0.18), (0.4, 0.18), (0.36, 0.5), (-0.36, 0.5)])
    p.poly([(-0.34, 0.8), (0.34, 0.8), (0.29, 1.14), (-0.29, 1.14)])
    p.box(-0.22, 1.4, 0.22, 1.68, p.lit((255, 236, 130)))
    p.poly([(-0.32, 1.68), (0, 2.0), (0.32, 1.68)])


def star(p):
    ring = []
    for k in range(10):
        radius = 0.98 if k % 2 == 0 else 0.42
        angle = math.pi / 2 + k * math.pi / 5
        ring.append((radius * math.cos(angle), 0.92 + radius * math.sin(angle)))
    p.poly(ring)


def heart(p):
    ring = []
    for k in range(28):
        t = k * 2 * math.pi / 28
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        ring.append((x / 17, 1.02 + y / 16.5))
    p.poly(ring)


def cup(p):
    p.oval(0.62, 0.75, 0.34, 0.36, p.dark)
    p.oval(0.62, 0.75, 0.16, 0.18, p.pale)
    p.poly([(-0.62, 1.3), (-0.5, 0.1), (0.5, 0.1), (0.62, 1.3)])
    p.oval(0, 1.3, 0.62, 0.16, p.lit((92, 58, 40)))
    p.line([(-0.18, 1.55), (-0.08, 1.72), (-0.18, 1.92)], p.lit((235, 235, 235)), 0.9)
    p.line([(0.18, 1.55), (0.28, 1.72), (0.18, 1.92)], p.lit((235, 235, 235)), 0.9)


def chair(p):
    p.box(-0.55, 0, -0.38, 1.9)
    p.box(0.42, 0, 0.58, 0.85)
    p.box(-0.55, 0.72, 0.62, 0.95)
    p.box(-0.5, 1.15, 0.3, 1.25, p.dark)
    p.box(-0.5, 1.55, 0.3, 1.8, p.dark)
    p.box(0.2, 0.95, 0.3, 1.8, p.dark)


def ball(p):
    p.oval(0, 0.85, 0.85)
    p.chord(0, 0.85, 0.85, 0.85, 60, 120, p.lit((250, 248, 244)))
    p.chord(0, 0.85, 0.85, 0.85, 240, 300, p.lit((250, 248, 244)))
    p.line([(-0.82, 0.85), (0.82, 0.85)], p.lit((250, 248, 244)), 1.8)


def robot(p):
    for x in (-0.26, 0.26):
        p.box(x - 0.13, 0, x + 0.13, 0.42, p.lit(STEEL))
    p.box(-0.85, 0.55, -0.55, 1.1, p.lit(STEEL))
    p.box(0.55, 0.55, 0.85, 1.1, p.lit(STEEL))
    p.box(-0.55, 0.4, 0.55, 1.15)
    p.box(-0.42, 1.2, 0.42, 1.75)
    p.line([(0, 1.75), (0, 1.95)], wide=1.0)
    p.dot(0, 1.97, 0.08)
    for x in (-0.2, 0.2):
        p.oval(x, 1.5, 0.12, fill=p.lit((250, 244, 150)))
    p.box(-0.24, 0.62, 0.24, 0.9, p.pale)


def butterfly(p):
    for side in (-1, 1):
        p.oval(side * 0.5, 1.25, 0.46, 0.48)
        p.oval(side * 0.42, 0.55, 0.36, 0.36)
        p.oval(side * 0.52, 1.28, 0.18, fill=p.pale)
        p.line([(0, 1.5), (side * 0.24, 1.9)], wide=0.8)
    p.oval(0, 0.95, 0.11, 0.62, p.lit((60, 48, 50)))


OBJECTS = {drawing.__name__: drawing for drawing in (
    house, tree, car, bus, boat, cat, dog, fish, bird, flower, mushroom, umbrella, balloon, rocket, tent, castle,
    lighthouse, star, heart, cup, chair, ball, robot, butterfly)}
