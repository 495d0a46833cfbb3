"""Flame graphs as plain SVG from folded stacks (``outer;inner;leaf 12``): small, no script, nothing random.

A box is a function, its width the share of samples that had it on the stack at that place; boxes above it are what it
called. Hovering shows the name and the share.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

Stacks = Counter[tuple[str, ...]]

WIDTH, ROW, MARGIN, HEAD = 1_200, 16, 10, 44
CHARACTER_WIDTH = 6.2
MIN_SHARE = 0.002
"""What is narrower than two pixels shows nothing and makes the file large."""


@dataclass
class _Box:
    samples: int = 0
    children: dict[str, _Box] = field(default_factory=dict)


def read_folded(text: str) -> Stacks:
    stacks: Stacks = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        stacks[tuple(stack.split(";"))] += int(count)
    return stacks


def draw(stacks: Stacks, title: str, below: str) -> str:
    """The picture. ``below`` is the second line of its head."""
    root = _Box()
    for stack, count in stacks.items():
        box = root
        box.samples += count
        for name in _shortened(stack):
            box = box.children.setdefault(name, _Box())
            box.samples += count
    depth = _depth(root, root.samples * MIN_SHARE)
    height = HEAD + (depth + 1) * ROW + MARGIN
    boxes = "\n".join(
        _boxes(root, "all", MARGIN, height - MARGIN - ROW, (WIDTH - 2 * MARGIN) / root.samples, root)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{MARGIN}" y="18" font-size="15" font-family="sans-serif">{html.escape(title)}</text>
<text x="{MARGIN}" y="35" font-size="11" font-family="sans-serif" fill="#555555">{html.escape(below)}</text>
<g font-size="10">
{boxes}
</g>
</svg>
"""


def _shortened(stack: tuple[str, ...]) -> Iterator[str]:
    """Without frames that have no name, and without one that only repeats its caller's (inlined by the compiler)."""
    last = ""
    for frame in stack:
        if frame.startswith("0x") or frame == last:
            continue
        last = frame
        yield frame


def _depth(box: _Box, least: float) -> int:
    return max(
        (1 + _depth(child, least) for child in box.children.values() if child.samples >= least), default=0
    )


def _boxes(box: _Box, name: str, x: float, y: float, scale: float, root: _Box) -> Iterator[str]:
    width = box.samples * scale
    label = (
        name
        if len(name) * CHARACTER_WIDTH < width
        else name[: max(0, int(width / CHARACTER_WIDTH) - 1)] + "…"
    )
    share = box.samples / root.samples
    text = f'<text x="{x + 2:.1f}" y="{y + 11.5:.1f}">{html.escape(label)}</text>' if len(label) > 3 else ""
    yield (
        f'<g><title>{html.escape(name)}: {share:.1%}</title><rect x="{x:.1f}" y="{y:.1f}" '
        f'width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}" fill="{_colour(name)}"/>{text}</g>'
    )
    for child_name, child in sorted(box.children.items()):
        if child.samples >= root.samples * MIN_SHARE:
            yield from _boxes(child, child_name, x, y - ROW, scale, root)
        x += child.samples * scale


def _colour(name: str) -> str:
    """Our code red, the interpreter's library yellow, native code grey; a shade of its own for each name."""
    shade = hashlib.sha256(name.encode()).digest()[0] % 40
    if re.search(r"\((appliance|appliance_pkcs11)/\S+\.py\)", name):
        return f"rgb(225,{110 + shade},{95 + shade})"
    if name.endswith(".py)"):
        return f"rgb(240,{195 + shade // 2},{110 + shade})"
    return f"rgb({200 + shade // 2},{200 + shade // 2},{195 + shade // 2})"
