"""Draws sprites that need no extra package: coloured shapes, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin

from PIL import Image, ImageDraw

COLOURS = {
    "red": (225, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (60, 165, 70),
    "blue": (50, 95, 215),
    "purple": (140, 65, 175),
    "brown": (130, 80, 45),
    "black": (35, 35, 35),
    "pink": (250, 120, 180),
    "white": (252, 252, 252),
}
CURATED_COLOURS = 8
CURATED_SHAPES = 8
_SUPERSAMPLE = 4

Points = list[tuple[float, float]]


def _polygon(corners: int, turn: float = -pi / 2, inner: float = 1.0) -> Points:
    """Returns a regular polygon in the unit circle. `inner` < 1 pulls every second corner in, which gives a star."""
    count = corners if inner == 1.0 else 2 * corners
    radii = [1.0 if inner == 1.0 or i % 2 == 0 else inner for i in range(count)]
    return [(r * cos(turn + 2 * pi * i / count), r * sin(turn + 2 * pi * i / count)) for i, r in enumerate(radii)]


def _heart() -> Points:
    angles = [2 * pi * i / 60 for i in range(60)]
    return [(16 * sin(t) ** 3 / 17, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 17) for t in angles]


def _cross(arm: float = 0.36) -> Points:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    points: Points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]  # the next quarter, turned by 90°
    return points


def _crescent() -> Points:
    outer = [(cos(t), sin(t)) for t in (pi * (0.25 + 1.5 * i / 40) for i in range(41))]
    inner = [(0.35 + 0.79 * cos(t), 0.79 * sin(t)) for t in (pi * (1.65 - 1.3 * i / 40) for i in range(41))]
    return outer + inner


SHAPES: dict[str, Callable[[], Points]] = {
    "circle": lambda: _polygon(90),
    "square": lambda: _polygon(4, pi / 4),
    "triangle": lambda: _polygon(3),
    "star": lambda: _polygon(5, inner=0.42),
    "heart": _heart,
    "cross": _cross,
    "hexagon": lambda: _polygon(6, 0.0),
    "crescent": _crescent,
    "diamond": lambda: [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "bar": lambda: [(-1.0, -0.3), (1.0, -0.3), (1.0, 0.3), (-1.0, 0.3)],
    "arrow": lambda: [(1.0, 0.0), (0.1, -0.75), (0.1, -0.28), (-1.0, -0.28), (-1.0, 0.28), (0.1, 0.28), (0.1, 0.75)],
    "bolt": lambda: [(0.25, -1.0), (-0.5, 0.15), (-0.05, 0.15), (-0.25, 1.0), (0.5, -0.25), (0.08, -0.25)],
}


def shape_entries(curated: bool) -> list[tuple[str, str, str]]:
    """Returns (key, name, group) of each shape. Key and name are, for example, `red circle`; the group is `shape`."""
    shapes = list(SHAPES)[: CURATED_SHAPES if curated else None]
    colours = list(COLOURS)[: CURATED_COLOURS if curated else None]
    return [(f"{colour} {shape}",) * 2 + ("shape",) for shape in shapes for colour in colours]


def draw_shape(key: str, side: int) -> Image.Image:
    """Draws a shape with a dark outline as RGBA, about `side` pixels wide."""
    colour, shape = key.split(" ")
    big = side * _SUPERSAMPLE
    middle, radius = big / 2, big * 0.46
    points = [(middle + radius * x, middle + radius * y) for x, y in SHAPES[shape]()]
    picture = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.polygon(points, fill=COLOURS[colour])
    draw.line([*points, points[0], points[1]], fill=(0, 0, 0), width=round(big * 0.045), joint="curve")
    return picture.convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA")
