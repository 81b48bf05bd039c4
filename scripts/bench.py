"""Training speed: pictures per second with channels-last tensors against the same loop on contiguous ones."""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.chdir(sys.path[0])

import torch  # noqa: E402  (found only once the project's folder is on the path)

import data  # noqa: E402
import models  # noqa: E402
import training  # noqa: E402
import utils  # noqa: E402

FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
ROUNDS = 7
PICTURES = 512


def measure(network: type, splits: data.Splits, normal: utils.Normalizer) -> dict[str, float]:
    """Median pictures per second of each format, measured in turns so that the machine's moods hit both alike."""
    device = training.choose_device()
    pictures, labels = splits.train.pictures.to(device), splits.train.labels.to(device)
    settings = training.Settings(epochs=1)
    rates = {name: [] for name in FORMATS}
    built = {}
    for name, memory_format in FORMATS.items():
        built[name] = training.build(network, settings, device)
        # One-channel pictures are both; the layout of the weights decides what every layer after them gets.
        built[name].model.to(memory_format=memory_format)
    for turn in range(ROUNDS + 1):
        for name, trainee in built.items():
            began = time.perf_counter()
            training.train_epoch(trainee, pictures, labels, normal, splits.task, settings, turn, lambda step: None)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                rates[name].append(len(pictures) / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Measure and print one table."""
    training.keep_freed_memory()
    splits = data.load("loc", "digits", sizes=(PICTURES, 64, 64))
    normal = utils.Normalizer.fit(splits.train.pictures)
    print(f"{utils.versions()['device']}, torch {torch.__version__}, batch 64, medians of {ROUNDS} rounds in turns")
    rows = []
    for network in models.LOCALIZERS:
        rates = measure(network, splits, normal)
        ratio = rates["channels last"] / rates["contiguous"]
        rows.append((network.__name__, f"{ratio:.2f}", *(round(rate) for rate in rates.values())))
    print(utils.markdown_table(("network", "ratio", *(f"{name}, pictures/s" for name in FORMATS)), rows))


if __name__ == "__main__":
    main()
