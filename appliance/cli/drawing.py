"""A round red seal to look at, for demonstrations and tests: ring, star, the name along the ring.

For: a picture that keeps every rule of ``imprints``, made from a name alone; the same name gives the same bytes.
Not for: real seals. Theirs are drawn by licensed makers, and are on file with the public security.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from appliance.errors import BadRequest

DPI: Final = 300
_FINER: Final = 3
"""Drawn that much larger, then made smaller: smooth edges."""
_RED: Final = (200, 16, 16)
MAX_NAME_LEN: Final = 24
"""More characters do not fit along the ring."""


def draw_demo_imprint(name: str, font_file: Path, size_mm: int = 42, below: str = "") -> bytes:
    """A PNG, ``size_mm`` square at 300 dots per inch. ``below`` stands under the star: what the seal is for."""
    if not 1 <= len(name) <= MAX_NAME_LEN or len(below) > 8:
        raise BadRequest(f"a demonstration's seal has a name of 1 to {MAX_NAME_LEN} characters, and 8 below")
    side = round(size_mm / 25.4 * DPI)
    large = side * _FINER
    ink = Image.new("L", (large, large), 0)  # how much ink there is, dot by dot
    pen = ImageDraw.Draw(ink)
    margin, line = large * 0.012, round(large * 0.028)
    pen.ellipse((margin, margin, large - margin, large - margin), outline=255, width=line)
    pen.polygon(_star(large / 2, large * 0.49, large * 0.15), fill=255)
    _write_along_the_ring(ink, name, font_file)
    if below:
        font = ImageFont.truetype(str(font_file), round(large * 0.088))
        pen.text((large / 2, large * 0.76), below, fill=255, font=font, anchor="mm")
    picture = Image.new("RGBA", (side, side), (*_RED, 0))
    picture.putalpha(ink.resize((side, side), Image.Resampling.BOX))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True, dpi=(DPI, DPI))
    return out.getvalue()


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    corners = []
    for i in range(10):
        distance = radius if i % 2 == 0 else radius * 0.382
        angle = math.pi * (i / 5 - 0.5)
        corners.append((x + distance * math.cos(angle), y + distance * math.sin(angle)))
    return corners


def _write_along_the_ring(ink: Image.Image, name: str, font_file: Path) -> None:
    """Each character upright towards the middle, spread over the upper part of the ring."""
    large = ink.width
    spread = min(250.0, 26.0 * max(len(name) - 1, 1))
    step = spread / max(len(name) - 1, 1)
    radius = large * 0.375
    # No wider than its place on the ring: long names have narrow, tall characters, as on physical seals.
    tall = large * 0.125
    wide = min(tall, radius * math.radians(step) * 0.92)
    font = ImageFont.truetype(str(font_file), round(tall))
    box = round(tall * 1.5)
    for i, character in enumerate(name):
        angle = -spread / 2 + i * step if len(name) > 1 else 0.0
        glyph = Image.new("L", (box, box), 0)
        ImageDraw.Draw(glyph).text((box / 2, box / 2), character, fill=255, font=font, anchor="mm")
        glyph = glyph.resize((max(1, round(box * wide / tall)), box), Image.Resampling.BICUBIC)
        glyph = glyph.rotate(-angle, expand=True, resample=Image.Resampling.BICUBIC)
        x = large / 2 + radius * math.sin(math.radians(angle))
        y = large / 2 - radius * math.cos(math.radians(angle))
        ink.paste(255, (round(x - glyph.width / 2), round(y - glyph.height / 2)), glyph)
