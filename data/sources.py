"""Where digits come from: the course's files, MNIST, or scikit-learn's digits."""

import math
import socket
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate

from data.files import load_tensors, lock, naming
from data.labels import check_split, lists_to_grid, same_digits

Log = Callable[[str], None]
Digits = tuple[Tensor, Tensor, Tensor, Tensor]  # digits (N, 28, 28) uint8, classes (N,) int64, and both of a test set

NAMES = ("course", "mnist", "digits")
SPLITS = ("train", "val", "test")
COURSE_FILES = {"loc": ["localization_{}.pt"], "det": ["detection_{}.pt", "list_y_true_{}.pt"]}
MOST_OUTSIDE = 0.001  # share of pixels outside [0, 1] that is a slip; more is another scale

# The classes and functions that a course file may ask for; NumPy's had other names before its version 2.
_parts = [TensorDataset, Subset, ConcatDataset, range, OrderedDict, np.ndarray, np.dtype]
_parts += [torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter, np.float64(0).__reduce__()[0]]
_parts += [np.empty(0).__reduce_ex__(protocol)[0] for protocol in (2, 5)]
_parts += [type(np.dtype(kind)) for kind in ("?", "u1", "i4", "i8", "f2", "f4", "f8")]
ALLOWED = {f"{part.__module__}.{part.__qualname__}": part for part in _parts}
ALLOWED |= {name.replace("numpy._core", "numpy.core"): part for name, part in ALLOWED.items()}

NO_INTERNET_AFTER = 4.0  # seconds without a word of MNIST's server


def course_files(folder: Path, task: str) -> list[Path]:
    """The course's files that a task needs, there or not: three for "loc", six for "det"."""
    return [Path(folder) / name.format(split) for name in COURSE_FILES[task] for split in SPLITS]


def load_course(folder: Path, task: str, split: str, log: Log) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """One of the course's splits: images, labels, and for "det" the lists of boxes, (k, 6) per image. `log` is told of
    clipped pixels. Raises DataError that names the file where it is not what `data/README.md` describes."""
    path, *of_lists = (Path(folder) / name.format(split) for name in COURSE_FILES[task])
    stored, size = load_tensors(path, ALLOWED), path.stat().st_size
    with naming(path, "no set of images and labels"):
        # Each number takes a byte of a file at least, but a small file can repeat one image endlessly.
        if (numbers := len(stored) * sum(math.prod(part.shape) for part in stored[0])) > size:
            raise ValueError(f"refused, found {numbers:,} numbers in {size:,} bytes")
        pairs = [stored[index] for index in range(len(stored))]
        images, labels = (tensor.detach() for tensor in default_collate(pairs))
        images = images[:, None] if images.ndim == 3 else images
        images, labels = images if images.dtype == torch.uint8 else images.float(), labels.float()
        outside = (images < 0) | (images > (255 if images.dtype == torch.uint8 else 1))
        if 0 < outside.sum() <= MOST_OUTSIDE * outside.numel():
            log(f"{path.name}: clipped pixels outside [0, 1] in {outside.flatten(1).any(1).sum():,} image(s)")
            images = images.clamp(0, 1)
        check_split(images, labels, task)
    lists = None
    for path in of_lists:
        stored = load_tensors(path, ALLOWED)
        with naming(path, f"expected {len(images):,} lists of at most six boxes of six numbers"):
            if len(stored) != len(images) or any(len(boxes) > 6 or any(len(b) != 6 for b in boxes) for boxes in stored):
                raise ValueError("found others")
            rows = [[[float(number) for number in box] for box in boxes] for boxes in stored]
            lists = [torch.tensor(boxes).view(len(boxes), 6) for boxes in rows]
            if not same_digits(lists_to_grid(lists), labels):
                raise ValueError(f"not the same digits as in {COURSE_FILES[task][0].format(split)}")
    return images, labels, lists


def load_mnist(folder: Path) -> Digits:
    """MNIST (LeCun, Cortes and Burges): 60,000 and 10,000 digits, from the raw files in `folder/MNIST/raw`, the packed
    ones beside them, or the internet. Raises DataError, within some seconds, where it cannot be had."""
    from torchvision.datasets import MNIST

    raw, timeout = Path(folder) / "MNIST" / "raw", socket.getdefaulttimeout()
    with naming(raw, "expected MNIST's files; remove them if damaged"), lock(raw, 600):  # others may unpack
        socket.setdefaulttimeout(NO_INTERNET_AFTER)
        try:
            train, test = (MNIST(folder, train=train, download=True) for train in (True, False))
        finally:
            socket.setdefaulttimeout(timeout)
    return train.data, train.targets, test.data, test.targets


def load_digits() -> Digits:
    """The 1,797 8x8 digits that scikit-learn carries, enlarged smoothly to 20x20 inside 28x28. Every seventh is for the
    test set. They are the test part of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI)."""
    from sklearn.datasets import load_digits as load

    digits = load()
    small, classes = torch.from_numpy(digits.images.astype(np.float32)) / 16, torch.from_numpy(digits.target).long()
    large = F.interpolate(small[:, None], size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    # Enlarged strokes fade out softly. Stretched so, as many pixels hold ink, and full ink, as in MNIST.
    large = ((large - 0.37) / (0.82 - 0.37)).clamp(0, 1)
    images = F.pad(large, (4, 4, 4, 4))[:, 0].mul(255).round().byte()
    test = torch.arange(len(classes)) % 7 == 3
    return images[~test], classes[~test], images[test], classes[test]
