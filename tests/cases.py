"""What tests of several modules read: what is published, labels and outputs by hand, and small generated sets."""

import functools
import tempfile
from pathlib import Path

import nbformat
import pytest
import torch

import data
import training
from data import files
from data.labels import NO_DIGIT

HOME = data.FOLDER.parent
RESULTS = files.load_json(HOME / "figures" / "results.json")
NOTEBOOKS = {task: nbformat.read(HOME / f"{name}.ipynb", as_version=4) for task, name in training.NAMES.items()}
LOC, CELL = (1, 0.5, 0.5, 0.2, 0.5, 3), (1, 0.5, 0.5, 0.6, 1, 1)  # a digit of 12 x 24 pixels, as each task's label
both_tasks = pytest.mark.parametrize("task", ["loc", "det"])


@functools.cache
def digits(task):
    """300 training, 30 validation and 60 test images."""
    with tempfile.TemporaryDirectory() as folder:
        return data.load(task, "digits", (300, 30, 60), Path(folder))


def loc_row(pc, box, **logits):
    """(15,): one image's outputs; class logits are 0 but for those given as c0=..., c1=..."""
    return torch.tensor([pc, *box, *(logits.get(f"c{number}", 0.0) for number in range(10))])


def det_labels(*images, empty=NO_DIGIT):
    """(N, 2, 3, 6): for each image its cells {(row, column): six numbers}."""
    grid = torch.tensor(empty).repeat(len(images), 2, 3, 1)
    for number, cells in enumerate(images):
        for cell, values in cells.items():
            grid[(number, *cell)] = torch.tensor(values)
    return grid


def det_outputs(*images, empty=(-5.0, 0.0, 0.0, 0.0, 0.0, 0.0)):
    """(N, 6, 2, 3), from the same."""
    return det_labels(*images, empty=empty).movedim(-1, 1)
