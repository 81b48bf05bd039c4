"""Labels and outputs that the tests of several modules write by hand."""

import torch
import torch.nn.functional as F

from data.labels import task_of


def loc_row(pc, box, **logits):
    """(15,): one image's outputs; class logits are 0 but for those given as c0=..., c1=..."""
    return torch.tensor([pc, *box, *(logits.get(f"c{number}", 0.0) for number in range(10))])


def det_labels(*images, empty=(0.0, -1.0, -1.0, -1.0, -1.0, 1.0)):
    """(N, 2, 3, 6): for each image its cells {(row, column): six numbers}."""
    grid = torch.tensor(empty).repeat(len(images), 2, 3, 1)
    for number, cells in enumerate(images):
        for (row, column), values in cells.items():
            grid[number, row, column] = torch.tensor(values)
    return grid


def det_outputs(*images, empty=(-5.0, 0.0, 0.0, 0.0, 0.0, 0.0)):
    """(N, 6, 2, 3), from the same."""
    return det_labels(*images, empty=empty).movedim(-1, 1)


def perfect_outputs(labels):
    """What a network that knows the labels would put out: logits of 20 or -20."""
    confidence = torch.where(labels[..., :1] > 0, 20.0, -20.0)
    known = torch.where(labels[..., :1] > 0, labels, 0.0)
    if task_of(labels) == "det":
        return torch.cat((confidence, known[..., 1:5], known[..., 5:] * 40 - 20), -1).movedim(-1, 1)
    return torch.cat((confidence, known[:, 1:5], F.one_hot(known[:, 5].long(), 10) * 40.0 - 20), 1)
