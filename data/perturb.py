"""Makes 48x60 pictures and boxes out of 28x28 digits: noise, one affine warp per digit, a place per digit.

The pictures are of the same kind as the course's, whose recipe was read off published pictures of them. Everything
follows from one seed: each chunk of pictures has its own random numbers, so that chunks can be made side by side.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import COLUMNS, HEIGHT, NO_DIGIT, ROWS, WIDTH, grid_to_lists, lists_to_grid

CHUNK = 1000  # pictures made at a time: bounds memory, and is the unit that the two cores share

# Digit
ROTATION = 20.0  # degrees, uniform in +-
SCALE = (0.6, 1.3)  # uniform
ASPECT = 0.1  # width times exp(u), height divided by it, u uniform in +-
GAIN = 1.6  # then clipped to 1: the course's digits are bolder than MNIST's
BOX_ABOVE = 0.2  # the box is the tight one around pixels above this
CANVAS = 56  # a 28x28 digit, scaled and turned by the most there is, fits: 28 * 1.3 * 1.11 * 1.29 = 52

# Sets
EMPTY_SHARE = 1 / 11  # of localization pictures
MORE_DIGITS = {2: 0.195, 3: 0.03, 4: 0.005}  # share of detection pictures with so many digits; the rest has one
ATTEMPTS = 500  # to place a picture's digits before they are warped anew


@dataclass(frozen=True)
class Noise:
    """Background `clip(mean + std * z, 0, 1)`, z of unit variance: blurred and white Gaussian noise."""

    mean: float
    std: float
    shares: tuple[tuple[float, float], ...]  # (sigma of the Gaussian filter in pixels, share of the variance)


NOISE = {
    "loc": Noise(0.393, 0.195, ((2.0, 0.60), (0.9, 0.14), (0.0, 0.26))),
    "det": Noise(0.272, 0.158, ((2.0, 0.50), (0.9, 0.10), (0.0, 0.40))),
}


def _blur_matrix(size: int, sigma: float) -> Tensor:
    """(size, size + 2 * radius): blurs white noise along one axis; its rows have norm 1, so variance stays 1."""
    radius = math.ceil(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.norm()
    matrix = torch.zeros(size, size + 2 * radius)
    for row in range(size):
        matrix[row, row : row + len(kernel)] = kernel
    return matrix


def make_noise(count: int, noise: Noise, rng: np.random.Generator) -> Tensor:
    """Backgrounds without digits, (count, 48, 60) float32 in [0, 1]."""
    z = torch.zeros(count, HEIGHT, WIDTH)
    for sigma, share in noise.shares:
        rows, columns = (_blur_matrix(size, sigma) for size in (HEIGHT, WIDTH)) if sigma else (None, None)
        shape = (rows.shape[1], columns.shape[1]) if sigma else (HEIGHT, WIDTH)
        white = torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32))
        # Noise wider than the picture, so that blurring has no border.
        z += math.sqrt(share) * (rows @ white @ columns.T if sigma else white)
    return z.mul_(noise.std).add_(noise.mean).clamp_(0, 1)


def warp_digits(digits: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turn, scale and brighten digits (M, 28, 28) in [0, 1].

    Returns canvases (M, 56, 56) in [0, 1] and the tight boxes on them, (M, 4) integers [top, left, height, width].
    """
    count = len(digits)
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, count))
    scale = rng.uniform(*SCALE, count)
    aspect = np.exp(rng.uniform(-ASPECT, ASPECT, count))
    cos, sin = np.cos(angle), np.sin(angle)
    # grid_sample asks where each canvas point comes from: the inverse, first turned back, then scaled back.
    inverse = np.stack((cos / (scale * aspect), sin / (scale * aspect), -sin * aspect / scale, cos * aspect / scale))
    theta = np.zeros((count, 2, 3), dtype=np.float32)
    theta[:, :, :2] = inverse.T.reshape(count, 2, 2) * CANVAS / digits.shape[-1]
    where = F.affine_grid(torch.from_numpy(theta), (count, 1, CANVAS, CANVAS), align_corners=False)
    canvas = F.grid_sample(digits[:, None].float(), where, mode="bilinear", align_corners=False)[:, 0]
    canvas = canvas.mul_(GAIN).clamp_(max=1)
    ink = canvas > BOX_ABOVE
    if not ink.any((1, 2)).all():
        raise ValueError("digits: expected strokes in every digit, found one without a pixel left after the warp")
    return canvas, torch.cat([_extent(ink.any(2 - axis), axis) for axis in (0, 1)], 1)[:, [0, 2, 1, 3]]


def _extent(used: Tensor, axis: int) -> Tensor:
    """(M, 56) bool, which rows (axis 0) or columns (axis 1) hold ink -> (M, 2) integers [first, count]."""
    used = used.byte()
    first = used.argmax(1)
    count = CANVAS - used.flip(1).argmax(1) - first
    limit = (HEIGHT, WIDTH)[axis]
    if int(count.max()) > limit:
        raise ValueError(f"digits: expected digits that fit into {limit} pixels when warped, found {int(count.max())}")
    return torch.stack((first, count), 1)


def _place(sizes: np.ndarray, per_picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Place every picture's boxes uniformly, all anew until none overlap and no two centres share a cell.

    sizes: (P, 4, 2) height and width, per_picture: (P,) how many of the four count.
    Returns corners (P, 4, 2) [top, left] and (P,) bool, whether the picture succeeded.
    """
    corners = np.zeros_like(sizes)
    pending = np.arange(len(sizes))
    for _ in range(ATTEMPTS):
        size = sizes[pending]
        corner = np.floor(rng.random(size.shape) * (np.array((HEIGHT, WIDTH)) - size + 1)).astype(sizes.dtype)
        corners[pending] = corner
        middle = 2 * corner + size  # twice the centre, an integer
        row, column = middle[..., 0] * ROWS // (2 * HEIGHT), middle[..., 1] * COLUMNS // (2 * WIDTH)
        cell = row * COLUMNS + column
        conflict = np.zeros(len(pending), dtype=bool)
        for second in range(1, sizes.shape[1]):
            for first in range(second):
                apart = (corner[:, first] + size[:, first] <= corner[:, second]) | (
                    corner[:, second] + size[:, second] <= corner[:, first]
                )
                clash = ~apart.any(1) | (cell[:, first] == cell[:, second])
                conflict |= clash & (second < per_picture[pending])
        pending = pending[conflict]
        if not len(pending):
            break
    succeeded = np.ones(len(sizes), dtype=bool)
    succeeded[pending] = False
    return corners, succeeded


def _make_chunk(digits: Tensor, per_picture: np.ndarray, noise: Noise, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Pictures (P, 48, 60) uint8, and each digit's box (M, 4) [x, y, w, h] in fractions of the picture."""
    rng = np.random.default_rng(seed)
    pictures = make_noise(len(per_picture), noise, rng)
    owner = np.repeat(np.arange(len(per_picture)), per_picture)
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(per_picture) - per_picture, per_picture)
    canvas, box, corner = torch.empty(len(owner), CANVAS, CANVAS), torch.empty(len(owner), 4, dtype=torch.long), None
    corners = np.zeros((len(per_picture), max(1, per_picture.max(initial=0)), 2), dtype=np.int64)
    pending = per_picture > 0
    while pending.any():
        todo = torch.from_numpy(pending[owner])
        canvas[todo], box[todo] = warp_digits(digits[todo], rng)
        sizes = np.zeros_like(corners)
        sizes[owner, slot] = box[:, 2:].numpy()
        corners[pending], succeeded = _place(sizes[pending], per_picture[pending], rng)
        # Four large digits may not fit at all; such a picture's digits are warped anew.
        pending[pending] = ~succeeded
    corner = torch.from_numpy(corners[owner, slot])
    for layer in range(corners.shape[1]):
        chosen = torch.from_numpy(slot == layer)
        moved = _move(canvas[chosen], box[chosen, :2], corner[chosen])
        pictures[owner[slot == layer]] = torch.maximum(pictures[owner[slot == layer]], moved)
    size = box[:, 2:].double()
    extent = torch.tensor((HEIGHT, WIDTH), dtype=torch.float64)
    centre = (corner + size / 2) / extent
    boxes = torch.cat((centre.flip(1), (size / extent).flip(1)), 1).float()
    return pictures.mul_(255).round_().byte(), boxes


def _move(canvas: Tensor, start: Tensor, corner: Tensor) -> Tensor:
    """Cut pictures (M, 48, 60) out of canvases (M, 56, 56) so that canvas pixel `start` comes to `corner`."""
    inside = []
    for axis, size in enumerate((HEIGHT, WIDTH)):
        inside.append(torch.arange(size) + (start - corner)[:, axis, None])  # (M, size)
    rows, columns = inside
    number = torch.arange(len(canvas))[:, None, None]
    moved = canvas[number, rows.clamp(0, CANVAS - 1)[:, :, None], columns.clamp(0, CANVAS - 1)[:, None, :]]
    valid = ((rows >= 0) & (rows < CANVAS))[:, :, None] & ((columns >= 0) & (columns < CANVAS))[:, None, :]
    return moved * valid


def _digits_per_picture(task: str, pictures: int, pool: int, rng: np.random.Generator) -> np.ndarray:
    """(pictures,) how many digits each picture holds, shuffled; from `pool` different digits."""
    if task == "loc":
        counts = np.ones(pictures, dtype=np.int64)
        counts[: round(pictures * EMPTY_SHARE)] = 0
    else:
        mean = 1 + sum((number - 1) * share for number, share in MORE_DIGITS.items())
        uses = math.ceil(mean * pictures / pool)
        # Each digit used equally often where that comes out at nearly the mean, as it does for the full sets.
        total = uses * pool if uses * pool <= mean * pictures * 1.01 else round(mean * pictures)
        three, four = (round(pictures * MORE_DIGITS[number]) for number in (3, 4))
        two = max(0, total - pictures - 2 * three - 3 * four)
        counts = np.ones(pictures, dtype=np.int64)
        for number, share in ((2, two), (3, three), (4, four)):
            single = np.flatnonzero(counts == 1)
            counts[single[:share]] = number
    rng.shuffle(counts)
    return counts


def make_pictures(
    digits: Tensor, classes: Tensor, task: str, count: int, seed: list[int]
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Make a set of `count` pictures from digits (D, 28, 28) uint8 of classes (D,), each reused as often as needed.

    Returns pictures (count, 1, 48, 60) uint8, labels of the task, float32, the same digits as lists, (k, 6) float32
    per picture in fractions of the picture and in the order of their cells, and which digit each is, (count,) or
    (count, 2, 3), -1 where there is none.
    """
    rng = np.random.default_rng([*seed, 0])
    per_picture = _digits_per_picture(task, count, len(digits), rng)
    needed = int(per_picture.sum())
    used = np.concatenate([rng.permutation(len(digits)) for _ in range(math.ceil(needed / len(digits)))] or [[]])
    used = torch.from_numpy(used[:needed].astype(np.int64))
    ends = np.cumsum(per_picture)

    def chunk(first: int) -> tuple[Tensor, Tensor]:
        last = min(first + CHUNK, count)
        mine = used[ends[first] - per_picture[first] : ends[last - 1]]
        return _make_chunk(
            digits[mine].float() / 255, per_picture[first:last], NOISE[task], [*seed, 1 + first // CHUNK]
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures, boxes = zip(*pool.map(chunk, range(0, count, CHUNK)), strict=True)
    digit = torch.cat((torch.ones(needed, 1), torch.cat(boxes), classes[used, None].float()), 1)
    lists = list(digit.split(per_picture.tolist()))
    pictures = torch.cat(pictures)[:, None]
    if task == "det":
        grid = lists_to_grid(lists)
        # The same conversion with the digit's number in place of its class.
        numbered = torch.cat((digit[:, :5].double(), used[:, None].double()), 1)
        numbers = lists_to_grid(list(numbered.split(per_picture.tolist())))[..., 5].long()
        numbers = torch.where(grid[..., 0] > 0, numbers, -1)
        return pictures, grid.float(), [boxes.float() for boxes in grid_to_lists(grid)], numbers
    labels, numbers = torch.tensor(NO_DIGIT).repeat(count, 1), torch.full((count,), -1)
    there = torch.from_numpy(per_picture == 1)
    labels[there], numbers[there] = digit, used
    return pictures, labels, lists, numbers
