"""Builds the report: every number from results.json and the code, every figure from the figures' folder.

The report is about the stored run: where a run does not bear out what it says, it is not built.
"""

import datetime
import hashlib
import inspect
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typst
from torch import nn

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import models  # noqa: E402  (found only once the project's folder is on the path)
import training  # noqa: E402
import utils  # noqa: E402
from data import labels, perturb  # noqa: E402
from data.checks import REFERENCE_TOLERANCE  # noqa: E402
from data.files import atomic_write  # noqa: E402
from training import analysis, study, tables  # noqa: E402
from training import results as published  # noqa: E402

SOURCE = HOME / "report" / "report.typ"
TARGET = HOME / "report.pdf"
FIGURES_FOLDER = HOME / "figures"

BOXES = ("train_boxes", "val_boxes", "test_boxes", "failures")
# The figures that the report shows; the curves are those of the selected network.
FIGURES = {
    "loc": ("labels", "diagram", "curves", "comparison", "confusion", "by_size", "errors", *BOXES),
    "det": ("grid", "curves", "comparison", "errors", *BOXES),
}


class NotReady(Exception):
    """What the report is built from is not all there."""


def figure_files(results: dict[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Task -> name in the report -> file in the figures' folder. Raises NotReady where one is missing."""
    files = {task: {name: f"{training.NAMES[task]}_{name}.png" for name in names} for task, names in FIGURES.items()}
    for task, named in files.items():
        named["curves"] = f"{training.NAMES[task]}_curves_{results[task]['selected']}.png"
    for file in [file for named in files.values() for file in named.values()]:
        if not (folder / file).is_file():
            raise NotReady(f"{folder / file}: expected a figure, found none; run `make store` first")
    return files


def check_results(results: dict[str, Any], where: Path) -> None:
    """Raise NotReady unless both tasks' results are there, as `Lab.save` writes them."""
    needed = ("profile", "source", "images", "normalization", "networks", "selected", "test")
    needed += ("others", "unrounded", "interval", "edges", "classes", "baselines", "checks")
    for task in training.NAMES:
        missing = [name for name in needed if name not in results.get(task, {})]
        if missing:
            raise NotReady(
                f"{where}: expected the results of both tasks, found none of {training.NAMES[task]}'s "
                f"{', '.join(missing)}; run `make store` first"
            )


def gather(results: dict[str, Any]) -> dict[str, Any]:
    """All that the report says in numbers: the results, and the constants of the code that made them."""
    return {
        "results": results,
        "studies": {task: {name: training.read_rows(task, name) for name in study.PLANS} for task in training.NAMES},
        "labels": {
            task: {name: {trial.id: trial.label for trial in plan(task)} for name, plan in study.PLANS.items()}
            for task in training.NAMES
        },
        "search": {task: training.published_search(task) for task in training.NAMES},
        "trained_less": {task: tables.trained_less(task, results[task]) for task in training.NAMES},
        "published": published.PUBLISHED,
        "published_best": {
            network.__name__: max(published.published_curves(network.__name__)["val_mean"])
            for networks in models.REFERENCE.values()
            for network in networks
        },
        "recipes": {"reference": asdict(training.REFERENCE), "new": asdict(training.OWN)},
        "map_threshold": inspect.signature(utils.mean_average_precision).parameters["threshold"].default,
        "poor_iou": analysis.POOR_IOU,
        "image": {"height": labels.HEIGHT, "width": labels.WIDTH, "rows": labels.ROWS, "columns": labels.COLUMNS},
        "baselines": published.BASELINES,
        "reference_tolerance": REFERENCE_TOLERANCE,
        "digits": {
            "middle": 28 - 2 * perturb.MARGIN,
            "rotation": perturb.ROTATION,
            "scale": perturb.SCALE,
            "shift": [round(size) for size in perturb.SHIFT],
            "empty": perturb.EMPTY_SHARE,
            "uses": perturb.USES,
            "apart": perturb.APART,
        },
        "noise": {task: asdict(noise) for task, noise in perturb.NOISE.items()},
        "networks": {
            task: {
                each.__name__: {"parameters": models.count_parameters(each()), "summary": layers_of(each())}
                for each in networks
            }
            for task, networks in models.NETWORKS.items()
        },
    }


def layers_of(network: nn.Module) -> str:
    """Layers in a line: c20 is a 3×3 convolution to 20 channels, P a pooling, L500 a linear layer."""
    words: list[str] = []
    norms = sum(
        isinstance(layer, nn.BatchNorm2d) for layer in network.modules()
    )  # where many, each is not worth naming
    for layer in network.modules():
        match layer:
            case nn.Conv2d(kernel_size=kernel, stride=(stride, _)):
                size = f" ({'×'.join(map(str, kernel))})" * (kernel != (3, 3))
                words.append(f"c{layer.out_channels}{f'/{stride}' * (stride > 1)}{size}")
            case nn.BatchNorm2d():
                words[-1] += "+BN" * (norms <= 4)
            case nn.Linear():
                words.append(f"L{layer.out_features}")
            case nn.MaxPool2d():
                words.append("P")
            case nn.PixelUnshuffle():
                words.append("fold 2×2")
    return " ".join(words) + "; batch norm after every 3×3" * (norms > 4)


def read_inputs(folder: Path) -> dict[str, Any]:
    """What report.typ gets, from the results and figures in a folder. Raises NotReady."""
    path = folder / "results.json"
    if not path.is_file():
        raise NotReady(f"{path}: expected the results of a run, found none; run `make store` first")
    results = json.loads(path.read_text(encoding="utf-8"))
    check_results(results, path)
    return {**gather(results), "figures": figure_files(results, folder)}


def fingerprint(inputs: dict[str, Any], folder: Path) -> str:
    """SHA-256 of everything that the report's content follows from: its source, its inputs and its figures."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(json.dumps(inputs, sort_keys=True).encode())
    for files in inputs["figures"].values():
        for file in files.values():
            digest.update((folder / file).read_bytes())
    return digest.hexdigest()


def stored_fingerprint(pdf: bytes) -> str | None:
    """The fingerprint among a built report's keywords, or None."""
    found = re.search(rb"inputs-([0-9a-f]{64})", pdf)
    return found.group(1).decode() if found else None


def compiler(inputs: dict[str, Any], folder: Path, date: datetime.date) -> typst.Compiler:
    """Typst, ready to build the report or to be asked what is in it; with its own fonts alone, so that the report
    looks the same on every machine."""
    folder = folder.resolve()
    root = Path(os.path.commonpath([HOME, folder]))
    given = {
        "data": json.dumps(inputs),
        "figures": "/" + folder.relative_to(root).as_posix(),
        "fingerprint": fingerprint(inputs, folder),
        "date": date.isoformat(),
    }
    return typst.Compiler(str(SOURCE), root=str(root), ignore_system_fonts=True, sys_inputs=given)


def build(folder: Path, date: datetime.date | None = None) -> bytes:
    """The report as PDF, of the results and figures in a folder; the same bytes for the same inputs and date."""
    date = date or datetime.date.today()
    noon = datetime.datetime.combine(date, datetime.time(12), datetime.UTC)
    return compiler(read_inputs(folder), folder, date).compile(format="pdf", timestamp=noon)


def main() -> int:
    """Build the report; returns the exit status."""
    try:
        pdf = build(FIGURES_FOLDER)
    except (NotReady, RuntimeError) as error:  # the second is typst's
        print(error, file=sys.stderr)
        return 1
    atomic_write(TARGET, lambda file: file.write(pdf))
    print(f"{TARGET}: {len(pdf) / 2**20:.1f} MB, inputs {stored_fingerprint(pdf)[:10]}")
    return 0


if __name__ == "__main__":
    training.guard(main)
