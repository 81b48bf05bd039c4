"""What both tasks share: normalization, combined loss, accuracy and IoU, mAP, decoding, plotting.

Outputs are [pc logit, x, y, w, h, class logits] along dimension 1, (N, 15) in localization and (N, 6, 2, 3) in
detection; labels, (N, 6) and (N, 2, 3, 6), are described in `data/labels.py`. The shape says which task it is. In
detection every cell is treated as a picture of its own.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, box_iou, generalized_box_iou_loss

from data import Split, Splits
from data.files import atomic_write
from data.labels import CLASSES, COLUMNS, HEIGHT, ROWS, WIDTH, cells_to_picture, grid_to_lists, task_of

# ---------------------------------------------------------------------------------------------- normalization


@dataclass(frozen=True)
class Normalizer:
    """Subtracts one mean and divides by one standard deviation, both of the training pictures in [0, 1]."""

    mean: float
    std: float

    @classmethod
    def fit(cls, pictures: Tensor) -> "Normalizer":
        """Mean and (population) standard deviation over all pixels of pictures, uint8 or float32 in [0, 1]."""
        low, high = torch.aminmax(pictures)
        if low == high:
            raise ValueError(f"pictures: expected pixels that differ from each other, all are {low:g}")
        sums, squares = [], []
        for part in pictures.split(4096):  # a whole set in float64 would be 1.4 GB
            pixels = as_floats(part).double().flatten(1)
            # Picture by picture, and then exactly: other sums depend on how many threads share them.
            sums += pixels.sum(1).tolist()
            squares += pixels.square().sum(1).tolist()
        count = pictures.numel()
        mean = math.fsum(sums) / count
        return cls(mean, math.sqrt(math.fsum(squares) / count - mean**2))

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures, uint8 or float32 in [0, 1] -> float32 of mean about 0 and standard deviation about 1."""
        return as_floats(pictures).sub(self.mean).div_(self.std)


def as_floats(pictures: Tensor) -> Tensor:
    """Pictures as float32 in [0, 1], whether they are kept as that or as 8 bit."""
    return pictures.float().div_(255) if pictures.dtype == torch.uint8 else pictures


# ---------------------------------------------------------------------------------------------- loss


class Loss(NamedTuple):
    """The combined loss and its three terms, scalars."""

    total: Tensor
    pc: Tensor
    box: Tensor
    category: Tensor


def task_of_outputs(outputs: Tensor) -> str:
    """The task that a network's outputs belong to, by their shape: "loc" for (N, 15), "det" for (N, 6, 2, 3). Raises
    ValueError."""
    for task, shape in (("loc", (5 + CLASSES["loc"],)), ("det", (6, ROWS, COLUMNS))):
        if tuple(outputs.shape[1:]) == shape:
            return task
    raise ValueError(f"outputs: expected shape (N, 15) or (N, 6, {ROWS}, {COLUMNS}), found {tuple(outputs.shape)}")


def as_pictures(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels with one row per picture, or per cell in detection: (M, 15) or (M, 6), and (M, 6).

    Raises ValueError where the shapes are not those of a task, or do not go together.
    """
    task = task_of_outputs(outputs)
    if task_of(labels) != task or len(labels) != len(outputs):
        raise ValueError(f"outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)} do not go together")
    if task == "det":
        outputs = outputs.movedim(1, -1).reshape(-1, 6)  # (N, 6, 2, 3) -> (N*6, 6)
        labels = labels.reshape(-1, 6)  # (N, 2, 3, 6) -> (N*6, 6)
    return outputs, labels


BOX_LOSSES = ("mse", "giou")
LEAST_CHANCE = 1e-6  # so that an edge which a network thinks impossible has a finite loss


class LossWeights(NamedTuple):
    """What the parts of the loss are multiplied with."""

    l1: float = 5.0  # of the box loss "giou"; keeps boxes that do not overlap at all moving
    giou: float = 1.0  # of the box loss "giou"
    edges: float = 0.5
    category: float = 1.0
    smoothing: float = 0.0  # the share of the class target that all classes get in equal parts


DEFAULT_WEIGHTS = LossWeights()


def combined_loss(
    outputs: Tensor,
    labels: Tensor,
    box_loss: str = "mse",
    edges: Sequence[Tensor] | None = None,
    weights: LossWeights = DEFAULT_WEIGHTS,
) -> Loss:
    """Binary cross-entropy on pc over all pictures (cells), plus the box loss on x, y, w, h and the class loss
    (cross-entropy in localization, binary in detection) over those with a digit, each part weighted.

    box_loss: "mse", the mean squared error, or "giou", the weighted sum of L1 in fractions of the picture and the
    generalised IoU loss (Rezatofighi et al., 2019; the pair as in DETR, Carion et al., 2020).
    edges: where a network gives them, the probabilities of the left, right, top and bottom edge over columns or rows
    of pixels, (N, 1, 1, 60) or (N, 1, 1, 48) in localization, (N, 2, 3, ...) in detection. The mean of the four
    cross-entropies is added to the box loss.

    Where there is no digit the last five numbers of a label are not read, whatever they are: pictures without one are
    weighted by 0. Without any digit the last two terms are 0.
    """
    task = task_of_outputs(outputs)
    outputs, labels = as_pictures(outputs, labels)
    digit = labels[:, 0]
    count = digit.sum().clamp(min=1)
    target = torch.where(digit[:, None] > 0, labels, 0.0)  # NaN times 0 would be NaN
    pc = F.binary_cross_entropy_with_logits(outputs[:, 0], digit)
    if box_loss == "mse":
        box = (outputs[:, 1:5] - target[:, 1:5]).square().mean(1)
    else:
        box = _giou_loss(outputs[:, 1:5], torch.where(digit[:, None] > 0, labels[:, 1:5], 0.5), task, weights)
    if edges is not None:
        box = box + weights.edges * _edge_loss(edges, digit, labels[:, 1:5], task)
    if task == "loc":
        named, smoothing = target[:, 5].long(), weights.smoothing
        category = F.cross_entropy(outputs[:, 5:], named, reduction="none", label_smoothing=smoothing)
    else:
        smooth = target[:, 5] + weights.smoothing * (0.5 - target[:, 5])
        category = F.binary_cross_entropy_with_logits(outputs[:, 5], smooth, reduction="none")
    box, category = ((term * digit).sum() / count for term in (box, weights.category * category))
    return Loss(pc + box + category, pc, box, category)


def _giou_loss(boxes: Tensor, targets: Tensor, task: str, weights: LossWeights) -> Tensor:
    """(M, 4) and (M, 4) `cxcywh` in the task's units -> (M,)."""
    size = (1.0, 1.0, 1.0, 1.0) if task == "loc" else (1 / COLUMNS, 1 / ROWS, 1 / COLUMNS, 1 / ROWS)
    distance = ((boxes - targets) * boxes.new_tensor(size)).abs().sum(1)
    corners = (box_convert(values, "cxcywh", "xyxy") for values in (boxes, targets))
    # GIoU is the same in cells as in fractions of the picture: areas of both boxes scale alike.
    return weights.l1 * distance + weights.giou * generalized_box_iou_loss(*corners)


def _edge_loss(edges: Sequence[Tensor], digit: Tensor, boxes: Tensor, task: str) -> Tensor:
    """The edges of `combined_loss`, digits (M,), boxes (M, 4) `cxcywh` in the task's units -> (M,)."""
    boxes = torch.where(digit[:, None] > 0, boxes, 0.5)
    if task == "det":
        boxes = cells_to_picture(F.pad(boxes, (1, 1)).view(-1, ROWS, COLUMNS, 6))[..., 1:5].reshape(-1, 4)
    left, top, right, bottom = box_convert(boxes, "cxcywh", "xyxy").T
    losses = []
    for chance, edge, size in zip(edges, (left, right, top, bottom), (WIDTH, WIDTH, HEIGHT, HEIGHT), strict=True):
        pixel = (edge * size).round().long().clamp(0, size - 1)[:, None]
        losses.append(-torch.log(chance.reshape(-1, size).gather(1, pixel)[:, 0] + LEAST_CHANCE))
    return torch.stack(losses).mean(0)


# ---------------------------------------------------------------------------------------------- measure


class Matches(NamedTuple):
    """What a network says, row by row as in `as_pictures`, beside what is true."""

    digit: Tensor  # (M,) bool, there is a digit
    found: Tensor  # (M,) bool, the network finds one: sigmoid(pc) > 0.5
    category: Tensor  # (M,) int64, the class it names
    true_category: Tensor  # (M,) int64, -1 where there is no digit
    iou: Tensor  # (M,) float32, of its box with the true one, 0 where there is no digit

    @property
    def right(self) -> Tensor:
        """(M,) bool: a digit found and its class named, or none where there is none."""
        return torch.where(self.digit, self.found & (self.category == self.true_category), ~self.found)


def match(outputs: Tensor, labels: Tensor) -> Matches:
    """Compare outputs with labels, picture by picture (cell by cell)."""
    task = task_of_outputs(outputs)
    outputs, labels = as_pictures(outputs, labels)
    digit = labels[:, 0] > 0
    category = outputs[:, 5:].argmax(1) if task == "loc" else (outputs[:, 5] > 0).long()
    true_category = torch.where(digit, labels[:, 5], -1).long()
    true_box = torch.where(digit[:, None], labels[:, 1:5], 1.0)
    return Matches(digit, outputs[:, 0] > 0, category, true_category, box_ious(outputs[:, 1:5], true_box) * digit)


def box_ious(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with its partner: (M, 4) and (M, 4), both `cxcywh` in one unit -> (M,) in [0, 1].

    A negative width or height, which a network may well put out, counts as 0. Nothing overlaps a box without area.
    """
    corners = []
    for values in (boxes, others):
        values = torch.cat((values[:, :2], values[:, 2:].clamp(min=0)), 1)
        corners.append(box_convert(values, "cxcywh", "xyxy")[:, None])  # (M, 1, 4): a batch of M single boxes
    ious = box_iou(*corners)[:, 0, 0]  # (M, 1, 1): the diagonal alone, never the M x M matrix
    return ious.nan_to_num(0.0)  # of two boxes without area


def score(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and measure over a whole set, exact: not means of batch means.

    - loss, loss_pc, loss_box, loss_class: `combined_loss` and its terms.
    - accuracy: share of pictures (cells) that are right; a missed digit is wrong.
    - iou: mean IoU over those where there is a digit and it is found; 0 if none is.
    - mean: the mean of accuracy and iou, by which epochs and networks are chosen.
    - digit_accuracy: accuracy over those that hold a digit only.
    - iou_all: mean IoU over all digits, a missed one counting as 0.
    """
    matches = match(outputs, labels)
    hit = matches.digit & matches.found
    digits, hits = matches.digit.sum(), hit.sum()
    overlap = (matches.iou.double() * hit).sum()
    values = torch.stack(
        [
            *(term.double() for term in combined_loss(outputs.double(), labels.double())),
            matches.right.double().mean(),
            overlap / hits.clamp(min=1),
            (matches.right & matches.digit).sum() / digits.clamp(min=1).double(),
            overlap / digits.clamp(min=1),
        ]
    ).tolist()  # the one point at which the device is waited for
    names = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all")
    scores = dict(zip(names, values, strict=True))
    return {**scores, "mean": (scores["accuracy"] + scores["iou"]) / 2}


@torch.inference_mode()
def infer(network: nn.Module, pictures: Tensor, normal: Normalizer, batch_size: int | None = None) -> Tensor:
    """The network's outputs for all pictures, on the network's device; it is left in evaluation mode.

    batch_size: by default 512 on a GPU and 128 on a CPU, where more takes gigabytes and gains little.
    """
    device = next(network.parameters()).device
    if batch_size is None:
        batch_size = 128 if device.type == "cpu" else 512
    network.eval()
    return torch.cat(
        [
            network(normal(part.to(device)).contiguous(memory_format=torch.channels_last))
            for part in pictures.split(batch_size)
        ]
    )


def evaluate(network: nn.Module, split: Split, normal: Normalizer) -> dict[str, float]:
    """`score` of a network on a split."""
    outputs = infer(network, split.pictures, normal)
    return score(outputs, split.labels.to(outputs.device))


# ---------------------------------------------------------------------------------------------- decoding and mAP


def decode(outputs: Tensor, threshold: float = 0.5, nms_iou: float | None = None) -> list[dict[str, Tensor]]:
    """Outputs -> for each picture its boxes in pixels, with class and score, best first.

    Returns per picture {"boxes": (k, 4) `xyxy` in pixels cut to the picture, "labels": (k,) int64,
    "scores": (k,) in [0, 1]}; the score is the probability that there is a digit times that of its class, and those
    whose sigmoid(pc) is below the threshold are left out. With nms_iou, of boxes of one class that overlap by more
    than that only the best is kept (torchvision's batched_nms). Raises ValueError unless both are in [0, 1] and all
    outputs are finite.
    """
    for name, value in (("threshold", threshold), ("nms_iou", 0 if nms_iou is None else nms_iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], found {value}")
    task = task_of_outputs(outputs)
    if not torch.isfinite(outputs).all():
        raise ValueError("outputs: expected finite numbers, found NaN or infinity")
    if task == "det":
        cells = outputs.movedim(1, -1)  # (N, 6, 2, 3) -> (N, 2, 3, 6)
        values = cells_to_picture(cells).flatten(1, 2)  # (N, 6, 6)
        named = F.logsigmoid(values[..., 5].abs()).exp()
        category = (values[..., 5] > 0).long()
    else:
        values = outputs[:, None]  # (N, 1, 15)
        named, category = values[..., 5:].softmax(-1).max(-1)
    presence = values[..., 0].sigmoid()
    scores = presence * named
    size = values.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))
    boxes = torch.cat((values[..., 1:3], values[..., 3:5].clamp(min=0)), -1)
    boxes = torch.minimum(box_convert(boxes, "cxcywh", "xyxy").clamp(min=0) * size, size)
    kept = presence >= threshold
    if nms_iou is not None and len(outputs):
        picture = torch.arange(len(outputs), device=outputs.device)[:, None].expand_as(category)
        group = picture * (int(category.max()) + 1) + category  # boxes compete within a picture and a class
        survivors = batched_nms(boxes[kept], scores[kept], group[kept], nms_iou)
        among = torch.zeros_like(kept[kept])
        among[survivors] = True
        kept[kept.clone()] = among
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = kept.gather(1, order)
    counts = kept.sum(1).tolist()
    parts = {
        "boxes": boxes.gather(1, order[..., None].expand_as(boxes)),
        "labels": category.gather(1, order),
        "scores": scores.gather(1, order),
    }
    columns = {name: values[kept].split(counts) for name, values in parts.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def true_boxes(labels: Tensor) -> list[dict[str, Tensor]]:
    """Labels -> for each picture its digits as `decode` gives them, without scores."""
    lists = (
        grid_to_lists(labels) if task_of(labels) == "det" else [label[label[:, 0] == 1] for label in labels[:, None]]
    )
    size = labels.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))
    return [
        {"boxes": box_convert(boxes[:, 1:5], "cxcywh", "xyxy") * size, "labels": boxes[:, 5].long()} for boxes in lists
    ]


def on_whole_pixels(labels: Tensor) -> bool:
    """Whether every edge of every box lies on a border between two pixels, to a thousandth of a pixel."""
    edges = torch.cat([each["boxes"] for each in true_boxes(labels)])
    return bool(((edges - edges.round()).abs() < 1e-3).all())


class AveragePrecision(NamedTuple):
    """COCO's average precision of a set."""

    scores: dict[str, float]  # "map" over IoU .50 to .95, "map50", "map75", and "map_class0" ... of each class
    precision: Tensor  # (10 IoU thresholds, 101 recall thresholds, classes), NaN where a class does not occur


def mean_average_precision(
    outputs: Tensor, labels: Tensor, threshold: float = 0.01, nms_iou: float | None = None
) -> AveragePrecision:
    """Mean average precision over boxes in pixels, by torchmetrics.

    Every box down to the low threshold on sigmoid(pc) counts, wherever a network draws its line; with nms_iou, those
    that `decode` keeps. Without any prediction all figures are 0.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox", extended_summary=True)
    metric.warn_on_many_detections = False
    truth = true_boxes(labels.cpu())
    metric.update(_join(decode(outputs.cpu(), threshold, nms_iou)), _join(truth))
    classes = torch.cat([each["labels"] for each in truth]).unique().tolist()
    found = metric.compute()
    precision = torch.full((10, 101, CLASSES[task_of(labels)]), torch.nan)
    # torchmetrics counts only the classes that occur among labels and predictions, in order.
    for place, category in enumerate(found["classes"].reshape(-1).tolist()):
        if category in classes:
            precision[:, :, category] = found["precision"][:, :, place, 0, -1].clamp(min=0)
    precision[:, :, [each for each in classes if precision[:, :, each].isnan().any()]] = 0.0
    scores = {
        name: max(0.0, found[key].item()) for name, key in (("map", "map"), ("map50", "map_50"), ("map75", "map_75"))
    }
    scores |= {f"map_class{category}": precision[:, :, category].mean().item() for category in classes}
    return AveragePrecision(scores, precision)


JOINED = 16  # COCO counts at most 100 boxes in an image, and a picture has at most six
FINEST = 1024  # a power of 2, so that float32 holds such parts of a pixel, and sums of them, exactly


def _join(pictures: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Boxes of many pictures -> of few wide images, the pictures side by side: boxes of different pictures do not
    overlap, and COCO's measure takes a tenth of the time, which goes by images. Edges are rounded to a thousandth of a
    pixel, so that of whole-pixel boxes an IoU that equals a threshold reaches it, and is not left to the last bit."""
    images = []
    for start in range(0, len(pictures), JOINED):
        part = pictures[start : start + JOINED]
        columns = {name: torch.cat([each[name] for each in part]) for name in part[0]}
        place = torch.repeat_interleave(torch.tensor([len(each["labels"]) for each in part]))
        boxes = (columns["boxes"] * FINEST).round() / FINEST
        columns["boxes"] = boxes + place[:, None] * torch.tensor([2 * WIDTH, 0, 2 * WIDTH, 0])
        images.append(columns)
    return images


# ---------------------------------------------------------------------------------------------- plotting

TRUE, PREDICTED = "#ff4d4d", "#2e9bff"  # red and blue, both readable on grey noise
TRAINING, VALIDATION = "tab:orange", "tab:purple"
PAGE = 12.0  # inches across, which the report shows at 7: letters of 13 points come out at 7.6


def set_style() -> None:
    """Fonts that stay readable when a figure is shown at half its size."""
    plt.rcParams.update(
        {
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.labelsize": 13,
            "legend.fontsize": 12.5,
            "figure.titlesize": 15,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2.2,
        }
    )


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure to `folder/name.png`, with 192 colours, a third of the size, and close it. Returns the file."""
    path, drawn = Path(folder) / f"{name}.png", io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    plt.close(figure)  # else the notebook would show it as well
    few = Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE)
    atomic_write(path, lambda file: few.save(file, "png", optimize=True))
    return path


def pick_examples(labels: Tensor, per_class: int) -> Tensor:
    """Indices of the first `per_class` pictures that show each class, class by class, and then of those that are
    empty, if any; a picture is picked once."""
    rows = labels.reshape(len(labels), -1, 6)
    shown = torch.where(rows[..., 0] > 0, rows[..., 5], -1)  # (N, cells)
    picked: list[int] = []
    for category in shown[shown >= 0].unique().tolist():
        having = (shown == category).any(1).nonzero()[:, 0].tolist()
        picked += [number for number in having if number not in picked][:per_class]
    picked += (rows[..., 0] == 0).all(1).nonzero()[:per_class, 0].tolist()
    return torch.tensor(picked)


def pick_by_count(labels: Tensor, each: int) -> Tensor:
    """Detection: indices of the first `each` pictures with one, two, three ... digits."""
    counts = labels[..., 0].sum((1, 2))
    return torch.cat([(counts == count).nonzero()[:each, 0] for count in counts.unique().tolist()])


def pick_failures(matches: Matches, pictures: int, count: int) -> Tensor:
    """Indices of up to `count` pictures with a failure, the kinds of `failures` in turn; where there are too few,
    then those whose found digits have the lowest IoU. `pictures` is how many pictures the matches are of."""
    hit = matches.digit & matches.found
    kinds = [kind.reshape(pictures, -1).any(1).nonzero()[:, 0].tolist() for kind in failures(matches).values()]
    lowest = torch.where(hit, matches.iou, 2.0).reshape(pictures, -1).amin(1)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(kind[:count] for kind in kinds)))
    poorest = [number for number in lowest.argsort()[:count].tolist() if lowest[number] <= 1]
    chosen = dict.fromkeys([number for number in turns if number is not None] + poorest)
    return torch.tensor(list(chosen)[:count], dtype=torch.long)


def show_picture(axes: plt.Axes, picture: Tensor) -> None:
    """A picture (1, H, W) in gray, one unit of the axes to a pixel, without ticks and frame."""
    height, width = picture.shape[-2:]
    pixels, extent = as_floats(picture)[0].numpy(), (0, width, height, 0)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_box(axes: plt.Axes, box: Tensor, text: str, colour: str, below: bool, room: float = 9.0) -> None:
    """`room`: what a text needs above or below the box, in pixels. True boxes are broader: their rim is always seen."""
    left, top, right, bottom = box.tolist()
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=2 if below else 4)
    )
    fits_above, fits_below = top > room, bottom < axes.get_ylim()[0] - room
    under = (below and fits_below) or not (below or fits_above)
    gap = room / 18
    place = {"y": bottom + gap, "va": "top"} if under else {"y": max(top - gap, room - 2 * gap), "va": "bottom"}
    middle = (left + right) / 2  # of a narrow box, true and predicted class stand left and right of it
    x, align = (max(right, middle + room / 2), "right") if below else (min(left, middle - room / 2), "left")
    axes.text(
        x, s=text, ha=align, color="white", fontsize=12, weight="bold", **place,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2, "alpha": 0.85},
    )  # fmt: skip


def draw_boxes(split: Split, outputs: Tensor | None = None, columns: int = 6, title: str = "") -> Figure:
    """Pictures with their true boxes and classes in red and, if outputs are given, the predicted ones in blue. Above
    each picture stands the IoU, or what is wrong."""
    truth = true_boxes(split.labels)
    guesses, notes = [None] * len(split), None
    if outputs is not None:
        outputs = outputs.cpu().float()
        guesses, notes = decode(outputs), _notes(outputs, split.labels)
    rows = math.ceil(len(split) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(PAGE, PAGE / columns * 0.92 * rows + 0.9), squeeze=False)
    for axis in axes.flat[len(split) :]:
        axis.axis("off")
    for number, axis in enumerate(axes.flat[: len(split)]):
        show_picture(axis, split.pictures[number])
        for box, category in zip(*truth[number].values(), strict=True):
            _draw_box(axis, box, str(category.item()), TRUE, below=False)
        if guesses[number] is not None:
            for box, category in zip(guesses[number]["boxes"], guesses[number]["labels"], strict=True):
                _draw_box(axis, box, str(category.item()), PREDICTED, below=True)
        if notes is not None:
            axis.set_title(textwrap.fill(notes[number], 104 // columns), fontsize=14)  # as wide as the picture
        elif not len(truth[number]["labels"]):
            axis.set_title("no digit", fontsize=14)
    box_legend(figure, predicted=outputs is not None)
    figure.suptitle(title)
    return figure


def box_legend(figure: Figure, predicted: bool = True) -> None:
    """Say below a figure what the colours of its boxes mean."""
    meant = ((TRUE, "true"), (PREDICTED, "predicted"))[: 1 + predicted]
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for colour, name in meant]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def draw_found(picture: Tensor, boxes: Tensor, texts: Sequence[str]) -> Figure:
    """One picture (1, H, W) of any size with boxes (k, 4), `xyxy` in its pixels, in blue, each with its text."""
    height, width = picture.shape[-2:]
    inches = min(6 / width, 4.8 / height)  # per pixel
    figure, axes = plt.subplots(figsize=(max(2, width * inches), max(2, height * inches)), layout="constrained")
    show_picture(axes, picture)
    for box, text in zip(boxes, texts, strict=True):
        _draw_box(axes, box, text, PREDICTED, below=False, room=0.3 / inches)
    if not len(boxes):
        axes.set_title("no digit", fontsize=13)
    return figure


def _notes(outputs: Tensor, labels: Tensor) -> list[str]:
    """For each picture what came of it, in two or three words, which stay together where lines break."""
    matches = match(outputs, labels)
    per_picture = [values.reshape(len(labels), -1) for values in matches]
    notes = []
    for digit, found, category, true_category, iou in zip(*per_picture, strict=True):
        wrong = (digit & found & (category != true_category)).sum()
        parts = [
            f"{count} {what}" if labels.ndim == 4 else what
            for count, what in (
                ((digit & ~found).sum(), "missed"),
                ((found & ~digit).sum(), "false alarm"),
                (wrong, "wrong class"),
            )
            if count
        ]
        hit = digit & found
        if hit.any():
            parts.append(f"IoU {iou[hit].mean():.2f}")
        notes.append(", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts) or "none, right")
    return notes


def plot_labels(splits: Splits) -> Figure:
    """Classes in the three splits; sizes and centres of the training boxes, in pixels."""
    digits = {}
    for name in ("train", "val", "test"):
        found = true_boxes(getattr(splits, name).labels)
        boxes, classes = (torch.cat([each[key] for each in found]) for key in ("boxes", "labels"))
        empty = sum(not len(each["labels"]) for each in found)
        digits[name] = boxes, classes, empty
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 4), width_ratios=(1.25, 1, 1.1))
    names = sorted(set(digits["train"][1].tolist()))
    some_empty = any(empty for _, _, empty in digits.values())
    for number, (name, label) in enumerate((("train", "training"), ("val", "validation"), ("test", "test"))):
        _, classes, empty = digits[name]
        counts = [(classes == category).sum().item() for category in names] + [empty] * some_empty
        shares = np.array(counts) / sum(counts)
        left.bar(np.arange(len(shares)) + (number - 1) * 0.27, shares, 0.27, label=label)
    left.set_xticks(range(len(names) + some_empty), [*map(str, names), "no\ndigit"][: len(names) + some_empty])
    left.set(title="classes", xlabel="digit", ylabel="share of the split")
    left.set_ylim(0, left.get_ylim()[1] * 1.18)  # room for the legend
    left.legend(frameon=False, loc="upper center", ncols=3, columnspacing=1, handlelength=1)
    boxes = digits["train"][0]
    size = boxes[:, 2:] - boxes[:, :2]
    bins = np.arange(0, 45) - 0.5
    for side, label in ((0, "width"), (1, "height")):
        middle.hist(size[:, side].round().numpy(), bins, alpha=0.6, label=f"{label}, mean {size[:, side].mean():.1f}")
    middle.set(title="box sizes, training", xlabel="pixels", ylabel="boxes")
    middle.set_ylim(0, middle.get_ylim()[1] * 1.25)
    middle.legend(frameon=False, loc="upper right")
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).unbind(1)
    image = right.hist2d(x.numpy(), y.numpy(), bins=(30, 24), range=((0, WIDTH), (0, HEIGHT)), cmap="magma")[3]
    right.invert_yaxis()
    right.set(title="box centres, training", xlabel="x in pixels", ylabel="y in pixels", aspect="equal")
    figure.colorbar(image, ax=right, label="boxes", shrink=0.75)
    return figure


def plot_grid(picture: Tensor, label: Tensor) -> Figure:
    """A detection picture (1, 48, 60) with the 2x3 grid, its true boxes and their centres; and beside it the labels of
    its cells, (2, 3, 6)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 4.6), width_ratios=(1, 1.25))
    show_picture(left, picture)
    truth = true_boxes(label[None])[0]
    for box, category in zip(*truth.values(), strict=True):
        _draw_box(left, box, str(category.item()), TRUE, below=False)
        left.plot(*((box[:2] + box[2:]) / 2).tolist(), "+", color=TRUE, markersize=14, markeredgewidth=2.5)
    right.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), xticks=[], yticks=[], aspect="equal")
    for axis in (left, right):
        for column in range(COLUMNS + 1):
            axis.axvline(column * WIDTH / COLUMNS, color="gold", linewidth=1.5)
        for row in range(ROWS + 1):
            axis.axhline(row * HEIGHT / ROWS, color="gold", linewidth=1.5)
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        pc, *box, category = label[row, column].tolist()
        lines = [f"{name} = {value:.3f}" for name, value in zip("xywh", box, strict=True)]
        text = "\n".join([*lines, f"c = {category:.0f}"]) if pc else "no digit"
        right.text(
            (column + 0.5) * WIDTH / COLUMNS, (row + 0.5) * HEIGHT / ROWS, text,
            ha="center", va="center", color="black" if pc else "grey", fontsize=12,
        )  # fmt: skip
    left.set_title("picture, grid, boxes and their centres")
    right.set_title("labels of the six cells, in units of the cell")
    return figure


def plot_digits_per_picture(splits: Splits) -> Figure:
    """Detection: how many digits a picture holds, and how often each cell holds one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 4.6))
    digits = {name: getattr(splits, name).labels[..., 0].sum((1, 2)).long() for name in ("train", "val", "test")}
    most = max(4, *(int(each.max()) for each in digits.values()))
    for number, (name, label) in enumerate((("train", "training"), ("val", "validation"), ("test", "test"))):
        counts = digits[name].bincount(minlength=most + 1)
        bars = left.bar(np.arange(most + 1) + (number - 1) * 0.27, (counts / counts.sum()).numpy(), 0.27, label=label)
        if name == "train":
            left.bar_label(bars, [f"{count:,}" if count else "" for count in counts.tolist()], fontsize=12)
    left.set(title="digits per picture (numbers: training)", xlabel="digits", ylabel="share of the split")
    left.set(xticks=range(1, most + 1), xlim=(0.4, most + 0.6))
    left.legend(frameon=False)
    share = splits.train.labels[..., 0].mean(0)
    image = right.imshow(share.numpy(), cmap="magma", vmin=0, extent=(0, WIDTH, HEIGHT, 0))
    for (row, column), value in np.ndenumerate(share.numpy()):
        x, y = (column + 0.5) * WIDTH / COLUMNS, (row + 0.5) * HEIGHT / ROWS
        right.text(
            x, y, f"{value:.3f}", ha="center", va="center", color="white" if value < share.max() * 0.7 else "black"
        )
    right.set(title="share of training pictures with a digit in the cell", xlabel="x in pixels", ylabel="y in pixels")
    figure.colorbar(image, ax=right, shrink=0.85)
    return figure


def plot_precision_recall(averages: dict[str, AveragePrecision]) -> Figure:
    """Precision against recall at three of COCO's IoU thresholds, the mean over the classes, of each name."""
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 5.6), sharey=True)
    recall = np.linspace(0, 1, 101)
    for (place, iou), axis in zip(((0, 0.5), (5, 0.75), (8, 0.9)), axes, strict=True):
        for name, average in averages.items():
            precision = average.precision[place].nanmean(1)
            axis.plot(recall, precision.numpy(), label=f"{name}: {precision.mean():.3f}")
        axis.set(title=f"IoU ≥ {iou:.2f}", xlabel="recall", xlim=(0, 1.02), ylim=(0, 1.05))
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), title="average precision")
    axes[0].set_ylabel("precision")
    return figure


POOR_IOU = 0.5  # a found digit whose box overlaps the true one by less counts as poorly placed


def failures(matches: Matches) -> dict[str, Tensor]:
    """What can go wrong, (M,) bool each, in the rows of `matches`: exclusive kinds, the gravest first."""
    hit = matches.digit & matches.found
    wrong = hit & (matches.category != matches.true_category)
    return {
        "missed": matches.digit & ~matches.found,
        "false alarm": matches.found & ~matches.digit,
        "wrong class": wrong,
        "poor box": hit & ~wrong & (matches.iou < POOR_IOU),
    }


def plot_pixels(splits: Splits, normal: Normalizer) -> Figure:
    """Distribution of pixel values in the three splits, before and after normalization."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 4.4))
    for name, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        pictures = getattr(splits, name).pictures[:4096]
        style = {"bins": 64, "histtype": "step", "density": True, "label": label, "linewidth": 2}
        axes[0].hist(as_floats(pictures).flatten().numpy(), **style)
        axes[1].hist(normal(pictures).flatten().numpy(), **style)
    axes[0].set(title="as they are", xlabel="pixel value", ylabel="density")
    axes[1].set(title="normalised", xlabel="(pixel value − mean) / standard deviation", ylabel="density")
    axes[0].legend(frameon=False)
    return figure


def confusion(matches: Matches, classes: int) -> Tensor:
    """(classes + 1, classes + 1) counts, true by predicted; the last row and column stand for "no digit"."""
    true = torch.where(matches.digit, matches.true_category, classes)
    predicted = torch.where(matches.found, matches.category, classes)
    return torch.bincount(true * (classes + 1) + predicted, minlength=(classes + 1) ** 2).reshape(classes + 1, -1)


def plot_confusion(matrix: Tensor, title: str) -> Figure:
    """A confusion matrix with its counts; colours are shares of the row."""
    names = [*map(str, range(len(matrix) - 1)), "none"]
    figure, axis = plt.subplots(figsize=(8, 7.4))
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix.numpy()):
        colour = "white" if shares[row, column] > 0.5 else "black" if count else "#bbbbbb"
        axis.text(column, row, f"{count}", ha="center", va="center", fontsize=12, color=colour)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(title=title, xlabel="predicted", ylabel="true")
    return figure


def describe_confusion(matrix: Tensor) -> str:
    """The commonest mistakes of a confusion matrix, in a few lines."""
    classes = len(matrix) - 1
    wrong = matrix.clone().fill_diagonal_(0)
    lines = [
        f"missed digits: {int(wrong[:classes, classes].sum()):,} of {int(matrix[:classes].sum()):,}; "
        f"false alarms: {int(wrong[classes, :classes].sum()):,} of {int(matrix[classes].sum()):,} without a digit"
    ]
    named = wrong[:classes, :classes]
    for place in named.flatten().argsort(descending=True, stable=True)[:3].tolist():
        true, predicted = divmod(place, classes)
        if named[true, predicted]:
            lines.append(
                f"{true} taken for {predicted}: {int(named[true, predicted]):,} of {int(matrix[true].sum()):,}"
            )
    return "\n".join(lines)


def per_class(matches: Matches, classes: int) -> list[dict[str, Any]]:
    """For each class, and for "none": how many, accuracy, share found, and mean IoU of those found."""
    rows = []
    for category in [*range(classes), None]:
        mine = ~matches.digit if category is None else matches.true_category == category
        hit = mine & matches.found & matches.digit
        rows.append(
            {
                "class": "none" if category is None else str(category),
                "count": int(mine.sum()),
                "accuracy": (matches.right & mine).sum().item() / max(1, int(mine.sum())),
                "found": (matches.found & mine).sum().item() / max(1, int(mine.sum())),
                "iou": matches.iou[hit].mean().item() if hit.any() else None,
            }
        )
    return rows


def plot_per_class(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Accuracy and IoU of every class, as `per_class` gives them."""
    figure, axis = plt.subplots(figsize=(PAGE, 4.4))
    for key, label, mark in (("accuracy", "detection & class accuracy", "s"), ("iou", "IoU, where found", "o")):
        shown = [(number, row[key]) for number, row in enumerate(rows) if row[key] is not None]
        axis.plot(*zip(*shown, strict=True), mark, markersize=9, label=label)
        for place in shown:
            axis.annotate(f"{place[1]:.3f}", place, (0, 8), textcoords="offset points", ha="center", fontsize=11)
    axis.set_xticks(range(len(rows)), [row["class"] for row in rows])
    axis.set(title=title, xlabel="class", ylabel="accuracy, IoU")
    axis.margins(y=0.15)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_by_size(matches: Matches, labels: Tensor, visible: Matches | None = None) -> Figure:
    """Share of digits found and IoU of those found, against the true box's size (square root of its area); with
    `visible`, the matches of an oracle, its IoU too."""
    size = torch.where(matches.digit, _box_sizes(labels), 0.0)
    middles, found, iou, spread, oracle = [], [], [], [], []
    for low, high in itertools.pairwise(np.arange(3, 36, 3)):
        mine = matches.digit & (size >= low) & (size < high)
        hit = mine & matches.found
        if hit.sum() < 2:  # too few for a mean
            continue
        middles.append((low + high) / 2)
        found.append((hit.sum() / mine.sum()).item())
        iou.append(matches.iou[hit].mean().item())
        spread.append(matches.iou[hit].quantile(torch.tensor((0.25, 0.75))).tolist())
        oracle.append(visible.iou[mine].mean().item() if visible is not None else None)
    figure, axis = plt.subplots(figsize=(10, 5))
    axis.plot(middles, found, "s--", color="tab:green", label="share found")
    axis.plot(middles, iou, "o-", color=PREDICTED, label="IoU of those found: mean")
    if spread:
        low, high = zip(*spread, strict=True)
        axis.fill_between(middles, low, high, color=PREDICTED, alpha=0.2, label="IoU of those found: middle half")
    if visible is not None:
        axis.plot(middles, oracle, "^:", color="dimgrey", label="IoU of the box around visible ink")
    axis.set(title="small and large digits", xlabel="true box, square root of its area in pixels")
    axis.set_ylabel("share found, IoU")
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    return figure


def _box_sizes(labels: Tensor) -> Tensor:
    """Square root of the area of every row's box, in pixels, (M,)."""
    rows = labels.reshape(-1, 6)
    cell = (WIDTH / COLUMNS) * (HEIGHT / ROWS) if task_of(labels) == "det" else WIDTH * HEIGHT
    return (rows[:, 3] * rows[:, 4] * cell).clamp(min=0).sqrt()
