"""Imprints (印模): whether a picture can be a seal's.

For: a clerk's application and the making: format, limits, size in mm, resolution, transparency; the picture's hash.
Not for: whether it shows the right name and form. That an applicant confirms, and the public security has on file.

Rules:

* The picture is read whole and strictly: nothing before or after it, one frame, every chunk's sum.
* Its size in pixels is read from its header by hand before any library may unpack it: some kB can unpack to
  gigabytes.
* Sizes are the physical seal's (003 §9-10), in whole mm, within the range of its kind; the pixels have the same
  proportions, and at least 150 for an inch, so that print shows it as the physical one.
* The background is transparent: a seal lies on text.
* The bytes are kept as they came. Their SM3 is the imprint's hash, and equals the hash on file where there is one.

Only pictures of pixels are taken: an SVG or OFD is a program for some viewer, and what it shows cannot be checked.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from PIL import Image

from appliance.errors import BadRequest, Conflict
from appliance.lifecycle import Imprint, Kind
from appliance.verifying import sm3

MAX_IMPRINT_LEN: Final = 256 * 1024
"""Bytes. The picture is in the seal, and the seal in each of its signatures; real ones have 5 to 100 kB."""
MAX_SIDE_PX: Final = 2_400
"""60 mm at 1,000 dots per inch; unpacked, 23 MB."""
MIN_DPI: Final = 150
"""Below it, print shows steps. It is counted along each side."""
PROPORTION_TOLERANCE: Final = 0.03
"""Of width by height: mm are whole numbers, and at 18 mm half of one is as much."""
MIN_INK: Final = 0.01
"""Share of opaque pixels; a seal of thin lines has 5 %."""
MAX_INK: Final = 0.85
"""A square name seal with white characters has 70 %."""
MIN_CLEAR: Final = 0.1
"""Share of wholly transparent pixels; the corners around a circle alone are 21 %, an oval's too."""
CLEAR_ALPHA: Final = 8
"""Of 255: what nobody sees. Some programs leave it in the background."""
OPAQUE_ALPHA: Final = 128


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Width and height in mm, both ends included."""

    min_width_mm: int
    max_width_mm: int
    min_height_mm: int
    max_height_mm: int

    def __str__(self) -> str:
        return f"{self.min_width_mm}-{self.max_width_mm} × {self.min_height_mm}-{self.max_height_mm} mm"


SIZES: Final = {
    # State organs' round seals have 42, 45, 50 or 60 mm, other units' at most 45, smaller ones 38; the oval ones of
    # firms with foreign capital 45 × 30 (国发〔1999〕25 号, GA/T 1180).
    Kind.STATUTORY: SizeRange(38, 60, 30, 60),
    # As above, and branches that have oblong ones.
    Kind.DEPARTMENT: SizeRange(30, 60, 20, 60),
    # Contract and finance seals are round, 38 to 45 mm; invoice seals oval, 40 × 30; tax offices' 34 × 26, 30 × 20.
    Kind.SPECIAL: SizeRange(30, 60, 20, 60),
    # Square name seals of 18 to 25 mm, and oblong ones of 30 × 20 with an office above the name.
    Kind.OFFICE: SizeRange(10, 50, 8, 50),
    # Name seals from 10 mm on, and signatures, which are wide.
    Kind.PERSONAL: SizeRange(10, 60, 8, 40),
}
"""What physical seals of each kind measure."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_REFUSED: Final = {
    "JPG": "it has no transparent background",
    "JPEG": "it has no transparent background",
    "SVG": "what a vector picture shows is not checked here",
    "OFD": "what a vector picture shows is not checked here",
}
_UNREADABLE: Final = (
    OSError,
    SyntaxError,  # Pillow's word for a broken file
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow is known to raise for broken pictures."""


def check_imprint(format_: str, data: bytes, width_mm: int, height_mm: int, kind: Kind) -> Imprint:
    """The imprint, with its hash; ``BadRequest`` tells the first rule that it breaks. Takes up to 0.1 s."""
    format_ = format_.upper()
    if format_ in _REFUSED:
        raise _bad(f"{format_} is not taken: {_REFUSED[format_]}")
    if format_ not in _SIZE_READERS:
        raise _bad(f"unknown format {format_[:16]!r}", f"send one of: {', '.join(_SIZE_READERS)}")
    if len(data) > MAX_IMPRINT_LEN:
        raise _bad(f"{len(data)} bytes", f"at most {MAX_IMPRINT_LEN}: it is in each signature of the seal")
    _check_mm(width_mm, height_mm, kind)
    width_px, height_px = _SIZE_READERS[format_](data)
    _check_px(width_px, height_px, width_mm, height_mm)
    _check_ink(_unpack(format_, data, (width_px, height_px)))
    return Imprint(format_, data, width_mm, height_mm, sm3(data))


def check_on_file(imprint: Imprint, filed_sm3: bytes) -> None:
    """``Conflict`` where it is not, byte for byte, the imprint with that hash: the one that others have on file."""
    if sm3(imprint.data) != filed_sm3 or imprint.sm3 != filed_sm3:
        raise Conflict(
            f"the imprint's hash is {sm3(imprint.data).hex()}, on file is {filed_sm3.hex()}",
            hint="take the very file that is on file with the public security (003 §9)",
        )


# Sizes ------------------------------------------------------------------------------------------------------


def _check_mm(width_mm: int, height_mm: int, kind: Kind) -> None:
    sizes = SIZES[kind]
    if not (
        sizes.min_width_mm <= width_mm <= sizes.max_width_mm
        and sizes.min_height_mm <= height_mm <= sizes.max_height_mm
    ):
        raise _bad(f"{width_mm} × {height_mm} mm", f"a seal of kind {kind.value} has {sizes}")


def _check_px(width_px: int, height_px: int, width_mm: int, height_mm: int) -> None:
    size = f"{width_px} × {height_px} pixels"
    if not (1 <= width_px <= MAX_SIDE_PX and 1 <= height_px <= MAX_SIDE_PX):
        raise _bad(size, f"at most {MAX_SIDE_PX} on each side")
    dpi = min(width_px / width_mm, height_px / height_mm) * 25.4
    if dpi < MIN_DPI:
        raise _bad(f"{size} are {dpi:.0f} for an inch", f"at least {MIN_DPI}, 300 or 600 are usual")
    if abs(width_px * height_mm - height_px * width_mm) > PROPORTION_TOLERANCE * width_px * height_mm:
        raise _bad(
            f"{size} have other proportions than {width_mm} × {height_mm} mm",
            f"the same but for {PROPORTION_TOLERANCE:.0%}: cut the picture to the seal, or measure again",
        )


def _png_size(data: bytes) -> tuple[int, int]:
    """From the header, after a walk over all chunks."""
    if not data.startswith(_PNG):
        raise _bad("no PNG picture")
    at = len(_PNG)
    names: list[bytes] = []
    while at < len(data) and names[-1:] != [b"IEND"]:
        head = data[at : at + 8]
        if len(head) < 8:
            raise _bad("the PNG picture is cut off")
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        body, sum_ = data[at + 4 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(sum_) < 4:
            raise _bad("the PNG picture is cut off")
        if zlib.crc32(body) != int.from_bytes(sum_, "big"):
            raise _bad(f"the PNG picture is damaged in chunk {name!r}")
        names.append(name)
        at += 12 + length
    if names[-1:] != [b"IEND"]:
        raise _bad("the PNG picture is cut off")
    if at != len(data):
        raise _bad(f"{len(data) - at} bytes follow the PNG picture")
    if names[0] != b"IHDR" or names.count(b"IHDR") != 1 or len(data) < 33:
        raise _bad("the PNG picture's header is not where it belongs")
    if b"acTL" in names:
        raise _bad("the picture moves")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif_size(data: bytes) -> tuple[int, int]:
    if data[:6] not in (b"GIF87a", b"GIF89a") or len(data) < 14:
        raise _bad("no GIF picture")
    if not data.endswith(b"\x3b"):
        raise _bad("the GIF picture is cut off, or something follows it")
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _bmp_size(data: bytes) -> tuple[int, int]:
    if data[:2] != b"BM" or len(data) < 54:
        raise _bad("no BMP picture")
    if int.from_bytes(data[2:6], "little") != len(data):
        raise _bad("the BMP picture is cut off, or something follows it")
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: from top to bottom


_SIZE_READERS: Final = {"PNG": _png_size, "GIF": _gif_size, "BMP": _bmp_size}


# Pixels -----------------------------------------------------------------------------------------------------


def _unpack(format_: str, data: bytes, size: tuple[int, int]) -> Image.Image:
    """Its alpha channel."""
    try:
        with Image.open(io.BytesIO(data), formats=[format_]) as image:
            if image.size != size:
                raise _bad("the picture's headers contradict each other")
            if getattr(image, "n_frames", 1) != 1:
                raise _bad("the picture moves")
            image.load()
            if not image.has_transparency_data:
                raise _bad(
                    "the picture has no transparency", "make the background transparent, e.g. PNG with alpha"
                )
            return image.convert("RGBA").getchannel("A")
    except _UNREADABLE as error:
        raise _bad(f"the picture cannot be read: {str(error)[:80]}") from error


def _check_ink(alpha: Image.Image) -> None:
    width, height = alpha.size
    corners = [alpha.crop((x, y, x + 1, y + 1)).tobytes()[0] for x in (0, width - 1) for y in (0, height - 1)]
    if max(corners) > CLEAR_ALPHA:
        raise _bad(
            "the picture's corners are not transparent", "make the background transparent and leave a margin"
        )
    counts = alpha.histogram()
    ink = sum(counts[OPAQUE_ALPHA:]) / (width * height)
    clear = sum(counts[: CLEAR_ALPHA + 1]) / (width * height)
    if ink < MIN_INK:
        raise _bad(
            f"ink covers {ink:.1%} of the picture", f"at least {MIN_INK:.0%}: is it empty or too pale?"
        )
    if ink > MAX_INK or clear < MIN_CLEAR:
        raise _bad(
            f"ink covers {ink:.0%} of the picture, {clear:.0%} are transparent",
            f"at most {MAX_INK:.0%} and at least {MIN_CLEAR:.0%}: is the background filled?",
        )


def _bad(detail: str, hint: str = "send a PNG with a transparent background, as it is on file") -> BadRequest:
    return BadRequest(f"imprint: {detail}", hint=hint)
