"""The one door to the data: `load(task)` gives the training, validation and test pictures with their labels."""

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
from data.files import DataError, load_tensors, save_tensors
from data.labels import check_task

__all__ = ["FULL", "DataError", "Split", "Splits", "load"]

FOLDER = Path(__file__).resolve().parent
FULL = {"loc": (59_400, 6_600, 11_000), "det": (26_874, 2_967, 4_981)}  # the course's sizes: train, val, test
SEED = 42


@dataclass(frozen=True)
class Split:
    """Pictures and their labels."""

    pictures: Tensor  # (N, 1, 48, 60), uint8 for made data and float32 in [0, 1] for the course's
    labels: Tensor  # float32, (N, 6) for "loc" and (N, 2, 3, 6) for "det", see data/labels.py
    lists: list | None = None  # "det": per picture its boxes in fractions of the picture, (k, 6) or k times (6,)
    digits: Tensor | None = None  # made data: (N,) or (N, 2, 3), which of the source's digits it is, -1 where none is

    @property
    def task(self) -> str:
        """ "loc" or "det"."""
        return labels.task_of(self.labels)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int | slice | list | Tensor) -> "Split":
        """The pictures that `index` chooses: one, a slice, or a list or tensor of numbers or of True and False."""
        index = [index] if isinstance(index, int) else index
        numbers = torch.arange(len(self))[index].tolist()
        lists = [self.lists[number] for number in numbers] if self.lists is not None else None
        digits = self.digits[index] if self.digits is not None else None
        return Split(self.pictures[index], self.labels[index], lists, digits)

    def to(self, device: torch.device) -> "Split":
        """The same with pictures and labels on a device."""
        return replace(self, pictures=self.pictures.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test pictures of a task."""

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
        """SHA-256 of the training and validation pictures and labels: all that a trained network depends on."""
        digest = hashlib.sha256(self.task.encode())
        for split in (self.train, self.val):
            for tensor in (split.pictures, split.labels):
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.numpy()))
        return digest.hexdigest()


def load(
    task: str,
    source: str | None = None,
    sizes: tuple[int, int, int] | None = None,
    folder: Path = FOLDER,
    log: Callable[[str], None] = print,
) -> Splits:
    """Load, or make, the pictures and labels of a task.

    task: "loc" or "det". source: "course", "mnist" or "digits"; by default what the environment variable DATA_SOURCE
    names, else the first of them that is there. sizes: how many training, validation and test pictures, by default
    the course's. folder: where the course's files, `MNIST/raw` and the made pictures are. `log` is told which source
    was taken, and why.

    Raises ValueError for an unknown task or source, DataError (a ValueError) for files that are not what they should
    be.
    """
    check_task(task)
    source = source or os.environ.get("DATA_SOURCE") or None
    if source is not None and source not in sources.NAMES:
        raise ValueError(f"DATA_SOURCE: expected one of {', '.join(sources.NAMES)}, found {source!r}")
    sizes = tuple(map(int, sizes or FULL[task]))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes: expected three numbers of pictures above 0, found {sizes}")
    folder = Path(folder)
    if source == "course" or (source is None and sources.course_is_there(folder, task)):
        log(f"data: the course's files in {folder.name}/")
        return _load_course(folder, task, sizes)
    if source == "mnist" or source is None:
        if sources.mnist_is_there(folder):
            log("data: pictures made from MNIST's digits")
            return _load_made(sources.load_mnist(folder), "mnist", folder, task, sizes)
        if source == "mnist":
            raise DataError(f"{folder / 'MNIST' / 'raw'}: no MNIST files, and no download without internet")
    log("data: pictures made from scikit-learn's digits" + ("" if source else " (no course files, no MNIST)"))
    return _load_made(sources.load_digits(), "digits", folder, task, sizes)


def _load_course(folder: Path, task: str, sizes: tuple[int, ...]) -> Splits:
    splits = []
    for name, size in zip(sources.SPLITS, sizes, strict=True):
        pictures, targets, lists = sources.load_course(folder, task, name)
        if lists is not None:
            path = folder / sources.COURSE_FILES[task]["lists"].format(name)
            grid = labels.lists_to_grid(lists, str(path)).float()
            labels.check_labels(grid, task, str(path))
            if not same_digits(grid, targets):
                pictures_file = sources.COURSE_FILES[task]["pictures"].format(name)
                raise DataError(f"{path}: not the same digits as in {pictures_file}")
        splits.append(Split(pictures, targets, lists)[:size])
    return Splits(*splits, "course")


def same_digits(first: Tensor, second: Tensor) -> bool:
    """Whether two sets of grid labels hold the same digits in the same cells, to float32 rounding."""
    present = first[..., 0] == 1
    same_cells = bool((present == (second[..., 0] == 1)).all())
    return same_cells and torch.allclose(first[present], second[present], rtol=0, atol=1e-5)


def _load_made(digits: sources.Digits, source: str, folder: Path, task: str, sizes: tuple[int, ...]) -> Splits:
    """Made pictures, from the file that holds them if they were made before."""
    key = _key(digits, task, sizes)
    path = folder / "made" / f"{task}-{source}-{key}.pt"
    stored = None
    if path.is_file():
        try:
            stored = load_tensors(path)
        except DataError:
            stored = None  # damaged: made again, the same
    if stored is None:
        stored = _make(digits, task, sizes)
        save_tensors(path, stored)
    splits = []
    for name in sources.SPLITS:
        part = stored[name]
        lists = list(part["boxes"].split(part["per_picture"].tolist())) if task == "det" else None
        splits.append(Split(part["pictures"], part["labels"], lists, part["digits"]))
    return Splits(*splits, source)


def _make(digits: sources.Digits, task: str, sizes: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    """All three splits. Training and validation get different digits of the source's training part."""
    chosen = []
    for pictures, classes in ((digits.train, digits.train_classes), (digits.test, digits.test_classes)):
        usable = (classes < labels.CLASSES[task]).nonzero()[:, 0]
        chosen.append((pictures[usable], classes[usable], usable))
    shuffled = torch.from_numpy(np.random.default_rng([SEED, 0]).permutation(len(chosen[0][0])))
    full = FULL[task]
    train_count = len(shuffled) - round(len(shuffled) * full[1] / (full[0] + full[1]))
    parts = {"train": (0, shuffled[:train_count]), "val": (0, shuffled[train_count:])}
    parts["test"] = (1, torch.arange(len(chosen[1][0])))
    made = {}
    for number, (name, (part, pool)) in enumerate(parts.items()):
        pictures, classes, original = (values[pool] for values in chosen[part])
        seed = [SEED, 1, list(labels.CLASSES).index(task), number]
        pictures, targets, lists, used = perturb.make_pictures(pictures, classes, task, sizes[number], seed)
        used = torch.where(used < 0, -1, original[used])
        made[name] = {"pictures": pictures, "labels": targets, "digits": used}
        if task == "det":
            made[name]["boxes"] = torch.cat(lists)
            made[name]["per_picture"] = torch.tensor([len(boxes) for boxes in lists])
    return made


def _key(digits: sources.Digits, task: str, sizes: tuple[int, ...]) -> str:
    """Everything that made pictures depend on: the digits, task, sizes, seed, the code that makes them, versions."""
    digest = hashlib.sha256(json.dumps([task, sizes, SEED, torch.__version__, np.__version__]).encode())
    for tensor in (digits.train, digits.train_classes, digits.test, digits.test_classes):
        digest.update(np.ascontiguousarray(tensor.numpy()))
    for module in ("__init__.py", "perturb.py", "labels.py"):
        digest.update((FOLDER / module).read_bytes())
    return digest.hexdigest()[:16]
