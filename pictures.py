"""Reads anybody's picture: a file, PIL image, array or tensor, of any size, depth and colour."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data import DataError

PIXELS = 500_000  # larger pictures are shrunk: a digit of a tenth of the height still has 60 rows then
TURN = 0x0112  # EXIF's orientation: from 5 on, height and width change places
Log = Callable[[str], None]
LUMA = np.array((0.299, 0.587, 0.114), dtype=np.float32)  # red, green and blue in a grey, as Pillow weighs them


class Picture(NamedTuple):
    """A picture's pixels, and its size before it was shrunk."""

    pixels: np.ndarray  # float32 in [0, 1], (h, w), or (h, w, 3) where it is in colour
    height: int
    width: int

    @property
    def gray(self) -> Tensor:
        """(1, h, w) float32."""
        # Rounded to 8 bits as Pillow does, so that a colour picture is read like its gray copy.
        pixels = self.pixels if self.pixels.ndim == 2 else np.round(self.pixels @ LUMA * 255) / 255
        return torch.from_numpy(np.array(pixels, dtype=np.float32))[None]


def read(picture: Any, where: str, log: Log, most: int | None = PIXELS) -> Picture:
    """Read a file, PIL image, array or tensor, see `predict.read_picture`; beyond `most` pixels it is shrunk by a whole
    factor. `where` is what messages call it. Raises DataError."""
    if isinstance(picture, (str, Path, Image.Image)) or hasattr(picture, "read"):
        return _read_image(picture, where, log, most)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy knows no bfloat16
    if not isinstance(picture, np.ndarray):
        found = type(picture).__name__
        raise DataError(f"{where}: expected a file, a PIL image, an array or a tensor, found {found}")
    pixels = _channels_last(picture, where)
    height, width = pixels.shape[:2]
    pixels = _as_floats(_shrink(pixels, _factor(height, width, most)), where)
    return Picture(_gray_or_colour(pixels, where, log), height, width)


def _factor(height: int, width: int, most: int | None) -> int:
    return math.ceil(math.sqrt(height * width / most)) if most and height * width > most else 1


def _channels_last(pixels: np.ndarray, where: str) -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4), of whatever numbers."""
    shape = pixels.shape
    if len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in (3, 4)):
        raise DataError(f"{where}: expected (H, W), or 1, 3 or 4 channels before or after that, found shape {shape}")
    if not pixels.size:
        raise DataError(f"{where}: empty, its shape is {shape}")
    return pixels


def _shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of factor x factor pixels; what is left over at the right and below is cut off."""
    if factor == 1:
        return pixels
    rows, columns = (max(1, size // factor) for size in pixels.shape[:2])
    steps = [min(factor, size) for size in pixels.shape[:2]]
    pixels = pixels[: rows * steps[0], : columns * steps[1]]
    kept = pixels.dtype if np.issubdtype(pixels.dtype, np.floating) else None
    shape = (rows, steps[0], columns, steps[1], *pixels.shape[2:])
    means = pixels.reshape(shape).mean(axis=(1, 3), dtype=np.float32 if kept != np.float64 else None)
    return means if kept is not None else means.round().astype(pixels.dtype)


def _as_floats(pixels: np.ndarray, where: str) -> np.ndarray:
    """Whole numbers of 8 bits in any type, 16 bits, bool, or floats in [0, 1] -> float32 in [0, 1]."""
    if np.issubdtype(pixels.dtype, np.integer):
        low, high = pixels.min(), pixels.max()
        top = 65535 if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2 else 255  # in either order of bytes
        if low < 0 or high > top:
            raise DataError(f"{where}: expected whole numbers from 0 to {top}, found {low} to {high}")
        return pixels.astype(np.float32) / top
    if pixels.dtype != np.bool_ and not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"{where}: expected numbers from 0 to 255, or floats in [0, 1], found {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise DataError(f"{where}: has pixels that are NaN or infinite")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        raise DataError(f"{where}: has pixels outside [0, 1], its range is [{low:.4g}, {high:.4g}]")
    return pixels.astype(np.float32)


def _read_image(source: Any, where: str, log: Log, most: int | None) -> Picture:
    """A file, by name or open, or a PIL image, which may still have to read its file."""
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, source.size, where, log, most)
        with Image.open(source) as image:
            size, factor = image.size, _factor(*image.size, most)
            image.draft(None, tuple(side // factor for side in size))  # of a JPEG, decodes every 2nd, 4th or 8th pixel
            count = getattr(image, "n_frames", 1)
            if count > 1:
                log(f"{where}: holds {count} pictures, the first is taken")
            return _pixels(image, size, where, log, most)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: {_what_else(source)}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too large: {error}") from error
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else "damaged or truncated"
        raise DataError(f"{where}: {reason}") from error
    except Exception as error:  # a damaged picture makes Pillow raise nearly anything
        raise DataError(f"{where}: damaged or truncated ({type(error).__name__})") from error


def _what_else(source: Any) -> str:
    """What a file is that Pillow does not read."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            start = file.read(12)
    else:
        source.seek(0)
        start = source.read(12)
    if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "a HEIC picture, as some phones take them, which Pillow does not read: save it as JPEG or PNG first"
    return "not a picture, or not of a kind that Pillow reads"


def _pixels(image: Image.Image, size: tuple[int, int], where: str, log: Log, most: int | None) -> Picture:
    """What `read` gives, of an image that had `size` (width, height), turned as its EXIF orientation asks."""
    if not min(image.size):
        raise DataError(f"{where}: empty, its size is {size[0]}x{size[1]}")
    if image.mode == "I":
        raise DataError(f"{where}: expected 8 or 16 bits per pixel, found 32 (PIL's mode I)")
    image.load()  # a TIFF is turned by this, and then does not ask for it any more
    width, height = reversed(size) if image.getexif().get(TURN, 1) >= 5 else size
    factor = _factor(*image.size, most)
    if image.mode.startswith("I;16") or image.mode == "F":
        values = np.asarray(ImageOps.exif_transpose(image))
        pixels = _as_floats(_shrink(values.astype(np.uint16) if image.mode != "F" else values, factor), where)
        return Picture(pixels, height, width)
    kept = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    image = image if image.mode == kept else image.convert(kept)
    image = image.reduce(factor) if factor > 1 else image
    pixels = np.asarray(ImageOps.exif_transpose(image), dtype=np.float32) / 255
    return Picture(_gray_or_colour(pixels, where, log), height, width)


def _gray_or_colour(pixels: np.ndarray, where: str, log: Log) -> np.ndarray:
    """(h, w), (h, w, 3) or (h, w, 4) -> (h, w) where there is no colour, else (h, w, 3)."""
    if pixels.ndim == 2:
        return pixels
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.size and alpha.min() < 1:
        share = alpha.mean()
        ink = float((colours * alpha).sum(axis=(0, 1)) @ LUMA / max(alpha.sum(), 1e-6))
        if share > 0.9:  # some stray pixels: what the others are most often
            ground = np.median(colours[alpha[..., 0] > 0.5], axis=0)
        else:
            ground = np.full(3, 1.0 if ink < 0.5 else 0.0, dtype=np.float32)
            log(f"{where}: transparent, laid over {'white' if ink < 0.5 else 'black'}")
        colours = colours * alpha + ground * (1 - alpha)
    if np.ptp(colours, axis=2).max() == 0:
        return np.ascontiguousarray(colours[..., 0], dtype=np.float32)
    log(f"{where}: in colour, converted to grayscale")
    return np.ascontiguousarray(colours, dtype=np.float32)
