"""The one door to the data: `load(task)` gives the training, validation and test images with their labels."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import labels, perturb, sources
from data.files import DataError, SaveError, load_tensors, save_tensors
from data.labels import check_task

__all__ = ["FULL", "DataError", "Split", "Splits", "load"]

FOLDER = Path(__file__).resolve().parent
FULL = {"loc": (59_400, 6_600, 11_000), "det": (26_874, 2_967, 4_981)}  # the course's sizes: train, val, test
TRAINING_SHARE = 0.9  # of the source's training digits; the others are for validation
SEED = 42


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Tensor  # (N, 1, 48, 60), uint8 for made data and float32 in [0, 1] for the course's
    labels: Tensor  # float32, (N, 6) for "loc" and (N, 2, 3, 6) for "det", see data/labels.py
    lists: list | None = None  # "det": per image its boxes in fractions of the image, (k, 6) or k times (6,)
    digits: Tensor | None = None  # made data: (N,) or (N, 2, 3), which of the source's digits it is, -1 where none is
    visible: Tensor | None = None  # made data: labels with the box around what the noise leaves visible of a digit
    pieces: Tensor | None = None  # made data: into how many pieces the digit's ink falls, 0 where none is

    @property
    def task(self) -> str:
        """ "loc" or "det"."""
        return labels.task_of(self.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | list | Tensor) -> "Split":
        """The images that `index` chooses: one, a slice, or a list or tensor of numbers or of True and False."""
        if not isinstance(index, slice):
            index = torch.atleast_1d(torch.as_tensor(index, device="cpu"))
            index = index if len(index) else index.long()  # of an empty list torch makes floats
        numbers = torch.arange(len(self))[index].tolist()
        lists = [self.lists[number] for number in numbers] if self.lists is not None else None
        made = (None if values is None else values[index] for values in (self.digits, self.visible, self.pieces))
        return Split(self.images[index], self.labels[index], lists, *made)

    def to(self, device: torch.device) -> "Split":
        """The same with images and labels on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images of a task."""

    train: Split
    val: Split
    test: Split
    source: str  # "course", "mnist" or "digits"

    @property
    def task(self) -> str:
        """ "loc" or "det"."""
        return self.train.task

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the training and validation images and labels: all that a trained network depends on.

        Of generated images mean and standard deviation stand for the pixels. The rest follows from the labels, and a
        processor of another make rounds one pixel in a million or so otherwise: there it is the same set all the same.
        """
        digest = hashlib.sha256(self.task.encode())
        for split in (self.train, self.val):
            images = split.images
            if self.source == "course":
                digest.update(f"{images.dtype}{tuple(images.shape)}".encode())
                digest.update(np.ascontiguousarray(images.numpy()))
            else:
                counts = torch.bincount(images.flatten(), minlength=256).double() / images.numel()
                values = torch.arange(256)
                mean = (counts * values).sum()
                std = (counts * (values - mean).square()).sum().sqrt()
                digest.update(f"{self.source}{tuple(images.shape)} {mean:.2f} {std:.2f}".encode())
            digest.update(f"{split.labels.dtype}{tuple(split.labels.shape)}".encode())
            digest.update(np.ascontiguousarray(split.labels.numpy()))
        return digest.hexdigest()


def load(
    task: str,
    source: str | None = None,
    sizes: tuple[int, int, int] | None = None,
    folder: Path | None = None,
    log: Callable[[str], None] = print,
) -> Splits:
    """Load, or make, the images and labels of a task.

    task: "loc" or "det". source: "course", "mnist" or "digits"; by default what the environment variable DATA_SOURCE
    names, else the first of them that is there. sizes: how many training, validation and test images at most, by
    default the course's. folder: where the course's files, `MNIST/raw` and the generated images are; by default this one,
    but for the course's files what DATA_DIR names. `log` is told which source was taken, and why.

    Raises ValueError for an unknown task or source, DataError (a ValueError) for files that are not what they should
    be.
    """
    check_task(task)
    source = source or os.environ.get("DATA_SOURCE") or None
    if source is not None and source not in sources.NAMES:
        raise ValueError(f"DATA_SOURCE: expected one of {', '.join(sources.NAMES)}, found {source!r}")
    sizes = tuple(map(int, sizes or FULL[task]))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes: expected three numbers of images above 0, found {sizes}")
    named = None if folder else os.environ.get("DATA_DIR")
    course = Path(folder or named or FOLDER).expanduser()
    if named and not source and not sources.any_course_files(course):
        raise DataError(f"DATA_DIR: expected a folder with the course's files, found none of them in {course}")
    folder = Path(folder or FOLDER)
    if source == "course" or (source is None and sources.course_is_there(course, task)):
        log(f"data: the course's files in {course.resolve().name}/")
        return _load_course(course, task, sizes, log)
    if source == "mnist" or source is None:
        if sources.mnist_is_there(folder, log):
            log("data: images made from MNIST's digits")
            return _load_made(sources.load_mnist(folder), folder, task, sizes, log)
        if source == "mnist":
            raise DataError(f"{folder / 'MNIST' / 'raw'}: no MNIST files, or damaged ones, and no download")
    log("data: images made from scikit-learn's digits" + ("" if source else " (no course files, no MNIST)"))
    return _load_made(sources.load_digits(), folder, task, sizes, log)


def _load_course(folder: Path, task: str, sizes: tuple[int, ...], log: Callable[[str], None]) -> Splits:
    splits = []
    for name, size in zip(sources.SPLITS, sizes, strict=True):
        images, targets, lists = sources.load_course(folder, task, name, log)
        if lists is not None:
            path = folder / sources.COURSE_FILES[task]["lists"].format(name)
            grid = labels.lists_to_grid(lists, str(path)).float()
            labels.check_labels(grid, task, str(path))
            if not labels.same_digits(grid, targets):
                images_file = sources.COURSE_FILES[task]["images"].format(name)
                raise DataError(f"{path}: not the same digits as in {images_file}")
        splits.append(Split(images, targets, lists)[:size])
    return Splits(*splits, "course")


def _load_made(
    digits: sources.Digits, folder: Path, task: str, sizes: tuple[int, ...], log: Callable[[str], None]
) -> Splits:
    """Generated images, from the file that holds them if they were made before."""
    key = _key(digits, task, sizes)
    path = folder / "made" / f"{task}-{digits.source}-{key}.pt"
    try:
        stored = load_tensors(path)
    except DataError:  # not there, or damaged: made again, the same
        stored = _make(digits, task, sizes)
        try:
            save_tensors(path, stored)
        except SaveError as error:
            log(f"data: the images are used but not kept: {error}")
    splits = []
    for name in sources.SPLITS:
        part = stored[name]
        lists = labels.grid_to_lists(part["labels"]) if task == "det" else None
        splits.append(Split(lists=lists, **part))
    return Splits(*splits, digits.source)


def _make(digits: sources.Digits, task: str, sizes: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    """All three splits. Training and validation get different digits of the source's training part, of each class
    nine tenths and one tenth, the same in both tasks."""
    order = torch.from_numpy(np.random.default_rng([SEED, 0]).permutation(len(digits.train)))
    parts = []
    for class_id in range(labels.CLASSES["loc"]):
        mine = order[digits.train_classes[order] == class_id]
        parts.append(mine.tensor_split([round(len(mine) * TRAINING_SHARE)]))
    train, val = map(torch.cat, zip(*parts, strict=True))
    pools = {"train": train, "val": val, "test": torch.arange(len(digits.test))}
    made = {}
    for number, (name, pool) in enumerate(pools.items()):
        part = (digits.test, digits.test_classes) if name == "test" else (digits.train, digits.train_classes)
        images, classes = part
        pool = pool[classes[pool] < labels.CLASSES[task]]
        seed = [SEED, 1, list(labels.CLASSES).index(task), number]
        found = perturb.make_images(images[pool], classes[pool], task, sizes[number], seed)
        there = found.digits >= 0
        made[name] = {
            "images": found.images,
            "labels": found.labels,
            "visible": found.visible,
            "digits": torch.where(there, pool[found.digits], -1),
            "pieces": torch.where(there, perturb.count_pieces(images[pool])[found.digits], 0),
        }
    return made


def _key(digits: sources.Digits, task: str, sizes: tuple[int, ...]) -> str:
    """Everything that generated images depend on: the digits, task, sizes, seed, the code that makes them, versions."""
    digest = hashlib.sha256(json.dumps([task, sizes, SEED, torch.__version__, np.__version__]).encode())
    for tensor in (digits.train, digits.train_classes, digits.test, digits.test_classes):
        digest.update(np.ascontiguousarray(tensor.numpy()))
    for module in ("__init__.py", "perturb.py", "labels.py"):
        digest.update((FOLDER / module).read_bytes())
    return digest.hexdigest()[:16]
