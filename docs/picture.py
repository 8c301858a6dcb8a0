"""Draws the README's picture, for light pages and for dark ones: `python docs/picture.py`.

The image encoder and the text encoder stand side by side like the panels of a diptych and are aligned by ITC. The
fusion encoder is at their right, and the momentum encoders are above all three. Lengths are pixels of a 900 × 512
drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Palette:
    """The colours on light or on dark pages: of lines, of the two panels, of fusion, and of their fillings."""

    ink: str
    faint: str
    panel: str
    image: str
    image_fill: str
    text: str
    text_fill: str
    fusion: str
    fusion_fill: str


PALETTES = {
    "light": Palette(
        "#1f2328", "#656d76", "#f6f8fa", "#0b6e8f", "#dff1f6", "#a3540a", "#fcefdd", "#6f42c1", "#efe8fb"
    ),
    "dark": Palette(
        "#e6edf3", "#9198a1", "#161b22", "#58c4de", "#10303a", "#f0a860", "#3a2812", "#b392f0", "#2a2040"
    ),
}  # fmt: skip


def box(x: int, y: int, width: int, height: int, fill: str, line: str, radius: int = 10, more: str = "") -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"'
        f' fill="{fill}" stroke="{line}" stroke-width="1.6" {more}/>'
    )


def words(x: int, y: int, text: str, colour: str, size: int = 13, weight: int = 400, anchor: str = "middle") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" fill="{colour}" {style}>{text}</text>'


def arrow(path: str, colour: str, head: str | None, both: bool = False, dashed: bool = False) -> str:
    """Draws a line with a head at its end (`both`: also at its start) in the colour that `head` names."""
    end = f' marker-end="url(#{head})"' if head else ""
    start = f' marker-start="url(#{head})"' if both else ""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}{end}{start}/>'


def marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" markerHeight="7"'
        f' orient="auto-start-reverse"><path d="M0 0.8 L9.5 5 L0 9.2 z" fill="{colour}"/></marker>'
    )


def pill(x: int, y: int, text: str, colour: str, fill: str, width: int) -> str:
    return box(x - width // 2, y - 14, width, 28, fill, colour, 14) + words(x, y + 5, text, colour, 13, 600)


def momentum_encoders(p: Palette) -> str:
    """Draws the band above: the momentum encoders and their queue."""
    dashed = 'stroke-dasharray="6 4"'
    parts = [
        box(20, 16, 860, 92, "none", p.faint, 12, dashed),
        words(40, 46, "Momentum encoders", p.ink, 16, 600, "start"),
        words(40, 68, "EMA copies of all three encoders; they", p.faint, 13, 400, "start"),
        words(40, 87, "provide pseudo-targets (Eq. 6, 7)", p.faint, 13, 400, "start"),
    ]
    for x, name, line in ((330, "image", p.image), (432, "text", p.text), (534, "fusion", p.fusion)):
        parts += [box(x, 42, 88, 40, "none", line, 8, dashed), words(x + 44, 67, name, line, 13)]
    for place in range(8):
        fade = f'opacity="{1 - 0.1 * place:.1f}"'
        parts += [box(672 + 23 * place, 38, 18, 18, p.image_fill, p.image, 3, fade)]
        parts += [box(672 + 23 * place, 62, 18, 18, p.text_fill, p.text, 3, fade)]
    parts += [words(763, 99, "queue of momentum features", p.faint, 12)]
    return "".join(parts)


def panels(p: Palette) -> str:
    """Draws the image encoder, ITC, the text encoder, and the fusion encoder beside them."""
    return "".join(
        [
            box(20, 170, 220, 150, p.image_fill, p.image, 12),
            words(130, 202, "Image encoder", p.image, 17, 600),
            words(130, 223, "vision transformer (§3.1)", p.faint, 12),
            *(box(46 + 25 * i, 270, 18, 18, p.panel, p.image, 4) for i in range(7)),
            words(55, 259, "cls", p.image, 11),
            box(360, 170, 220, 150, p.text_fill, p.text, 12),
            words(470, 202, "Text encoder", p.text, 17, 600),
            words(470, 223, "BERT’s lower half (§3.1)", p.faint, 12),
            *(box(386 + 25 * i, 270, 18, 18, p.panel, p.text, 4) for i in range(7)),
            words(395, 259, "cls", p.text, 11),
            arrow("M244 262 L356 262", p.ink, "ink", both=True),
            pill(300, 238, "ITC", p.ink, p.panel, 56),
            words(300, 283, "align", p.ink, 13, 600),
            box(680, 170, 200, 150, p.fusion_fill, p.fusion, 12),
            words(780, 202, "Fusion encoder", p.fusion, 17, 600),
            words(780, 223, "BERT’s upper half (§3.1)", p.faint, 12),
            words(780, 258, "cross-attention:", p.ink, 13),
            words(780, 277, "text attends to the image", p.ink, 13),
            arrow("M584 245 L676 245", p.text, "text"),
            words(630, 235, "queries", p.text, 12),
            # With a gap where the words' arrow passes.
            arrow("M130 324 L130 342 Q130 352 140 352 L393 352", p.image, None),
            arrow("M407 352 L620 352 Q632 352 632 340 L632 307 Q632 295 644 295 L676 295", p.image, "image"),
            words(516, 345, "keys, values: once per image", p.image, 12),
        ]
    )  # fmt: skip


def losses(p: Palette) -> str:
    return "".join(
        [
            arrow("M730 324 L730 372", p.fusion, "fusion"),
            arrow("M830 324 L830 372", p.fusion, "fusion"),
            pill(730, 390, "ITM", p.fusion, p.fusion_fill, 62),
            pill(830, 390, "MLM", p.fusion, p.fusion_fill, 62),
            words(730, 424, "a match?", p.ink, 13, 600),
            words(730, 442, "against hard", p.faint, 12),
            words(730, 458, "negatives (Eq. 4)", p.faint, 12),
            words(830, 424, "the masked", p.ink, 13, 600),
            words(830, 442, "word (Eq. 3)", p.faint, 12),
            # Up: the EMA. Down: the pseudo-targets.
            arrow("M130 166 L130 112", p.faint, "faint", dashed=True),
            words(140, 144, "EMA, momentum 0.995", p.faint, 12, 400, "start"),
            arrow("M300 112 L300 220", p.faint, "faint", dashed=True),
            words(310, 144, "pseudo-targets: which text, which image", p.faint, 12, 400, "start"),
            arrow("M780 112 L780 166", p.faint, "faint", dashed=True),
            words(770, 144, "pseudo-targets: which word", p.faint, 12, 400, "end"),
        ]
    )


def inputs(p: Palette) -> str:
    """Draws an image in patches, and its caption with a masked word."""
    left, top, side = 76, 388, 108
    sky, hill, sun = p.image_fill, p.image, p.text
    grid = "".join(
        f'<path d="M{left + 27 * i} {top} v{side} M{left} {top + 27 * i} h{side}"'
        f' stroke="{p.panel}" stroke-width="1.5"/>'
        for i in (1, 2, 3)
    )
    tokens, x = [], 300
    for word in ("a", "[MASK]", "sun", "above", "a", "hill"):
        width = 20 + 8 * len(word)
        masked = word == "[MASK]"
        tokens += [box(x, 428, width, 28, p.fusion_fill if masked else p.text_fill, p.fusion if masked else p.text, 6)]
        tokens += [words(x + width // 2, 447, word, p.fusion if masked else p.ink, 13, 600 if masked else 400)]
        x += width + 6
    return "".join(
        [
            f'<clipPath id="frame"><rect x="{left}" y="{top}" width="{side}" height="{side}" rx="8"/></clipPath>',
            f'<g clip-path="url(#frame)"><rect x="{left}" y="{top}" width="{side}" height="{side}" fill="{sky}"/>',
            f'<circle cx="{left + 68}" cy="{top + 34}" r="20" fill="{sun}"/>',
            f'<path d="M{left} {top + 92} Q{left + 40} {top + 34} {left + 74} {top + 78} T{left + 108} {top + 72}'
            f' V{top + side} H{left} z" fill="{hill}"/>{grid}</g>',
            box(left, top, side, side, "none", p.image, 8),
            arrow(f"M100 {top - 4} L100 324", p.image, "image"),
            *tokens,
            arrow("M400 422 L400 324", p.text, "text"),
            words(470, 480, "masked for MLM, whole for ITC and ITM", p.faint, 12),
        ]
    )


def draw(p: Palette) -> str:
    """Returns the whole picture as SVG, with a transparent background."""
    colours = {"ink": p.ink, "faint": p.faint, "image": p.image, "text": p.text, "fusion": p.fusion}
    markers = "".join(marker(name, colour) for name, colour in colours.items())
    body = "\n".join(part(p) for part in (momentum_encoders, panels, losses, inputs))
    title = "Image and text encoder, aligned by ITC, fused by cross-attention, momentum encoders above"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 512" role="img" font-family="{FONT}">'
        f"<title>{title}</title>\n<defs>{markers}</defs>\n{body}\n</svg>\n"
    )


def main() -> None:
    for name, palette in PALETTES.items():
        (HERE / f"diptych-{name}.svg").write_text(draw(palette), encoding="utf-8")


if __name__ == "__main__":
    main()
