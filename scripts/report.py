"""Builds the report, report.pdf: every number from results.json and studies.json, every figure from figures/."""

import datetime
import hashlib
import json
import os
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
from data import files  # noqa: E402
from training import results as published  # noqa: E402
from training import tables  # noqa: E402

SOURCE, TARGET, FIGURES = HOME / "report" / "report.typ", HOME / "report.pdf", HOME / "figures"
BOXES = ("train_boxes", "test_boxes", "failures")
CURVES = ("curves", "curves_own", "noise", "box_weight")
# The figures that the report shows, and the rows of studies.
SHOWN = {
    "loc": ("edges", "labels", "diagram", "confusion", "errors", *CURVES, *BOXES),
    "det": ("grid", "curves", *BOXES),
}
STUDIES = ("ingredients", "reproduction", "longer")


def read_inputs(folder: Path) -> dict[str, Any]:
    """What report.typ gets: results, rows of tables, and constants of the code."""
    results = files.load_json(folder / "results.json")
    return {
        "results": results,
        "figures": {task: {name: f"{training.NAMES[task]}_{name}.png" for name in SHOWN[task]} for task in SHOWN},
        "headline": {task: tables.result_rows(task, each) for task, each in results.items()},
        "studies": {task: {name: tables.STUDY_ROWS[name](task, name) for name in STUDIES} for task in SHOWN},
        "published": published.PUBLISHED,
        "recipes": {"reference": asdict(training.REFERENCE), "ours": asdict(training.OWN)},
        "networks": {
            task: [{"name": each.__name__, "parameters": models.count_parameters(each()), "layers": layers_of(each())}
                   for each in networks]
            for task, networks in models.NETWORKS.items()
        },
    }  # fmt: skip


def layers_of(network: nn.Module) -> str:
    """Layers in a line: c20 is a 3×3 convolution to 20 channels, P a pooling, L500 a linear layer."""
    words: list[str] = []
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    for layer in network.modules():
        match layer:
            case nn.Conv2d(kernel_size=kernel, stride=(stride, _)):
                size = f" ({'×'.join(map(str, kernel))})" * (kernel != (3, 3))
                words.append(f"c{layer.out_channels}{f'/{stride}' * (stride > 1)}{size}")
            case nn.BatchNorm2d() if norms <= 4:  # where many, each is not worth naming
                words[-1] += "+BN"
            case nn.Linear():
                words.append(f"L{layer.out_features}")
            case nn.MaxPool2d():
                words.append("P")
            case nn.PixelUnshuffle():
                words.append("fold 2×2")
    return " ".join(words) + "; batch norm after every 3×3" * (norms > 4)


def fingerprint(inputs: dict[str, Any], folder: Path) -> str:
    """SHA-256 of everything that the report's content follows from: its source, its inputs and its figures."""
    digest = hashlib.sha256(SOURCE.read_bytes() + json.dumps(inputs, sort_keys=True).encode())
    for figures in inputs["figures"].values():
        for file in figures.values():
            digest.update((folder / file).read_bytes())
    return digest.hexdigest()


def compiler(folder: Path, date: datetime.date) -> typst.Compiler:
    """Typst with its own fonts alone, so that the report looks the same on every machine."""
    inputs, root = read_inputs(folder), Path(os.path.commonpath([HOME, folder.resolve()]))
    given = {"data": json.dumps(inputs), "date": date.isoformat(), "fingerprint": fingerprint(inputs, folder)}
    given["figures"] = "/" + folder.resolve().relative_to(root).as_posix()
    return typst.Compiler(str(SOURCE), root=str(root), ignore_system_fonts=True, sys_inputs=given)


def build(folder: Path, date: datetime.date) -> bytes:
    """The report as PDF, of the results and figures in a folder; the same bytes for the same inputs and date."""
    noon = datetime.datetime.combine(date, datetime.time(12), datetime.UTC)
    return compiler(folder, date).compile(format="pdf", timestamp=noon)


def main() -> None:
    """Build the report."""
    pdf = build(FIGURES, datetime.date.today())
    files.atomic_write(TARGET, lambda file: file.write(pdf))
    print(f"{TARGET}: {len(pdf) / 2**20:.1f} MB")


if __name__ == "__main__":
    training.guard(main)
