"""Measures speed and memory, in ten minutes: figures/bench.json and the tables of docs/speed.md. Not on Windows."""

import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from timeit import repeat

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import torch  # noqa: E402  (the project's modules are found only once its folder is on the path)
from torch.utils.data import DataLoader  # noqa: E402

import data  # noqa: E402
import models  # noqa: E402
import training  # noqa: E402
import utils  # noqa: E402
from scripts.run import fill_in  # noqa: E402

RESULTS, PAGE = HOME / "figures" / "bench.json", HOME / "docs" / "speed.md"
TURNS, EPOCHS, IMAGES = 3, 3, 384  # processes per loop; epochs measured in each, after one to warm up; images per epoch
load = partial(data.load, source="digits", log=lambda text: None)
times = partial(repeat, number=1)  # seconds of each call, which ends with numbers on the CPU, so that a GPU is done


def in_process(measure: Callable, *arguments: object) -> object:
    """What a function returns in a process of its own, whose memory no other measurement has touched."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def plain_epoch(state: training.TrainState, loader: DataLoader, train: data.Split, settings: training.Settings) -> None:
    """The loop that tutorials teach: reads the loss after each step, and scores the training set in a second pass."""
    state.model.train()
    for images, labels in loader:
        images, labels = images.to(train.images.device), labels.to(train.images.device)
        if settings.max_shift:
            draws = torch.rand(len(images), 4, device=images.device)
            images, labels = data.augment.move(images, labels, settings.max_shift, settings.max_stretch, draws)
        loss = training.loop.forward_and_loss(state.model, images, labels, settings)[1].total
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        if state.schedule:
            state.schedule.step()
        loss.item()
    utils.evaluate(state.model, train)


def measure_loop(plain: bool, task: str, network: type, count: int) -> tuple[float, float]:
    """Images per second of the plain loop or of ours, training scores included, and GB of memory (a GPU's) at most."""
    settings = replace(training.OWN if network is models.OURS[task] else training.REFERENCE, epochs=1 + EPOCHS)
    device, cpu = training.choose_device(), load(task, sizes=(count, 1, 1)).train
    precision, train = "float32" if plain else training.settings.choose_precision(), cpu.to(device)
    state = training.build(network, settings, utils.Normalize.fit(cpu.images), len(cpu), precision, device)
    if plain:
        state.model.to(memory_format=torch.contiguous_format)
        loader = DataLoader(list(zip(cpu.images, cpu.labels)), settings.batch_size, shuffle=True)
        seconds = times(lambda: plain_epoch(state, loader, train, settings), repeat=1 + EPOCHS)
    else:
        training.runs.keep_freed_memory()
        seconds = times(lambda: utils.score(*training.train_epoch(state, train, settings)[:2]), repeat=1 + EPOCHS)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    most = torch.cuda.max_memory_reserved() if device.type == "cuda" else most
    return len(train) / statistics.median(seconds[1:]), most / 1e9


def compare_loops(task: str, network: type) -> dict[str, object]:
    """Both loops in turns, so that the machine's moods hit both alike."""
    turns = [in_process(measure_loop, plain, task, network, IMAGES) for plain in (False, True) * TURNS]
    (ours, memory), (plain, _) = (map(statistics.median, zip(*turns[first::2])) for first in (0, 1))
    print(f"{network.__name__}: {ours / plain:.2f} times as fast as the plain loop", flush=True)
    row = {"network": network.__name__, "ours / plain": ours / plain, "ours, images/s": round(ours)}
    return row | {"plain, images/s": round(plain), "peak memory of ours, GB": memory}


def measure_data(task: str) -> dict[str, object]:
    """Images per second: generated and kept, loaded again, and evaluated by our published network."""
    with tempfile.TemporaryDirectory() as folder:
        generated, loaded = times(lambda: load(task, folder=Path(folder)), repeat=2)
        splits = load(task, folder=Path(folder))
    network = training.load_weights(HOME / "weights" / f"{models.OURS[task].__name__}.pt").network
    network.to(training.choose_device(), memory_format=torch.channels_last)
    evaluated = min(times(lambda: utils.evaluate(network, splits.test), repeat=3))
    count = len(splits.train) + len(splits.val) + len(splits.test)
    rates = {"generated": count / generated, "loaded": count / loaded, "evaluated": len(splits.test) / evaluated}
    return {"images/s": training.NAMES[task], **{name: round(rate) for name, rate in rates.items()}}


def render(results: dict) -> str:
    """The tables of docs/speed.md, and what they were measured on."""
    parts = [f"Measured on: {results['versions']['device']}."]
    for rows in results["training"], results["data"], results["growth"]:
        cells = [[f"{value:.2f}" if isinstance(value, float) else value for value in row.values()] for row in rows]
        parts.append(training.markdown_table(list(rows[0]), cells))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, write and print."""
    results = {"versions": training.provenance(), "growth": []}
    results["training"] = [compare_loops(task, each) for task, networks in models.NETWORKS.items() for each in networks]
    results["data"] = [in_process(measure_data, task) for task in models.NETWORKS]
    for count in (data.FULL["det"][0] // 8, data.FULL["det"][0]):
        rate, memory = in_process(measure_loop, False, "det", models.SimpleNet2, count)
        results["growth"] += [{"images": count, "epoch of SimpleNet2, s": count / rate, "peak memory, GB": memory}]
    data.files.save_json(RESULTS, results, indent=1)
    fill_in(PAGE, "speed", render(results))
    print(render(results))


if __name__ == "__main__":
    training.guard(main)
