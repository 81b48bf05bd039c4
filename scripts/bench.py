"""How fast all this is: measures it on what is there, prints tables, writes figures/bench.json and docs/speed.md.

python scripts/bench.py                  everything
python scripts/bench.py data growth      these parts only; the others' figures stay as they are in bench.json
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch  # noqa: E402  (the project's modules are found only once its folder is on the path)
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import data  # noqa: E402
import models  # noqa: E402
import training  # noqa: E402
import utils  # noqa: E402
from data import augment, files, perturb, sources  # noqa: E402
from scripts.run import fill_in  # noqa: E402

RESULTS, PAGE = HOME / "figures" / "bench.json", HOME / "docs" / "speed.md"
ROUNDS = 5  # measured ones, after one that warms up
IMAGES = 640  # in an epoch of the comparison of loops
FEW = {"FloNet2": 128}  # 13 to 53 times the arithmetic of detection's others
SETS = models.NETWORKS
# What an operation's name begins with, without "aten::". SGD has no column: on a CPU its names are any addition's.
KINDS = {
    "convolution": ("conv", "mkldnn_conv", "cudnn_conv"),
    "linear": ("addmm", "mm", "bmm", "linear"),
    "pooling": ("max_pool", "upsample", "pixel_unshuffle"),
    "batch norm": ("batch_norm", "native_batch_norm", "cudnn_batch_norm"),
    "activation": ("relu", "clamp_min", "threshold", "sigmoid", "softplus", "softmax"),
}


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes, until the GPU, if there is one, has done what it was told."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def recipe(network: type) -> training.Settings:
    """The settings that a network is trained with."""
    settings = training.OWN if issubclass(network, models.GridNetwork) else training.REFERENCE
    return replace(settings, epochs=1 + ROUNDS + 2)  # two more for the profile


def worker(keep_memory: bool = True) -> Executor:
    """A process of its own: what one loop does to memory and caches must not help or harm the other. Only ours asks
    the C library to keep freed memory."""
    prepared = training.loop.keep_freed_memory if keep_memory else None
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepared)


# ---------------------------------------------------------------------------------------------- training


@lru_cache(1)
def prepare(loop: str, network: type) -> Callable[[], Any]:
    """A function that trains one epoch and scores it on the training images, which are made from scikit-learn's
    digits, since those are everywhere. loop: "ours", or "plain", as most people write it."""
    count, device, settings = FEW.get(network.__name__, IMAGES), training.choose_device(), recipe(network)
    task = "loc" if network in SETS["loc"] else "det"
    train = data.load(task, "digits", sizes=(count, 1, 1), log=lambda text: None).train
    normal = utils.Normalizer.fit(train.images)
    state = training.build(network, settings, device, count)
    if loop == "plain":
        state.model.to(memory_format=torch.contiguous_format)
        listed = list(zip(normal(train.images), train.labels, strict=True))
        loader = DataLoader(listed, settings.batch_size, shuffle=True)
        return lambda: plain_epoch(state, loader, settings, device)
    there = train.to(device)
    return lambda: utils.score(*training.train_epoch(state, there, normal, settings, lambda state, step: None))


def plain_epoch(
    state: training.TrainState, loader: DataLoader, settings: training.Settings, device: torch.device
) -> list[float]:
    """The loop that tutorials teach: a list as data set, a DataLoader, the loss read after each step, and a second
    pass over the training set for its scores. Returns the losses."""
    model, losses = state.model, []
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        if settings.max_shift:
            draws = torch.rand(len(images), 4, device=device)
            images, labels = augment.move(images, labels, settings.max_shift, settings.max_stretch, draws)
        state.optimizer.zero_grad()
        found = model(images)
        found, edges = found if isinstance(found, models.Answers) else (found, None)
        loss = utils.combined_loss(found, labels, settings.box_loss, edges, settings.loss_weights).total
        loss.backward()
        state.optimizer.step()
        if state.schedule:
            state.schedule.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        for images, labels in DataLoader(loader.dataset, settings.batch_size):
            utils.score(model(images.to(device)), labels.to(device))
    return losses


def epoch_seconds(loop: str, network: type) -> float:
    """In a worker: train one epoch."""
    return timed(prepare(loop, network))


def operations(network: type) -> float:
    """Floating-point operations that training needs per image: those of convolutions and linear layers, forwards
    and backwards."""
    with FlopCounterMode(display=False) as counter:
        network().eval()(torch.rand(8, *models.IMAGE)).sum().backward()
    return counter.get_total_flops() / 8


def peak(size: int) -> float:
    """Floating-point operations per second of a product of two matrices (size, size), in the precision of training:
    the machine's best just now. It is also done as a 1x1 convolution, (1, size, 32, size / 32), whose places are the
    rows: that comes from another library, and the one for products does not use all that some processors offer."""
    kind = {"device": training.choose_device(), "dtype": getattr(torch, training.REFERENCE.precision)}
    first, second = torch.rand(2, size, size, **kind)
    places = first.view(1, 32, size // 32, size).permute(0, 3, 1, 2)
    kernels = second.T.contiguous()[..., None, None]
    ways = (lambda: first @ second), (lambda: torch.conv2d(places, kernels))
    return 2 * size**3 / min(timed(way) for way in ways for _ in range(3))


def where_time_goes(network: type) -> dict[str, float]:
    """Share of each kind of operation in an epoch of ours."""
    work, gpu = prepare("ours", network), torch.cuda.is_available()
    work()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiled:
        timed(work)
    shares = dict.fromkeys((*KINDS, "rest"), 0.0)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, begins in KINDS.items() if name.startswith(begins)), "rest")
        shares[kind] += event.self_device_time_total if gpu else event.self_cpu_time_total
    return {kind: value / sum(shares.values()) for kind, value in shares.items()}


def compare_loops(network: type, processes: dict[str, Executor]) -> dict[str, Any]:
    """Images per second of both loops and the machine's peak, in turns, so that its moods hit all alike."""
    ours, size = processes["ours"], 8192 if torch.cuda.is_available() else 2048
    seconds, peaks = {loop: [] for loop in processes}, []
    for _ in range(1 + ROUNDS):
        peaks.append(ours.submit(peak, size).result())
        for loop, process in processes.items():
            seconds[loop].append(process.submit(epoch_seconds, loop, network).result())
    count = FEW.get(network.__name__, IMAGES)
    rates = {loop: count / statistics.median(taken[1:]) for loop, taken in seconds.items()}
    best = statistics.median(peaks)
    return {
        "ratio": rates["ours"] / rates["plain"],
        "images_per_second": rates,
        "precision": recipe(network).precision,
        "peak_flops": best,
        "share_of_peak": rates["ours"] * ours.submit(operations, network).result() / best,
        "shares": ours.submit(where_time_goes, network).result(),
    }


def measure_training() -> dict[str, Any]:
    """Each network's training, ours and plain."""
    found = {}
    with worker(keep_memory=False) as theirs, worker() as ours:
        for network in (*SETS["loc"], *SETS["det"]):
            found[network.__name__] = compare_loops(network, {"plain": theirs, "ours": ours})
            print(f"  {network.__name__}: {found[network.__name__]['ratio']:.2f} times", flush=True)
    return {"networks": found}


def training_table(found: dict[str, Any]) -> str:
    """What `measure_training` has found."""
    rows = []
    for name, each in found["networks"].items():
        rates = each["images_per_second"]
        shares = (f"{share:.0%}" for share in (each["share_of_peak"], *each["shares"].values()))
        rows.append((name, f"{each['ratio']:.2f}", round(rates["ours"]), round(rates["plain"]), *shares))
    header = ("network", "ours / plain", "ours, images/s", "plain", "share of peak", *KINDS, "rest")
    best = statistics.median(each["peak_flops"] for each in found["networks"].values()) / 1e9
    said = f"Training with its scores, batches of 64, medians of {ROUNDS} rounds in turns. The peak, {best:,.0f} "
    said += f"GFLOP/s, is that of a product of {each['precision']} matrices; to the right of it stands where the time "
    said += "of ours goes."
    return f"{said}\n\n{training.markdown_table(header, rows)}"


# ---------------------------------------------------------------------------------------------- everything else


def measure_task(task: str) -> dict[str, Any]:
    """Images per second: made, evaluated by the published network, and given an average precision."""
    digits, count = sources.load_digits(), data.FULL[task][2]
    usable = digits.train_classes < data.labels.CLASSES[task]
    chosen = digits.train[usable], digits.train_classes[usable], task, count, [1]
    made = perturb.make_images(*chosen)
    split = data.Split(made.images, made.labels)
    trained = training.load_weights(HOME / "weights" / f"{training.NAMES[task]}.pt")
    network = trained.network.to(training.choose_device(), memory_format=torch.channels_last)
    outputs = utils.infer(network, split.images, trained.normal).cpu()
    works = {
        "made_per_second": lambda: perturb.make_images(*chosen),
        "evaluated_per_second": lambda: utils.evaluate(network, split, trained.normal),
    }
    if task == "det":
        works["map_per_second"] = lambda: utils.mean_average_precision(outputs, split.labels)
    rates = {name: count / statistics.median(timed(work) for _ in range(3)) for name, work in works.items()}
    return {"images": count, "network": trained.name, **rates}


def measure_data() -> dict[str, Any]:
    """What making and evaluating images takes, for both tasks."""
    with worker() as process:
        return {task: process.submit(measure_task, task).result() for task in SETS}


def data_table(found: dict[str, Any]) -> str:
    """What `measure_data` has found."""
    rows = []
    for task, each in found.items():
        rates = [f"{each[name]:,.0f}" if name in each else "" for name in ("evaluated_per_second", "map_per_second")]
        rows.append((training.NAMES[task], round(each["made_per_second"]), each["network"], *rates))
    return training.markdown_table(("images/s", "made", "network", "evaluated", "average precision"), rows)


def train_for_growth(network: type, loaded: int, count: int, batch_size: int) -> dict[str, Any]:
    """In a new process: seconds of the second epoch, validated, on `count` of the `loaded` detection images."""
    splits = data.load("det", sizes=(loaded, *data.FULL["det"][1:]), log=lambda text: None)
    normal = utils.Normalizer.fit(splits.train.images)
    splits = replace(splits, train=splits.train[:count])
    settings = replace(recipe(network), epochs=2, batch_size=batch_size)
    state = training.build(network, settings, training.choose_device(), count)
    seconds = training.train(state, splits, normal, settings)["seconds"][-1]
    found = {"network": network.__name__, "images": count, "batch_size": batch_size}
    return {**found, "seconds": seconds, "peak_memory": peak_memory()}


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, in GB: "ram", and "gpu" on one."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage gives on Linux is also that of the process that started this one.
        most = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        found = {"ram": int(most.split()[1]) * 1024 / 1e9}
    else:
        import resource  # Windows has none

        unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kB elsewhere
        found = {"ram": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_reserved() / 1e9
    return found


def measure_growth() -> dict[str, Any]:
    """Time and memory over the number of images, and over the size of a batch on an eighth of them."""
    full = data.FULL["det"][0]
    plans = [("images", models.SimpleNet2, full // part, full // part, 64) for part in (8, 4, 2, 1)]
    plans += [("batch_size", models.CompactNet2, full, full // 8, size) for size in (64, 256, 1024)]
    found = {"images": [], "batch_size": []}
    for name, *plan in plans:
        with worker() as process:  # a new one each, since a process's peak never falls
            found[name].append(process.submit(train_for_growth, *plan).result())
    return found


def growth_tables(found: dict[str, Any]) -> str:
    """What `measure_growth` has found."""
    tables = []
    for name, measured in found.items():
        rows = []
        for each in measured:
            memory = (f"{size:.2f} GB{' of the GPU' * (kind == 'gpu')}" for kind, size in each["peak_memory"].items())
            rate = round(each["images"] / each["seconds"])
            rows.append((each[name], f"{each['seconds']:.1f} s", rate, ", ".join(memory)))
        header = (
            name.replace("_", " "),
            f"epoch of {each['network']}, validated",
            "training images/s",
            "peak memory",
        )
        tables.append(training.markdown_table(header, rows))
    tables.append("Validation is part of an epoch's time, but its images are not counted.")
    return "\n\n".join(tables)


PARTS = {
    "training": ("Training", measure_training, training_table),
    "data": ("Data and evaluation", measure_data, data_table),
    "growth": ("Growth", measure_growth, growth_tables),
}


def render(results: dict[str, Any]) -> str:
    """The tables of docs/speed.md: what is in bench.json, part by part, each with the device it was measured on."""
    return "\n\n".join(
        f"**{title}** ({results[part]['versions']['device']})\n\n{table(results[part]['found'])}"
        for part, (title, _, table) in PARTS.items()
        if part in results
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "all"], default="all")
    chosen = parser.parse_args(arguments).parts
    training.forgive_output()
    results = files.load_json(RESULTS)
    for part in PARTS if "all" in chosen else chosen:
        title, measure, table = PARTS[part]
        print(f"\n{title}", flush=True)
        results[part] = {"versions": training.provenance(), "found": measure()}
        files.save_json(RESULTS, results, indent=1)
        print(f"\n{table(results[part]['found'])}", flush=True)
    fill_in(PAGE, "speed", render(results))


if __name__ == "__main__":
    main()
