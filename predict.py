"""Finds handwritten digits in anybody's image with the weights that come with the project.

python predict.py picture.png                     every digit, 0 to 9
python predict.py picture.png --task detection    zeros and ones only

It prints class, score and box (left, top, right, bottom in pixels of the image) of each digit, and draws them. An image
like the training images, light digits on a darker, noisy background of 48x60 pixels, goes to the task's network as it
is. All others are taken apart into pieces of ink, and a small network, the reader, says of each which digit it is, or
that it is none (`scripts/train_reader.py` trains it).
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor, nn

import models
import utils
from data import DataError, files
from data.labels import HEIGHT, WIDTH
from training import plots
from training.progress import forgive_output
from training.runs import Trained, load_weights

TASKS = {"localization": "loc", "detection": "det"}
NETWORKS = {name: models.OURS[task].__name__ for name, task in TASKS.items()}
WEIGHTS = Path(__file__).resolve().parent / "weights"
READER = WEIGHTS / "reader.pt"
NONE = 10  # the reader's class of what is no digit
OVERLAP = 0.5  # IoU above which two boxes of one class are one digit, on the border of two cells and found in both

PIXELS = 500_000  # larger images are shrunk: a digit of a tenth of the height still has 60 rows then
LUMA = torch.tensor((0.299, 0.587, 0.114))[:, None, None]  # red, green and blue in a gray, as Pillow weighs them

INK = 0.35  # of the strongest ink's contrast: above that a pixel is ink
DEVIATIONS = 6  # of the noise: below that there is no ink
LEAST_CONTRAST = 0.03  # the same where there is no noise
# How an image is read until it reads well: with a frame of its commonest gray or not; 1, or -1 for the other ink, light
# or dark; what is wider than this share of the longer side is ground; and lines taken out or near patches joined.
WAYS = [(False, 1, 1 / 3, ""), (True, 1, 1 / 3, ""), (False, 1, 1 / 12, ""), (False, 1, 1 / 3, "lines")]
WAYS += [(False, 1, 1 / 3, "joined"), (False, -1, 1 / 3, ""), (True, -1, 1 / 3, ""), (False, -1, 1 / 12, "")]
MOST_PIECES = 500
SPECK = 0.4  # of the largest digit: smaller ones are dirt, dots, commas
THIN = 0.09  # of the longer side: thinner strokes are broadened, as MNIST's are hardly ever thinner
GOOD = 0.85  # share of the ink that is read: then no other way of reading is tried

Box = tuple[float, float, float, float]  # `xyxy`: left, top, right, bottom
Span = tuple[slice, slice]  # rows and columns
Log = Callable[[str], None]

# ---------------------------------------------------------------------------------------------- images


class Raster(NamedTuple):
    """An image's pixels, and its size before it was shrunk."""

    pixels: Tensor  # (1, h, w) float32 in [0, 1], or (3, h, w) where it is in colour
    height: int
    width: int

    @property
    def gray(self) -> Tensor:
        """(1, h, w), colours rounded to 8 bits as Pillow does, so that they are read like their gray copy."""
        return self.pixels if len(self.pixels) == 1 else (LUMA * self.pixels).sum(0, True).mul(255).round().div(255)


def read_image(image: Any, log: Log = print) -> Tensor:
    """An image as (1, H, W) float32 in [0, 1], 0 being black.

    image: a file, by name or open, a PIL image, or an array or tensor (H, W), with 1, 3 or 4 channels before or after
    that: integers from 0 to 255, or of 16 bits, or a mask of 0 and 1, bool, or floats in [0, 1]. Colour is converted to
    grayscale, transparent pixels are laid over what contrasts with the ink, and of a file with several images the first
    is taken; `log` is told. A file's image is turned as its EXIF orientation asks.

    Raises DataError where it is none of these, unreadable, empty, or not finite numbers in that range.
    """
    return _read(image, _name(image), log, most=None).gray


def _name(image: Any) -> str:
    """What messages call an image: control characters in a file's name would take effect in a terminal."""
    name = str(image) if isinstance(image, (str, Path)) else "image"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _read(image: Any, where: str, log: Log, most: int | None = PIXELS) -> Raster:
    """See `read_image`; an image of more than `most` pixels is shrunk by a whole factor."""
    size = None
    if isinstance(image, (str, Path, Image.Image)) or hasattr(image, "read"):
        image, size = _decode(image, where, log, most)
    elif isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()  # numpy knows no bfloat16
    if not isinstance(image, np.ndarray):
        raise DataError(f"{where}: expected a file, a PIL image, an array or a tensor, found {type(image).__name__}")
    channels = next((axis for axis in (2, 0) if image.ndim == 3 and image.shape[axis] in (1, 3, 4)), None)
    if image.ndim != 2 and channels is None:
        expected = "expected (H, W), or 1, 3 or 4 channels before or after that"
        raise DataError(f"{where}: {expected}, found shape {image.shape}")
    if not image.size:
        raise DataError(f"{where}: empty, its shape is {image.shape}")
    pixels = _as_floats(image[None] if channels is None else np.moveaxis(image, channels, 0), where)
    height, width = size or pixels.shape[1:]
    if (factor := _factor(*pixels.shape[1:], most)) > 1:
        pixels = F.avg_pool2d(pixels, [min(factor, length) for length in pixels.shape[1:]])
    if len(pixels) == 4:
        pixels, alpha = pixels[:3], pixels[3:]
        if alpha.mean() > 0.9:  # of stray transparent pixels, the ground is what the others are most often
            ground = pixels[:, alpha[0] > 0.5].median(1).values[:, None, None]
        else:
            dark = (pixels * alpha * LUMA).sum() < 0.5 * alpha.sum()
            ground = dark.float()
            log(f"{where}: transparent, laid over {'white' if dark else 'black'}")
        pixels = pixels * alpha + ground * (1 - alpha)
    if (pixels == pixels[:1]).all():
        return Raster(pixels[:1].clone(), height, width)
    log(f"{where}: in colour, converted to grayscale")
    return Raster(pixels, height, width)


def _factor(height: int, width: int, most: int | None) -> int:
    return math.ceil(math.sqrt(height * width / most)) if most and height * width > most else 1


def _as_floats(pixels: np.ndarray, where: str) -> Tensor:
    """Numbers of any kind that `read_image` takes -> float32 in [0, 1], copied."""
    kind = pixels.dtype.kind
    if kind not in "uibf":
        raise DataError(f"{where}: expected numbers from 0 to 255, or floats in [0, 1], found {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise DataError(f"{where}: has pixels that are NaN or infinite")
    low, high, top = pixels.min(), pixels.max(), 1
    if kind in "ui":
        top = 65535 if kind == "u" and pixels.dtype.itemsize == 2 else 255  # in either order of bytes
        if low < 0 or high > top:
            raise DataError(f"{where}: expected integers from 0 to {top}, found {low} to {high}")
    elif low < 0 or high > 1:
        raise DataError(f"{where}: has pixels outside [0, 1], its range is [{low:.4g}, {high:.4g}]")
    return torch.from_numpy(pixels.astype(np.float32, order="C")) / (top if high > 1 else 1)  # a mask holds 0 and 1


def _decode(source: Any, where: str, log: Log, most: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a file, by name or open, or of a PIL image, upright, and the height and width that it has."""
    named, given = isinstance(source, (str, Path)), isinstance(source, Image.Image)
    if named and os.path.exists(source) and not os.path.isfile(source) | os.path.isdir(source):
        raise DataError(f"{where}: expected a file, found a pipe or a device")  # reading it might never end
    try:
        with nullcontext(source) if given else Image.open(source) as image:
            (width, height), drafted = image.size, None
            if not given:
                step = _factor(height, width, most)
                # Of a JPEG, decodes every 2nd, 4th or 8th pixel.
                drafted = image.draft(None, (width // step, height // step)) if step > 1 else None
                if (count := getattr(image, "n_frames", 1)) > 1:
                    log(f"{where}: holds {count} images, the first is taken")
            if image.mode == "I":
                raise DataError(f"{where}: expected 8 or 16 bits per pixel, found 32 (PIL's mode I)")
            image.load()  # a TIFF is turned by this, and then does not ask for it any more
            width, height = (width, height) if drafted else image.size
            try:
                turn = image.getexif().get(0x0112)  # the orientation
            except Exception:  # EXIF may be damaged
                turn = None
            if image.mode.startswith("I;16") or image.mode == "F":
                pixels = np.asarray(image).astype(np.float32 if image.mode == "F" else np.uint16)
            else:
                mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except DataError:
        raise
    except UnidentifiedImageError:
        start = Path(source).read_bytes()[:12] if named else source.seek(0) or source.read(12)
        if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf"):
            kind = "a HEIC image, as some phones take them, which Pillow does not read: save it as JPEG or PNG first"
        else:
            kind = "not an image, or not of a kind that Pillow reads"
        raise DataError(f"{where}: {kind}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too large: {error}") from error
    except OSError as error:
        raise DataError(f"{where}: {error.strerror.lower() if error.strerror else 'damaged or truncated'}") from error
    except Exception as error:  # a damaged image makes Pillow raise nearly anything
        raise DataError(f"{where}: damaged or truncated ({type(error).__name__})") from error
    if turn in (5, 6, 7, 8):
        pixels, height, width = pixels.swapaxes(0, 1), width, height
    return pixels[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1], (height, width)


# ---------------------------------------------------------------------------------------------- digits


class Digit(NamedTuple):
    """A digit that was found."""

    box: Box  # in pixels of the image given
    class_id: int
    score: float  # in [0, 1]: how probable it is

    @property
    def category(self) -> int:
        """The former name of `class_id`."""
        return self.class_id


class Reading(NamedTuple):
    """The digits of an image, and what there is to say."""

    digits: list[Digit]
    notes: list[str]
    quarters: int = 0  # turns counterclockwise that lay the image upright; boxes are in pixels of what that gives


def find_digits(
    image: Any, weights: str | Path | Trained = "localization", threshold: float = 0.5, log: Log = print
) -> list[Digit]:
    """Find the digits in anybody's image, in reading order: row by row, from left to right.

    image: a file, PIL image, array or tensor, see `read_image`. One like the training images goes to the task's
    network; of all others pieces of ink, dark or light, are cut out and shown to the reader. Boxes are in the image's
    own pixels; a page that lies sideways is turned first, and they are in pixels of that. `log` is told what was done.
    weights: "localization" (ten classes; in an image like the training images at most one digit), "detection" (zeros
    and ones only; there up to six, one in each cell of a 2x3 grid), a file that `training.save_weights` wrote, or what
    `training.load_weights` read.
    threshold: digits that are less probable are left out.

    Raises DataError for an image or weights that are not what they should be, ValueError for a threshold outside
    [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], found {threshold}")
    if not isinstance(weights, Trained):
        weights = load_weights(WEIGHTS / f"{NETWORKS[weights]}.pt" if weights in TASKS else weights)
    where = _name(image)
    return _find(_read(image, where, log), where, weights, threshold, log).digits


def _find(image: Raster, where: str, weights: Trained, threshold: float, log: Log) -> Reading:
    """`find_digits` in what was read."""
    reading = _find_in_noise(image, weights, threshold) or _find_pieces(image, weights, threshold)
    if reading.notes:
        log(f"{where}: {image.height}x{image.width} pixels (height x width), {', '.join(reading.notes)}")
    rows: list[list[Digit]] = []
    for digit in sorted(reading.digits, key=lambda digit: digit.box[1] + digit.box[3]):
        middle = (digit.box[1] + digit.box[3]) / 2
        row = next((row for row in rows if row[0].box[1] <= middle <= row[0].box[3]), None)
        rows.append([digit]) if row is None else row.append(digit)
    return reading._replace(digits=[digit for row in rows for digit in sorted(row)])


def draw_digits(image: Any, digits: Sequence[Digit]) -> Figure:
    """The image with the boxes, classes and scores of its digits; `image` as for `read_image`."""
    return _draw(_read(image, _name(image), lambda text: None), digits)


def _draw(image: Raster, digits: Sequence[Digit], quarters: int = 0) -> Figure:
    """`draw_digits` on what was read, turned."""
    gray = image.gray.rot90(quarters, (1, 2))
    scale = gray.shape[2] / (image.height if quarters % 2 else image.width)
    boxes = scale * torch.tensor([digit.box for digit in digits]).reshape(-1, 4)
    return utils.draw_detections(gray, boxes, [f"{digit.class_id}  {digit.score:.2f}" for digit in digits])


# ------------------------------------------------------------------------------- images like the training images


def fit_image(image: Tensor) -> tuple[Tensor, Tensor]:
    """Bring an image (1, H, W) to 48x60: shrink it if it is larger, keeping its proportions, and lay it in the middle
    of a frame of its median. Returns that, (1, 48, 60), and the box (4,) `xyxy` where the image lies."""
    scale = min(1.0, HEIGHT / image.shape[1], WIDTH / image.shape[2])
    rows, columns = (max(1, round(size * scale)) for size in image.shape[1:])
    if (rows, columns) != image.shape[1:]:
        image = F.interpolate(image[None], (rows, columns), mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (HEIGHT - rows) // 2, (WIDTH - columns) // 2
    border = (left, WIDTH - columns - left, top, HEIGHT - rows - top)
    fitted = F.pad(image, border, value=image.median().item())
    return fitted, torch.tensor((left, top, left + columns, top + rows))


def as_trained_on(image: Tensor) -> tuple[Tensor, list[str]] | None:
    """An image (1, h, w), at most 48x60, whose noise is that of the training images: as it is, or, where it is dim or a
    negative, as they are; with what there is to say. None for all others."""
    low, high = torch.aminmax(image)
    if min(image.shape[1:]) < 8 or high - low < 0.05:
        return None
    scaled = (image - low) / (high - low)
    if negative := scaled.median() > 0.55:
        scaled = 1 - scaled
    halves = torch.tensor((0.5, 0.75))
    steps = [torch.quantile(scaled.diff(dim=axis).abs().flatten(), halves).tolist() for axis in (1, 2)]
    least, most = min(step for step, _ in steps), max(step for step, _ in steps)
    darkest, first, third = torch.quantile(scaled, torch.tensor((0.02, 0.25, 0.75))).tolist()
    # Of 9,599 validation images of both tasks, pixels differ from their neighbours by a median of 0.08 to 0.12, and
    # by less than twice that in three of four places: it is noise, no pattern. It is blotchy: quartiles are 1.8 to 3.6
    # times as far apart, those of white noise 1.4 times. And it is cut at black: a 50th of it is below 0.11.
    if least < 0.035 or most > 0.17 or any(upper > 2.2 * step for step, upper in steps):
        return None
    if not 1.7 < (third - first) / most < 9 or darkest > 0.15:
        return None
    if negative:
        return scaled, ["noisy, a negative, inverted"]
    return (scaled, ["noisy and dim, brightened"]) if high - low < 0.85 else (image, [])


def _find_in_noise(image: Raster, weights: Trained, threshold: float) -> Reading | None:
    """The digits of an image like the training images, which may have been enlarged; None where it is not."""
    fitted, place = fit_image(image.gray)
    left, top, right, bottom = place.tolist()
    small = fitted[:, top:bottom, left:right]
    lost = F.interpolate(small[None], image.gray.shape[1:], mode="nearest-exact")[0] - image.gray
    shown = as_trained_on(small) if lost.abs().mean() < 0.05 else None  # else details are lost, no enlarged pixels
    if shown is None:
        return None
    changed, notes = shown
    notes += [f"scaled to {bottom - top}x{right - left}"] * (small.shape != image.gray.shape)
    notes += [f"padded to {HEIGHT}x{WIDTH}"] * (small.shape != fitted.shape)
    outputs = utils.infer(weights.network, fit_image(changed)[0][None])
    if not torch.isfinite(outputs).all():
        raise DataError(f"{weights.path}: weights: the network's outputs are not finite")
    boxes, classes, scores = utils.decode(outputs, threshold, OVERLAP)[0].values()
    boxes = boxes - place[:2].repeat(2)
    end = place[2:] - place[:2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    kept = ((centres >= 0) & (centres <= end)).all(1)  # else it is in the frame, not in the image
    if changed is not small:
        kept &= scores >= threshold  # the noise may be another than that of the training images
    boxes = torch.minimum(boxes.clamp(min=0), end.repeat(2))
    boxes = boxes * (torch.tensor((image.width, image.height)) / end).repeat(2)
    rows = zip(boxes[kept].tolist(), classes[kept].tolist(), scores[kept].tolist(), strict=True)
    return Reading([Digit(tuple(box), class_id, score) for box, class_id, score in rows], notes)


# ---------------------------------------------------------------------------------------------- the reader


def build_reader() -> nn.Sequential:
    """The reader: pieces of ink (N, 1, 28, 28) in [0, 1], the longer side 20 pixels -> logits (N, 11) of the ten digits
    and of no digit."""

    def conv(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
        layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)

    layers = *conv(1, 16), *conv(16, 32, 2), *conv(32, 32), *conv(32, 64, 2), *conv(64, 64)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 49, 11))


@cache
def load_reader() -> nn.Sequential:
    """The reader with its published weights. Raises DataError where they are missing or do not fit."""
    reader = build_reader()
    try:
        reader.load_state_dict(files.load_tensors(READER))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(f"{READER}: does not fit the reader: {' '.join(str(error).split())}") from error
    return reader.eval()


@torch.inference_mode()
def _ask(pieces: Tensor) -> Tensor:
    """The reader's probabilities (N, 11) for pieces (N, 1, 28, 28)."""
    return torch.cat([load_reader()(part).softmax(1) for part in pieces.split(256)])


class Piece(NamedTuple):
    """A patch of ink, or several that may be strokes of one digit."""

    numbers: tuple[int, ...]  # of the patches, in the image's labels
    span: Span
    size: int  # pixels of ink
    shown: Tensor  # (1, 28, 28): as the reader sees it
    answer: Tensor  # (11,): its probabilities

    @property
    def score(self) -> float:
        return self.answer[:NONE].max().item()


def _quality(pieces: Sequence[Piece], total: int, ones: float = 1.0) -> float:
    """The share of the ink that is digits, weighed by how certain that is; `ones`: how much ones count."""
    read = [each for each in pieces if each.score > 0.5]
    weights = [ones if each.answer[:NONE].argmax() == 1 else 1.0 for each in read]
    return sum(each.score * each.size * weight for each, weight in zip(read, weights, strict=True)) / max(total, 1)


def _fill(pieces: Sequence[Piece], shape: tuple[int, int]) -> bool:
    """Whether digits reach nearly from border to border of an image of `shape`, both ways."""
    spans = zip(*(each.span for each in pieces if each.score > 0.5), strict=True)
    ends = [(min(side.start for side in sides), max(side.stop for side in sides)) for sides in spans]
    return all(stop - start > 0.75 * size for (start, stop), size in zip(ends, shape, strict=False)) and bool(ends)


def _find_pieces(image: Raster, weights: Trained, threshold: float) -> Reading:
    """The digits of an image with a quiet ground. What does not read well as it is, is tried in other ways."""
    layers = torch.cat((image.gray, image.pixels)).numpy()
    contrasts = [np.ptp(np.quantile(layer[::2, ::2], (0.002, 0.998))) for layer in layers]
    gray = layers[np.argmax(contrasts) if max(contrasts) > 1.5 * contrasts[0] else 0]  # or the colour that shows more
    gray = ndimage.gaussian_filter(gray, min(1.5, min(gray.shape) / 300))
    sign = _sign_of(gray)
    values, counts = np.unique((gray * 64).round(), return_counts=True)
    frame = max(4, max(gray.shape) // 6)
    ground = values[counts.argmax()] / 64
    padded = np.pad(gray, frame, constant_values=ground)  # around a digit cut out at its box
    border = np.abs(
        np.concatenate((gray[:2].ravel(), gray[-2:].ravel(), gray[:, :2].ravel(), gray[:, -2:].ravel())) - ground
    )
    cut = (border < 0.15 * np.ptp(gray)).mean() > 0.4 and (border > 0.5 * np.ptp(gray)).any()
    best, quality, share, edge, quarters, notes = [], -1.0, 0.0, 0, 0, []
    for margin, side, window, change in sorted(WAYS, key=lambda way: not way[0]) if cut else WAYS:
        shown = padded if margin else gray
        ink = _ink_of(shown, side * sign, window)
        pieces, total = _read_pieces(ink, shown * (side * sign), change, frame * margin)
        for turn in range(4 if len(pieces) > 3 and _quality(pieces, total) < 0.6 else 1):  # a page may lie sideways
            if turn:
                answers = _ask(torch.stack([each.shown for each in pieces]).rot90(turn, (2, 3)))
                pieces = [each._replace(answer=answer) for each, answer in zip(pieces, answers, strict=True)]
            read = _quality(pieces, total)
            if margin and not (read > 0.5 and _fill(pieces, gray.shape)):
                continue  # the frame is for what has been cut out at its box
            if window < 0.2 and len(pieces) < 6:
                continue  # so small a window is for pages: in it the edges of a hand's shadow are strokes
            rated = _quality(pieces, total, ones=0.1)  # lines, and slits between strokes, look like ones
            if rated > quality + (0.02 if side > 0 else 0.3) + 0.1 * (turn > 0):
                best, quality, share, edge, quarters = pieces, rated, read, frame * margin, turn
                notes = ["dark on light"] * (side * sign < 0) + ["without lines"] * (change == "lines")
        if share > GOOD:
            break
    notes += [f"turned by {90 * quarters} degrees counterclockwise"] * (quarters > 0)
    notes += [f"{len(best)} piece{'s' * (len(best) > 1)} of ink" if best else "nothing stands out from the ground"]
    digits = [_as_digit(each, edge, image, gray.shape, quarters, weights.task) for each in best]
    kept = [digit for digit in digits if digit.score >= max(threshold, 1e-9)]
    sides = [max(right - left, bottom - top) for (left, top, right, bottom), _, _ in kept]
    kept = [digit for digit, length in zip(kept, sides, strict=True) if length >= SPECK * max(sides)]
    if not kept and digits and (likely := max(digits, key=lambda digit: digit.score)).score > 0.2:
        notes.append(f"perhaps a {likely.class_id}, {likely.score:.2f}")
    return Reading(kept, notes, quarters)


def _as_digit(piece: Piece, frame: int, image: Raster, shape: tuple[int, int], quarters: int, task: str) -> Digit:
    """The reader's answer, with the box in pixels of the image given, turned; detection knows zeros and ones alone."""
    score, class_id = piece.answer[: 2 if task == "det" else NONE].max(0)
    height, width = image.height, image.width
    (top, bottom), (left, right) = (
        [min(max(end - frame, 0), size) * full / size for end in (side.start, side.stop)]
        for side, size, full in zip(piece.span, shape, (height, width), strict=True)
    )
    for _ in range(quarters):
        left, top, right, bottom, height, width = top, width - right, bottom, width - left, width, height
    return Digit((left, top, right, bottom), class_id.item(), score.item())


def _sign_of(gray: np.ndarray) -> int:
    """Whether what differs most from its surroundings is light (1) or dark (-1)."""
    step = max(1, max(gray.shape) // 48)
    small = gray[::step, ::step]
    ground = ndimage.median_filter(small, max(3, max(small.shape) // 2), mode="nearest")
    ground = np.kron(ground, np.ones((step, step)))[: gray.shape[0], : gray.shape[1]]
    top, left = (size // 10 for size in gray.shape)  # at the border there may be a table around a sheet
    low, high = np.quantile((gray - ground)[top : gray.shape[0] - top, left : gray.shape[1] - left], (0.002, 0.998))
    return 1 if high > -low else -1


def _ink_of(gray: np.ndarray, sign: int, window: float) -> np.ndarray:
    """How much each pixel differs from its ground towards ink, which is light for sign 1 and dark for -1: (h, w)."""
    radius = max(1, round(max(gray.shape) * window / 2))
    # What lies outside the image is no obstacle: a shadow's edge may end at the border.
    padded, outside = np.pad(sign * gray, radius, constant_values=np.inf), {"size": 2 * radius + 1, "mode": "constant"}
    opened = ndimage.maximum_filter(ndimage.minimum_filter(padded, cval=np.inf, **outside), cval=-np.inf, **outside)
    ink = sign * gray - opened[radius:-radius, radius:-radius]
    return ink - np.median(ink)


def _read_pieces(ink: np.ndarray, level: np.ndarray, change: str, frame: int) -> tuple[list[Piece], int]:
    """Cut out the pieces of ink and read them; returns the pixels of all ink too. While none is a digit, fainter
    ones are looked for."""
    noise = 1.4826 * np.median(np.abs(ink))
    least = max(LEAST_CONTRAST, DEVIATIONS * noise, 0.2 * np.quantile(ink, 0.9995))
    pieces, total = [], 0
    for _ in range(3):
        peak = np.quantile(ink, 0.9995)
        if peak < least:
            break
        mask = ink > max(INK * peak, 4 * noise)
        if change == "lines":
            mask = _without_lines(_without_lines(mask).T).T
        total = mask.sum()
        pieces = _cut_out(ink, level, mask, max(mask.shape) // 130 + 1 if change == "joined" else 0, frame)
        if _quality(pieces, total) > 0.05:
            break
        ink = np.where(ndimage.binary_dilation(mask, iterations=2 + max(mask.shape) // 150), 0, ink)
    return pieces, total


def _without_lines(mask: np.ndarray) -> np.ndarray:
    """The mask without thin, nearly straight lines that run along most of its width."""
    length = max(9, mask.shape[1] // 10)
    runs = mask & ndimage.binary_opening(ndimage.binary_dilation(mask, np.ones((3, 1))), np.ones((1, length)))
    labels, _ = ndimage.label(ndimage.binary_dilation(runs, np.ones((3, 5))), np.ones((3, 3)))
    spans = enumerate(ndimage.find_objects(labels), 1)
    long = [number for number, (_, side) in spans if side.stop - side.start > 0.7 * mask.shape[1]]
    if not long:
        return mask
    lines = np.isin(labels, long) & runs
    rest = mask & ~ndimage.binary_dilation(lines, np.ones((3, 1)))
    # Strokes go on where there is ink on both sides of the line.
    thick = int(np.median(lines.sum(0)) / len(long)) + 3
    closed = ndimage.binary_closing(np.pad(rest, thick), np.ones((2 * thick + 1, 1)))[thick:-thick, thick:-thick]
    return rest | (closed & mask)


def _cut_out(ink: np.ndarray, level: np.ndarray, mask: np.ndarray, reach: int, frame: int) -> list[Piece]:
    """The pieces of ink in a mask, read; patches closer than twice `reach` are one."""
    labels, _ = ndimage.label(ndimage.binary_dilation(mask, iterations=reach) if reach else mask, np.ones((3, 3)))
    labels *= mask
    spans = {number: span for number, span in enumerate(ndimage.find_objects(labels), 1) if span}
    sizes = {number: max(side.stop - side.start for side in span) for number, span in spans.items()}
    largest = sorted((number for number in spans if sizes[number] >= 5), key=sizes.get)[-MOST_PIECES:]
    groups = [((number,), spans[number]) for number in largest]
    pieces = _read_groups(
        ink,
        labels,
        [
            ((number,), span)
            for (number,), span in groups
            if not _is_line(labels, number, span, frame) and _ends(ink, level, labels, number, span)
        ],
    )
    pairs = [(one, two) for i, one in enumerate(pieces) for two in pieces[:i] if _may_be_one(one, two)]
    hulls = [(one.numbers + two.numbers, _hull(one.span, two.span)) for one, two in pairs]
    unions = zip(_read_groups(ink, labels, hulls[:MOST_PIECES]), pairs, strict=False)
    for union, (one, two) in sorted(unions, key=lambda each: -each[0].score):
        rest = [each for each in pieces if each is not one and each is not two]
        if union.score >= max(0.5, one.score - 0.02, two.score - 0.02) and len(rest) == len(pieces) - 2:
            pieces = [*rest, union]
    return pieces


def _read_groups(ink: np.ndarray, labels: np.ndarray, groups: Sequence[tuple[tuple[int, ...], Span]]) -> list[Piece]:
    """Show the reader groups of patches, each by its numbers and its span."""
    cut = [_cut(ink, labels, *group) for group in groups]
    answers = _ask(torch.stack([shown for _, shown in cut])) if cut else ()
    return [Piece(*group, *each, answer) for group, each, answer in zip(groups, cut, answers, strict=True)]


def _is_line(labels: np.ndarray, number: int, span: Span, frame: int) -> bool:
    """Whether a patch of ink is a blot, or the image's frame, or a line along or between borders that does not fill it.
    `frame`: pixels that have been added around the image."""
    within = zip(span, labels.shape, strict=True)
    down, across = (side.start < frame + 2 and side.stop > size - frame - 2 for side, size in within)
    mask, inner = labels[span] == number, labels[frame : labels.shape[0] - frame, frame : labels.shape[1] - frame]
    if 2 * ndimage.distance_transform_edt(np.pad(mask, 1)).max() > 0.6 * max(mask.shape):
        return True  # a blot
    if down and across:
        return sum(edge.mean() > 0.6 for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) > 2
    if down or across:
        short, long = np.linalg.eigvalsh(np.cov(*np.nonzero(mask)) + np.eye(2) / 12)
        return short < 0.15**2 * long
    inner, band = inner == number, 1 + min(inner.shape) // 100
    edges = (inner[:band].any(0), inner[-band:].any(0), inner[:, :band].any(1), inner[:, -band:].any(1))
    return sum(edge.sum() for edge in edges) > 0.5 * max(mask.shape)


def _ends(ink: np.ndarray, level: np.ndarray, labels: np.ndarray, number: int, span: Span) -> bool:
    """Whether a patch of ink has edges all around, as strokes have, but not parts of shadows."""
    window = tuple(slice(max(0, side.start - 3), side.stop + 3) for side in span)
    mask = labels[window] == number
    around = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
    least = np.median(level[window][mask]) - 0.3 * np.median(ink[window][mask])
    return (level[window][around] > least).mean() < 0.2 if around.any() else True


def _may_be_one(one: Piece, two: Piece) -> bool:
    """Whether pieces may be strokes of one digit: not both are, and they overlap or lie close above each other."""
    (y, x), (other_y, other_x) = one.span, two.span
    gap_y = max(y.start, other_y.start) - min(y.stop, other_y.stop)
    gap_x = max(x.start, other_x.start) - min(x.stop, other_x.stop)
    high, narrow = (
        max(y.stop - y.start, other_y.stop - other_y.start),
        min(x.stop - x.start, other_x.stop - other_x.start),
    )
    close = (gap_y < 0 and gap_x < 0.1 * high) or (gap_y < 0.25 * high and -gap_x >= 0.4 * narrow)
    return close and min(one.score, two.score) < 0.5


def _hull(*spans: Span) -> Span:
    sides = zip(*spans, strict=True)
    return tuple(slice(min(each.start for each in side), max(each.stop for each in side)) for side in sides)


def _cut(ink: np.ndarray, labels: np.ndarray, numbers: tuple[int, ...], span: Span) -> tuple[int, Tensor]:
    """Some patches of ink, without others that reach into their box: their pixels, and (1, 28, 28) for the reader."""
    window = tuple(slice(max(0, side.start - 2), side.stop + 2) for side in span)
    mask = np.isin(labels[window], numbers)
    values = ink[window] * ndimage.binary_dilation(mask, iterations=2)
    # Steeper than it is, so that a blurred edge becomes a stroke's.
    values = ((values / np.quantile(values[mask], 0.8) - 0.15) / 0.6).clip(0, 1).astype(np.float32)
    side = max(each.stop - each.start for each in span)
    depth = ndimage.distance_transform_edt(np.pad(values > 0.5, 1))
    ridge = depth[(depth > 0) & (depth == ndimage.maximum_filter(depth, 3))]
    missing = round((THIN * side - 2 * np.median(ridge) + 1) / 2) if len(ridge) else 0
    if missing > 0:
        values, side = ndimage.maximum_filter(np.pad(values, missing), 2 * missing + 1), side + 2 * missing
    size = [min(28, max(1, round(length * 20 / side))) for length in values.shape]
    small = F.interpolate(torch.from_numpy(values)[None, None], size, mode="bilinear", antialias=True)[0]
    top, left = ((28 - length) // 2 for length in size)
    shown = F.pad(small / small.max(), (left, 28 - size[1] - left, top, 28 - size[0] - top)).clamp(0, 1)
    return int(mask.sum()), shown


# ---------------------------------------------------------------------------------------------- command


def choose_drawings(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """Where the drawing of each image goes: `output`, or beside the image.

    Raises ValueError where a drawing would take another's place or an image's, or is not to be a PNG.
    """
    drawings = [output] if output else [path.with_name(f"{path.stem}_found.png") for path in paths]
    if len(drawings) != len(paths):
        raise ValueError(f"--output names one drawing, but there are {len(paths)} images")
    if output and output.suffix != ".png":
        raise ValueError(f"--output: expected a name that ends in .png, found {str(output)!r}")
    taken = {path.resolve() for path in paths}
    for drawing in drawings:
        if drawing.resolve() in taken:
            raise ValueError(f"{drawing}: the drawing would take the place of an image, or of another's drawing")
        taken.add(drawing.resolve())
    return drawings


def _is_drawing(path: Path) -> bool:
    """Whether a file is what an earlier call has drawn: its image lies beside it."""
    name = path.name.removesuffix("_found.png")
    return name != path.name and any(each.stem == name for each in path.parent.iterdir())


def main(arguments: Sequence[str] | None = None) -> int:
    """Find, print and draw the digits of some images; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="picture", help="an image, of any size")
    task_help = "localization (the default) tells ten classes apart, detection knows zeros and ones alone; in an image "
    task_help += "like the training images that finds one digit, this up to six, one in each cell of a 2x3 grid"
    parser.add_argument("--task", choices=TASKS, help=task_help)
    parser.add_argument("--weights", type=Path, help="a file of weights, instead of the task's in weights/")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of a digit, by default 0.5")
    parser.add_argument("--output", type=Path, help="the drawing, a PNG; by default beside the image, NAME_found.png")
    options = parser.parse_intermixed_args(arguments)  # images may follow options
    mpl.use("Agg")  # no window is opened
    forgive_output()

    def log(text: object) -> None:
        print(text, file=sys.stderr)

    try:
        skipped = [path for path in options.images if _is_drawing(path)]
        paths = [path for path in options.images if path not in skipped]
        drawings = choose_drawings(paths, options.output) if paths else []
        trained = load_weights(options.weights or WEIGHTS / f"{NETWORKS[options.task or 'localization']}.pt")
        if options.task and trained.task != TASKS[options.task]:
            raise ValueError(f"{trained.path}: holds a network for another task than {options.task}")
        if not 0 <= options.threshold <= 1:
            raise ValueError(f"--threshold: expected a number in [0, 1], found {options.threshold}")
    except (OSError, ValueError) as error:
        log(f"predict.py: {error}")
        return 2
    for path in skipped:
        log(f"{_name(path)}: skipped, drawn by an earlier call")
    status = 0
    for path, drawing in zip(paths, drawings, strict=True):
        name = _name(path)
        try:
            image = _read(path, name, log)
            reading = _find(image, name, trained, options.threshold, log)
            for (left, top, right, bottom), class_id, score in reading.digits:
                box = f"{left:.1f} {top:.1f} {right:.1f} {bottom:.1f}"
                print(f"{name}: class {class_id}, score {score:.3f}, box {box}")
            if not reading.digits:
                print(f"{name}: no digit")
            plots.save_figure(_draw(image, reading.digits, reading.quarters), drawing.parent, drawing.stem)
            log(f"{name}: drawn in {_name(drawing)}")
        except (OSError, ValueError) as error:  # the other images can still be done
            log(f"predict.py: {error}")
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
