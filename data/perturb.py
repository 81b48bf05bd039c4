"""Generates 48x60 images and boxes from 28x28 digits by the course's recipe, which was read off published images of its
files, pixel by pixel: noise, and one affine map per digit. Everything follows from one seed."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from data.labels import COLUMNS, GRID, HEIGHT, NO_DIGIT, ROWS, WIDTH, find_cell, to_cells

CHUNK = 1000  # images that have random numbers of their own: bounds memory, and is the unit that the cores share
# A digit is mapped as by torchvision's RandomAffine(30, translate=(1 / 3, 1 / 3), scale=(0.7, 1.2)).
MARGIN = 2  # outermost pixels of the 28x28 digit that do not count
ROTATION, SCALE, SHIFT = 30.0, (0.7, 1.2), (WIDTH / 3, HEIGHT / 3)  # degrees +-; factor; pixels +-, rounded; uniform
EMPTY_SHARE = 1 / 11  # of localization images
USES = 3  # how often detection draws each zero and each one
APART = 8  # pixels at least, in x or in y, between two boxes of a detection image
PER_IMAGE = 1.275  # digits in a detection image, about what comes out of MNIST's
MARGIN_OF_DIGITS = 1.15  # more of them, so that narrower ones fill as many images


# Background `clip(mean + std * z, 0, 1)`, z of unit variance: Gaussian-filtered and white Gaussian noise. By task mean,
# std, and for each part of z (sigma of the Gaussian filter in pixels, share of the variance).
NOISE = {
    "loc": (0.400, 0.203, ((2.0, 0.62), (1.05, 0.13), (0.0, 0.25))),
    "det": (0.270, 0.1616, ((2.05, 0.50), (1.05, 0.12), (0.0, 0.38))),
}


def make_noise(count: int, task: str, noise: float, rng: np.random.Generator) -> Tensor:
    """Backgrounds without digits, with so many times the task's noise, (count, 48, 60) uint8."""
    mean, std, parts = NOISE[task]
    z = torch.zeros(count, HEIGHT, WIDTH)
    for sigma, share in parts:
        radius = math.ceil(4 * sigma)  # noise wider than the image, so that blurring has no border
        shape = (count, HEIGHT + 2 * radius, WIDTH + 2 * radius)
        part = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        if sigma:  # blurred along either axis, by kernels of norm 1, so that the variance stays 1
            kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
            kernel = kernel / kernel.norm()
            down, across = (torch.stack([F.pad(kernel, (at, n - 1 - at)) for at in range(n)]) for n in (HEIGHT, WIDTH))
            part = down @ part @ across.T
        z += math.sqrt(share) * part
    return z.mul_(noise * std).add_(mean).clamp_(0, 1).mul_(255).round_().byte()


def warp_digits(digits: Tensor, rng: np.random.Generator) -> Tensor:
    """Digits (M, 28, 28) uint8 -> the middle of each put in the middle of a black image of its own, (M, 48, 60) uint8,
    and turned, scaled and shifted about it, as torchvision's `affine` does."""
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, len(digits)))
    scale = rng.uniform(*SCALE, len(digits))
    shift = np.round(rng.uniform(-1, 1, (len(digits), 2)) * SHIFT)
    angle, scale, shift = (torch.from_numpy(drawn).float() for drawn in (angle, scale, shift))
    inner = digits[:, None, MARGIN:-MARGIN, MARGIN:-MARGIN].float()  # (M, 1, 24, 24)
    # grid_sample asks where each pixel comes from: shifted back, turned back, scaled back.
    cos, sin = angle.cos() / scale, angle.sin() / scale
    back = torch.stack((cos, sin, -sin, cos), 1).view(-1, 2, 2)
    x, y = (torch.arange(size) + 0.5 - size / 2 for size in (WIDTH, HEIGHT))
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)  # (2, 48 * 60)
    origin = (back @ pixels - back @ shift[:, :, None]).mT / (inner.shape[-1] / 2)  # (M, 48 * 60, 2)
    origin = origin.view(-1, HEIGHT, WIDTH, 2)
    return F.grid_sample(inner, origin, mode="nearest", align_corners=False)[:, 0].byte()


def find_boxes(ink: Tensor) -> Tensor:
    """(M, 48, 60) bool, where a digit has ink -> its box [x, y, w, h] in fractions of the image, (M, 4) float64, from
    the first to the last row and column with ink: w and h are one pixel less than the ink is wide and high."""
    center, extent = [], []
    for used in (ink.any(1), ink.any(2)):  # columns (M, 60), rows (M, 48)
        size = used.shape[1]
        last = (torch.arange(size) * used).amax(1)
        first = torch.where(used, torch.arange(size), last[:, None]).amin(1)
        center.append((first + last).double() / 2 / size)
        extent.append((last - first).double() / size)
    return torch.stack((*center, *extent), 1)


def fill_images(boxes: np.ndarray) -> np.ndarray:
    """Which image each digit goes to, (M,): boxes (M, 4) in their order, each joining the image begun last if it
    is at least APART pixels from every box there, and its centre in another cell however borders are read."""
    x, y, w, h = np.round(boxes * (WIDTH, HEIGHT, WIDTH, HEIGHT) * 2).astype(int).T  # half pixels: whole numbers
    low, high = np.stack((x - w // 2, y - h // 2), 1), np.stack((x + w // 2, y + h // 2), 1)
    column, row = 2 * WIDTH // COLUMNS, 2 * HEIGHT // ROWS
    cells = np.stack([(x - dx) // column + COLUMNS * ((y - dy) // row) for dx in (0, 1) for dy in (0, 1)], 1)
    image, first = np.zeros(len(boxes), dtype=np.int64), 0  # the first digit of the image begun last
    for number in range(1, len(boxes)):
        there = slice(first, number)
        apart = np.maximum(low[number] - high[there], low[there] - high[number]).max(1) >= 2 * APART
        joins = (apart[:, None] & (cells[number] != cells[there])).all()
        image[number] = image[number - 1] + (not joins)
        first = first if joins else number
    return image


def make_images(
    digits: Tensor, classes: Tensor, pool: Tensor, task: str, count: int, seed: list[int], noise: float = 1.0
) -> dict[str, Tensor]:
    """What a `Split` of `count` images holds, generated from those of the digits (D, 28, 28) uint8 of classes (D,)
    whose numbers are in the pool, reused where they are few. Detection draws each equally often. Where that is about
    three times, as in the course's sets, it is exactly that, and there are as many images as come out of it."""
    rng = np.random.default_rng([*seed, 0])
    if task == "loc":
        needed = count - round(count * EMPTY_SHARE)
        order = [rng.permutation(pool) for _ in range(math.ceil(needed / len(pool)))]
        used = torch.from_numpy(np.concatenate(order)[:needed])
        image = torch.from_numpy(rng.permutation(count)[:needed])
        at = (image,)
    else:
        uses, different, expected = USES, len(pool), count * PER_IMAGE
        if not 0.9 < expected / (USES * len(pool)) < 1.1:
            uses = max(USES, math.ceil(expected * MARGIN_OF_DIGITS / len(pool)))
            different = math.ceil(expected * MARGIN_OF_DIGITS / uses)
        used = torch.from_numpy(rng.permutation(np.repeat(rng.permutation(pool)[:different], uses)))
    warped = _in_chunks(len(used), lambda part, rng: warp_digits(digits[used[part]], rng), [*seed, 1])
    boxes = find_boxes(warped > 0)
    if task == "det":
        image = torch.from_numpy(fill_images(boxes.numpy()))
        filled = int(image[-1]) + 1
        count = filled if len(used) == USES * len(pool) else min(count, filled)
        used, warped, boxes, image = (values[image < count] for values in (used, warped, boxes, image))
        column, row = find_cell(boxes[:, 0], boxes[:, 1])
        at = (image, row.long(), column.long())
    images = _in_chunks(count, lambda part, rng: make_noise(part.stop - part.start, task, noise, rng), [*seed, 2])
    visible = find_boxes(warped > images[image])
    images.view(count, -1).scatter_reduce_(0, image[:, None].expand(-1, HEIGHT * WIDTH), warped.flatten(1), "amax")
    rows = [torch.cat((torch.ones(len(used), 1), box, classes[used, None]), 1) for box in (boxes, visible)]  # (M, 6)
    rows = [(to_cells(each, column, row) if task == "det" else each).float() for each in rows]
    ink = (digits[used, MARGIN:-MARGIN, MARGIN:-MARGIN] > 0).numpy()
    pieces = torch.tensor([ndimage.label(each, np.ones((3, 3)))[1] for each in ink])  # corners join them
    generated = {"images": images[:, None]}
    of_digits = {"labels": rows[0], "visible": rows[1], "digits": used, "pieces": pieces}
    for (name, values), none in zip(of_digits.items(), (NO_DIGIT, NO_DIGIT, -1, 0)):
        generated[name] = torch.tensor(none).expand(count, *GRID[task], *values.shape[1:]).clone()
        generated[name][at] = values
    return generated


def _in_chunks(count: int, make: Callable[[slice, np.random.Generator], Tensor], seed: list[int]) -> Tensor:
    """What `make` gives for each part of 0 to `count`, with random numbers of its own, put together."""
    parts = [slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    generators = [np.random.default_rng([*seed, number]) for number in range(len(parts))]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return torch.cat(list(threads.map(make, parts, generators)))
