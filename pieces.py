"""Finds the pieces of ink in a picture that may be digits.

`as_trained_on` picks out pictures with the noise that the networks were trained on, which no threshold takes apart; in
all others `find_pieces` tells the ground from ink, dark or light.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from data.labels import HEIGHT, WIDTH
from pictures import Picture

INK = 0.35  # of the strongest ink's contrast: above that a pixel is ink
LEAST_CONTRAST = 0.03  # of ink with its ground, in a picture without noise
DEVIATIONS = 6  # of the noise, above which there is ink
WINDOW = 1 / 3  # of the shorter side: what is wider, as a shadow with an edge, is ground
SPECK = 0.3  # of the largest piece's size: smaller ones are dirt
MOST_PIECES = 12  # more are a text or a texture
HIGH = (17, 19, 21)  # pixels, the longer side of a digit as the network is asked about it; training has 14 to 24
GROUND = 0.25  # its background, which makes no difference from 0 to 0.4
THIN = 0.09  # of its longer side: thinner strokes are broadened, as MNIST's are hardly ever thinner

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Span = tuple[slice, slice]  # rows and columns


class Piece(NamedTuple):
    """A patch of ink that may be a digit."""

    box: Box
    ink: Tensor  # (h, w) float32, from 0, the ground, to 1: the box and a little around it, thin strokes broadened


class Found(NamedTuple):
    """The pieces of a picture, from left to right."""

    pieces: list[Piece]
    notes: list[str]  # what there is to say


def as_trained_on(fitted: Tensor) -> tuple[Tensor, list[str]] | None:
    """A picture (1, h, w) at the networks' scale, whose noise is that of the training pictures: as it is, or, where it
    is dim or a negative, as they are; with what there is to say. None for all other pictures."""
    low, high = torch.aminmax(fitted)
    if min(fitted.shape[1:]) < 8 or high - low < 0.05:
        return None
    scaled = (fitted - low) / (high - low)
    if negative := scaled.median() > 0.55:
        scaled = 1 - scaled
    halves = torch.tensor((0.5, 0.75))
    steps = [torch.quantile(scaled.diff(dim=axis).abs().flatten(), halves).tolist() for axis in (1, 2)]
    least, most = min(step for step, _ in steps), max(step for step, _ in steps)
    darkest, first, third = torch.quantile(scaled, torch.tensor((0.02, 0.25, 0.75))).tolist()
    # Of 9,599 validation pictures of both tasks, pixels differ from their neighbours by a median of 0.08 to 0.12, and
    # by less than twice that in three of four places: it is noise, no pattern. It is blotchy: quartiles are 1.8 to 3.6
    # times as far apart, those of white noise 1.4 times. And it is cut at black: a 50th of it is below 0.11.
    if least < 0.035 or most > 0.17 or any(upper > 2.2 * step for step, upper in steps):
        return None
    if not 1.7 < (third - first) / most < 9 or darkest > 0.15:
        return None
    if negative:
        return scaled, ["noisy, a negative, inverted"]
    return (scaled, ["noisy and dim, brightened"]) if high - low < 0.85 else (fitted, [])


def find_pieces(picture: Picture) -> Found:
    """The pieces of ink in a picture with a quiet ground, with boxes in the pixels of the shrunk picture."""
    gray, notes = _most_contrast(picture)
    ink, sign, noise = ink_of(gray)
    notes += ["dark on light, inverted"] * (sign < 0)
    least = max(LEAST_CONTRAST, DEVIATIONS * noise, 0.2 * np.quantile(ink, 0.9995))
    left_out = False
    while (peak := np.quantile(ink, 0.9995)) >= least:
        labels, _ = ndimage.label(ink > max(INK * peak, 4 * noise), np.ones((3, 3)))
        spans = dict(enumerate(ndimage.find_objects(labels), 1))
        smallest = 0.4 * SPECK * max(map(_size, spans.values()))
        spans = {number: span for number, span in spans.items() if _size(span) >= smallest}
        masks = {number: labels[span] == number for number, span in spans.items()}
        if len(spans) > 5 * MOST_PIECES or any(map(_is_mesh, masks.values())):
            return Found([], ["taken for a texture"])
        shapes = [number for number, mask in masks.items() if _is_shape(mask, spans[number], ink.shape)]
        if not shapes:
            pieces = [_cut(ink, labels, group, spans) for group in _group(spans)]
            if len(pieces) > MOST_PIECES:
                return Found([], [f"{len(pieces)} pieces of ink, taken for a text"])
            notes += ["frames, lines and blots left out"] * left_out
            return Found(sorted(pieces, key=lambda piece: piece.box), notes)
        ink[_around(np.isin(labels, shapes))] = 0  # it may have hidden fainter ink
        left_out = True
    return Found([], ["nothing but frames, lines or blots"] if left_out else ["nothing stands out from the ground"])


def _most_contrast(picture: Picture) -> tuple[np.ndarray, list[str]]:
    """(h, w): the gray picture, or that channel of a colour picture in which ink differs much more from its ground."""
    gray = picture.gray[0].numpy()
    if picture.pixels.ndim == 2:
        return gray, []
    layers = {"gray": gray} | {name: picture.pixels[..., i] for i, name in enumerate(("red", "green", "blue"))}
    contrasts = {name: np.ptp(np.quantile(layer[::2, ::2], (0.002, 0.998))) for name, layer in layers.items()}
    best = max(contrasts, key=contrasts.get)
    if contrasts[best] < 1.5 * contrasts["gray"]:
        return gray, []
    return np.ascontiguousarray(layers[best]), [f"read in {best}, where there is more contrast"]


def level(gray: np.ndarray) -> np.ndarray:
    """What differs from the lighting: (h, w) minus a parabola in both directions, or minus the median."""
    rows, columns = (np.linspace(-1, 1, size, dtype=np.float32) for size in gray.shape)
    terms = [rows[:, None] ** i * columns**j for i in range(3) for j in range(3 - i)]  # each (h, w)
    step = max(1, round(max(gray.shape) / 64))
    basis = np.stack([term[::step, ::step].ravel() for term in terms], 1)
    values = gray[::step, ::step].ravel()
    rest, wide = values - np.median(values), 0.3 * max(np.ptp(values), 0.01)
    for scale in np.geomspace(wide, 0.1 * wide, 8):  # ever less weight for what does not fit, which is the ink
        weights = 1 / (1 + (rest / scale) ** 2)
        factors = np.linalg.lstsq(basis * weights[:, None], values * weights, rcond=None)[0]
        rest = values - basis @ factors
    if (np.abs(rest) < 0.3 * wide).mean() < 0.6:  # no such lighting: perhaps a shadow with an edge
        return gray - np.median(gray)
    return gray - sum(factor * term for factor, term in zip(factors.astype(np.float32), terms, strict=True))


def ink_of(gray: np.ndarray) -> tuple[np.ndarray, float, float]:
    """How much each pixel differs from its ground towards the ink, (h, w); 1 for light ink and -1 for dark; and the
    noise's standard deviation. Ink is on the side of the strongest differences."""
    flat = level(ndimage.gaussian_filter(gray, min(1.5, min(gray.shape) / 300)))
    flat -= np.median(flat)
    low, high = np.quantile(flat, (0.0005, 0.9995))
    sign = 1.0 if high > -low else -1.0
    flat *= sign
    ground = _opening(flat, max(1, round(min(gray.shape) * WINDOW / 2)))
    ink = flat - ground
    ink -= np.median(ink)
    noise = 1.4826 * np.median(np.abs(ink))
    strong = 0.6 * max(high, -low)
    labels, _ = ndimage.label(flat > strong)
    wide = np.unique(labels[(ground > strong) & (labels > 0)])  # a disc, a shadow: the window leaves their rims
    if len(wide):
        ink[_around(np.isin(labels, wide))] = 0
    return ink, sign, noise


def _opening(values: np.ndarray, radius: int) -> np.ndarray:
    """Grey opening by a square. What lies outside the picture is no obstacle: a shadow's edge may end at the border."""
    size = 2 * radius + 1
    eroded = ndimage.minimum_filter(np.pad(values, radius, constant_values=np.inf), size, mode="constant", cval=np.inf)
    return ndimage.maximum_filter(eroded, size, mode="constant", cval=-np.inf)[radius:-radius, radius:-radius]


def _around(mask: np.ndarray) -> np.ndarray:
    """The mask with its blurred edge."""
    return ndimage.binary_dilation(mask, iterations=2 + max(mask.shape) // 150)


def _size(span: Span) -> int:
    return max(side.stop - side.start for side in span)


def _depth(mask: np.ndarray) -> float:
    """Width of the thickest place, in pixels."""
    return 2 * ndimage.distance_transform_edt(np.pad(mask, 1)).max() - 1


def _is_mesh(mask: np.ndarray) -> bool:
    """Whether ink encloses more places than any digit does."""
    holes, count = ndimage.label(~np.pad(mask, 1))
    return count > 5 and (np.bincount(holes.ravel())[1:] > mask.size / 1000).sum() > 5


def _is_shape(mask: np.ndarray, span: Span, shape: tuple[int, ...]) -> bool:
    """Whether a connected patch of ink in a picture of `shape` is a frame, a line from border to border, or a blot."""
    depth, longer = _depth(mask), max(mask.shape)
    if depth > 0.5 * longer:
        return True  # a blot
    rows, columns = span
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    reached = (rows.start == 0, rows.stop == shape[0], columns.start == 0, columns.stop == shape[1])
    lengths = (shape[1], shape[1], shape[0], shape[0])
    covered = [side.sum() / length * at for side, length, at in zip(sides, lengths, reached, strict=True)]
    if max(covered) > 0.9 or sum(share > 0.6 for share in covered) > 1:
        return True  # a picture's frame
    if any(reached) and mask.mean() > 0.9:
        return True  # a bar
    if sum(reached) > 1:
        short, long = np.linalg.eigvalsh(np.cov(*np.nonzero(mask)) + np.eye(2) / 12)
        across = all(reached[:2]) or all(reached[2:])
        if short < 0.2**2 * long or (across and depth < 0.07 * longer):
            return True  # a line, or several
    band = max(1, round(depth))
    edges = (mask[:band].any(0), mask[-band:].any(0), mask[:, :band].any(1), mask[:, -band:].any(1))
    return mask.mean() < 0.6 and min(edge.mean() for edge in edges) > 0.85  # a drawn rectangle


def _group(spans: dict[int, Span]) -> list[list[int]]:
    """Which patches are strokes of one digit, by their numbers; dirt, and what is far wider than a digit, left out."""
    groups = [([number], _box(span)) for number, span in spans.items()]
    done = 0
    while done < len(groups):
        numbers, box = groups[done]
        partner = next((other for other in groups[:done] if _one_digit(box, other[1])), None)
        if partner is None:
            done += 1
            continue
        groups = [group for group in groups if group[0] not in (numbers, partner[0])]
        groups.append((numbers + partner[0], _hull(box, partner[1])))
        done = 0
    largest = max((_side(box) for _, box in groups), default=0)
    kept = [group for group in groups if _side(group[1]) >= max(5, SPECK * largest)]
    return [numbers for numbers, (left, top, right, bottom) in kept if right - left <= 2.2 * (bottom - top)]


def _box(span: Span) -> Box:
    rows, columns = span
    return columns.start, rows.start, columns.stop, rows.stop


def _side(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _hull(*boxes: Box) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _one_digit(first: Box, second: Box) -> bool:
    """Whether two boxes hold strokes of one digit: they lie above each other, whereas digits stand side by side."""
    shared = min(first[2], second[2]) - max(first[0], second[0])
    gap = max(first[1], second[1]) - min(first[3], second[3])
    narrow = min(box[2] - box[0] for box in (first, second))
    low, high = sorted(box[3] - box[1] for box in (first, second))
    return shared >= 0.4 * narrow and (gap <= 0 or (gap <= 0.25 * high and low < 0.6 * high))


def _cut(ink: np.ndarray, labels: np.ndarray, numbers: list[int], spans: dict[int, Span]) -> Piece:
    """Cut out some patches, without others that reach into their box."""
    box = _hull(*(_box(spans[number]) for number in numbers))
    left, top, right, bottom = box
    window = slice(max(0, top - 2), bottom + 2), slice(max(0, left - 2), right + 2)
    mask = np.isin(labels[window], numbers)
    values = ink[window] * ndimage.binary_dilation(mask, iterations=2)
    # Steeper than it is, so that a blurred edge becomes a stroke's.
    values = ((values / np.quantile(values[mask], 0.8) - 0.15) / 0.6).clip(0, 1).astype(np.float32)
    missing = round((THIN * _side(box) - _stroke(values)) / 2)
    if missing > 0:
        values = ndimage.maximum_filter(np.pad(values, missing), 2 * missing + 1)
    return Piece(box, torch.from_numpy(values))


def pose(piece: Piece, high: int, centre: tuple[float, float]) -> Tensor:
    """(1, 48, 60): the piece as training pictures show a digit, its longer side `high` pixels, around centre (x, y)."""
    scale = high / _side(piece.box)
    rows, columns = (min(40, max(1, round(side * scale))) for side in piece.ink.shape)
    ink = F.interpolate(piece.ink[None, None], (rows, columns), mode="bilinear", antialias=True)[0]
    left = min(max(0, round(centre[0] - columns / 2)), WIDTH - columns)
    top = min(max(0, round(centre[1] - rows / 2)), HEIGHT - rows)
    border = (left, WIDTH - columns - left, top, HEIGHT - rows - top)
    return F.pad(ink / ink.max(), border).clamp(GROUND, 1)


def _stroke(ink: np.ndarray) -> float:
    """Width of most strokes, in pixels."""
    depth = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    ridge = depth[(depth > 0) & (depth == ndimage.maximum_filter(depth, 3))]
    return 2 * np.median(ridge) - 1
