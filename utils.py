"""What both tasks share: normalization, the combined loss, the metric, decoding, mAP, and drawing boxes.

Outputs are [pc logit, x, y, w, h, class logits] along dimension 1, (N, 15) in localization and (N, 6, 2, 3) in
detection; labels, (N, 6) and (N, 2, 3, 6), are described in `data/labels.py`. The shape says which task it is. In
detection every cell is treated as an image of its own.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, box_iou, generalized_box_iou_loss

from data import Split
from data.labels import CLASSES, COLUMNS, HEIGHT, ROWS, WIDTH, cells_to_image, image_rows, task_of


# ---------------------------------------------------------------------------------------------- normalization
class Normalize(nn.Module):
    """The first layer of every network: images (N, 1, 48, 60), uint8 or float32 in [0, 1], minus one mean, over one
    standard deviation, both of the training images. They are buffers, so that a file of weights holds them too."""

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @classmethod
    def fit(cls, images: Tensor) -> "Normalize":
        """Mean and (population) standard deviation over all pixels of images, uint8 or float32 in [0, 1]. Raises
        ValueError where pixels are all but the same."""
        # Image by image, and then exactly: sums in another order differ with the number of threads that share them.
        mean = math.fsum(_over_images(images, lambda pixels: pixels.sum(1))) / images.numel()
        squares = _over_images(images, lambda pixels: (pixels - mean).square().sum(1))
        std = math.sqrt(math.fsum(squares) / images.numel())
        if not std > 1e-6:
            raise ValueError(f"images: expected pixels that differ from each other, found {mean:g} everywhere")
        return cls(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        return as_floats(images).sub(self.mean).div_(self.std)


def _over_images(images: Tensor, reduce: Callable[[Tensor], Tensor]) -> list[float]:
    """What `reduce` makes of each image's pixels, (M, pixels) float64 -> (M,)."""
    return [value for part in images.split(4096) for value in reduce(as_floats(part).double().flatten(1)).tolist()]


def as_floats(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1], whether they are kept as that or as 8 bit."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


# ---------------------------------------------------------------------------------------------- loss
class Loss(NamedTuple):
    """The combined loss and its three terms, scalars."""

    total: Tensor
    pc: Tensor
    box: Tensor
    classification: Tensor


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """The reference's box loss: the mean squared error of x, y, w, h, row by row, (M,)."""
    return (outputs[:, 1:5] - labels[:, 1:5]).square().mean(1)


def class_loss(outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over ten classes in localization, binary in detection, row by row, (M,)."""
    if outputs.shape[1] == 5 + CLASSES["loc"]:
        return F.cross_entropy(outputs[:, 5:], labels[:, 5].long(), reduction="none", label_smoothing=smoothing)
    target = labels[:, 5] + smoothing * (0.5 - labels[:, 5])
    return F.binary_cross_entropy_with_logits(outputs[:, 5], target, reduction="none")


def combined_loss(
    outputs: Tensor,
    labels: Tensor,
    box_loss: Callable[[Tensor, Tensor], Tensor] = squared_error,
    box_weight: float = 1.0,
    class_weight: float = 1.0,
    smoothing: float = 0.0,
) -> Loss:
    """Binary cross-entropy on pc over all images (cells), plus the box loss and the class loss over those with a digit.

    box_loss: of rows of outputs and labels, (M, 15) or (M, 6) and (M, 6) -> (M,). smoothing: the share of the class
    target that all classes get in equal parts.

    Where there is no digit the last five numbers of a label are not read, whatever they are: such rows are weighted by
    0. Without any digit the last two terms are 0.
    """
    outputs, labels = flatten_cells(outputs, labels)
    digit = labels[:, 0]
    labels = torch.where(digit[:, None] > 0, labels, 0.5)  # what is weighted by 0 must be finite

    def over_digits(losses: Tensor) -> Tensor:
        return (losses * digit).sum() / digit.sum().clamp(min=1)

    pc = F.binary_cross_entropy_with_logits(outputs[:, 0], digit)
    box = box_weight * over_digits(box_loss(outputs, labels))
    classification = class_weight * over_digits(class_loss(outputs, labels, smoothing))
    return Loss(pc + box + classification, pc, box, classification)


def l1_giou(outputs: Tensor, labels: Tensor, l1_weight: float = 5.0, giou_weight: float = 1.0) -> Tensor:
    """Our box loss, row by row, (M,): L1 in fractions of the image, which keeps boxes moving that do not overlap, plus
    the generalized IoU loss (Rezatofighi et al., 2019); the pair and its weights as in DETR (Carion et al., 2020)."""
    boxes, targets = outputs[:, 1:5], labels[:, 1:5]
    columns, rows = (1, 1) if outputs.shape[1] == 5 + CLASSES["loc"] else (COLUMNS, ROWS)
    offsets = (boxes - targets).abs()
    distance = offsets[:, 0::2].sum(1) / columns + offsets[:, 1::2].sum(1) / rows
    corners = (box_convert(values, "cxcywh", "xyxy") for values in (boxes, targets))
    # GIoU is the same in cells as in fractions of the image: areas of both boxes scale alike.
    return l1_weight * distance + giou_weight * generalized_box_iou_loss(*corners)


LEAST_PROBABILITY = 1e-6  # so that an edge which a network thinks impossible has a finite loss


def edge_loss(edges: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Ours alone: the mean cross-entropy of the four edges over the digits, a scalar; 0 without any digit.

    edges: the probabilities of the left, right, top and bottom edge over columns or rows of pixels, (N, 1, 1, 60) or
    (N, 1, 1, 48) in localization, (N, 2, 3, ...) in detection. labels: (N, 6) or (N, 2, 3, 6).
    """
    rows = image_rows(labels).reshape(-1, 6)
    digit = rows[:, 0]
    boxes = torch.where(digit[:, None] > 0, rows[:, 1:5], 0.5)
    left, top, right, bottom = box_convert(boxes, "cxcywh", "xyxy").T
    losses = []
    for chances, edge, size in zip(edges, (left, right, top, bottom), (WIDTH, WIDTH, HEIGHT, HEIGHT), strict=True):
        pixel = (edge * size).round().long().clamp(0, size - 1)[:, None]
        losses.append(-torch.log(chances.reshape(-1, size).gather(1, pixel)[:, 0] + LEAST_PROBABILITY))
    return (torch.stack(losses).mean(0) * digit).sum() / digit.sum().clamp(min=1)


def flatten_cells(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels with one row per image, or per cell in detection: (M, 15) or (M, 6), and (M, 6).

    Raises ValueError where the shapes are not those of a task, or do not go together.
    """
    task = task_of_outputs(outputs)
    if task_of(labels) != task or len(labels) != len(outputs):
        raise ValueError(f"outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)} do not go together")
    if task == "det":
        outputs = outputs.movedim(1, -1).reshape(-1, outputs.shape[1])  # (N, 6, 2, 3) -> (N*6, 6)
        labels = labels.reshape(-1, 6)  # (N, 2, 3, 6) -> (N*6, 6)
    return outputs, labels


def task_of_outputs(outputs: Tensor) -> str:
    """The task that a network's outputs belong to, by their shape: "loc" for (N, 15), "det" for (N, 6, 2, 3), where
    channels after the sixth are not read. Raises ValueError."""
    if outputs.ndim == 2 and outputs.shape[1] == 5 + CLASSES["loc"]:
        return "loc"
    if outputs.ndim == 4 and outputs.shape[1] >= 6 and tuple(outputs.shape[2:]) == (ROWS, COLUMNS):
        return "det"
    raise ValueError(f"outputs: expected shape (N, 15) or (N, 6, {ROWS}, {COLUMNS}), found {tuple(outputs.shape)}")


# ---------------------------------------------------------------------------------------------- metric
class Matches(NamedTuple):
    """Predictions beside the truth, row by row as in `flatten_cells`."""

    digit: Tensor  # (M,) bool, there is a digit
    detected: Tensor  # (M,) bool, the network detects one: sigmoid(pc) > 0.5
    class_id: Tensor  # (M,) int64, the predicted class
    true_class_id: Tensor  # (M,) int64, -1 where there is no digit
    iou: Tensor  # (M,) float32, of the predicted box with the true one, 0 where there is no digit

    @property
    def correct(self) -> Tensor:
        """(M,) bool: a digit detected and its class right, or none where there is none."""
        return torch.where(self.digit, self.detected & (self.class_id == self.true_class_id), ~self.detected)


def match(outputs: Tensor, labels: Tensor) -> Matches:
    """Compare outputs with labels, image by image (cell by cell)."""
    outputs, labels = flatten_cells(outputs, labels)
    digit = labels[:, 0] > 0
    class_id = outputs[:, 5:].argmax(1) if outputs.shape[1] == 5 + CLASSES["loc"] else (outputs[:, 5] > 0).long()
    true_class_id = torch.where(digit, labels[:, 5], -1).long()
    true_box = torch.where(digit[:, None], labels[:, 1:5], 1.0)
    return Matches(digit, outputs[:, 0] > 0, class_id, true_class_id, box_ious(outputs[:, 1:5], true_box) * digit)


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
    """Loss and metric over a whole set, exact: not means of batch means.

    - loss, loss_pc, loss_box, loss_class: `combined_loss` and its terms.
    - accuracy: share of images (cells) that are right; a missed digit is wrong.
    - iou: mean IoU over those where there is a digit and it is detected; 0 if none is.
    - mean: the mean of accuracy and iou, by which epochs and networks are chosen.
    - digit_accuracy: accuracy over those that hold a digit only.
    - iou_all: mean IoU over all digits, a missed one counting as 0.
    """
    matches = match(outputs, labels)
    hit = matches.digit & matches.detected
    digits, hits = matches.digit.sum(), hit.sum()
    overlap = (matches.iou.double() * hit).sum()
    values = torch.stack(
        [
            *(term.double() for term in combined_loss(outputs.double(), labels.double())),
            matches.correct.double().mean(),
            overlap / hits.clamp(min=1),
            (matches.correct & matches.digit).sum() / digits.clamp(min=1).double(),
            overlap / digits.clamp(min=1),
        ]
    ).tolist()  # the one point at which the device is waited for
    names = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all")
    scores = dict(zip(names, values, strict=True))
    return {**scores, "mean": (scores["accuracy"] + scores["iou"]) / 2}


REFERENCE_BATCH = 64  # images; the reference averaged IoU over batches


def reference_means(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean accuracy in three ways in which the reference may have measured it, for comparison with its figures only.

    In all of them IoU is the mean of batches' means over detected digits, but for batches without any; and in detection
    the class is an argmax over the class logits that there are: over one it is always 0.

    - reference_mean: as its notebook has it; where nothing is detected it counts as right, digit or not.
    - reference_mean_strict: a missed digit counts as wrong, as in the figures of its report.
    - reference_mean_empty: besides, where there is no digit the class has to be 0.
    """
    rows, truth = flatten_cells(outputs, labels)
    digit, detected = truth[:, 0] > 0, rows[:, 0] > 0
    class_id = rows[:, 5:].argmax(1)
    named = class_id == torch.where(digit, truth[:, 5], 0)
    hit = digit & detected
    overlap = match(outputs, labels).iou.double() * hit
    per_batch = REFERENCE_BATCH * len(rows) // len(outputs)
    sums, hits = (torch.stack([part.sum() for part in each.split(per_batch)]) for each in (overlap, hit))
    iou = (sums / hits.clamp(min=1)).sum() / (hits > 0).sum().clamp(min=1)
    strict = torch.where(digit, detected & named, ~detected)
    ways = {"": ~detected | (hit & named), "_strict": strict, "_empty": strict & (digit | named)}
    return {f"reference_mean{way}": ((right.double().mean() + iou) / 2).item() for way, right in ways.items()}


@torch.inference_mode()
def infer(network: nn.Module, images: Tensor) -> Tensor:
    """The network's outputs for all images, on the network's device; it is left in evaluation mode."""
    device = next(network.parameters()).device
    batch_size = 128 if device.type == "cpu" else 512  # on a CPU more takes gigabytes and gains little
    network.eval()
    return torch.cat([network(part.to(device)) for part in images.split(batch_size)])


# ---------------------------------------------------------------------------------------------- decoding and mAP
def decode(outputs: Tensor, threshold: float = 0.5, nms_iou: float | None = None) -> list[dict[str, Tensor]]:
    """Outputs -> for each image its boxes in pixels, with class and score, best first.

    Returns per image {"boxes": (k, 4) `xyxy` in pixels cut to the image, "labels": (k,) int64, "scores": (k,) in
    [0, 1]}; the score is the probability that there is a digit times that of its class. Kept is what has a sigmoid(pc)
    above the threshold. With nms_iou, of boxes of one class that overlap by more than that only the best is kept
    (torchvision's batched_nms). Raises ValueError unless both are in [0, 1] and all outputs are finite.
    """
    for name, value in (("threshold", threshold), ("nms_iou", 0 if nms_iou is None else nms_iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], found {value}")
    task = task_of_outputs(outputs)
    if not torch.isfinite(outputs).all():
        raise ValueError("outputs: expected finite numbers, found NaN or infinity")
    if task == "det":
        cells = outputs[:, :6].movedim(1, -1)  # (N, 6, 2, 3) -> (N, 2, 3, 6)
        values = cells_to_image(cells).flatten(1, 2)  # (N, 6, 6)
        certainty = F.logsigmoid(values[..., 5].abs()).exp()
        class_id = (values[..., 5] > 0).long()
    else:
        values = outputs[:, None]  # (N, 1, 15)
        certainty, class_id = values[..., 5:].softmax(-1).max(-1)
    confidence = values[..., 0].sigmoid()
    scores = confidence * certainty
    size = values.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))
    boxes = torch.cat((values[..., 1:3], values[..., 3:5].clamp(min=0)), -1)
    boxes = torch.minimum(box_convert(boxes, "cxcywh", "xyxy").clamp(min=0) * size, size)
    kept = confidence > threshold
    if nms_iou is not None and len(outputs):
        image = torch.arange(len(outputs), device=outputs.device)[:, None].expand_as(class_id)
        group = image * (int(class_id.max()) + 1) + class_id  # boxes compete within an image and a class
        survivors = batched_nms(boxes[kept], scores[kept], group[kept], nms_iou)
        image, cell = kept.nonzero()[survivors].T
        kept = torch.zeros_like(kept)
        kept[image, cell] = True
    parts, images = {"boxes": boxes, "labels": class_id, "scores": scores}, []
    for number, order in enumerate(scores.argsort(dim=1, descending=True, stable=True)):
        best = order[kept[number, order]]
        images.append({name: values[number, best] for name, values in parts.items()})
    return images


def true_boxes(labels: Tensor) -> list[dict[str, Tensor]]:
    """Labels -> for each image its digits as `decode` gives them, without scores."""
    size = labels.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))
    images = []
    for rows in image_rows(labels):
        digits = rows[rows[:, 0] == 1]
        images.append({"boxes": box_convert(digits[:, 1:5], "cxcywh", "xyxy") * size, "labels": digits[:, 5].long()})
    return images


def mean_average_precision(outputs: Tensor, labels: Tensor, nms_iou: float | None = None) -> dict[str, float]:
    """COCO's mean average precision over boxes in pixels: torchmetrics', of what `decode` gives. "map" is over IoU .50
    to .95, beside it are "map50", "map75", and "map_class0" ... of each class that occurs.

    Every box with a sigmoid(pc) above 0.01 counts, wherever a network draws its line. Without any prediction all values
    are 0. Where boxes lie on whole pixels some IoUs equal a threshold, and whether they reach it is left to float32's
    last bit, as torchmetrics has it.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox", extended_summary=True)
    metric.warn_on_many_detections = False
    truth = true_boxes(labels.cpu())
    metric.update(decode(outputs.cpu(), 0.01, nms_iou), truth)
    summary = metric.compute()
    names = {"map": "map", "map50": "map_50", "map75": "map_75"}
    scores = {name: max(0.0, summary[key].item()) for name, key in names.items()}
    precision = torch.zeros(10, 101, CLASSES[task_of(labels)])  # IoU thresholds, recall thresholds, classes
    # torchmetrics counts only the classes that occur among labels and predictions, in order.
    precision[:, :, summary["classes"].reshape(-1).long()] = summary["precision"][..., 0, -1].float().clamp(min=0)
    for class_id in torch.cat([each["labels"] for each in truth]).unique().tolist():
        scores[f"map_class{class_id}"] = precision[:, :, class_id].mean().item()
    return scores


# ---------------------------------------------------------------------------------------------- drawing
DRAW_TRUE, DRAW_PREDICTED = "#ff4d4d", "#2e9bff"  # red and blue, both readable on gray noise
PLOT_WIDTH = 12.0  # inches across, which the report shows at 7: letters of 13 points come out at 7.6


def draw_image(axes: plt.Axes, image: Tensor) -> None:
    """An image (1, H, W) in gray, one unit of the axes to a pixel, without ticks and frame."""
    height, width = image.shape[-2:]
    pixels, extent = as_floats(image)[0].numpy(), (0, width, height, 0)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_box(axes: plt.Axes, box: Tensor, text: str, colour: str, below: bool, room: float = 9.0) -> None:
    """A box (4,) `xyxy` with its text. `room`: what a text needs above or below the box, in pixels. True boxes, not
    `below`, are broader: their rim is always seen."""
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


def draw_boxes(split: Split, outputs: Tensor | None = None, columns: int = 6) -> Figure:
    """Images with their true boxes and classes in red and, if outputs are given, the predicted ones in blue. Above
    each image stands the IoU, or what is wrong."""
    shown = [("true", DRAW_TRUE, true_boxes(split.labels))]
    notes = ["" if len(each["labels"]) else "no digit" for each in shown[0][2]]
    if outputs is not None:
        outputs = outputs.cpu().float()
        shown.append(("predicted", DRAW_PREDICTED, decode(outputs)))
        notes = draw_notes(outputs, split.labels)
    rows = math.ceil(len(split) / columns)
    size = (PLOT_WIDTH, PLOT_WIDTH / columns * 0.92 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(split) :]:
        axis.axis("off")
    for number, axis in enumerate(axes.flat[: len(split)]):
        draw_image(axis, split.images[number])
        for name, colour, boxes in shown:
            for box, class_id in zip(boxes[number]["boxes"], boxes[number]["labels"], strict=True):
                draw_box(axis, box, str(class_id.item()), colour, below=name == "predicted")
        axis.set_title(textwrap.fill(notes[number], 104 // columns), fontsize=14)  # as wide as the image
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour, _ in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_detections(image: Tensor, boxes: Tensor, texts: Sequence[str]) -> Figure:
    """One image (1, H, W) of any size with boxes (k, 4), `xyxy` in its pixels, in blue, each with its text."""
    height, width = image.shape[-2:]
    inches = min(6 / width, 4.8 / height)  # per pixel
    figure, axes = plt.subplots(figsize=(max(2, width * inches), max(2, height * inches)), layout="constrained")
    draw_image(axes, image)
    for box, text in zip(boxes, texts, strict=True):
        draw_box(axes, box, text, DRAW_PREDICTED, below=False, room=0.3 / inches)
    if not len(boxes):
        axes.set_title("no digit", fontsize=13)
    return figure


def draw_notes(outputs: Tensor, labels: Tensor) -> list[str]:
    """For each image what came of it, in two or three words, which stay together where lines break."""
    notes = []
    per_image = (values.reshape(len(labels), -1) for values in match(outputs, labels))
    for digit, detected, class_id, true_class_id, iou in zip(*per_image):
        hit, wrong = digit & detected, class_id != true_class_id
        counts = {"missed": digit & ~detected, "false positive": detected & ~digit, "wrong class": hit & wrong}
        parts = [f"{where.sum()} {what}" if labels.ndim == 4 else what for what, where in counts.items() if where.any()]
        if hit.any():
            parts.append(f"IoU {iou[hit].mean():.2f}")
        notes.append(", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts) or "none, right")
    return notes
