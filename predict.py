"""Finds handwritten digits in anybody's image with the weights that come with the project.

python predict.py picture.png                     every digit, 0 to 9
python predict.py picture.png --task detection    zeros and ones only

It prints class, score and box (left, top, right, bottom in pixels) of each digit, and draws them. An image like the
training images, light digits on a darker, noisy background of 48x60 pixels, goes to the task's network as it is. Of all
others, pieces of ink are cut out at several contrasts, and a small network, the reader, which `scripts/train_reader.py`
trains, says of each which digit it is, or that it is none.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, clip_boxes_to_image
from torchvision.transforms.functional import center_crop

import models
import utils
from data import DataError, files
from data.labels import HEIGHT, WIDTH
from training import guard, plots
from training.runs import Trained, load_weights

TASKS = {"localization": "loc", "detection": "det"}
WEIGHTS = Path(__file__).resolve().parent / "weights"
READER = WEIGHTS / "reader.pt"
NONE = 10  # the reader's class of what is no digit
OVERLAP = 0.5  # IoU above which two boxes of one class are one digit, on the border of two cells and found in both

MOST_PIXELS, LEAST_SIDE = 1_000_000, 224  # larger images are shrunk, smaller ones enlarged: pieces have smooth edges
# Ways of cutting ink out. Of the longer side: what is wider is ground, or a shadow on it. Of the strongest ink's
# contrast: above that a pixel is ink.
WINDOWS, LEVELS = (1 / 5, 1 / 12), (0.35, 0.7, 0.17, 0.08)
LEAST_CONTRAST, NOISE = 0.01, 4.5  # of ink; the latter in multiples of the median noise
EDGE = 0.6  # of a piece's contrast: more than that right beside it, and it is part of a light, a shadow or a line
CUT = 0.8  # of the image's height and width: digits that fill more may have been cut out at their box
REACH = 0.1  # of the pieces' median size: nearer ones may be strokes of one digit
SURE = 0.5  # the score from which the larger of two pieces that share ink counts, not the more probable
SPECK = 0.42  # of the digits' median size: what is smaller is dirt, or a comma
GOOD, POOR = 0.9, 0.8  # share of the ink that is read: no other way of cutting is tried; mean score: a page is turned
FEW, MOST_PIECES = 3, 500  # more than few are a page

Box = tuple[float, float, float, float]  # `xyxy`: left, top, right, bottom
Span = tuple[slice, slice]  # rows and columns
Log = Callable[[str], None]

# ---------------------------------------------------------------------------------------------- images


class Raster(NamedTuple):
    """An image as it was read, and its size before it was shrunk."""

    name: str  # what messages call it
    gray: Tensor  # (1, h, w) float32 in [0, 1], 0 being black
    height: int
    width: int


def _name(image: Any) -> str:
    """What messages call an image: control characters in a file's name would take effect in a terminal."""
    name = str(image) if isinstance(image, (str, Path)) else "image"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def read_image(image: Any, log: Log = print) -> Raster:
    """Anybody's image, shrunk where it has more than MOST_PIXELS; `log` is told what was changed.

    image: a file, by name or open, turned as its EXIF asks, a PIL image, or an array or tensor (H, W), with 1, 3 or 4
    channels before or after that: integers of 8 or 16 bits, or of 0 and 1 alone, bool, or floats in [0, 1].

    Raises DataError where it is none of these, unreadable, empty, or not finite numbers in that range.
    """
    name, size = _name(image), None
    if isinstance(image, (str, Path, Image.Image)) or hasattr(image, "read"):
        image, size = _decode(image, name, log)
    elif isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()  # numpy knows no bfloat16
    if not isinstance(image, np.ndarray):
        raise DataError(f"{name}: expected a file, a PIL image, an array or a tensor, found {type(image).__name__}")
    channels = next((axis for axis in (2, 0) if image.ndim == 3 and image.shape[axis] in (1, 3, 4)), None)
    if not image.size or (image.ndim != 2 and channels is None):
        expected = "expected (H, W), or 1, 3 or 4 channels before or after that"
        raise DataError(f"{name}: {expected}, found shape {image.shape}")
    pixels = _as_floats(image[None] if channels is None else np.moveaxis(image, channels, 0), name)
    height, width = size or pixels.shape[1:]
    if (shrink := math.sqrt(MOST_PIXELS / pixels[0].numel())) < 1:
        pixels = F.interpolate(pixels[None], [max(1, int(shrink * side)) for side in pixels.shape[1:]], mode="area")[0]
    pixels, alpha = (pixels[:3], pixels[3]) if len(pixels) == 4 else (pixels, None)
    if (pixels == pixels[:1]).all():
        gray = pixels[0].clone()
    else:
        log(f"{name}: in colour, converted to grayscale")
        luma = torch.tensor((0.299, 0.587, 0.114))[:, None, None]  # of red, green and blue, as Pillow weighs them
        gray = (luma * pixels).sum(0).mul(255).round().div(255)  # of 8 bits, so that it is read like its gray copy
    if alpha is not None:
        if alpha.mean() > 0.9:  # of stray transparent pixels, the ground is what the others are most often
            ground = gray[alpha > 0.5].median()
        else:  # what contrasts with the ink
            ground = ((gray * alpha).sum() < 0.5 * alpha.sum()).float()
            log(f"{name}: transparent, laid over {'white' if ground else 'black'}")
        gray = gray * alpha + ground * (1 - alpha)
    return Raster(name, gray[None], height, width)


def _as_floats(pixels: np.ndarray, name: str) -> Tensor:
    """Numbers of any kind that `read_image` takes -> float32 in [0, 1], copied."""
    kind, low, high, top = pixels.dtype.kind, pixels.min(), pixels.max(), 1
    if kind not in "uibf":
        raise DataError(f"{name}: expected numbers from 0 to 255, or floats in [0, 1], found {pixels.dtype}")
    if not np.isfinite((low, high)).all():
        raise DataError(f"{name}: has pixels that are NaN or infinite")
    if kind in "ui":
        top = 65535 if kind == "u" and pixels.dtype.itemsize == 2 else 255  # in either order of bytes
    if low < 0 or high > top:
        raise DataError(f"{name}: expected {pixels.dtype} from 0 to {top}, found {low:.4g} to {high:.4g}")
    return torch.from_numpy(pixels.astype(np.float32, order="C")) / (top if high > 1 else 1)  # a mask holds 0 and 1


def _decode(source: Any, name: str, log: Log) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a file, by name or open, or of a PIL image, upright, and the height and width that it has."""
    if isinstance(source, (str, Path)) and Path(source).exists() and not Path(source).is_file():
        raise DataError(f"{name}: expected a file, found a folder, a pipe or a device")  # reading might never end
    with files.naming(name, "cannot be decoded"):  # a damaged image makes Pillow raise nearly anything
        try:
            image = source if isinstance(source, Image.Image) else Image.open(source)
        except UnidentifiedImageError:
            heic = "save a HEIC image, as some phones take them, as JPEG or PNG first"
            raise DataError(f"{name}: not an image, or not of a kind that Pillow reads: {heic}") from None
        if image is not source and (count := getattr(image, "n_frames", 1)) > 1:
            log(f"{name}: holds {count} images, the first is taken")
        image.load()  # a TIFF is turned by this, and then does not ask for it any more
        with contextlib.suppress(Exception):  # EXIF may be damaged
            image = ImageOps.exif_transpose(image)
        if image.mode == "I":
            raise DataError(f"{name}: expected 8 or 16 bits per pixel, found 32 (PIL's mode I)")
        size = image.height, image.width
        if image.mode != "F" and not image.mode.startswith("I;16"):
            image = image.convert("RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB")
            if (shrink := int(math.sqrt(math.prod(size) / MOST_PIXELS))) > 1:
                image = image.reduce(shrink)
        return np.asarray(image), size


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

    image: Raster  # upright; boxes are in its pixels
    digits: list[Digit]
    notes: list[str]


def find_digits(
    image: Any, weights: str | Path | Trained = "localization", threshold: float = 0.5, log: Log = print
) -> list[Digit]:
    """Find the digits in anybody's image, in reading order: row by row, from left to right.

    image: see `read_image`. Boxes are in its own pixels; a page that lies sideways is turned first, and they are in
    pixels of that. `log` is told what was done.
    weights: "localization" (ten classes), "detection" (zeros and ones only), a file that `training.save_weights` wrote,
    or what `training.load_weights` read. In an image like the training images they decide, and localization finds at
    most one digit; all others the reader reads.
    threshold: digits that are less probable are left out.

    Raises DataError for an image or weights that are not what they should be, ValueError for another threshold.
    """
    trained = weights if isinstance(weights, Trained) else _load(weights)
    return _find(read_image(image, log), trained, threshold, log).digits


def _load(weights: str | Path) -> Trained:
    """The weights of a task, or a file's."""
    return load_weights(WEIGHTS / f"{models.OURS[TASKS[weights]].__name__}.pt" if weights in TASKS else weights)


def _find(image: Raster, weights: Trained, threshold: float, log: Log) -> Reading:
    """`find_digits` in what was read."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], found {threshold}")
    reading = _find_in_noise(image, weights, threshold) or _find_ink(image, weights.task, threshold)
    if reading.notes:
        log(f"{image.name}: {image.height}x{image.width} pixels (height x width), {', '.join(reading.notes)}")
    rows: list[list[Digit]] = []
    for digit in sorted(reading.digits, key=lambda digit: digit.box[1] + digit.box[3]):
        middle = (digit.box[1] + digit.box[3]) / 2
        row = next((row for row in rows if row[0].box[1] <= middle <= row[0].box[3]), None)
        rows.append([digit]) if row is None else row.append(digit)
    return reading._replace(digits=[digit for row in rows for digit in sorted(row)])


def draw_digits(image: Raster, digits: Sequence[Digit]) -> Figure:
    """The image with the boxes, classes and scores of its digits."""
    scale = image.gray.shape[2] / image.width
    boxes = scale * torch.tensor([digit.box for digit in digits]).reshape(-1, 4)
    return utils.draw_detections(image.gray, boxes, [f"{digit.class_id}  {digit.score:.2f}" for digit in digits])


# ------------------------------------------------------------------------------- images like the training images


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
    noisy = least >= 0.035 and most <= 0.17 and all(upper <= 2.2 * step for step, upper in steps)
    if not noisy or not 1.7 < (third - first) / most < 9 or darkest > 0.15:
        return None
    if negative:
        return scaled, ["noisy, a negative, inverted"]
    return (scaled, ["noisy and dim, brightened"]) if high - low < 0.85 else (image, [])


def _find_in_noise(image: Raster, weights: Trained, threshold: float) -> Reading | None:
    """The digits of an image like the training images, which may have been enlarged; None where it is not. A smaller
    one is laid in the middle of a frame of its median."""
    gray = image.gray
    scale = min(1.0, HEIGHT / gray.shape[1], WIDTH / gray.shape[2])
    rows, columns = size = [max(1, round(scale * side)) for side in gray.shape[1:]]
    small = F.interpolate(gray[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    lost = F.interpolate(small[None], gray.shape[1:], mode="nearest-exact")[0] - gray
    shown = as_trained_on(small) if lost.abs().mean() < 0.05 else None  # else details are lost, no enlarged pixels
    if shown is None:
        return None
    changed, notes = shown
    notes += [f"scaled to {rows}x{columns}"] * (small.shape != gray.shape)
    notes += [f"padded to {HEIGHT}x{WIDTH}"] * (small.shape != (1, HEIGHT, WIDTH))
    top, left = (HEIGHT - rows) // 2, (WIDTH - columns) // 2
    frame = (left, WIDTH - columns - left, top, HEIGHT - rows - top)
    outputs = utils.infer(weights.network, F.pad(changed, frame, value=changed.median().item())[None])
    if not torch.isfinite(outputs).all():
        raise DataError(f"{weights.path}: weights: the network's outputs are not finite")
    boxes, classes, scores = utils.decode(outputs, threshold, OVERLAP)[0].values()
    boxes = boxes - torch.tensor((left, top, left, top))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    kept = ((centres >= 0) & (centres <= torch.tensor((columns, rows)))).all(1)  # else it is in the frame
    if changed is not small:
        kept &= scores >= threshold  # the noise may be another than that of the training images
    boxes = clip_boxes_to_image(boxes, size) * torch.tensor((image.width / columns, image.height / rows) * 2)
    found = zip(boxes[kept].tolist(), classes[kept].tolist(), scores[kept].tolist(), strict=True)
    return Reading(image, [Digit(tuple(box), class_id, score) for box, class_id, score in found], notes)


# ---------------------------------------------------------------------------------------------- ink


def build_reader() -> nn.Sequential:
    """The reader: pieces of ink (N, 1, 28, 28) in [0, 1], the longer side 20 pixels -> logits (N, 11) of the ten digits
    and of no digit."""
    conv = Conv2dNormActivation  # 3x3, with batch norm and ReLU; its layers are the reader's own
    layers = *conv(1, 24), *conv(24, 48, stride=2), *conv(48, 48), *conv(48, 96, stride=2), *conv(96, 96)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 49, 11))


@cache
def load_reader() -> nn.Sequential:
    """The reader with its published weights. Raises DataError where they are missing or do not fit."""
    reader = build_reader()
    with files.naming(READER, "does not fit the reader"):
        reader.load_state_dict(files.load_tensors(READER))
    return reader.eval()


class Piece(NamedTuple):
    """A patch of ink, or several that may be strokes of one digit."""

    span: Span
    mask: np.ndarray  # within that
    scores: np.ndarray  # (10,): how probable each digit is

    @property
    def side(self) -> int:
        return max(self.mask.shape)

    @property
    def score(self) -> float:
        return self.scores.max()


def _find_ink(image: Raster, task: str, threshold: float) -> Reading:
    """The digits of an image with a quiet ground. A page that reads badly is turned."""
    enlarge = max(1, LEAST_SIDE // max(image.gray.shape[1:]))
    gray = F.interpolate(image.gray[None], scale_factor=enlarge, mode="bilinear")[0, 0].numpy()
    gray = ndimage.gaussian_filter(gray, min(1.5, min(gray.shape) / 300))
    sign, quarters = _sign_of(gray), 0
    best, complete = _read_ink(sign * gray, LEVELS)
    for turn in (1, 2, 3):
        if len(best) > FEW and _mean(best) < POOR:  # a digit or two would do as well upside down
            turned, whole = _read_ink(np.rot90(sign * gray, turn), LEVELS)
            if _mean(turned) > _mean(best) + 0.1:
                best, complete, quarters = turned, whole, turn
    if not complete:
        other, complete = _read_ink(-sign * gray, LEVELS[:1])
        if complete and _fill(other, gray.shape):  # cut out at their box, there may be more ink than ground
            best, sign, quarters = other, -sign, 0
    notes = ["dark on light"] * (sign < 0)
    notes += [f"turned by {90 * quarters} degrees counterclockwise"] * (quarters > 0)
    notes += [f"{len(best)} piece{'s' * (len(best) > 1)} of ink" if best else "nothing stands out from the ground"]
    height, width = (image.width, image.height) if quarters % 2 else (image.height, image.width)
    image = Raster(image.name, image.gray.rot90(quarters, (1, 2)), height, width)
    y, x = height / (enlarge * image.gray.shape[1]), width / (enlarge * image.gray.shape[2])
    digits = []
    for (down, across), _, scores in best:
        class_id = scores[: 2 if task == "det" else NONE].argmax()  # detection knows zeros and ones alone
        box = x * across.start, y * down.start, x * across.stop, y * down.stop
        digits.append(Digit(box, int(class_id), float(scores[class_id])))
    kept = [digit for digit in digits if digit.score >= threshold]
    if not kept and digits and (likely := max(digits, key=lambda digit: digit.score)).score > 0.2:
        notes.append(f"perhaps a {likely.class_id}, {likely.score:.2f}")
    return Reading(image, kept, notes)


def _sign_of(gray: np.ndarray) -> int:
    """Whether ink is light (1) or dark (-1): it is what differs most from its surroundings, which may be in shadow."""
    inner = gray[tuple(slice(int(0.15 * size), size - int(0.15 * size)) for size in gray.shape)]  # around: a table
    step = max(1, max(inner.shape) // 40)
    small = inner[::step, ::step]
    ground = np.kron(ndimage.median_filter(small, max(3, max(small.shape) // 2)), np.ones((step, step)))
    return 1 if ((inner - ground[: inner.shape[0], : inner.shape[1]]) ** 3).mean() > 0 else -1


def _mean(pieces: Sequence[Piece]) -> float:
    return sum(piece.score for piece in pieces) / max(1, len(pieces))


def _fill(pieces: Sequence[Piece], shape: tuple[int, int]) -> bool:
    """Whether pieces reach nearly from border to border, both ways."""
    starts, stops = _ends(pieces)
    return bool((stops.max(0) - starts.min(0) > CUT * np.array(shape)).all())


def _ends(pieces: Sequence[Piece]) -> np.ndarray:
    """Where the rows and columns of pieces begin, and where they end: (2, N, 2)."""
    return np.array([[(side.start, side.stop) for side in piece.span] for piece in pieces]).transpose(2, 0, 1)


def _ink_of(light: np.ndarray, window: float) -> tuple[np.ndarray, float, float]:
    """How far each pixel (h, w) stands out from the ground, which is wider than the window; the strongest of it, and
    how far ink has to."""
    size = [2 * int(min(window * max(light.shape), length - 1) / 2) + 1 for length in light.shape]
    # Outside it is dark: a digit may be cut out at its box.
    ink = ndimage.white_tophat(light, size, mode="constant", cval=-np.inf)
    peak = np.quantile(ink, 0.9995)
    ink -= np.median(ink[ink <= peak / 2])
    return ink, peak, max(LEAST_CONTRAST, NOISE * np.median(np.abs(ink[ink <= peak / 2])))


def _read_ink(light: np.ndarray, levels: Sequence[float]) -> tuple[list[Piece], bool]:
    """The pieces of light ink in (h, w), cut out in one way after another until most ink reads well; and whether it
    does."""
    pieces: list[Piece] = []
    best: list[Piece] = []
    for window in WINDOWS:
        if window < WINDOWS[0] and len(best) <= FEW:
            break  # smaller windows are for pages: in them the edges of a hand's shadow are strokes
        ink, peak, least = _ink_of(light, window)
        for mask in (ink > level * peak for level in levels if level * peak > least):
            pieces += _read_pieces(ink, mask)
            best = _choose(pieces, light.shape)
            if sum(piece.mask.sum() for piece in best if piece.score > POOR) > GOOD * mask.sum():
                return best, True
    return best, False


def _cut_out(mask: np.ndarray) -> list[tuple[Span, np.ndarray]]:
    """The largest patches of a mask, and near ones together, strokes of one digit or grains of chalk: where each lies,
    and its mask within that."""
    patches, reach = {}, 0
    for _ in range(2):
        labels, _ = ndimage.label(ndimage.maximum_filter(mask, (2 * reach + 1, reach + 1)), np.ones((3, 3)))
        labels *= mask
        for number, span in enumerate(ndimage.find_objects(labels), 1):
            if span and max(mask[span].shape) >= max(5, max(mask.shape) / 100):
                patches.setdefault(str(span), (span, labels[span] == number))
        reach = round(REACH * np.median([max(part.shape) for _, part in patches.values()])) if patches else 0
    return sorted(patches.values(), key=lambda each: max(each[1].shape))[-MOST_PIECES:]


def _read_pieces(ink: np.ndarray, mask: np.ndarray) -> list[Piece]:
    """Cut a mask's pieces out and read them; what holds two digits is none."""
    patches = [each for each in _cut_out(mask) if _is_stroke(ink, *each)]
    if not patches:
        return []
    with torch.inference_mode():
        shown = torch.stack([_show(ink, *each) for each in patches])
        answers = torch.cat([load_reader()(part).softmax(1) for part in shown.split(256)])[:, :NONE].numpy()
    for (span, _), scores in zip(patches, answers, strict=True):
        for side, size in zip(span, mask.shape, strict=True):
            if (side.start == 0 or side.stop == size) and side.stop - side.start < CUT * size:
                scores[1] = 0  # a finger's shadow, or the edge of a sheet
    pieces = [Piece(*each, scores) for each, scores in zip(patches, answers, strict=True)]
    starts, stops = _ends(pieces)
    holds = (starts[:, None] <= starts).all(2) & (stops[:, None] >= stops).all(2)  # (N, N): a piece, another in its box
    digits = (holds & ~np.eye(len(pieces), dtype=bool))[:, [piece.score > SURE for piece in pieces]].sum(1)
    return [piece for piece, count in zip(pieces, digits, strict=True) if count < 2]


def _is_stroke(ink: np.ndarray, span: Span, part: np.ndarray) -> bool:
    """Whether a patch has sharp edges all around, unlike lights, shadows and parts of lines, and does not reach from
    border to border like a fold."""
    shares = [length / size for length, size in zip(part.shape, ink.shape, strict=True)]
    if max(shares) > 0.95 and min(shares) < 0.2:
        return False
    mask, padded = np.pad(part, 4), np.pad(ink, 4)[tuple(slice(side.start, side.stop + 8) for side in span)]
    around = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask)
    return np.quantile(padded[around], 0.9) < EDGE * np.median(padded[mask])


def _show(ink: np.ndarray, span: Span, part: np.ndarray) -> Tensor:
    """A patch of ink, without others that reach into its box, as the reader sees it: (1, 28, 28)."""
    values = np.pad(ink[span], 2, mode="edge") * ndimage.binary_dilation(np.pad(part, 2), iterations=2)
    values = (values / np.quantile(ink[span][part], 0.8)).clip(0, 1).astype(np.float32)
    size = [min(28, max(1, round(length * 20 / max(part.shape)))) for length in values.shape]
    small = F.interpolate(torch.from_numpy(values)[None, None], size, mode="bilinear", antialias=True)[0]
    return center_crop(small / small.max(), [28, 28]).clamp(0, 1)  # which pads


def _choose(pieces: Sequence[Piece], shape: tuple[int, int]) -> list[Piece]:
    """Of pieces that share ink, the larger that is surely a digit, or else the most probable; but for specks."""
    taken, chosen = np.zeros(shape, bool), []
    for piece in sorted(pieces, key=lambda each: (min(each.score, SURE), each.side), reverse=True):
        if taken[piece.span][piece.mask].mean() < 0.1:
            taken[piece.span] |= piece.mask
            chosen.append(piece)
    sides = [piece.side for piece in chosen if piece.score > SURE]
    return [piece for piece in chosen if piece.side >= SPECK * np.median(sides or [0])]


# ---------------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """Find, print and draw the digits of some images; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="picture", help="an image, of any size")
    parser.add_argument("--task", choices=TASKS, help="localization, all digits (the default), or detection, 0 and 1")
    parser.add_argument("--weights", type=Path, help="a file of weights, instead of the task's in weights/")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of a digit, by default 0.5")
    parser.add_argument("--output", type=Path, help="the drawing, a PNG; by default beside the image, NAME_found.png")
    options = parser.parse_intermixed_args(arguments)  # images may follow options
    mpl.use("Agg")  # no window is opened
    say, status = partial(print, file=sys.stderr), 0
    trained = _load(options.weights or options.task or "localization")
    if options.task and trained.task != TASKS[options.task]:
        raise DataError(f"{trained.path}: holds a network for another task than {options.task}")
    for path, drawing in _name_drawings(options.images, options.output, say).items():
        try:
            image, digits, _ = _find(read_image(path, say), trained, options.threshold, say)
            for box, class_id, score in digits:
                corners = " ".join(f"{value:.1f}" for value in box)
                print(f"{image.name}: class {class_id}, score {score:.3f}, box {corners}")
            if not digits:
                print(f"{image.name}: no digit")
            plots.save_figure(draw_digits(image, digits), drawing.parent, drawing.stem)
            say(f"{image.name}: drawn in {_name(drawing)}")
        except (OSError, ValueError) as error:  # the other images can still be done
            say(error)
            status = 1
    return status


def _name_drawings(images: Sequence[Path], output: Path | None, say: Log) -> dict[Path, Path]:
    """Where each image is drawn, but for those that an earlier call has drawn: their image lies beside them."""
    drawings = {}
    for path in images:
        name = path.name.removesuffix("_found.png")
        if name != path.name and any(each.stem == name for each in path.parent.glob("*")):
            say(f"{_name(path)}: skipped, drawn by an earlier call")
        else:
            drawings[path] = output or path.parent / f"{path.stem}_found.png"
    taken = [path.resolve() for path in (*drawings, *drawings.values())]
    for drawing in drawings.values():
        if taken.count(drawing.resolve()) > 1:
            raise DataError(f"{_name(drawing)}: the drawing would take the place of an image, or of another's drawing")
    if output and output.suffix != ".png":
        raise DataError(f"--output: expected a name that ends in .png, found {str(output)!r}")
    return drawings


if __name__ == "__main__":
    guard(main)
