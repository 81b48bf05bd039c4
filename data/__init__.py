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
from data.files import DataError, SaveError, load_tensors, remove_leftovers, save_tensors

__all__ = ["FULL", "DataError", "Split", "Splits", "load"]

FOLDER = Path(__file__).resolve().parent
FULL = {"loc": (59_400, 6_600, 11_000), "det": (26_874, 2_967, 4_981)}  # the course's sizes: train, val, test
TRAINING_SHARE = 0.9  # of the source's training digits; the others are for validation
SEED = 42


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Tensor  # (N, 1, 48, 60), uint8 for generated data and float32 in [0, 1] for the course's
    labels: Tensor  # float32, (N, 6) for "loc" and (N, 2, 3, 6) for "det", see data/labels.py
    lists: list[Tensor] | None = None  # "det": per image its boxes in fractions of the image, (k, 6)
    digits: Tensor | None = None  # generated: (N,) or (N, 2, 3), which of the source's digits it is, -1 for none
    visible: Tensor | None = None  # generated: labels with the box around what the noise leaves visible of a digit
    pieces: Tensor | None = None  # generated: as `digits`, into how many pieces the digit's ink falls, 0 for none

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
        chosen = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **chosen, lists=self.lists and [self.lists[number] for number in numbers])

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
        """SHA-256 of the training and validation images and labels: all that a trained network depends on. Of generated
        images it takes mean and standard deviation: another processor rounds one pixel in a million or so otherwise."""
        digest = hashlib.sha256(self.task.encode())
        for tensor in (self.train.images, self.train.labels, self.val.images, self.val.labels):
            shape = tuple(tensor.shape)
            if self.source != "course" and tensor.dtype == torch.uint8:
                mean, std = pixel_moments(tensor)
                digest.update(f"{self.source}{shape} {mean:.2f} {std:.2f}".encode())
            else:
                digest.update(f"{tensor.dtype}{shape}".encode())
                digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()


def pixel_moments(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 images, of [0, 255]."""
    shares, values = torch.bincount(images.flatten(), minlength=256).double() / images.numel(), torch.arange(256)
    mean = (shares * values).sum()
    return mean.item(), (shares * (values - mean).square()).sum().sqrt().item()


def load(
    task: str,
    source: str | None = None,
    sizes: tuple[int, int, int] | None = None,
    folder: Path | None = None,
    log: Callable[[str], None] = print,
) -> Splits:
    """Load, or generate, the images and labels of a task.

    task: "loc" or "det". source: "course", "mnist" or "digits"; by default what the environment variable DATA_SOURCE
    names, else the first that is there. sizes: how many training, validation and test images at most, by default FULL;
    of the course's files that means all. folder: where the course's files, `MNIST/raw` and the generated images are, by
    default this one, or for the course's files what DATA_DIR names. log: is told which source was taken, and why.

    Raises ValueError for arguments, or a DATA_SOURCE, that make no sense; DataError, which is one, for a wrong DATA_DIR
    and for files that are not what they should be.
    """
    labels.check_task(task)
    source = source or os.environ.get("DATA_SOURCE") or None
    if source not in (None, *sources.NAMES):
        raise ValueError(f"DATA_SOURCE: expected one of {', '.join(sources.NAMES)}, found {source!r}")
    sizes = tuple(map(int, sizes or FULL[task]))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes: expected three numbers of images above 0, found {sizes}")
    if source in (None, "course"):
        named = None if folder else os.environ.get("DATA_DIR")
        course = Path(os.path.expanduser(folder or named or FOLDER))
        needed = sources.course_files(course, task)
        missing = [path.name for path in needed if not os.path.isfile(path)]
        if named and not any(os.path.isfile(path) for each in FULL for path in sources.course_files(course, each)):
            raise DataError(f"DATA_DIR: expected a folder with the course's files, found none of them in {course}")
        if missing and (source or len(missing) < len(needed)):
            raise DataError(f"{course}: expected the course's {len(needed)} files, found no {', '.join(missing)}")
        if not missing:
            log(f"data: the course's files in {course.resolve().name}/")
            splits = []
            for name, size, full in zip(sources.SPLITS, sizes, FULL[task], strict=True):
                split = Split(*sources.load_course(course, task, name, log))
                splits.append(split if size >= full else split[:size])  # other years' files may hold more
            return Splits(*splits, "course")
    folder = Path(folder or FOLDER)
    try:
        digits = sources.load_digits() if source == "digits" else sources.load_mnist(folder)
    except DataError as error:
        if source:
            raise
        log(f"data: no MNIST, {error}")
        digits = sources.load_digits()
    log(f"data: images generated from {'MNIST' if digits.source == 'mnist' else 'scikit-learn'}'s digits")
    return _load_generated(digits, folder, task, sizes, log)


def _load_generated(
    digits: sources.Digits, folder: Path, task: str, sizes: tuple[int, ...], log: Callable[[str], None]
) -> Splits:
    """Generated images, from the file that holds them if they were generated before."""
    # All that they depend on: digits, task, sizes, seed, versions, and the code.
    key = hashlib.sha256(json.dumps([task, sizes, SEED, torch.__version__, np.__version__]).encode())
    for tensor in (digits.train, digits.train_classes, digits.test, digits.test_classes):
        key.update(tensor.contiguous().numpy())
    for module in ("__init__.py", "perturb.py", "labels.py"):
        key.update((FOLDER / module).read_bytes())
    path = folder / "made" / f"{task}-{digits.source}-{key.hexdigest()[:16]}.pt"
    try:
        stored = load_tensors(path)
    except DataError:  # not there, or damaged: generated again, the same
        stored = _generate(digits, task, sizes)
        remove_leftovers(path.parent, older_than=3600)
        try:
            save_tensors(path, stored)
        except SaveError as error:
            log(f"data: the images are used but not kept: {error}")
    lists = [labels.grid_to_lists(part["labels"]) if task == "det" else None for part in stored]
    return Splits(*(Split(**part, lists=each) for part, each in zip(stored, lists, strict=True)), digits.source)


def _generate(digits: sources.Digits, task: str, sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """All three splits. Training and validation get different digits of the source's training part, of each class
    nine tenths and one tenth, the same in both tasks."""
    order = torch.from_numpy(np.random.default_rng([SEED, 0]).permutation(len(digits.train)))
    of_class = [order[digits.train_classes[order] == class_id] for class_id in range(labels.CLASSES["loc"])]
    parts = [mine.tensor_split([round(len(mine) * TRAINING_SHARE)]) for mine in of_class]
    splits = []
    for number, pool in enumerate((*map(torch.cat, zip(*parts, strict=True)), torch.arange(len(digits.test)))):
        test = number == 2
        images, classes = (digits.test, digits.test_classes) if test else (digits.train, digits.train_classes)
        pool = pool[classes[pool] < labels.CLASSES[task]]
        seed = [SEED, 1, list(labels.CLASSES).index(task), number]
        splits.append(perturb.make_images(images, classes, pool, task, sizes[number], seed))
    return splits
