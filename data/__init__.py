"""The one door to the data: `load(task)` gives the training, validation and test images with their labels."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import labels, perturb, sources
from data.files import DataError, SaveError, load_tensors, remove_leftovers, save_tensors
from data.sources import Digits, Log

FOLDER = Path(__file__).resolve().parent
FULL = {"loc": (59_400, 6_600, 11_000), "det": (26_874, 2_967, 4_981)}  # the course's sizes: train, val, test
TRAINING_SHARE = 0.9  # of the source's training digits, class by class; the others are for validation
SEED = 42


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Tensor  # (N, 1, 48, 60), uint8, or, the course's, float32 in [0, 1]
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
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index].reshape(-1)
        chosen = {name: value[numbers] for name, value in vars(self).items() if isinstance(value, Tensor)}
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
    task: str, source: str | None = None, sizes: Sequence[int] = (), folder: Path | None = None, log: Log = print,
    noise: float = 1.0,
) -> Splits:  # fmt: skip
    """Load, or generate, the images and labels of a task, "loc" or "det". Raises DataError.

    source: "course", "mnist" or "digits"; by default what the environment variable DATA_SOURCE names, else the first
    that is there. sizes: how many training, validation and test images at most, by default FULL; of the course's files
    that means all. folder: where all files are, by default this one, or for the course's what DATA_DIR names. log: is
    told which source was taken. noise: how many times the course's noise generated images have."""
    if task not in FULL:
        raise DataError(f'task: expected "loc" or "det", found {task!r}')
    source, sizes = source or os.environ.get("DATA_SOURCE"), tuple(sizes or FULL[task])
    if source and source not in sources.NAMES:
        raise DataError(f"DATA_SOURCE: expected one of {', '.join(sources.NAMES)}, found {source!r}")
    if not source or source == "course":
        named = "" if folder else os.environ.get("DATA_DIR")
        course = Path(folder or named or FOLDER).expanduser()
        files = sources.course_files(course, task)
        missing = [path.name for path in files if not os.path.isfile(path)]
        if named and not any(os.path.isfile(path) for each in FULL for path in sources.course_files(course, each)):
            raise DataError(f"DATA_DIR: expected a folder with the course's files, found none of them in {course}")
        if missing and (source or len(missing) < len(files)):
            raise DataError(f"{course}: expected the course's {len(files)} files, found no {', '.join(missing)}")
        if not missing:
            log(f"data: the course's files in {course.resolve().name}/")
            splits = [Split(*sources.load_course(course, task, name, log)) for name in sources.SPLITS]
            if sizes != FULL[task]:  # another year's files may hold more
                splits = [split[:size] for split, size in zip(splits, sizes, strict=True)]
            return Splits(*splits, "course")
    folder = Path(folder or FOLDER)
    try:
        digits = sources.load_digits() if source == "digits" else sources.load_mnist(folder)
    except DataError as error:
        if source:
            raise
        log(f"data: no MNIST, {error}")
        source, digits = "digits", sources.load_digits()
    log(f"data: images generated from {'scikit-learn' if source == 'digits' else 'MNIST'}'s digits")
    return _load_generated(folder / "made", source or "mnist", digits, task, sizes, log, noise)


def _load_generated(
    folder: Path, source: str, digits: Digits, task: str, sizes: Sequence[int], log: Log, noise: float
) -> Splits:
    """Generated images, from the file in the folder that keeps them if they were generated before; its name tells all
    that they depend on: digits, task, sizes, noise, seed, versions, and the code."""
    key = hashlib.sha256(json.dumps([task, sizes, noise, SEED, torch.__version__, np.__version__]).encode())
    for tensor in digits:
        key.update(tensor.contiguous().numpy())
    for module in ("__init__.py", "perturb.py", "labels.py"):
        key.update((FOLDER / module).read_bytes())
    path = folder / f"{task}-{source}-{key.hexdigest()[:16]}.pt"
    try:
        stored = load_tensors(path)
    except DataError:  # not there, or damaged: generated again, the same
        stored = _generate(digits, task, sizes, noise)
        remove_leftovers(folder)
        try:
            save_tensors(path, stored)
        except SaveError as error:
            log(f"data: the images are used but not kept: {error}")
    lists = [labels.grid_to_lists(part["labels"]) if task == "det" else None for part in stored]
    return Splits(*(Split(**part, lists=each) for part, each in zip(stored, lists)), source)


def _generate(digits: Digits, task: str, sizes: Sequence[int], noise: float) -> list[dict[str, Tensor]]:
    """All three splits, training and validation from different digits of the source's, in both tasks the same."""
    _, classes, test, _ = digits
    order = torch.from_numpy(np.random.default_rng([SEED, 0]).permutation(len(classes)))
    of_class = [order[classes[order] == class_id] for class_id in range(labels.CLASSES["loc"])]
    train, val = zip(*(mine.tensor_split([round(len(mine) * TRAINING_SHARE)]) for mine in of_class))
    pools = torch.cat(train), torch.cat(val), torch.arange(len(test))
    splits = []
    for number, (pool, size) in enumerate(zip(pools, sizes, strict=True)):
        images, classes = digits[2:] if number == 2 else digits[:2]
        pool = pool[classes[pool] < labels.CLASSES[task]]
        seed = [SEED, 1, [*FULL].index(task), number]
        splits.append(perturb.make_images(images, classes, pool, task, size, seed, noise))
    return splits
