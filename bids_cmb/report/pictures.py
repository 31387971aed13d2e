"""Pictures: planes of a scan as WebP files of greys and one colour, with text and outlines.

A picture is an array of uint8, top row first: 0 to `WHITE` are greys, `INK` is drawn in `COLOUR`.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from bids_cmb.files import replacing

WHITE, INK = 254, 255
COLOUR = (230, 159, 0)  # orange of a colour-blind-safe palette
PALETTE = [value for grey in range(INK) for value in (grey, grey, grey)] + [*COLOUR]
FONT_PX = 13
QUALITY = 90  # of WebP, of 100
MARGIN_PX = 5  # between a text and the edge of its picture


def resize(plane: np.ndarray, size: Iterable[float], *, smooth: bool = True) -> np.ndarray:
    """Resize a plane (across, up) to a picture of ``size`` pixels (across, up), top row first.

    Args:
        plane: uint8.
        size: Pixels; rounded.
        smooth: Whether to interpolate (cubic); else each pixel is the nearest one of the plane.
    """
    across, up = (max(1, round(float(side))) for side in size)
    resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    picture = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    return np.minimum(np.asarray(picture.resize((across, up), resampling)), WHITE)


def crop_middle(picture: np.ndarray, side: int) -> np.ndarray:
    """Crop the middle square of a picture, which is at least as large."""
    y, x = ((length - side) // 2 for length in picture.shape[:2])
    return picture[y : y + side, x : x + side]


def pad_to_square(picture: np.ndarray, side: int) -> np.ndarray:
    """Pad a picture with black to a square that it fits in."""
    rest = side - np.array(picture.shape)
    return np.pad(picture, np.stack([rest // 2, rest - rest // 2], axis=1))


def draw_contour(picture: np.ndarray, mask: np.ndarray, size: Iterable[float]) -> np.ndarray:
    """Draw the outline of a plane of a mask, resized to ``size``, just outside what it encloses."""
    outlined = picture.copy()
    resized = resize(mask.astype(np.uint8), size, smooth=False) > 0
    outlined[ndimage.binary_dilation(resized) & ~resized] = INK
    return outlined


def draw_frame(picture: np.ndarray, centre: np.ndarray, half: float) -> np.ndarray:
    """Draw a square around a position, pixels (across, down); it may leave the picture."""
    framed = picture.copy()
    down, across = np.indices(picture.shape)
    away = np.maximum(abs(across - centre[0]), abs(down - centre[1]))
    framed[abs(away - half) <= 0.75] = INK
    return framed


def annotate(
    picture: np.ndarray, title: str, sides: tuple[str, str, str], bar: tuple[float, str]
) -> np.ndarray:
    """Write on a picture what it shows, which way it lies, and how large it is.

    Args:
        picture: Greys.
        title: At the bottom, below the scale bar.
        sides: Letters at the left, right and upper edge, such as R, L and A.
        bar: Length of the scale bar in pixels, and its text.
    """
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    height, width = picture.shape
    left, right, top = sides
    length, length_text = bar
    y = height - FONT_PX - 2 * MARGIN_PX
    pen.line([(MARGIN_PX - 1, y), (MARGIN_PX + length + 1, y)], fill=0, width=4)
    pen.line([(MARGIN_PX, y), (MARGIN_PX + length, y)], fill=WHITE, width=2)
    texts = [
        ((width - MARGIN_PX, height - MARGIN_PX), "rs", title),
        ((MARGIN_PX, height / 2), "lm", left),
        ((width - MARGIN_PX, height / 2), "rm", right),
        ((width / 2, MARGIN_PX), "mt", top),
        ((MARGIN_PX, y - MARGIN_PX), "lb", length_text),
    ]
    for place, anchor, text in texts:
        pen.text(
            place, text, fill=WHITE, font=_load_font(), anchor=anchor, stroke_width=1, stroke_fill=0
        )
    return np.asarray(image)


@cache
def _load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)


def save_picture(path: Path, picture: np.ndarray, *, exact: bool = False) -> None:
    """Save a picture of greys and `INK` as WebP.

    Args:
        path: Of the file, ``.webp``.
        picture: uint8, top row first.
        exact: Whether to keep every pixel, in three times the bytes and seven times the time; else
            greys differ by 1 of 255 on average and by more than 5 in 1 of 100 pixels (`QUALITY`).
    """
    image = Image.fromarray(picture).convert("L")
    image.putpalette(PALETTE)
    settings = {"lossless": True, "method": 2} if exact else {"quality": QUALITY, "method": 2}
    with replacing(path) as temporary:
        image.convert("RGB").save(temporary, format="WEBP", **settings)
