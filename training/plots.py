"""Figures of what networks learnt epoch by epoch, and of studies."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor, nn

import models
import utils
from data import Split, Splits
from data.files import atomic_write
from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH, task_of
from training import analysis
from training.results import published_curves
from training.runs import Run
from utils import AveragePrecision, Matches


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


TRAINING, VALIDATION = "tab:orange", "tab:purple"
PARTS = (("train", "training", TRAINING), ("val", "validation", VALIDATION))
TERMS = (("loss_pc", "loss: is there a digit?"), ("loss_box", "loss: where?"), ("loss_class", "loss: which?"))


def plot_history(run: Run) -> Figure:
    """One network's run: loss, accuracy and IoU, and the loss's three terms on a logarithmic axis, on training and
    validation images, the best epoch marked."""
    history = run.history
    epochs = range(1, len(history["val_mean"]) + 1)
    figure, axes = plt.subplots(2, 3, figsize=(utils.PLOT_WIDTH, 6.8), sharex=True)
    panels = (("loss", "loss"), ("accuracy", "detection & class accuracy"), ("iou", "box accuracy (IoU)"), *TERMS)
    for axis, (name, title) in zip(axes.flat, panels, strict=True):
        for part, label, colour in PARTS:
            axis.plot(epochs, history[f"{part}_{name}"], color=colour, label=label)
        axis.axvline(run.best_epoch, color="grey", linestyle=":", label=f"best epoch, {run.best_epoch}")
        axis.set_title(title)
        axis.set_yscale("log" if "loss" in name else "linear")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(run.name)
    return figure


def plot_comparison(runs: Sequence[Run]) -> Figure:
    """What validation accuracy, IoU and mean of several runs lack to 1, over each other, on a logarithmic axis."""
    figure, axes = plt.subplots(1, 3, figsize=(utils.PLOT_WIDTH, 4.4), sharey=True)
    panels = (("accuracy", "detection & class accuracy"), ("iou", "box accuracy (IoU)"), ("mean", "mean accuracy"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for number, run in enumerate(runs):
            lacking = 1 - np.array(run.history[f"val_{name}"])
            axis.plot(range(1, len(lacking) + 1), lacking, color=f"C{number}", label=run.name)
            axis.plot(run.best_epoch, lacking[run.best_epoch - 1], "*", color=f"C{number}", markersize=14)
        axis.set(title=title, xlabel="epoch", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("1 − score on validation images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), frameon=False)
    figure.suptitle("Networks compared on the validation images, lower is better (star: best epoch)")
    return figure


def plot_reproduction(rows: Sequence[dict[str, Any]]) -> Figure:
    """The reference's networks trained as it trained them: mean accuracy by its own measure and loss, epoch by epoch,
    as published (dashed) and here. `rows` as studies.json holds them."""
    figure, axes = plt.subplots(2, len(rows), figsize=(utils.PLOT_WIDTH, 6.6), sharex=True, squeeze=False)
    for column, row in enumerate(rows):
        published = published_curves(row["network"])
        for part, label, colour in PARTS:
            for axis, ours, theirs in (
                (axes[0, column], f"{part}_reference_mean", f"{part}_mean"),
                (axes[1, column], f"{part}_loss", f"{part}_loss"),
            ):
                for values, style, where in (
                    (row["curves"][ours], "-", "here"),
                    (published[theirs], "--", "published"),
                ):
                    axis.plot(range(1, len(values) + 1), values, style, color=colour, label=f"{label}, {where}")
        axes[0, column].set_title(row["network"])
        axes[1, column].set(xlabel="epoch", yscale="log")
    axes[0, 0].set_ylabel("mean, reference's measure")
    axes[1, 0].set_ylabel("loss")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("The reference's networks, unshuffled: published and here")
    return figure


def plot_search(found: dict[str, Any]) -> Figure:
    """A search as search.json holds it: how far each trial was ahead of the recipe by hand, after as many epochs; how
    much each parameter matters for that; and the trials over the two that matter most."""
    ahead = np.array([np.nan if trial["ahead"] is None else trial["ahead"] for trial in found["trials"]])
    whole = np.array([trial["mean"] is not None for trial in found["trials"]])
    order = np.arange(1, len(whole) + 1)
    figure, axes = plt.subplots(1, 4, figsize=(utils.PLOT_WIDTH, 4.6), width_ratios=(1.2, 1, 1, 1))
    axes[0].plot(order, np.fmax.accumulate(np.where(whole, ahead, np.nan)), color="black", label="best so far")
    matter = sorted(found["importance"].items(), key=lambda pair: pair[1])
    names = [name for name, _ in reversed(matter)][:2]
    slices = [[trial["params"].get(name, np.nan) for trial in found["trials"]] for name in names]
    for axis, across in zip((axes[0], *axes[2:]), (order, *slices)):
        axis.scatter(np.array(across)[whole], ahead[whole], color="tab:blue", label="trained to the end")
        axis.scatter(np.array(across)[~whole], ahead[~whole], color="tab:orange", marker="x", label="ended early")
    axes[0].set(xlabel="trial", ylabel="ahead of the recipe by hand")
    axes[1].barh([name.replace("_", " ") for name, _ in matter], [share for _, share in matter], color="tab:grey")
    axes[1].set(title="importance", xlabel="share of the differences")
    axes[2].set(ylabel=axes[0].get_ylabel())
    axes[3].sharey(axes[2])
    axes[3].tick_params(labelleft=False)
    for axis, name, values in zip(axes[2:], names, slices):
        axis.set_xlabel(name.replace("_", " "))
        low, high = min(values), max(values)
        if low > 0 and high > 8 * low:
            axis.set_xscale("log")
            axis.set_xticks([low, (low * high) ** 0.5, high])
            axis.xaxis.set_major_formatter("{x:.2g}")
            axis.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("The search for hyperparameters")
    return figure


def plot_iou() -> Figure:
    """Three pairs of boxes: what is shared, what is covered together, and the IoU."""
    pairs = (((4, 4, 24, 24), (14, 4, 34, 24)), ((4, 4, 34, 34), (5, 5, 35, 35)), ((4, 4, 14, 14), (5, 5, 15, 15)))
    titles = ("shifted by half its width", "a pixel off to the right and below, 30 wide", "the same, 10 wide")
    figure, axes = plt.subplots(1, 3, figsize=(utils.PLOT_WIDTH, 4.9))
    for axis, (true, predicted), title in zip(axes, pairs, titles, strict=True):
        for (left, top, right, bottom), colour in ((true, utils.DRAW_TRUE), (predicted, utils.DRAW_PREDICTED)):
            axis.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=3)
            )
        left, top, right, bottom = *map(max, true[:2], predicted[:2]), *map(min, true[2:], predicted[2:])
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, color="gold", alpha=0.5))
        shared = (right - left) * (bottom - top)
        covered = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (true, predicted)) - shared
        axis.set(xlim=(0, 38), ylim=(38, 0), aspect="equal", xticks=[], yticks=[])
        axis.set(title=title, xlabel=f"shared {shared}, covered {covered}: IoU {shared / covered:.2f}")
    utils.draw_legend(figure)
    return figure


@torch.inference_mode()
def stage_sizes(network: models.GridNetwork) -> dict[str, tuple[int, ...]]:
    """Output sizes (channels, height, width) of the backbone's parts and of the head."""
    sizes: dict[str, tuple[int, ...]] = {}
    for name, part in {**dict(network.backbone.named_children()), "head": network.head}.items():
        part.register_forward_hook(lambda layer, inputs, output, name=name: sizes.update({name: output.shape[1:]}))
    network.eval()(torch.zeros(1, *models.IMAGE))
    return sizes


def plot_diagram(network: models.GridNetwork) -> Figure:
    """The way of an image through a `GridNetwork`: down to context, up again to places, and to the answer."""
    sizes = {name: "×".join(map(str, size)) for name, size in stage_sizes(network).items()}
    where = {"image": (0, 3), "stage2": (3, 3), "stage4": (3, 2), "stage8": (3, 1), "stage16": (3, 0)}
    where |= {"lateral": (6.4, 1), "merge": (6.4, 2), "head": (9.4, 2), "answer": (12.4, 2)}
    said = {"stage2": "half size", "stage4": "a quarter", "stage8": "an eighth", "stage16": "a sixteenth"}
    said |= {"lateral": "add, 1×1 convolution", "merge": "add, 3×3 convolution", "head": "1×1 convolution"}
    said |= {"image": "image", "answer": "mean over places"}
    cells = f"×{network.rows}×{network.columns}" * (network.rows * network.columns > 1)
    sizes |= {"image": "1×48×60", "answer": f"{5 + network.classes}{cells}"}
    figure, axis = plt.subplots(figsize=(utils.PLOT_WIDTH, 4))
    for name, (x, y) in where.items():
        colours = {"facecolor": "#dbe9f6", "edgecolor": "#1f5fa8"}
        axis.add_patch(FancyBboxPatch((x, y), 2, 0.5, boxstyle="round,pad=0.08", **colours))
        axis.text(x + 1, y + 0.25, f"{said[name]}\n{sizes[name]}", ha="center", va="center", fontsize=9.5)
    ways = ("image stage2", "stage4 merge", "stage8 lateral", "merge head", "head answer")  # to the right
    ways += ("stage2 stage4", "stage4 stage8", "stage8 stage16", "lateral merge", "stage16 lateral")
    for way in ways:
        (x0, y0), (x1, y1) = (where[name] for name in way.split())
        start = (x0 + 1, y0 + (0.6 if y1 > y0 else -0.1)) if x0 == x1 else (x0 + 2.1, y0 + 0.25)
        stop = (x1 - 0.1, y1 + 0.25) if y0 == y1 else (x1 + 1, y1 + (-0.1 if y1 > y0 else 0.6))
        bend = "arc3" if x0 == x1 or y0 == y1 else "angle,angleA=0,angleB=90,rad=4"
        axis.annotate("", stop, start, arrowprops={"arrowstyle": "->", "connectionstyle": bend, "color": "dimgrey"})
    axis.set(xlim=(-0.3, 14.7), ylim=(-0.3, 3.8))
    axis.axis("off")
    axis.set_title(f"{type(network).__name__}: channels × height × width")
    return figure


def plot_samples(run: Run, split: Split, epochs: Sequence[int]) -> Figure:
    """The boxes of the first validation images after some of a run's epochs, a row of images for each image."""
    samples = torch.tensor(run.val_samples)  # (epochs, images, ...)
    chosen = [epoch for epoch in dict.fromkeys(epochs) if epoch <= len(samples)]
    outputs = samples[[epoch - 1 for epoch in chosen]].transpose(0, 1).flatten(0, 1)
    index = torch.arange(samples.shape[1]).repeat_interleave(len(chosen))
    title = f"{run.name}: validation images after epoch {', '.join(map(str, chosen))}"
    return utils.draw_boxes(split[index], outputs, columns=len(chosen), title=title)


def plot_labels(splits: Splits) -> Figure:
    """Classes in the three splits; sizes and centres of the training boxes, in pixels."""
    digits = {}
    for name in ("train", "val", "test"):
        found = utils.true_boxes(getattr(splits, name).labels)
        boxes, classes = (torch.cat([each[key] for each in found]) for key in ("boxes", "labels"))
        empty = sum(not len(each["labels"]) for each in found)
        digits[name] = boxes, classes, empty
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(utils.PLOT_WIDTH, 4), width_ratios=(1.25, 1, 1.1))
    names = sorted(set(digits["train"][1].tolist()))
    some_empty = any(empty for _, _, empty in digits.values())
    for number, (name, label) in enumerate((("train", "training"), ("val", "validation"), ("test", "test"))):
        _, classes, empty = digits[name]
        counts = [(classes == class_id).sum().item() for class_id in names] + [empty] * some_empty
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


def plot_grid(image: Tensor, label: Tensor) -> Figure:
    """A detection image (1, 48, 60) with the 2x3 grid, its true boxes and their centres; and beside it the labels of
    its cells, (2, 3, 6)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(utils.PLOT_WIDTH, 4.6), width_ratios=(1, 1.25))
    utils.draw_image(left, image)
    truth = utils.true_boxes(label[None])[0]
    for box, class_id in zip(*truth.values(), strict=True):
        utils.draw_box(left, box, str(class_id.item()), utils.DRAW_TRUE, below=False)
        left.plot(*((box[:2] + box[2:]) / 2).tolist(), "+", color=utils.DRAW_TRUE, markersize=14, markeredgewidth=2.5)
    right.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), xticks=[], yticks=[], aspect="equal")
    for axis in (left, right):
        for column in range(COLUMNS + 1):
            axis.axvline(column * WIDTH / COLUMNS, color="gold", linewidth=1.5)
        for row in range(ROWS + 1):
            axis.axhline(row * HEIGHT / ROWS, color="gold", linewidth=1.5)
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        pc, *box, class_id = label[row, column].tolist()
        lines = [f"{name} = {value:.3f}" for name, value in zip("xywh", box, strict=True)]
        text = "\n".join([*lines, f"c = {class_id:.0f}"]) if pc else "no digit"
        right.text(
            (column + 0.5) * WIDTH / COLUMNS, (row + 0.5) * HEIGHT / ROWS, text,
            ha="center", va="center", color="black" if pc else "grey", fontsize=12,
        )  # fmt: skip
    left.set_title("image, grid, boxes and their centres")
    right.set_title("labels of the six cells, in units of the cell")
    return figure


def plot_digits_per_image(splits: Splits) -> Figure:
    """Detection: how many digits an image holds, and how often each cell holds one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(utils.PLOT_WIDTH, 4.6))
    digits = {name: getattr(splits, name).labels[..., 0].sum((1, 2)).long() for name in ("train", "val", "test")}
    most = max(4, *(int(each.max()) for each in digits.values()))
    for number, (name, label) in enumerate((("train", "training"), ("val", "validation"), ("test", "test"))):
        counts = digits[name].bincount(minlength=most + 1)
        bars = left.bar(np.arange(most + 1) + (number - 1) * 0.27, (counts / counts.sum()).numpy(), 0.27, label=label)
        if name == "train":
            left.bar_label(bars, [f"{count:,}" if count else "" for count in counts.tolist()], fontsize=12)
    left.set(title="digits per image (numbers: training)", xlabel="digits", ylabel="share of the split")
    left.set(xticks=range(1, most + 1), xlim=(0.4, most + 0.6))
    left.legend(frameon=False)
    share = splits.train.labels[..., 0].mean(0)
    image = right.imshow(share.numpy(), cmap="magma", vmin=0, extent=(0, WIDTH, HEIGHT, 0))
    for (row, column), value in np.ndenumerate(share.numpy()):
        x, y = (column + 0.5) * WIDTH / COLUMNS, (row + 0.5) * HEIGHT / ROWS
        right.text(
            x, y, f"{value:.3f}", ha="center", va="center", color="white" if value < share.max() * 0.7 else "black"
        )
    right.set(title="share of training images with a digit in the cell", xlabel="x in pixels", ylabel="y in pixels")
    figure.colorbar(image, ax=right, shrink=0.85)
    return figure


def plot_pixels(splits: Splits, normalize: utils.Normalize) -> Figure:
    """Distribution of pixel values in the three splits, before and after normalization."""
    figure, axes = plt.subplots(1, 2, figsize=(utils.PLOT_WIDTH, 4.4))
    for name, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        images = getattr(splits, name).images[:4096]
        style = {"bins": 64, "histtype": "step", "density": True, "label": label, "linewidth": 2}
        axes[0].hist(utils.as_floats(images).flatten().numpy(), **style)
        axes[1].hist(normalize(images).flatten().numpy(), **style)
    axes[0].set(title="as they are", xlabel="pixel value", ylabel="density")
    axes[1].set(title="normalised", xlabel="(pixel value − mean) / standard deviation", ylabel="density")
    axes[0].legend(frameon=False)
    return figure


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


def plot_per_class(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Accuracy and IoU of every class, as `per_class` gives them."""
    figure, axis = plt.subplots(figsize=(utils.PLOT_WIDTH, 4.4))
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
        hit = mine & matches.detected
        if hit.sum() < 2:  # too few for a mean
            continue
        middles.append((low + high) / 2)
        found.append((hit.sum() / mine.sum()).item())
        iou.append(matches.iou[hit].mean().item())
        spread.append(matches.iou[hit].quantile(torch.tensor((0.25, 0.75))).tolist())
        oracle.append(visible.iou[mine].mean().item() if visible is not None else None)
    figure, axis = plt.subplots(figsize=(10, 5))
    axis.plot(middles, found, "s--", color="tab:green", label="share found")
    axis.plot(middles, iou, "o-", color=utils.DRAW_PREDICTED, label="IoU of those found: mean")
    if spread:
        low, high = zip(*spread, strict=True)
        axis.fill_between(
            middles, low, high, color=utils.DRAW_PREDICTED, alpha=0.2, label="IoU of those found: middle half"
        )
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


def plot_precision_recall(averages: dict[str, AveragePrecision]) -> Figure:
    """Precision against recall at three of COCO's IoU thresholds, the mean over the classes, of each name."""
    figure, axes = plt.subplots(1, 3, figsize=(utils.PLOT_WIDTH, 5.6), sharey=True)
    recall = np.linspace(0, 1, 101)
    for (place, iou), axis in zip(((0, 0.5), (5, 0.75), (8, 0.9)), axes, strict=True):
        for name, average in averages.items():
            precision = average.precision[place].nanmean(1)
            axis.plot(recall, precision.numpy(), label=f"{name}: {precision.mean():.3f}")
        axis.set(title=f"IoU ≥ {iou:.2f}", xlabel="recall", xlim=(0, 1.02), ylim=(0, 1.05))
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), title="average precision")
    axes[0].set_ylabel("precision")
    return figure


def plot_errors(outputs: Tensor, split: Split) -> Figure:
    """Edges' errors side by side, IoU against that of the visible ink's box where that is known, and calibration."""
    labels, matches = split.labels, utils.match(outputs, split.labels)
    hit = matches.digit & matches.detected
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(utils.PLOT_WIDTH, 4.2))
    errors, steps = analysis.edge_errors(outputs, labels).round().clamp(-5, 5), np.arange(-5, 6)
    for number, side in enumerate(analysis.SIDES):
        shares = [(errors[:, number] == step).float().mean().item() or np.nan for step in steps]  # 0 has no logarithm
        left.plot(steps, shares, "o-", label=side, color=f"C{number}")
    left.set(title="edges", xlabel="predicted − true, pixels (±5: or more)", ylabel="share of found digits")
    left.set(yscale="log", xticks=steps)
    left.legend(frameon=False, loc="upper left", fontsize=11.5, handlelength=1.2)
    if split.visible is not None:
        faint = utils.box_ious(*(utils.flatten_cells(outputs, each)[1][:, 1:5] for each in (split.visible, labels)))
        edges = np.arange(0.4, 1.01, 0.1)
        middles, means, low, high, oracle = [], [], [], [], []
        for start, stop in itertools.pairwise(edges):
            mine = hit & (faint >= start) & (faint < stop + 1e-6)
            if mine.sum() >= 5:
                middles.append((start + stop) / 2)
                means.append(matches.iou[mine].mean().item())
                low.append(matches.iou[mine].quantile(0.25).item())
                high.append(matches.iou[mine].quantile(0.75).item())
                oracle.append(faint[mine].mean().item())
        middle.plot(middles, means, "o-", color=utils.DRAW_PREDICTED, label="network, mean")
        middle.fill_between(middles, low, high, color=utils.DRAW_PREDICTED, alpha=0.2, label="network, middle half")
        middle.plot(middles, oracle, "^:", color="dimgrey", label="visible ink")
        middle.legend(frameon=False, loc="lower right")
    middle.set(title="faint digits", xlabel="IoU of the box around the visible ink", ylabel="IoU with the true box")
    believed = analysis.calibration(outputs, labels)
    right.plot([0, 1], [0, 1], ":", color="dimgrey")
    right.plot([x for x, _, _ in believed], [y for _, y, _ in believed], "o-", color=utils.DRAW_PREDICTED)
    for number, (x, y, count) in enumerate(believed):  # neighbours may be close
        if number == len(believed) - 1:
            shift, side = (0, 8), "center"
        elif number and x - believed[number - 1][0] < 0.08:
            shift, side = (7, -11), "left"
        else:
            shift, side = (-7, 1), "right"
        right.annotate(f"{count:,}", (x, y), shift, textcoords="offset points", ha=side, fontsize=11)
    right.set(title="calibration (numbers: boxes)", xlabel="score", ylabel="share named rightly", ylim=(-0.05, 1.1))
    return figure


@torch.inference_mode()
def plot_locations(model: nn.Sequential, split: Split) -> Figure:
    """Where a `GridNetwork` looks: the weights of its locations over each image, the location's share in the prediction
    of its cell times the confidence in a digit there."""
    normalize, network = model[:2]
    device = next(network.parameters()).device
    certainty = network.head(network.backbone(normalize(split.images.to(device))))[:, 0].float().cpu()  # (N, 12, 15)
    cells = certainty.unflatten(2, (network.columns, -1)).unflatten(1, (network.rows, -1)).movedim(3, 2)
    sums = cells.flatten(3).logsumexp(3)[..., None, None]
    weights = ((cells - sums).exp() * sums.sigmoid()).movedim(2, 3).reshape(certainty.shape)
    figure, axes = plt.subplots(1, len(split), figsize=(utils.PLOT_WIDTH, 2.4), squeeze=False)
    for axis, image, weight in zip(axes[0], split.images, weights, strict=True):
        utils.draw_image(axis, image)
        shade = weight.numpy()
        axis.imshow(np.ones_like(shade), cmap="autumn", alpha=np.sqrt(shade / max(shade.max(), 1e-6)) * 0.75,
                    extent=(0, WIDTH, HEIGHT, 0))  # fmt: skip
    figure.suptitle("Weights of the locations")
    return figure
