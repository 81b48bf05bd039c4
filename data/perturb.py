"""Makes 48x60 images and boxes out of 28x28 digits, as the course made its own: noise, one affine map per digit.

The course's recipe was read off published images of its files, pixel by pixel; `localization.ipynb` and
`detection.ipynb` set what is made here beside what is known of them. Everything follows from one seed: each chunk of
images has its own random numbers, so that chunks can be made side by side.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from data.labels import COLUMNS, GRID, HEIGHT, NO_DIGIT, ROWS, WIDTH, assign_cells, to_cells

CHUNK = 1000  # images made at a time: bounds memory, and is the unit that the cores share

# Digit: torchvision's RandomAffine(30, translate=(1 / 3, 1 / 3), scale=(0.7, 1.2)) of the digit's middle
MARGIN = 2  # outermost pixels of the 28x28 digit that do not count
ROTATION = 30.0  # degrees, uniform in +-
SCALE = (0.7, 1.2)  # uniform
SHIFT = (WIDTH / 3, HEIGHT / 3)  # pixels, uniform in +-, rounded

# Sets
EMPTY_SHARE = 1 / 11  # of localization images
USES = 3  # how often detection draws each zero and each one
APART = 8  # pixels at least, in x or in y, between two boxes of a detection image
PER_IMAGE = 1.275  # digits in a detection image, about what comes out of MNIST's
MARGIN_OF_DIGITS = 1.15  # more of them, so that narrower ones fill as many images


@dataclass(frozen=True)
class Noise:
    """Background `clip(mean + std * z, 0, 1)`, z of unit variance: Gaussian-filtered and white Gaussian noise."""

    mean: float
    std: float
    shares: tuple[tuple[float, float], ...]  # (sigma of the Gaussian filter in pixels, share of the variance)


NOISE = {
    "loc": Noise(0.400, 0.203, ((2.0, 0.62), (1.05, 0.13), (0.0, 0.25))),
    "det": Noise(0.270, 0.1616, ((2.05, 0.50), (1.05, 0.12), (0.0, 0.38))),
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
    """Backgrounds without digits, (count, 48, 60) uint8."""
    z = torch.zeros(count, HEIGHT, WIDTH)
    for sigma, share in noise.shares:
        rows, columns = (_blur_matrix(size, sigma) for size in (HEIGHT, WIDTH)) if sigma else (None, None)
        shape = (rows.shape[1], columns.shape[1]) if sigma else (HEIGHT, WIDTH)
        white = torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32))
        # Noise wider than the image, so that blurring has no border.
        z += math.sqrt(share) * (rows @ white @ columns.T if sigma else white)
    return z.mul_(noise.std).add_(noise.mean).clamp_(0, 1).mul_(255).round_().byte()


def warp_digits(digits: Tensor, rng: np.random.Generator) -> Tensor:
    """Digits (M, 28, 28) uint8 -> each turned, scaled and shifted in a black image of its own, (M, 48, 60) uint8."""
    count = len(digits)
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, count))
    scale = rng.uniform(*SCALE, count)
    shift = np.round(rng.uniform(-1, 1, (count, 2)) * SHIFT)
    return affine(digits, *(torch.from_numpy(values).float() for values in (angle, scale, shift)))


def affine(digits: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The middle of digits (M, 28, 28), laid in the middle of black images and mapped about the images' centre:
    turned by angle (M,) in radians, scaled by (M,) and shifted by (M, 2) pixels. Nearest pixel, black outside.

    What torchvision's `affine` does to one image, for many.
    """
    inner = digits[:, MARGIN:-MARGIN, MARGIN:-MARGIN]  # (M, 24, 24)
    size = inner.new_tensor(inner.shape[1:]).float()
    # grid_sample asks where each pixel comes from: shifted back, turned back, scaled back.
    cos, sin = angle.cos() / scale, angle.sin() / scale
    back = torch.stack((torch.stack((cos, sin), 1), torch.stack((-sin, cos), 1)), 1)  # (M, 2, 2)
    offset = -(back @ shift[:, :, None])
    x, y = (torch.arange(WIDTH) + 0.5 - WIDTH / 2, torch.arange(HEIGHT) + 0.5 - HEIGHT / 2)
    place = torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)  # (2, 48 * 60)
    where = (back @ place + offset).mT / (size / 2)  # (M, 48 * 60, 2)
    where = where.view(len(digits), HEIGHT, WIDTH, 2)
    return F.grid_sample(inner[:, None].float(), where, mode="nearest", align_corners=False)[:, 0].byte()


def count_pieces(digits: Tensor) -> Tensor:
    """Into how many pieces the ink of the middle of digits (M, 28, 28) falls, (M,). Pixels that meet at a corner are in
    one piece."""
    ink = (digits[:, MARGIN:-MARGIN, MARGIN:-MARGIN] > 0).numpy()
    touch = np.zeros((3, 3, 3))
    touch[1] = 1  # within a digit, and not from one to the next
    last = ndimage.label(ink, touch)[0].max((1, 2), initial=0)  # pieces are numbered from the first digit to the last
    return torch.from_numpy(np.diff(np.maximum.accumulate(last), prepend=0)).long()


def find_boxes(ink: Tensor) -> Tensor:
    """(M, 48, 60) bool, where a digit has ink -> its box [x, y, w, h] in fractions of the image, (M, 4) float64.

    Its edges are the first and the last row and column with ink, so that w and h are one pixel less than the ink is
    wide and high, and 0 for a line of one pixel. No ink at all gives a box of nothing at the image's corner.
    """
    edges = []
    for axis, size in ((1, WIDTH), (2, HEIGHT)):
        used = ink.any(axis).byte()  # (M, 60) columns; (M, 48) rows
        edges += [used.argmax(1), size - 1 - used.flip(1).argmax(1)]
    left, right, top, bottom = (torch.where(ink.any((1, 2)), edge, 0).double() for edge in edges)
    return torch.stack(
        ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT), 1
    )


def fill_images(boxes: np.ndarray) -> np.ndarray:
    """Which image each digit goes to, (M,): boxes (M, 4) in their order, each joining the image begun last if it
    is at least APART pixels from every box there, and its centre in another cell however borders are read."""
    size = np.array((WIDTH, HEIGHT, WIDTH, HEIGHT))
    x, y, w, h = (np.round(boxes * size * 2).astype(int)).T  # half pixels, in which all of them are whole
    left, right, top, bottom = x - w // 2, x + w // 2, y - h // 2, y + h // 2
    column, row = 2 * WIDTH // COLUMNS, 2 * HEIGHT // ROWS
    cells = np.stack([(x - dx) // column + COLUMNS * ((y - dy) // row) for dx in (0, 1) for dy in (0, 1)], 1)
    owner, members = np.empty(len(boxes), dtype=np.int64), []
    image = -1
    for number in range(len(boxes)):
        joins = bool(members) and all(
            max(left[number] - right[other], left[other] - right[number], top[number] - bottom[other],
                top[other] - bottom[number]) >= 2 * APART and (cells[number] != cells[other]).all()
            for other in members
        )  # fmt: skip
        if not joins:
            image, members = image + 1, []
        members.append(number)
        owner[number] = image
    return owner


@dataclass(frozen=True)
class Made:
    """A set of images."""

    images: Tensor  # (N, 1, 48, 60) uint8
    labels: Tensor  # (N, 6) or (N, 2, 3, 6) float32
    visible: Tensor  # the same with the boxes around what can be seen: pixels of the digit brighter than the noise
    digits: Tensor  # (N,) or (N, 2, 3), the number of the digit, -1 where there is none


def make_images(digits: Tensor, classes: Tensor, task: str, count: int, seed: list[int]) -> Made:
    """Make a set of `count` images from digits (D, 28, 28) uint8 of classes (D,), reused where they are few.

    Detection draws each digit equally often. Where `count` images take about all digits three times, as the course's
    sets do, exactly that is drawn, and there are as many images as come out of it, one in a hundred more or less.
    """
    rng = np.random.default_rng([*seed, 0])
    used = _draw_digits(len(digits), task, count, rng)
    warped = torch.cat(_in_chunks(len(used), lambda part, rng: warp_digits(digits[used[part]], rng), [*seed, 1]))
    boxes = find_boxes(warped > 0)
    if task == "det":
        owner = torch.from_numpy(fill_images(boxes.numpy()))
        filled = int(owner[-1]) + 1
        count = filled if len(used) == USES * len(digits) else min(count, filled)
        used, warped, boxes, owner = (values[owner < count] for values in (used, warped, boxes, owner))
    else:
        owner = torch.from_numpy(rng.permutation(count)[: len(used)])
    noise = _in_chunks(count, lambda part, rng: make_noise(part.stop - part.start, NOISE[task], rng), [*seed, 2])
    images = torch.cat(noise)
    visible = find_boxes(warped > images[owner])
    images.view(count, -1).scatter_reduce_(0, owner[:, None].expand(-1, HEIGHT * WIDTH), warped.flatten(1), "amax")
    true, seen = (torch.cat((torch.ones(len(used), 1), box, classes[used, None]), 1) for box in (boxes, visible))
    return Made(images[:, None], *_lay_out(task, count, owner, true, seen, used))


def _lay_out(
    task: str, count: int, owner: Tensor, true: Tensor, seen: Tensor, used: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What is known of digits (M, ...) in images (M,), as `Made` has it: labels, those of the visible ink, digits."""
    labels, shown = (torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(count, *GRID[task], 1) for _ in range(2))
    numbers, at = torch.full((count, *GRID[task]), -1), (owner,)
    if task == "det":
        column, row = assign_cells(true, owner)
        true, seen, at = (to_cells(true, column, row), to_cells(seen, column, row), (owner, row.long(), column.long()))
    labels[at], shown[at], numbers[at] = true, seen, used
    return labels.float(), shown.float(), numbers


def _in_chunks(count: int, make: Callable[[slice, np.random.Generator], Tensor], seed: list[int]) -> list[Tensor]:
    """What `make` gives for one part of 0 to `count` after the other, each with its own random numbers."""

    def chunk(first: int) -> Tensor:
        return make(slice(first, min(first + CHUNK, count)), np.random.default_rng([*seed, first // CHUNK]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(chunk, range(0, count, CHUNK)))


def _draw_digits(pool: int, task: str, count: int, rng: np.random.Generator) -> Tensor:
    """Which of so many digits are drawn for `count` images, in which order."""
    if task == "loc":
        needed = count - round(count * EMPTY_SHARE)
        rounds = [rng.permutation(pool) for _ in range(math.ceil(needed / pool))]
        return torch.from_numpy(np.concatenate([*rounds, np.empty(0, dtype=np.int64)])[:needed])
    expected = count * PER_IMAGE
    if 0.9 < expected / (USES * pool) < 1.1:
        uses, different = USES, pool
    else:
        uses = max(USES, math.ceil(expected * MARGIN_OF_DIGITS / pool))
        different = math.ceil(expected * MARGIN_OF_DIGITS / uses)
    chosen = rng.permutation(pool)[:different]
    return torch.from_numpy(rng.permutation(np.repeat(chosen, uses)))
