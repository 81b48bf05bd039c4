"""What can be said of a picture without learning anything, and what could be said at best: to set networks beside.

Every answer has the layout of a network's outputs, so that measure, average precision and drawings apply.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

import utils
from data import Split
from data.labels import CLASSES, GRID, HEIGHT, WIDTH, find_cell, to_cells

SURE = 20.0  # a logit that leaves no doubt
SMALLEST = 5  # pixels; smaller patches are noise
CHOSEN_ON = 2000  # training pictures


@dataclass(frozen=True)
class BrightPatches:
    """Connected bright pixels: in localization the largest patch, in detection each.

    Nothing is learnt but three numbers, and in localization, where nothing is known of the class, which is commonest.
    In detection a patch with a hole is a 0, another a 1.
    """

    threshold: int  # of 255, from which on a pixel is bright
    least: int  # pixels that a patch needs
    grow: int  # pixels by which each side of the box is moved outwards
    category: int = 0  # in localization

    @classmethod
    def fit(cls, train: Split) -> "BrightPatches":
        """The numbers with the highest mean accuracy on some of the training pictures."""
        part, common = train[:CHOSEN_ON], most_common(train)
        best, highest = None, -1.0
        for threshold in (200, 215, 230, 240, 250, 255):
            patches = find_patches(part, threshold)
            for least, grow in itertools.product((5, 10, 20, 30), (0, 1, 2)):
                each = cls(threshold, least, grow, common)
                mean = utils.score(each._answer(part, patches), part.labels)["mean"]
                if mean > highest:
                    best, highest = each, mean
        return best

    def outputs(self, split: Split) -> Tensor:
        """What a network would put out, (N, 15) or (N, 6, 2, 3)."""
        return self._answer(split, find_patches(split, self.threshold))

    def _answer(self, split: Split, patches: Tensor) -> Tensor:
        picture, _, left, right, top, bottom, whole = patches[patches[:, 1] >= self.least].T
        left, top = ((edge - self.grow).clamp(min=0) for edge in (left, top))
        right, bottom = ((right + self.grow).clamp(max=WIDTH - 1), (bottom + self.grow).clamp(max=HEIGHT - 1))
        category = whole if split.task == "det" else torch.full_like(whole, self.category)
        box = ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT)
        rows = torch.stack((torch.ones_like(whole), *box, category), 1)
        return as_outputs(rows, picture.long(), split)  # the largest come last, and stay


def find_patches(split: Split, threshold: int) -> Tensor:
    """Connected pixels of at least `threshold` of 255, from the smallest patch to the largest: (M, 7) float64 of
    picture, pixels, left, right, top, bottom, and 1 where it has no hole."""
    pictures = (utils.as_floats(split.pictures)[:, 0] * 255).round().byte().numpy()
    # Pixels that touch, corners included, belong together, but not those of two pictures.
    touch = np.zeros((3, 3, 3), dtype=bool)
    touch[1] = True
    patches, count = ndimage.label(pictures >= threshold, touch)
    sizes = np.bincount(patches.ravel(), minlength=count + 1)
    places, rows = ndimage.find_objects(patches), []
    for number in np.argsort(sizes[1:], kind="stable") + 1:
        if sizes[number] < SMALLEST:
            continue
        picture, down, across = places[number - 1]
        patch = patches[picture.start, down, across] == number
        whole = split.task == "loc" or ndimage.binary_fill_holes(patch).sum() == sizes[number]
        edges = across.start, across.stop - 1, down.start, down.stop - 1
        rows.append((picture.start, sizes[number], *edges, whole))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)


def most_common(train: Split) -> int:
    """The class that most digits have."""
    rows = train.labels.reshape(-1, 6)
    return int(rows[rows[:, 0] == 1, 5].long().bincount().argmax())


def trivial_outputs(train: Split, split: Split) -> Tensor:
    """Whatever the picture: a digit if most pictures (cells) hold one, the mean box, the commonest class."""
    rows = train.labels.reshape(-1, 6)
    mean = rows[rows[:, 0] == 1].mean(0)
    mean[0], mean[5] = rows[:, 0].mean().round(), most_common(train)
    labels = mean.repeat(len(split), *GRID[split.task], 1)
    return labels_as_outputs(labels, always=True)


def visible_outputs(split: Split) -> Tensor:
    """An oracle's answer for made pictures: everything right, but the box is drawn around the pixels of the digit that
    are brighter than the noise under them. Of faint strokes more cannot be seen."""
    return labels_as_outputs(split.visible)


def as_outputs(rows: Tensor, picture: Tensor, split: Split) -> Tensor:
    """Digits (M, 6) in fractions of the pictures (M,) -> outputs; of several in one place the last stays."""
    labels = torch.zeros(len(split), *GRID[split.task], 6, dtype=torch.float64)
    at = (picture,)
    if split.task == "det":
        column, row = find_cell(rows[:, 1], rows[:, 2])
        rows, at = to_cells(rows, column, row), (picture, row.long(), column.long())
    labels.numpy()[tuple(index.numpy() for index in at)] = rows.numpy()  # of equal places numpy keeps the last
    return labels_as_outputs(labels)


def labels_as_outputs(labels: Tensor, always: bool = False) -> Tensor:
    """Labels (N, 6) or (N, 2, 3, 6) -> outputs of a network that is sure of them; with `always` boxes are given where
    there is no digit, too."""
    digit = labels[..., :1] > 0
    boxes = torch.where(digit | always, labels[..., 1:5], 0.5)
    logits = torch.where(digit, SURE, -SURE)
    category = torch.where(digit, labels[..., 5:], 0.0)
    if labels.ndim == 2:
        named = torch.nn.functional.one_hot(category[:, 0].long(), CLASSES["loc"]) * SURE
        return torch.cat((logits, boxes, named), 1).float()
    return torch.cat((logits, boxes, SURE * (2 * category - 1)), -1).movedim(-1, 1).float()
