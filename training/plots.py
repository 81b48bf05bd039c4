"""Figures of what networks learnt epoch by epoch, and of studies."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import NullLocator

import models
import utils
from data import Split
from training.layers import stage_sizes
from training.reference import published_curves
from training.runs import Run
from utils import PAGE, PREDICTED, TRAINING, TRUE, VALIDATION

PARTS = (("train", "training", TRAINING), ("val", "validation", VALIDATION))
TERMS = (("loss_pc", "loss: is there a digit?"), ("loss_box", "loss: where?"), ("loss_class", "loss: which?"))


def plot_history(run: Run) -> Figure:
    """One network's run: loss, accuracy and IoU, and the loss's three terms on a logarithmic axis, on training and
    validation pictures, the best epoch marked."""
    history = run.history
    epochs = range(1, len(history["val_mean"]) + 1)
    figure, axes = plt.subplots(2, 3, figsize=(PAGE, 6.8), sharex=True)
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
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 4.4), sharey=True)
    panels = (("accuracy", "detection & class accuracy"), ("iou", "box accuracy (IoU)"), ("mean", "mean accuracy"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for number, run in enumerate(runs):
            lacking = 1 - np.array(run.history[f"val_{name}"])
            axis.plot(range(1, len(lacking) + 1), lacking, color=f"C{number}", label=run.name)
            axis.plot(run.best_epoch, lacking[run.best_epoch - 1], "*", color=f"C{number}", markersize=14)
        axis.set(title=title, xlabel="epoch", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("1 − score on validation pictures")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), frameon=False)
    figure.suptitle("Networks compared on the validation pictures, lower is better (star: best epoch)")
    return figure


def plot_reproduction(rows: Sequence[dict[str, Any]]) -> Figure:
    """The reference's networks trained as it trained them: mean accuracy by its own measure and loss, epoch by epoch,
    as published (dashed) and here. `rows` as studies.json holds them."""
    figure, axes = plt.subplots(2, len(rows), figsize=(PAGE, 6.6), sharex=True, squeeze=False)
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
    figure, axes = plt.subplots(1, 4, figsize=(PAGE, 4.6), width_ratios=(1.2, 1, 1, 1))
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
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 4.9))
    for axis, (true, predicted), title in zip(axes, pairs, titles, strict=True):
        for (left, top, right, bottom), colour in ((true, TRUE), (predicted, PREDICTED)):
            axis.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=3)
            )
        left, top, right, bottom = *map(max, true[:2], predicted[:2]), *map(min, true[2:], predicted[2:])
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, color="gold", alpha=0.5))
        shared = (right - left) * (bottom - top)
        covered = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (true, predicted)) - shared
        axis.set(xlim=(0, 38), ylim=(38, 0), aspect="equal", xticks=[], yticks=[])
        axis.set(title=title, xlabel=f"shared {shared}, covered {covered}: IoU {shared / covered:.2f}")
    utils.box_legend(figure)
    return figure


def plot_diagram(network: models.GridNetwork) -> Figure:
    """The way of a picture through a `GridNetwork`: down to context, up again to places, and to the answer."""
    sizes = {name: "×".join(map(str, size)) for name, size in stage_sizes(network).items()}
    where = {"picture": (0, 3), "stage2": (3, 3), "stage4": (3, 2), "stage8": (3, 1), "stage16": (3, 0)}
    where |= {"lateral": (6.4, 1), "merge": (6.4, 2), "head": (9.4, 2), "answer": (12.4, 2)}
    said = {"stage2": "half size", "stage4": "a quarter", "stage8": "an eighth", "stage16": "a sixteenth"}
    said |= {"lateral": "add, 1×1 convolution", "merge": "add, 3×3 convolution", "head": "1×1 convolution"}
    said |= {"picture": "picture", "answer": "mean over places"}
    cells = f"×{network.rows}×{network.columns}" * (network.rows * network.columns > 1)
    sizes |= {"picture": "1×48×60", "answer": f"{5 + network.classes}{cells}"}
    figure, axis = plt.subplots(figsize=(PAGE, 4))
    for name, (x, y) in where.items():
        colours = {"facecolor": "#dbe9f6", "edgecolor": "#1f5fa8"}
        axis.add_patch(FancyBboxPatch((x, y), 2, 0.5, boxstyle="round,pad=0.08", **colours))
        axis.text(x + 1, y + 0.25, f"{said[name]}\n{sizes[name]}", ha="center", va="center", fontsize=9.5)
    ways = ("picture stage2", "stage4 merge", "stage8 lateral", "merge head", "head answer")  # to the right
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


def plot_watched(run: Run, split: Split, epochs: Sequence[int]) -> Figure:
    """The boxes of the first validation pictures after some of a run's epochs, a row of pictures for each picture."""
    watched = torch.tensor(run.watched)  # (epochs, pictures, ...)
    chosen = [epoch for epoch in dict.fromkeys(epochs) if epoch <= len(watched)]
    outputs = watched[[epoch - 1 for epoch in chosen]].transpose(0, 1).flatten(0, 1)
    index = torch.arange(watched.shape[1]).repeat_interleave(len(chosen))
    title = f"{run.name}: validation pictures after epoch {', '.join(map(str, chosen))}"
    return utils.draw_boxes(split[index], outputs, columns=len(chosen), title=title)
