"""What networks get wrong and why, and what they are set beside: measured on outputs and labels, in rows by column."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image

import utils
from data import Split
from data.labels import CLASSES, COLUMNS, GRID, HEIGHT, ROWS, WIDTH, cells_to_image, find_cell, to_cells
from utils import Matches

ROUNDS = 1000  # of the bootstrap
OBJECT_IOU = 0.5  # from which on a box counts as that of an object
POOR_IOU = 0.5  # a detected digit whose box overlaps the true one by less is poorly located
FAR = 3  # pixels by which an edge is far off
SIDES = ("left", "top", "right", "bottom")


def bootstrap(outputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """95 % intervals of what `utils.score` measures, the loss apart: images are drawn anew, with replacement, ROUNDS
    times (Efron, 1979). The generator's seed is fixed."""
    matches, count = utils.match(outputs, labels), len(labels)
    hit, digit = matches.digit & matches.detected, matches.digit
    parts = (matches.correct, torch.ones_like(hit), matches.iou * hit, hit, matches.correct & digit, digit)
    sums = torch.stack([part.double().reshape(count, -1).sum(1) for part in parts], 1)  # (N, 6)
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randint(count, (count,), generator=rng).bincount(minlength=count) for _ in range(ROUNDS)]
    right, rows, overlap, hits, named, digits = (torch.stack(draws).double() @ sums).T  # (ROUNDS,) each
    values = {"accuracy": right / rows, "iou": overlap / hits.clamp(min=1)}
    values |= {"digit_accuracy": named / digits.clamp(min=1), "iou_all": overlap / digits.clamp(min=1)}
    values["mean"] = (values["accuracy"] + values["iou"]) / 2
    limits = torch.tensor((0.025, 0.975), dtype=torch.float64)
    return {name: value.quantile(limits).tolist() for name, value in values.items()}


def count_objects(outputs: Tensor, labels: Tensor, nms_iou: float | None = None) -> dict[str, int]:
    """Boxes counted by objects, whatever cell they come from: "right" (of a true box's class, with an IoU of at least
    OBJECT_IOU; the best first, each true box once), "false" and "missed"."""
    right = predicted = 0
    truth = utils.true_boxes(labels)
    for boxes, true in zip(utils.decode(outputs, nms_iou=nms_iou), truth, strict=True):
        ious = box_iou(boxes["boxes"], true["boxes"]) * (boxes["labels"][:, None] == true["labels"])
        free = torch.ones(len(true["labels"]))
        for row in ious:
            iou, place = (row * free).max(0) if len(free) else (torch.tensor(0.0), 0)
            if iou >= OBJECT_IOU:
                free[place] = 0
                right += 1
        predicted += len(boxes["labels"])
    return {"right": right, "false": predicted - right, "missed": sum(len(true["labels"]) for true in truth) - right}


def object_rows(outputs: dict[str, Tensor], labels: Tensor) -> list[dict[str, Any]]:
    """Detection: what each network misses and falsely detects, by cells, and by objects without and with NMS."""
    rows = []
    for name, each in outputs.items():
        kinds = failures(utils.match(each, labels))
        cells = {"right": "", "false": int(kinds["false positive"].sum()), "missed": int(kinds["missed"].sum())}
        ways = {"by cells": cells, "by objects": count_objects(each, labels)}
        ways["by objects, after NMS"] = count_objects(each, labels, nms_iou=OBJECT_IOU)
        rows += [{"network": name, "counted": way, **counts} for way, counts in ways.items()]
    return rows


def pixel_boxes(outputs: Tensor) -> Tensor:
    """Boxes of outputs or labels, a row per image (cell), (M, 4) `xyxy` in pixels; without a digit meaningless."""
    if outputs.ndim == 4 and outputs.shape[1] == 6:
        outputs = outputs.movedim(1, -1)  # (N, 6, 2, 3) -> (N, 2, 3, 6)
    rows = cells_to_image(outputs).reshape(-1, 6) if outputs.ndim == 4 else outputs
    return box_convert(rows[:, 1:5], "cxcywh", "xyxy") * rows.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))


def edge_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many pixels predicted edges lie to the right of (below) the true ones, of each detected digit: (K, 4)."""
    matches = utils.match(outputs, labels)
    return (pixel_boxes(outputs) - pixel_boxes(labels))[matches.digit & matches.detected]


def edge_rows(errors: Tensor) -> list[dict[str, Any]]:
    """For each side, and for all: the share of edges that are right to the pixel, and nearly, and the mean distance."""
    rows = []
    for name, values in [*zip(SIDES, errors.T, strict=True), ("all", errors.flatten())]:
        off, row = values.round().abs(), {"edge": name}
        for most, said in enumerate(("right to the pixel", "within one", "within two")):
            row[said] = (off <= most).sum().item() / max(1, len(off))
        rows.append({**row, "mean distance, pixels": values.abs().sum().item() / max(1, len(off))})
    return rows


def border_distances(rows: Tensor) -> Tensor:
    """Detection: pixels from the centre of each box, of outputs or labels, to the nearest border of cells, (M,)."""
    left, top, right, bottom = pixel_boxes(rows).T
    across = [(left + right) / 2 - WIDTH / COLUMNS * column for column in range(1, COLUMNS)]
    down = [(top + bottom) / 2 - HEIGHT / ROWS * row for row in range(1, ROWS)]
    return torch.stack(across + down).abs().amin(0).round(decimals=3)  # half pixels, but for rounding


def border_rows(outputs: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Detection: digits by the distance of their centre to a border between cells, how many are missed or misnamed, and
    the false positives whose box has its centre so far from one."""
    matches, true, predicted = utils.match(outputs, labels), border_distances(labels), border_distances(outputs)
    kinds, rows = failures(matches), []
    for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, np.inf)):
        mine, there = (true >= low) & (true < high), (predicted >= low) & (predicted < high)
        said = f"{low:g} to below {high:g} pixels" if high < np.inf else f"{low:g} pixels or more"
        counts = {"digits": matches.digit & mine, "missed": kinds["missed"] & mine}
        counts |= {"wrong class": kinds["wrong class"] & mine, "false positives": kinds["false positive"] & there}
        counts = {name: int(each.sum()) for name, each in counts.items()}
        rows.append({"centre from the nearest border": said, **counts})
    return rows


def piece_rows(outputs: Tensor, split: Split) -> list[dict[str, Any]]:
    """Generated images: digits by whether their ink is one piece or several: how many there are, the mean IoU of those
    detected, how many boxes overlap the true one by less than POOR_IOU, how many edges are off by FAR pixels or more,
    and how many of these lie too far in. Nothing where that is not known."""
    if split.pieces is None:
        return []
    matches, rows = utils.match(outputs, split.labels), []
    hit, pieces = matches.digit & matches.detected, split.pieces.flatten()
    inwards = edge_errors(outputs, split.labels).round() * torch.tensor((1, 1, -1, -1))
    for name, mine in (("one piece", pieces == 1), ("several pieces", pieces > 1)):
        iou, off = matches.iou[mine & hit], inwards[mine[hit]]
        row = {"the digit's ink": name, "digits": int(mine.sum()), "IoU": iou.sum().item() / max(1, len(iou))}
        row["IoU below 0.5"] = int((iou < POOR_IOU).sum())
        row["edges 3 pixels or more off"] = int((off.abs() >= FAR).sum())
        rows.append({**row, "of these too far in": int((off >= FAR).sum())})
    return rows


def failures(matches: Matches) -> dict[str, Tensor]:
    """What can go wrong, (M,) bool each, in the rows of `matches`: exclusive kinds, the gravest first."""
    hit = matches.digit & matches.detected
    wrong = hit & (matches.class_id != matches.true_class_id)
    return {
        "missed": matches.digit & ~matches.detected,
        "false positive": matches.detected & ~matches.digit,
        "wrong class": wrong,
        "poor box": hit & ~wrong & (matches.iou < POOR_IOU),
    }


def confusion(matches: Matches, classes: int) -> Tensor:
    """(classes + 1, classes + 1) counts, true by predicted; the last row and column stand for "no digit"."""
    true = torch.where(matches.digit, matches.true_class_id, classes)
    predicted = torch.where(matches.detected, matches.class_id, classes)
    return torch.bincount(true * (classes + 1) + predicted, minlength=(classes + 1) ** 2).reshape(classes + 1, -1)


def class_rows(outputs: Tensor, split: Split) -> list[dict[str, Any]]:
    """For each class: digits, their mean size in pixels, the shares missed and right, the mean IoU where detected."""
    matches, boxes, rows = utils.match(outputs, split.labels), pixel_boxes(split.labels), []
    for class_id in range(CLASSES[split.task]):
        mine = matches.true_class_id == class_id
        if not mine.any():
            continue
        width, height = (boxes[mine, 2:] - boxes[mine, :2]).mean(0).tolist()
        row = {"class": str(class_id), "digits": int(mine.sum()), "width": width, "height": height}
        row["missed"] = (~matches.detected[mine]).double().mean().item()
        row["accuracy"] = matches.correct[mine].double().mean().item()
        rows.append({**row, "iou": matches.iou[mine & matches.detected].double().mean().nan_to_num().item()})
    return rows


def pick_examples(labels: Tensor, each: int) -> Tensor:
    """Indices of the first so many images of each class, and empty; in detection with one, two, three ... digits."""
    rows = labels.reshape(len(labels), -1, 6)
    kind = torch.where(rows[:, 0, 0] > 0, rows[:, 0, 5], 10) if rows.shape[1] == 1 else rows[..., 0].sum(1)
    return torch.cat([(kind == one).nonzero()[:each, 0] for one in kind.unique().tolist()])


def pick_clear_and_faint(split: Split, images: int = 300) -> Tensor:
    """Indices of two of the first images with digits, in detection with several: a clear one, and a faint one."""
    truth, contrast = utils.true_boxes(split.labels[:images]), {}
    for number, image in enumerate(utils.as_floats(split.images[:images])[:, 0]):
        boxes = truth[number]["boxes"].round().long().tolist()
        inside = [image[top : bottom + 1, left : right + 1].mean() for left, top, right, bottom in boxes]
        if len(boxes) > (split.task == "det"):
            contrast[number] = (min(inside) - image.mean()).item()
    order = sorted(contrast, key=contrast.__getitem__)
    return torch.tensor([order[len(order) * 9 // 10], order[len(order) // 10]])


def pick_failures(matches: Matches, images: int, count: int) -> Tensor:
    """Indices of up to `count` images with a failure, the kinds of `failures` in turn; where there are too few,
    then those whose detected digits have the lowest IoU. `images` is how many images the matches are of."""
    hit = matches.digit & matches.detected
    kinds = [kind.reshape(images, -1).any(1).nonzero()[:, 0].tolist() for kind in failures(matches).values()]
    lowest = torch.where(hit, matches.iou, 2.0).reshape(images, -1).amin(1)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(kind[:count] for kind in kinds)))
    poorest = [number for number in lowest.argsort()[:count].tolist() if lowest[number] <= 1]
    chosen = dict.fromkeys([number for number in turns if number is not None] + poorest)
    return torch.tensor(list(chosen)[:count], dtype=torch.long)


# ---------------------------------------------------------------------------------------------- baselines

SURE = 20.0  # a logit that leaves no doubt
SMALLEST = 5  # pixels; smaller patches are noise
CHOSEN_ON = 2000  # training images


@dataclass(frozen=True)
class BrightPatches:
    """Connected bright pixels: in localization the largest patch, in detection each, a 0 if it has a hole, else a 1.
    Nothing is learnt but three numbers and, for localization, the commonest class."""

    threshold: int  # of 255, from which on a pixel is bright
    least: int  # pixels that a patch needs
    grow: int  # pixels by which each side of the box is moved outwards
    class_id: int = 0  # in localization

    @classmethod
    def fit(cls, train: Split) -> "BrightPatches":
        """The numbers with the highest mean accuracy on some of the training images."""
        part, rows = train[:CHOSEN_ON], train.labels.reshape(-1, 6)
        common = int(rows[rows[:, 0] == 1, 5].long().bincount().argmax())
        patches = {threshold: find_patches(part, threshold) for threshold in (200, 215, 230, 240, 250, 255)}
        tried = [cls(*numbers, common) for numbers in itertools.product(patches, (5, 10, 20, 30), (0, 1, 2))]
        means = [utils.score(each._answer(part, patches[each.threshold]), part.labels)["mean"] for each in tried]
        return tried[np.argmax(means)]

    def outputs(self, split: Split) -> Tensor:
        """What a network would put out, (N, 15) or (N, 6, 2, 3)."""
        return self._answer(split, find_patches(split, self.threshold))

    def _answer(self, split: Split, patches: Tensor) -> Tensor:
        patches = patches[patches[:, 1] >= self.least]
        image, whole = patches[:, 0], patches[:, 6:]
        edges = patches[:, 2:6] + self.grow * patches.new_tensor((-1, -1, 1, 1))
        boxes = box_convert(clip_boxes_to_image(edges, (HEIGHT - 1, WIDTH - 1)), "xyxy", "cxcywh")
        class_id = whole if split.task == "det" else torch.full_like(whole, self.class_id)
        rows = torch.cat((torch.ones_like(whole), boxes / boxes.new_tensor((WIDTH, HEIGHT) * 2), class_id), 1)
        labels, at = torch.zeros(len(split), *GRID[split.task], 6, dtype=torch.float64), (image.long(),)
        if split.task == "det":
            column, row = find_cell(rows[:, 1], rows[:, 2])
            rows, at = to_cells(rows, column, row), (*at, row.long(), column.long())
        labels.numpy()[tuple(index.numpy() for index in at)] = rows.numpy()  # of equal places numpy keeps the last,
        return labels_as_outputs(labels)  # which is the largest patch


def find_patches(split: Split, threshold: int) -> Tensor:
    """Connected pixels of at least `threshold` of 255, from the smallest patch to the largest: (M, 7) float64 of
    image, pixels, left, top, right, bottom, and 1 where it has no hole."""
    images = (utils.as_floats(split.images)[:, 0] * 255).round().byte().numpy()
    # Pixels that touch, corners included, belong together, but not those of two images.
    touch = np.pad(np.ones((1, 3, 3)), ((1, 1), (0, 0), (0, 0)))
    patches, count = ndimage.label(images >= threshold, touch)
    sizes = np.bincount(patches.ravel(), minlength=count + 1)
    order = np.argsort(sizes[1:], kind="stable") + 1
    places, rows = ndimage.find_objects(patches), []
    for number in order[sizes[order] >= SMALLEST]:
        image, down, across = places[number - 1]
        patch = patches[image.start, down, across] == number
        whole = split.task == "loc" or ndimage.binary_fill_holes(patch).sum() == sizes[number]
        edges = across.start, down.start, across.stop - 1, down.stop - 1
        rows.append((image.start, sizes[number], *edges, whole))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)


def labels_as_outputs(labels: Tensor) -> Tensor:
    """Labels (N, 6) or (N, 2, 3, 6) -> outputs of a network that is sure of them."""
    digit = labels[..., :1] > 0
    boxes = torch.where(digit, labels[..., 1:5], 0.5)
    logits = torch.where(digit, SURE, -SURE)
    class_id = torch.where(digit, labels[..., 5:], 0.0)
    if labels.ndim == 2:
        named = torch.nn.functional.one_hot(class_id[:, 0].long(), CLASSES["loc"]) * SURE
        return torch.cat((logits, boxes, named), 1).float()
    return torch.cat((logits, boxes, SURE * (2 * class_id - 1)), -1).movedim(-1, 1).float()


def edge_probabilities(network: Any, images: Tensor) -> tuple[Tensor, ...]:
    """What one of our networks believes about the edges left, right, top and bottom: the probabilities that they lie in
    each column, (N, rows, columns, 60), or row, (N, rows, columns, 48), of the image; for each cell of the grid."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        return tuple(each.float().cpu() for each in network[1].cells(network[0](images.to(device)))[2])
