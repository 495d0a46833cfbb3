"""Imprints: each rule at its limit, one defect at a time, and bytes that are no picture."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from appliance.cli.drawing import MAX_NAME_LEN, draw_demo_imprint
from appliance.errors import BadRequest, Conflict
from appliance.imprints import MAX_IMPRINT_LEN, MAX_SIDE_PX, SIZES, check_imprint, check_on_file
from appliance.lifecycle import Imprint, Kind
from appliance.settings import SealSettings

FONT = SealSettings().font_file


def ring(width: int = 496, height: int | None = None, mode: str = "RGBA") -> Image.Image:
    """A red oval line on nothing."""
    image = Image.new("RGBA", (width, height or width), (255, 255, 255, 0))
    ImageDraw.Draw(image).ellipse(
        (2, 2, width - 3, (height or width) - 3), outline=(200, 0, 0, 255), width=max(2, width // 20)
    )
    return image if mode == "RGBA" else image.convert(mode)


def saved(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


@cache
def good() -> bytes:
    return saved(ring())


def check(
    data: bytes, format_: str = "PNG", width_mm: int = 42, height_mm: int = 42, kind: Kind = Kind.STATUTORY
) -> Imprint:
    return check_imprint(format_, data, width_mm, height_mm, kind)


def refused(told: str, data: bytes, format_: str = "PNG", **more: object) -> None:
    with pytest.raises(BadRequest, match=told) as caught:
        check(data, format_, **more)  # type: ignore[arg-type]
    assert caught.value.hint, "every refusal says what to do"


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# What is taken ----------------------------------------------------------------------------------------------


def test_a_good_one_is_kept_as_it_came_with_its_hash() -> None:
    imprint = check(good(), "png")
    digest = hashes.Hash(hashes.SM3())
    digest.update(good())
    assert imprint == Imprint("PNG", good(), 42, 42, digest.finalize())


@pytest.mark.parametrize("name", ["云", "杭州云章科技有限公司", "章" * MAX_NAME_LEN])
def test_the_demonstrations_seal_keeps_every_rule(name: str) -> None:
    picture = draw_demo_imprint(name, FONT, 42, "合同专用章")
    for kind in (Kind.STATUTORY, Kind.DEPARTMENT, Kind.SPECIAL):
        check(picture, kind=kind)
    assert picture == draw_demo_imprint(name, FONT, 42, "合同专用章"), "the same name, the same bytes"
    assert len(picture) < MAX_IMPRINT_LEN / 4


@pytest.mark.parametrize("name", ["", "章" * (MAX_NAME_LEN + 1)])
def test_names_that_the_demonstration_cannot_draw(name: str) -> None:
    with pytest.raises(BadRequest):
        draw_demo_imprint(name, FONT)


REAL_SIZES = [  # met in real seals, or usual for physical ones
    (Kind.SPECIAL, 30, 20),
    (Kind.SPECIAL, 34, 26),
    (Kind.SPECIAL, 38, 38),
    (Kind.SPECIAL, 40, 30),
    (Kind.STATUTORY, 40, 40),
    (Kind.STATUTORY, 42, 42),
    (Kind.STATUTORY, 45, 45),
    (Kind.STATUTORY, 45, 30),
    (Kind.DEPARTMENT, 42, 42),
    (Kind.OFFICE, 20, 20),
    (Kind.OFFICE, 30, 20),
    (Kind.PERSONAL, 18, 18),
    (Kind.PERSONAL, 40, 15),
]


@pytest.mark.parametrize(("kind", "width_mm", "height_mm"), REAL_SIZES)
def test_sizes_of_real_seals(kind: Kind, width_mm: int, height_mm: int) -> None:
    check(saved(ring(width_mm * 12, height_mm * 12)), width_mm=width_mm, height_mm=height_mm, kind=kind)


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_at_its_limits(kind: Kind) -> None:
    sizes = SIZES[kind]
    for width_mm, height_mm, is_good in (
        (sizes.min_width_mm, sizes.min_height_mm, True),
        (sizes.max_width_mm, sizes.max_height_mm, True),
        (sizes.min_width_mm - 1, sizes.min_height_mm, False),
        (sizes.min_width_mm, sizes.min_height_mm - 1, False),
        (sizes.max_width_mm + 1, sizes.max_height_mm, False),
        (sizes.max_width_mm, sizes.max_height_mm + 1, False),
    ):
        data = saved(ring(width_mm * 12, height_mm * 12))
        if is_good:
            check(data, width_mm=width_mm, height_mm=height_mm, kind=kind)
        else:
            refused(f"{width_mm} × {height_mm} mm", data, width_mm=width_mm, height_mm=height_mm, kind=kind)


def test_gif_and_bmp_with_transparency_are_taken() -> None:
    palette = Image.new("P", (496, 496), 0)
    palette.putpalette([255, 255, 255, 200, 0, 0])
    ImageDraw.Draw(palette).ellipse((2, 2, 493, 493), outline=1, width=30)
    assert check(saved(palette, "GIF", transparency=0), "GIF").format == "GIF"
    refused("no transparency", saved(palette, "GIF"), "GIF")
    assert check(bmp_with_alpha(), "bmp").format == "BMP"


def bmp_with_alpha(width: int = 250, height: int = 250) -> bytes:
    """BITMAPV4HEADER with a mask for alpha, as image programs write it."""
    pixels = ring(width, height).tobytes("raw", "BGRA", 0, -1)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_other_ways_to_be_transparent(mode: str) -> None:
    image = ring(mode="LA") if mode == "LA" else ring().quantize(16)
    check(saved(image))


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPG", "jpeg", "SVG", "OFD", "WEBP", "", "PNG\n"])
def test_formats_that_cannot_be_checked(format_: str) -> None:
    refused("is not taken|unknown format", good(), format_)


@pytest.mark.parametrize("format_", ["GIF", "BMP"])
def test_another_format_than_it_says(format_: str) -> None:
    refused(f"no {format_} picture", good(), format_)
    refused("no PNG picture", saved(ring(mode="P"), format_))


def test_bytes_at_the_limit() -> None:
    comment = MAX_IMPRINT_LEN - len(good()) - 12
    filled = good()[:33] + chunk(b"teSt", bytes(comment)) + good()[33:]
    assert len(filled) == MAX_IMPRINT_LEN
    check(filled)
    refused("262145 bytes", good()[:33] + chunk(b"teSt", bytes(comment + 1)) + good()[33:])


def test_pixels_at_the_limit() -> None:
    check(saved(ring(MAX_SIDE_PX)), width_mm=60, height_mm=60)
    refused("2401 × 2401 pixels", saved(ring(MAX_SIDE_PX + 1)), width_mm=60, height_mm=60)
    refused("2401 × 10 pixels", saved(ring(MAX_SIDE_PX + 1, 10)))


@pytest.mark.parametrize("side", [30_000, 0x7FFFFFFF, 0xFFFFFFFF, 0])
def test_a_bomb_is_told_by_its_header_and_not_unpacked(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    refused(f"{side} × {side} pixels", bomb + chunk(b"IEND", b""))
    for format_, head in (
        ("GIF", b"GIF89a" + struct.pack("<HH", side & 0xFFFF, side & 0xFFFF) + bytes(3) + b"\x3b"),
        ("BMP", struct.pack("<2sIHHIIii", b"BM", 54, 0, 0, 54, 40, side & 0x7FFFFFFF, 1) + bytes(28)),
    ):
        refused("pixels|headers contradict|read", head, format_)


def test_a_gif_frame_that_is_larger_than_its_screen() -> None:
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + b"\x00\x02\x02\x4c\x01\x00\x3b"
    screen = b"GIF89a" + struct.pack("<HH", 496, 496) + b"\x80\x00\x00" + bytes(6)
    refused("contradict|read", screen + frame, "GIF")


def test_resolution_at_the_limit() -> None:
    check(saved(ring(249)))  # 42 mm at 150 dots per inch are 248.03
    refused("are 150 for an inch", saved(ring(248)))


@pytest.mark.parametrize(
    ("width", "height", "is_good"), [(510, 496, True), (512, 496, False), (496, 510, True)]
)
def test_proportions_at_the_limit(width: int, height: int, is_good: bool) -> None:
    data = saved(ring(width, height))
    if is_good:
        check(data)
    else:
        refused("other proportions", data)


def test_moving_pictures() -> None:
    frames = [ring(), ring().rotate(90)]
    frames[1].putpixel((5, 250), (0, 0, 0, 255))
    refused("moves", saved(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    refused("moves", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "GIF")


def test_a_filled_background() -> None:
    white = Image.new("RGBA", (496, 496), (255, 255, 255, 255))
    white.alpha_composite(ring())
    refused("corners are not transparent", saved(white))
    refused("no transparency", saved(white.convert("RGB")))
    corner = ring()
    corner.putpixel((495, 495), (200, 0, 0, 9))
    refused("corners are not transparent", saved(corner))
    corner.putpixel((495, 495), (200, 0, 0, 8))
    check(saved(corner))


def test_ink_at_the_limits() -> None:
    def rows(ink: int, pale: int = 0) -> bytes:
        image = Image.new("RGBA", (500, 500), (0, 0, 0, 0))
        ImageDraw.Draw(image).rectangle((0, 10, 499, 10 + ink - 1), fill=(200, 0, 0, 128))
        if pale:
            ImageDraw.Draw(image).rectangle((0, 10 + ink, 499, 10 + ink + pale - 1), fill=(200, 0, 0, 9))
        return saved(image)

    check(rows(5))
    refused("ink covers 0.8%", rows(4))
    check(rows(425))
    refused("ink covers 85%", rows(426))
    check(rows(425, 25))
    refused("10% are transparent", rows(425, 26))


def test_nothing_before_or_after_the_picture() -> None:
    refused("1 bytes follow", good() + b"\x00")
    refused("no PNG picture", b"\x00" + good())
    refused("cut off", good()[:-1])
    refused("cut off", good()[:-12])
    refused("cut off", good()[:40])
    refused("not where it belongs", good()[:8] + chunk(b"teSt", b"") + good()[8:])
    refused("not where it belongs", good()[:33] + good()[8:])
    refused("not where it belongs", good()[:8] + chunk(b"IEND", b""))
    gif = saved(ring().quantize(4), "GIF", transparency=0)
    refused("something follows", gif + b"\x00", "GIF")
    refused("something follows", bmp_with_alpha() + b"\x00", "BMP")


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_flipped_bit_is_seen(at: int) -> None:
    data = bytearray(good())
    data[at] ^= 0x10
    refused("imprint", bytes(data))


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    format_=st.sampled_from(["PNG", "GIF", "BMP"]),
    cuts=st.lists(st.tuples(st.integers(0, 3_000), st.binary(max_size=8)), max_size=4),
    repair=st.booleans(),
)
@example("PNG", [(29, b"\x00")], True)
def test_any_bytes_are_an_imprint_or_told_why_not(
    format_: str, cuts: list[tuple[int, bytes]], repair: bool
) -> None:
    data = bytearray(
        {"PNG": good(), "GIF": saved(ring().quantize(4), "GIF", transparency=0), "BMP": bmp_with_alpha()}[
            format_
        ]
    )
    for at, new in cuts:
        data[at : at + len(new)] = new
    if repair and format_ == "PNG":
        data = bytearray(with_right_sums(bytes(data)))
    try:
        imprint = check(bytes(data), format_)
    except BadRequest as error:
        assert error.hint
    else:
        assert imprint.data == data


def with_right_sums(data: bytes) -> bytes:
    """So that damage reaches the library behind the sums."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out


# On file ----------------------------------------------------------------------------------------------------


def test_the_imprint_is_the_one_on_file_byte_for_byte() -> None:
    imprint = check(good())
    check_on_file(imprint, imprint.sm3)
    other = check(saved(ring(), compress_level=1))
    with pytest.raises(Conflict, match="on file is"):
        check_on_file(other, imprint.sm3)
    with pytest.raises(Conflict):
        check_on_file(replace(other, sm3=imprint.sm3), imprint.sm3)  # its record was altered
    with pytest.raises(Conflict):
        check_on_file(replace(imprint, sm3=other.sm3), imprint.sm3)


def test_the_font_of_the_demonstration_is_there() -> None:
    assert Path(FONT).is_file(), "set-up installs it"
