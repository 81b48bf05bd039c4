"""Every figure that `utils` does not draw. Colours are Okabe and Ito's, which the colour-blind tell apart; lines differ
in their style as well."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_area

import models
import utils
from data import Split, Splits
from data.files import atomic_write
from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH
from training import analysis
from training.results import published_curves
from training.runs import Run
from training.tables import mean_curve
from utils import Matches

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
CYCLE = plt.cycler(color=(BLUE, ORANGE, GREEN, PINK), linestyle=("-", "--", ":", "-."), marker=("o", "s", "v", "^"))


def set_style() -> None:
    """Letters that come out at 7 points or more where the report shows a figure at 80 % of its width."""
    sizes = {"font.size": 15.5, "axes.titlesize": 16, "axes.labelsize": 15.5, "legend.fontsize": 15.5}
    looks = {"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False}
    looks |= {"lines.linewidth": 2.2, "legend.frameon": False, "axes.prop_cycle": CYCLE}
    plt.rcParams.update({**sizes, **looks})


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure to `folder/name.png`, with 192 colours, a third of the size, and close it. Returns the file."""
    path, drawn = Path(folder) / f"{name}.png", io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    plt.close(figure)  # else the notebook would show it as well
    few = Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE)
    atomic_write(path, lambda file: few.save(file, "png", optimize=True))
    return path


def below(figure: Figure, axis: plt.Axes, columns: int) -> None:
    """The legend of one panel, for all, below them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


# ---------------------------------------------------------------------------------------------- data


def plot_labels(splits: Splits) -> Figure:
    """Classes in the three splits, sizes and centres of training boxes; in detection how many digits images have."""
    several, kinds = splits.task == "det", "0123456789–" if splits.task == "loc" else "01"
    figure, axes = plt.subplots(1, 3 + several, figsize=(utils.PLOT_WIDTH, 3.8))
    left, middle, right = axes[:3]
    for number, (name, label) in enumerate((("train", "training"), ("val", "validation"), ("test", "test"))):
        split = getattr(splits, name)
        labels = split.labels.reshape(len(split), -1, 6)
        held = labels[..., 0] > 0
        counts = torch.where(held, labels[..., 5], 10).long().flatten().bincount(minlength=11)[: len(kinds)].numpy()
        style = {"width": 0.27, "label": label, "color": (RED, BLUE, GREEN)[number]}
        left.bar(np.arange(len(kinds)) + (number - 1) * 0.27, counts / counts.sum(), **style)
        if several:
            digits = held.sum(1).bincount(minlength=5)[1:] / len(held)
            axes[3].bar(np.arange(1, len(digits) + 1) + (number - 1) * 0.27, digits.numpy(), **style)
    left.set_xticks(range(len(kinds)), kinds)
    left.set(title="classes", xlabel="digit", ylabel="share of the split")
    boxes = torch.cat([each["boxes"] for each in utils.true_boxes(splits.train.labels)])
    bins = np.arange(0, 45) - 0.5
    for values, label, colour in zip((boxes[:, 2:] - boxes[:, :2]).T, ("width", "height"), (BLUE, ORANGE), strict=True):
        middle.hist(values.round().numpy(), bins, alpha=0.6, label=label, color=colour)
    middle.set(title="box sizes, training", xlabel="pixels", ylabel="boxes")
    middle.legend(loc="upper right", handlelength=0.8, borderpad=0)
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T.numpy()
    right.hist2d(x, y, bins=(30, 24), range=((0, WIDTH), (0, HEIGHT)), cmap="magma")
    right.invert_yaxis()
    right.set(title="box centres, training", xlabel="x in pixels", ylabel="y in pixels", aspect="equal")
    if several:
        axes[3].set(title="digits in an image", xlabel="digits", ylabel="share of the split")
    below(figure, left, 3)
    return figure


def plot_grid(image: Tensor, label: Tensor) -> Figure:
    """A detection image (1, 48, 60) with grid, true boxes and centres, and beside it its cells' labels (2, 3, 6)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), width_ratios=(1, 1.1))
    utils.draw_image(left, image)
    truth = utils.true_boxes(label[None])[0]
    for box, class_id in zip(*truth.values(), strict=True):
        utils.draw_box(left, box, str(class_id.item()), utils.DRAW_TRUE, below=False)
        left.plot(*((box[:2] + box[2:]) / 2).tolist(), "+", color=utils.DRAW_TRUE, markersize=10, markeredgewidth=2)
    right.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), xticks=[], yticks=[], aspect="equal")
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        pc, *box, class_id = label[row, column].tolist()
        lines = [f"{name} = {value:.2f}" for name, value in zip("xywh", box, strict=True)]
        text, colour = ("\n".join([*lines, f"c = {class_id:.0f}"]), "black") if pc else ("no digit", "grey")
        place = (column + 0.5) * WIDTH / COLUMNS, (row + 0.5) * HEIGHT / ROWS
        right.text(*place, text, ha="center", va="center", color=colour, fontsize=11)
    left.set_title("image and grid")
    right.set_title("labels of the cells")
    return add_grid(figure)


def add_grid(figure: Figure) -> Figure:
    """The borders of detection's cells in every panel of a figure that is not switched off."""
    for axis in (axis for axis in figure.axes if axis.axison):
        for column in range(1, COLUMNS):
            axis.axvline(column * WIDTH / COLUMNS, color="gold", linewidth=1.2)
        for row in range(1, ROWS):
            axis.axhline(row * HEIGHT / ROWS, color="gold", linewidth=1.2)
    return figure


# ---------------------------------------------------------------------------------------------- our networks


def plot_edges(model: nn.Sequential, split: Split) -> Figure:
    """Images with true and predicted boxes, and along their sides how likely, to one of our networks, each column (row)
    is to be an edge of a box. Triangles mark the true edges."""
    sides = analysis.edge_probabilities(model, split.images)
    outputs = utils.infer(model, split.images).cpu()
    detected = utils.match(outputs, split.labels).detected.view(len(split), -1)
    truth, guesses = [each["boxes"] for each in utils.true_boxes(split.labels)], utils.decode(outputs)
    figure = plt.figure(figsize=(utils.PLOT_WIDTH, utils.PLOT_WIDTH / len(split) * 0.86))
    for number, panel in enumerate(np.atleast_1d(figure.subfigures(1, len(split)))):
        layout = {"width_ratios": (5, 1), "height_ratios": (1, 4), "gridspec_kw": {"hspace": 0, "wspace": 0}}
        (top, corner), (image, right) = panel.subplots(2, 2, **layout)
        corner.axis("off")
        top.set(xlim=(0, WIDTH), ylim=(-0.12, 1), xticks=[], yticks=[0, 1])
        right.set(ylim=(HEIGHT, 0), xlim=(-0.12, 1), yticks=[], xticks=[0, 1])
        top.set_title("probability of left and right edge", fontsize=15.5)
        right.set_ylabel("of top and bottom edge", fontsize=15.5)
        right.yaxis.set_label_position("right")
        utils.draw_image(image, split.images[number])
        image.set_aspect("auto")  # the panel has the image's shape
        for box in truth[number]:
            utils.draw_box(image, box, "", utils.DRAW_TRUE, below=False)
        for box, class_id in zip(guesses[number]["boxes"], guesses[number]["labels"], strict=True):
            utils.draw_box(image, box, str(int(class_id)), utils.DRAW_PREDICTED, below=True)
        for cell in detected[number].nonzero()[:, 0].tolist():
            fills = (top.fill_between, top.fill_between, right.fill_betweenx, right.fill_betweenx)
            for fill, colour, side in zip(fills, (BLUE, ORANGE, BLUE, ORANGE), sides, strict=True):
                probability = side[number].flatten(0, 1)[cell].numpy()
                fill(np.arange(len(probability)), probability, step="mid", color=colour, alpha=0.75, linewidth=0)
        for x0, y0, x1, y1 in truth[number].tolist():
            top.plot([x0, x1], [-0.06] * 2, "^", color=utils.DRAW_TRUE, markersize=8, clip_on=False)
            right.plot([-0.06] * 2, [y0, y1], "<", color=utils.DRAW_TRUE, markersize=8, clip_on=False)
    return figure


@torch.inference_mode()
def plot_diagram(network: models.GridNetwork) -> Figure:
    """The way of an image through a `GridNetwork`: down to context, up again to locations, and to the answer."""
    outputs = {"image": torch.zeros(1, *models.IMAGE)}
    for name, part in (*network.backbone.named_children(), ("head", network.head), ("answer", network)):
        part.register_forward_hook(lambda layer, inputs, output, name=name: outputs.update({name: output}))
    network.eval()(outputs["image"])
    where = {"image": (0, 3), "stage2": (3, 3), "stage4": (3, 2), "stage8": (3, 1), "stage16": (3, 0)}
    where |= {"lateral": (6.4, 1), "merge": (6.4, 2), "head": (9.4, 2), "answer": (12.4, 2)}
    said = {"stage2": "half size", "stage4": "a quarter", "stage8": "an eighth", "stage16": "a sixteenth"}
    said |= {"lateral": "add, 1×1 conv", "merge": "add, 3×3 conv", "head": "1×1 conv"}
    said |= {"image": "image", "answer": "weighted mean"}
    figure, axis = plt.subplots(figsize=(utils.PLOT_WIDTH, 3.9))
    for name, (x, y) in where.items():
        size = "×".join(map(str, outputs[name].shape[1:]))
        axis.add_patch(FancyBboxPatch((x, y), 2, 0.56, boxstyle="round,pad=0.08", facecolor="#dbe9f6", edgecolor=BLUE))
        axis.text(x + 1, y + 0.28, f"{said[name]}\n{size}", ha="center", va="center", fontsize=14)
    ways = ("image stage2", "stage4 merge", "stage8 lateral", "merge head", "head answer")  # to the right
    ways += ("stage2 stage4", "stage4 stage8", "stage8 stage16", "lateral merge", "stage16 lateral")
    for way in ways:
        (x0, y0), (x1, y1) = (where[name] for name in way.split())
        start = (x0 + 1, y0 + (0.66 if y1 > y0 else -0.1)) if x0 == x1 else (x0 + 2.1, y0 + 0.28)
        stop = (x1 - 0.1, y1 + 0.28) if y0 == y1 else (x1 + 1, y1 + (-0.1 if y1 > y0 else 0.66))
        bend = "arc3" if x0 == x1 or y0 == y1 else "angle,angleA=0,angleB=90,rad=4"
        axis.annotate("", stop, start, arrowprops={"arrowstyle": "->", "connectionstyle": bend, "color": "dimgrey"})
    axis.set(xlim=(-0.3, 14.7), ylim=(-0.3, 3.8))
    axis.axis("off")
    return figure


# ---------------------------------------------------------------------------------------------- training and studies


def plot_curves(runs: Sequence[Run]) -> Figure:
    """Loss, accuracy and IoU of runs on training and validation images after every epoch, a row of panels each; the
    best epoch dotted. Beside the reference's loss stands the objective that was minimized, where it is another."""
    figure, axes = plt.subplots(len(runs), 3, figsize=(utils.PLOT_WIDTH, 0.9 + 2.1 * len(runs)), squeeze=False)
    for run, row in zip(runs, axes, strict=True):
        epochs = range(1, len(run.history["val_mean"]) + 1)
        for axis, (name, title) in zip(row, (("loss", "loss"), ("accuracy", "accuracy"), ("iou", "IoU")), strict=True):
            for part, label, colour, style in (("train", "training", RED, "--"), ("val", "validation", BLUE, "-")):
                axis.plot(epochs, run.history[f"{part}_{name}"], style, color=colour, label=label)
            axis.axvline(run.best_epoch, color="grey", linestyle=":", label="best epoch")
            axis.set(title=f"{run.name}: {title}", yscale="log" if name == "loss" else "linear")
            axis.xaxis.get_major_locator().set_params(integer=True)
        objective = run.history.get("train_objective", run.history["train_loss"])
        if not np.allclose(objective, run.history["train_loss"], rtol=0.01):
            row[0].plot(epochs, objective, "-.", color=ORANGE, label="its own training objective")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    below(figure, axes[-1, 0], 4)
    return figure


def plot_study(rows: dict[str, Sequence[dict[str, Any]]], panels: dict[str, str]) -> Figure:
    """Curves of a study's rows epoch by epoch, the mean over seeds: rows by their label, a panel for each of the
    columns of "curves" named, with its title; losses on a logarithmic axis."""
    figure, axes = plt.subplots(1, len(panels), figsize=(utils.PLOT_WIDTH, 4.2), squeeze=False)
    for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
        for label, mine in rows.items():
            mean = mean_curve(mine, name)
            axis.plot(range(1, len(mean) + 1), mean, marker="", label=label)
        axis.set(title=title, xlabel="epoch", yscale="log" if "loss" in name else "linear")
    below(figure, axes[0, 0], 2)
    return figure


def plot_recipes(rows: Sequence[dict[str, Any]]) -> Figure:
    """Validation means of each network with the reference's recipe and with ours, see `tables.recipe_rows`."""
    figure, axis = plt.subplots(figsize=(utils.PLOT_WIDTH / 2, 0.55 * len(rows) + 1.5))
    for number, row in enumerate(rows):
        old, new = row["the reference's recipe"], row["ours"]
        axis.plot([old, new], [number] * 2, "-", color="lightgrey", linewidth=5, zorder=1)
        axis.plot(old, number, "s", color=ORANGE, markersize=9, label="the reference's recipe" if not number else None)
        axis.plot(new, number, "o", color=BLUE, markersize=9, label="our recipe" if not number else None)
    axis.set_yticks(range(len(rows)), [row["network"] for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="mean accuracy, validation images")
    axis.grid(axis="x", alpha=0.4)
    below(figure, axis, 2)
    return figure


def plot_reproduction(rows: Sequence[dict[str, Any]]) -> Figure:
    """The reference's networks trained as it trained them: validation means by its metric, as published and here."""
    figure, axes = plt.subplots(1, max(1, len(rows)), figsize=(utils.PLOT_WIDTH, 3.8), squeeze=False)
    for axis, row in zip(axes[0], rows):
        curves = row["curves"]["val_reference_mean"], published_curves(row["network"])["val_mean"]
        for values, where in zip(curves, ("here", "published"), strict=True):
            axis.plot(range(1, len(values) + 1), values, marker="", label=where)
        axis.set(title=row["network"], xlabel="epoch")
    axes[0, 0].set_ylabel("mean accuracy")
    below(figure, axes[0, 0], 2)
    return figure


# ---------------------------------------------------------------------------------------------- errors


def plot_noise(rows: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy and IoU over the strength of the noise, see `Lab.noise_rows`."""
    figure, axes = plt.subplots(1, 2, figsize=(utils.PLOT_WIDTH, 4.2))
    for axis, (name, title) in zip(axes, (("accuracy", "accuracy"), ("iou", "IoU")), strict=True):
        for network in dict.fromkeys(row["network"] for row in rows):
            points = [(row["noise"], row[name]) for row in rows if row["network"] == network]
            axis.plot(*zip(*points, strict=True), label=network)
        axis.axvline(1, color="grey", linestyle=":")
        axis.set(title=title, xlabel="noise, times the course's")
    below(figure, axes[0], 4)
    return figure


def plot_confusion(matrix: Tensor) -> Figure:
    """A confusion matrix with its counts; colours are shares of the row."""
    names = [*map(str, range(len(matrix) - 1)), "none"]
    figure, axis = plt.subplots(figsize=(6, 5.6))
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix.numpy()):
        colour = "white" if shares[row, column] > 0.5 else "black" if count else "#bbbbbb"
        axis.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=13)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true")
    return figure


def plot_errors(outputs: Tensor, split: Split, visible: Matches | None = None) -> Figure:
    """By how many pixels edges are off; and the share of digits detected and the IoU of those, against the true box's
    size (square root of its area); with `visible`, the matches of the box around the visible ink, its IoU too."""
    labels, matches = split.labels, utils.match(outputs, split.labels)
    figure, (left, right) = plt.subplots(1, 2, figsize=(utils.PLOT_WIDTH, 4.6))
    errors, steps = analysis.edge_errors(outputs, labels).round().clamp(-5, 5), np.arange(-5, 6)
    for number, side in enumerate(analysis.SIDES):
        shares = [(errors[:, number] == step).float().mean().item() or np.nan for step in steps]  # 0 has no logarithm
        left.plot(steps, shares, label=side)
    left.set(title="edges", xlabel="predicted − true, pixels (±5: or more)", ylabel="share of detected digits")
    left.set(yscale="log", xticks=steps)
    left.legend(loc="upper left", handlelength=2.4)
    size, hit = box_area(analysis.pixel_boxes(labels)).clamp(min=0).sqrt(), matches.digit & matches.detected
    groups = {low + 1.5: (size >= low) & (size < low + 3) for low in range(3, 33, 3)}  # by their middle
    groups = {middle: mine for middle, mine in groups.items() if (hit & mine).sum() >= 2}  # fewer have no mean
    curves = {"share detected": (matches.digit, matches.detected), "IoU": (hit, matches.iou)}
    curves |= {"IoU of the visible ink's box": (matches.digit, visible.iou)} if visible else {}
    for name, (digits, values) in curves.items():
        right.plot([*groups], [values[mine & digits].float().mean() for mine in groups.values()], label=name)
    right.set(title="small and large digits", xlabel="true box, square root of its area in pixels")
    right.legend(loc="lower right")
    return figure
