"""Training speed, and time to the reference's accuracy; each measured side by side on what is there.

python scripts/bench.py                  both
python scripts/bench.py --minutes 60     gives each network up to an hour to reach the reference's accuracy
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
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
RACES = {
    "loc": ((models.SkreNet, training.REFERENCE), (models.CompactNet, replace(training.OWN, epochs=6))),
    "det": ((models.SkreNet2, training.REFERENCE), (models.CompactNet2, replace(training.OWN, epochs=6))),
}


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


def compare_formats() -> None:
    """Print training speed with channels-last tensors against the same loop on contiguous ones."""
    print(f"\nTraining speed, batch 64, medians of {ROUNDS} rounds in turns")
    rows = []
    for task, networks in (("loc", models.LOCALIZERS), ("det", (models.SkreNet2, models.CompactNet2))):
        splits = data.load(task, "digits", sizes=(PICTURES, 64, 64))
        normal = utils.Normalizer.fit(splits.train.pictures)
        for network in networks:
            rates = measure(network, splits, normal)
            ratio = rates["channels last"] / rates["contiguous"]
            rows.append((network.__name__, f"{ratio:.2f}", *(round(rate) for rate in rates.values())))
    print(utils.markdown_table(("network", "ratio", *(f"{name}, pictures/s" for name in FORMATS)), rows))


def race(network: type, settings: training.Settings, splits: data.Splits, goal: float, minutes: float) -> tuple:
    """Train until the validation mean accuracy reaches the goal or the time is up.

    Returns (seconds of training and validation, epochs, highest validation mean).
    """
    device, normal = training.choose_device(), utils.Normalizer.fit(splits.train.pictures)
    train, val = ((part.pictures.to(device), part.labels.to(device)) for part in (splits.train, splits.val))
    trainee = training.build(network, settings, device, len(splits.train))
    highest, epoch, began = 0.0, 0, time.perf_counter()
    seconds = 0.0
    while highest < goal and epoch < settings.epochs and seconds < 60 * minutes:
        epoch += 1
        training.train_epoch(trainee, *train, normal, splits.task, settings, epoch, lambda step: None)
        outputs = utils.predict(trainee.validated, val[0], normal)
        highest = max(highest, utils.score(outputs, val[1], splits.task)["mean"])
        seconds = time.perf_counter() - began
    return seconds, epoch, highest


def compare_times(minutes: float) -> None:
    """Print how long the reference's best network and ours take to the reference's published test mean."""
    rows = []
    for task, entries in RACES.items():
        goal, splits = utils.PUBLISHED[task][0][3], data.load(task)
        (theirs, *_, best), (ours, *_) = found = [race(*entry, splits, goal, minutes) for entry in entries]
        for (network, _), (seconds, epochs, highest) in zip(entries, found, strict=True):
            reached = "" if highest >= goal else "not in "
            rows.append((network.__name__, f"{goal:.4f}", f"{reached}{seconds:.0f} s", epochs, highest))
        ratio = f"{theirs / ours:.1f}"
        rows[-1] += (ratio if best >= goal else f"more than {ratio}",)
        rows[-2] += ("",)
    print(f"\nTime until the validation mean reaches the reference's published test mean, at most {minutes:g} minutes")
    print(utils.markdown_table(("network, own recipe", "goal", "time", "epochs", "highest mean", "ratio"), rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="most that a network gets to reach the accuracy")
    minutes = parser.parse_args().minutes
    training.keep_freed_memory()
    print(f"{utils.versions()['device']}, torch {torch.__version__}")
    compare_formats()
    compare_times(minutes)


if __name__ == "__main__":
    main()
