"""Builds the report: every number from results.json and the code, every figure from the figures' folder.

python scripts/report.py                                          figures/ -> report.pdf
python scripts/report.py --figures runs/quick/figures --output quick.pdf
"""

import argparse
import datetime
import hashlib
import inspect
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typst
from matplotlib.image import imread

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

import models  # noqa: E402  (found only once the project's folder is on the path)
import training  # noqa: E402
import utils  # noqa: E402
from data import labels, perturb  # noqa: E402

SOURCE = HOME / "report" / "report.typ"
TARGET = HOME / "report.pdf"
TASKS = {"loc": "localization", "det": "detection"}
NETWORKS = {"loc": models.LOCALIZERS, "det": models.DETECTORS}

# The figures that the report shows; the curves are those of the selected network.
FIGURES = {
    "loc": ("labels", "curves", "comparison", "confusion", "by_size", "failures"),
    "det": ("grid", "curves", "comparison", "failures"),
}
BOXES = ("train_boxes", "val_boxes", "test_boxes")
# Wide figures are shown in parts, so that their text stays readable on A4: about where one panel ends and the next
# begins, in fractions of the width, and where one row of pictures does, in fractions of the height.
COLUMNS = {
    "labels": (0.345, 0.64),
    "curves": (0.25, 0.5, 0.75),
    "comparison": (1 / 3, 2 / 3),
    "confusion": (0.84,),
    "grid": (0.45,),
}
TITLED = ("curves", "comparison", "failures", *BOXES)  # the report says by itself what their title says
ROWS = {"loc": {"test_boxes": (0.35, 0.97)}, "det": {}}
TWO_ROWS = (0.52, 0.92)  # of pictures, and then the legend


class NotReady(Exception):
    """What the report is built from is not all there."""


def figure_files(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Task -> name in the report -> file in the figures' folder."""
    return {
        task: {
            name: f"{TASKS[task]}_{name}{'_' + results[task]['selected'] if name == 'curves' else ''}.png"
            for name in (*FIGURES[task], *BOXES)
        }
        for task in TASKS
    }


def check_results(results: dict[str, Any], where: Path) -> None:
    """Raise NotReady unless both tasks' results are there, as `training.summarize` gives them."""
    needed = ("profile", "source", "pictures", "normalization", "versions", "networks", "selected", "test")
    needed += ("reference", "study")
    for task in TASKS:
        missing = [name for name in needed if name not in results.get(task, {})]
        if missing:
            raise NotReady(
                f"{where}: expected the results of both tasks, found none of {TASKS[task]}'s {', '.join(missing)}; "
                "run `make store` first"
            )


def gather(results: dict[str, Any]) -> dict[str, Any]:
    """All that the report says in numbers: the results, and the constants of the code that made them."""
    return {
        "results": results,
        "published": utils.PUBLISHED,
        "published_map": utils.PUBLISHED_MAP,
        "profiles": {name: asdict(profile) for name, profile in training.PROFILES.items()},
        "recipes": {"reference": asdict(training.REFERENCE), "new": asdict(training.OWN)},
        "loss": {"l1": utils.L1_WEIGHT, "giou": utils.GIOU_WEIGHT},
        "map_threshold": inspect.signature(utils.mean_average_precision).parameters["threshold"].default,
        "poor_iou": utils.POOR_IOU,
        "picture": {"height": labels.HEIGHT, "width": labels.WIDTH, "rows": labels.ROWS, "columns": labels.COLUMNS},
        "digits": {
            "rotation": perturb.ROTATION,
            "scale": perturb.SCALE,
            "aspect": perturb.ASPECT,
            "gain": perturb.GAIN,
            "box_above": perturb.BOX_ABOVE,
            "empty": perturb.EMPTY_SHARE,
            "more": {str(number): share for number, share in perturb.MORE_DIGITS.items()},
        },
        "noise": {task: asdict(noise) for task, noise in perturb.NOISE.items()},
        "networks": {
            task: {network.__name__: describe_network(network) for network in networks}
            for task, networks in NETWORKS.items()
        },
    }


def describe_network(network: type[torch.nn.Module]) -> dict[str, Any]:
    """Size and layers of a network; of a grid network its stages too, of which it is drawn."""
    made = network()
    grid = isinstance(made, models.GridNetwork)
    layers = models.list_layers(made)
    return {
        "parameters": models.count_parameters(made),
        "layers": [[name, size.replace("x", "×")] for name, size, _ in layers],
        "summary": shorten(layers),
        "grid": {"rows": made.rows, "columns": made.columns, "stages": stage_sizes(made)} if grid else None,
    }


def shorten(layers: Sequence[tuple[str, str, int]]) -> str:
    """`models.list_layers` in a line: c20 is a 3x3 convolution to 20 channels, P a pooling, L500 a linear layer."""
    norms = sum(name == "batch norm" for name, _, _ in layers)
    many = norms > 4  # then each is not worth naming
    words: list[str] = []
    for name, size, _ in layers:
        channels = size.split("x")[0]
        kernel = re.search(r"convolution (\d+)x(\d+)", name)
        if kernel:
            odd = "" if kernel.groups() == ("3", "3") else f" ({'×'.join(kernel.groups())})"
            words.append(f"c{channels}{'/2' if 'stride' in name else ''}{odd}")
        elif name == "batch norm":
            words[-1] += "" if many else "+BN"
        else:
            words.append({"linear": f"L{size}", "max pooling 2x2": "P"}.get(name, "fold 2×2"))
    return " ".join(words) + ("; batch norm after every 3×3" if many else "")


@torch.inference_mode()
def stage_sizes(network: models.GridNetwork) -> dict[str, list[int]]:
    """Output sizes [channels, height, width] of the backbone's parts and of the head."""
    sizes: dict[str, list[int]] = {}

    def note(name: str):
        return lambda layer, inputs, output: sizes.__setitem__(name, list(output.shape[1:]))

    parts = {**dict(network.backbone.named_children()), "head": network.head}
    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    network.eval()(torch.zeros(1, *models.PICTURE))
    for hook in hooks:
        hook.remove()
    return sizes


def title_end(image: np.ndarray) -> float:
    """Where a figure's title over all panels ends, in fractions of the height; 0 where there is none.

    image: (height, width, channels) in [0, 1]. A title is taken to be a low strip of ink at the top with white below.
    """
    lines = (image[..., :3] < 0.995).any(2).any(1)
    first = int(lines.argmax())
    blank = np.flatnonzero(~lines[first:])
    end = first + int(blank[0]) if len(blank) else len(lines)
    return end / len(lines) if end < 0.08 * len(lines) else 0.0


def split(image: np.ndarray, expected: Sequence[float], axis: int) -> list[float]:
    """Where to cut a figure apart: at the middle of the widest white gap near each expected place.

    image: (height, width, channels) in [0, 1]. expected and the result are fractions of the height (axis 0) or the
    width (axis 1); where there is no gap the expected place is returned.
    """
    ink = (image[..., :3] < 0.995).any(2)
    if axis == 1:  # a title over all panels covers the gaps between them
        ink = ink[round(title_end(image) * len(ink)) :]
    white = ~ink.any(1 - axis)
    size, cuts = len(white), []
    for place in expected:
        low, high = round((place - 0.05) * size), min(size, round((place + 0.05) * size))
        best, run = (0, round(place * size)), 0
        for position in range(low, high):
            run = run + 1 if white[position] else 0
            best = max(best, (run, position - run // 2))
        cuts.append(round(best[1] / size, 5))
    return cuts


def measure_figures(results: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Task -> name -> file, height over width, and where to cut it. Raises NotReady where one is missing."""
    found: dict[str, dict[str, Any]] = {}
    for task, files in figure_files(results).items():
        found[task] = {}
        for name, file in files.items():
            if not (folder / file).is_file():
                raise NotReady(f"{folder / file}: expected a figure, found none; run `make store` first")
            image = imread(folder / file)
            rows = ROWS[task].get(name, TWO_ROWS) if name in ("failures", *BOXES) else ()
            title = [title_end(image)] if name in TITLED else []
            found[task][name] = {
                "file": file,
                "aspect": image.shape[0] / image.shape[1],
                "columns": [0, *split(image, COLUMNS.get(name, ()), 1), 1],
                "rows": [0, *title, *split(image, rows, 0), 1],
            }
    return found


def read_inputs(folder: Path) -> dict[str, Any]:
    """What report.typ gets, from the results and figures in a folder. Raises NotReady."""
    path = folder / "results.json"
    if not path.is_file():
        raise NotReady(f"{path}: expected the results of a run, found none; run `make store` first")
    results = json.loads(path.read_text())
    check_results(results, path)
    return {**gather(results), "figures": measure_figures(results, folder)}


def fingerprint(inputs: dict[str, Any], folder: Path) -> str:
    """SHA-256 of everything that the report's content follows from: its source, its inputs and its figures."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(json.dumps(inputs, sort_keys=True).encode())
    for figures in inputs["figures"].values():
        for figure in figures.values():
            digest.update((folder / figure["file"]).read_bytes())
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=HOME / "figures", help="the folder of results.json and figures")
    parser.add_argument("--output", type=Path, default=TARGET, help="the PDF to write")
    chosen = parser.parse_args()
    try:
        pdf = build(chosen.figures)
    except NotReady as error:
        print(error, file=sys.stderr)
        return 1
    chosen.output.write_bytes(pdf)
    print(f"{chosen.output}: {len(pdf) / 2**20:.1f} MB, inputs {stored_fingerprint(pdf)[:10]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
