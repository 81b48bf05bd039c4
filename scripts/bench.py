"""How fast all this is, measured in one run on what is there; prints tables and writes figures/bench.json.

python scripts/bench.py                  everything
python scripts/bench.py start growth     these parts only; the others' figures stay as they are in bench.json
python scripts/bench.py --minutes 60     gives each network up to an hour to reach the reference's accuracy
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch  # noqa: E402  (the project's modules are found only once its folder is on the path)
import torch.nn.functional as F  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import data  # noqa: E402
import models  # noqa: E402
import training  # noqa: E402
import utils  # noqa: E402
from data import augment, perturb, sources  # noqa: E402
from data.files import write_whole  # noqa: E402
from scripts.run import fill_in  # noqa: E402

ROUNDS = 5  # measured ones, after one that warms up
PICTURES = 640  # in an epoch of the comparison of loops
FEW = {"FloNet2": 128}  # 13 to 53 times the arithmetic of detection's others
SETS = {"loc": models.LOCALIZERS, "det": models.DETECTORS}
RACES = {
    "loc": ((models.SkreNet, training.REFERENCE), (models.CompactNet, replace(training.OWN, epochs=6))),
    "det": ((models.SkreNet2, training.REFERENCE), (models.CompactNet2, replace(training.OWN, epochs=6))),
}
# What an operation's name begins with, without "aten::", and what it is called in the table.
KINDS = {
    "convolution": ("conv", "mkldnn_conv", "cudnn_conv"),
    "linear": ("addmm", "mm", "bmm", "linear"),
    "pooling": ("max_pool", "upsample", "pixel_unshuffle"),
    "batch norm": ("batch_norm", "native_batch_norm", "cudnn_batch_norm"),
    "activation": ("relu", "clamp_min", "threshold", "sigmoid", "softplus", "softmax"),
    "optimizer": ("_foreach", "_fused"),
}


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


@cache
def small_sets(task: str, count: int) -> tuple[data.Splits, utils.Normalizer]:
    """Pictures made from scikit-learn's digits, which are everywhere."""
    splits = data.load(task, "digits", sizes=(count, 512, 512), say=lambda text: None)
    return splits, utils.Normalizer.fit(splits.train.pictures)


def recipe(network: type) -> training.Settings:
    """The settings that a network is trained with."""
    own = network in (models.CompactNet, models.CompactNet2)
    return replace(training.OWN if own else training.REFERENCE, epochs=1 + ROUNDS + 2)  # two more for the profile


# ---------------------------------------------------------------------------------------------- training


@cache
def prepare(loop: str, network: type, task: str) -> Callable[[int], None]:
    """A function that trains one epoch, of which it is given the number, and scores it on the training pictures.

    loop: "ours"; "contiguous", the same but for the memory format; or "plain", as most people write it.
    """
    count = FEW.get(network.__name__, PICTURES)
    splits, normal = small_sets(task, count)
    device, settings = training.choose_device(), recipe(network)
    trainee = training.build(network, settings, device, count)
    if loop != "ours":
        trainee.model.to(memory_format=torch.contiguous_format)
    if loop == "plain":
        listed = list(zip(normal(splits.train.pictures), splits.train.labels, strict=True))
        loader = DataLoader(listed, settings.batch_size, shuffle=True)
        return lambda epoch: plain_epoch(trainee, loader, task, settings, device)
    pictures, labels = splits.train.pictures.to(device), splits.train.labels.to(device)

    def epoch_of_ours(epoch: int) -> None:
        found = training.train_epoch(trainee, pictures, labels, normal, task, settings, epoch, lambda step: None)
        utils.score(*found, task)

    return epoch_of_ours


def plain_epoch(
    trainee: training.Trainee, loader: DataLoader, task: str, settings: training.Settings, device: torch.device
) -> list[float]:
    """The loop that tutorials teach: a list as data set, a DataLoader, the loss read after each step, and a second
    pass over the training set for its scores. Returns the losses."""
    model, optimizer, schedule, _ = trainee
    losses = []
    model.train()
    for pictures, labels in loader:
        pictures, labels = pictures.to(device), labels.to(device)
        if settings.shift:
            random = torch.rand(len(pictures), 2, device=device)
            pictures, labels = augment.shift(pictures, labels, task, settings.shift, random)
        optimizer.zero_grad()
        loss = utils.combined_loss(model(pictures), labels, task, settings.box_loss).total
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        for pictures, labels in DataLoader(loader.dataset, settings.batch_size):
            utils.score(model(pictures.to(device)), labels.to(device), task)
    return losses


def epoch_seconds(loop: str, network: type, task: str, epoch: int) -> float:
    """In a worker process: train one epoch."""
    work = prepare(loop, network, task)
    return timed(lambda: work(epoch))


def start_worker(threads: int, keep_memory: bool) -> None:
    """In a new process; only ours asks the C library to keep freed memory."""
    torch.set_num_threads(threads)
    if keep_memory:
        training.keep_freed_memory()


def worker(keep_memory: bool = True) -> ProcessPoolExecutor:
    """A process of its own: what one loop does to memory and caches must not help or harm the other."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, start_worker, (torch.get_num_threads(), keep_memory))


def operations(network: type) -> float:
    """Floating-point operations that training needs per picture: those of convolutions and linear layers, forwards
    and backwards."""
    task = next(task for task, networks in SETS.items() if network in networks)
    splits, normal = small_sets(task, PICTURES)
    model = training.build(network, recipe(network), torch.device("cpu")).model
    count = 8
    with FlopCounterMode(display=False) as counter:
        outputs = model(normal(splits.train.pictures[:count]))
        utils.combined_loss(outputs, splits.train.labels[:count], task).total.backward()
    return counter.get_total_flops() / count


@cache
def large_product(size: int) -> tuple[Callable[[], torch.Tensor], ...]:
    """The product of two float32 matrices (size, size), once as such and once as a 1x1 convolution, (1, size, 32,
    size / 32), whose places are the rows. The two come from different libraries, and the one for products does not use
    all that some processors offer."""
    first, second = torch.rand(2, size, size, device=training.choose_device())
    places = first.view(1, 32, size // 32, size).permute(0, 3, 1, 2)
    kernels = second.T.contiguous()[..., None, None]
    return (lambda: first @ second), (lambda: F.conv2d(places, kernels))


def peak() -> float:
    """Floating-point operations per second of a large product, done in the faster way: the machine's best just now."""
    size = 8192 if torch.cuda.is_available() else 2048
    return 2 * size**3 / min(timed(product) for product in large_product(size) for _ in range(3))


def where_time_goes(network: type, task: str) -> dict[str, float]:
    """Share of each kind of operation in an epoch of ours."""
    work = prepare("ours", network, task)
    work(1)
    gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiled:
        work(2)
        synchronize()
    shares = dict.fromkeys((*KINDS, "rest"), 0.0)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, begins in KINDS.items() if name.startswith(begins)), "rest")
        shares[kind] += event.self_device_time_total if gpu else event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: value / total for kind, value in shares.items()}


def measure_training() -> dict[str, Any]:
    """Pictures per second of each network in all loops, and the machine's peak, in turns, so that its moods hit all
    alike."""
    found = {}
    with worker(keep_memory=False) as theirs, worker() as ours:
        for task, networks in SETS.items():
            for network in networks:
                loops = {"plain": theirs, "contiguous": ours, "ours": ours}
                seconds, peaks_found = {loop: [] for loop in loops}, []
                for epoch in range(1, ROUNDS + 2):
                    peaks_found.append(ours.submit(peak).result())
                    for loop, process in loops.items():
                        taken = process.submit(epoch_seconds, loop, network, task, epoch).result()
                        if epoch > 1:
                            seconds[loop].append(taken)
                count = FEW.get(network.__name__, PICTURES)
                rates = {loop: count / statistics.median(taken) for loop, taken in seconds.items()}
                best = statistics.median(peaks_found)
                found[network.__name__] = {
                    "ratio": rates["ours"] / rates["plain"],
                    "pictures_per_second": rates,
                    "peak_flops": best,
                    "share_of_peak": rates["ours"] * ours.submit(operations, network).result() / best,
                    "shares": ours.submit(where_time_goes, network, task).result(),
                }
                print(f"  {network.__name__}: {found[network.__name__]['ratio']:.2f} times", flush=True)
    return {"networks": found}


def training_tables(found: dict[str, Any]) -> str:
    """What `measure_training` has found."""
    rows, shares = [], []
    for name, each in found["networks"].items():
        rates = each["pictures_per_second"]
        rows.append((name, f"{each['ratio']:.2f}", *(round(rates[loop]) for loop in ("ours", "contiguous", "plain"))))
        shares.append((name, f"{each['share_of_peak']:.0%}", *(f"{value:.0%}" for value in each["shares"].values())))
    header = ("network", "ours / plain", "ours, pictures/s", "ours, contiguous", "plain")
    best = statistics.median(each["peak_flops"] for each in found["networks"].values()) / 1e9
    peaks = f"Peak, of a product of float32 matrices: {best:,.0f} GFLOP/s. Of an epoch's time:"
    return "\n\n".join(
        (
            f"Training with its scores, batches of 64, medians of {ROUNDS} rounds in turns:",
            utils.markdown_table(header, rows),
            peaks,
            utils.markdown_table(("network", "share of peak reached", *KINDS, "rest"), shares),
        )
    )


# ---------------------------------------------------------------------------------------------- everything else


def median_seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The median of the seconds that a call takes."""
    return statistics.median(timed(work) for _ in range(rounds))


def measure_task(task: str) -> dict[str, Any]:
    """Making a task's pictures, evaluating its published network on as many as there are test pictures, and mAP."""
    device, digits, network = training.choose_device(), sources.load_digits(), SETS[task][-1]
    usable = digits.train_classes < data.labels.CLASSES[task]
    chosen = digits.train[usable], digits.train_classes[usable], task, data.FULL[task][2], [1]
    pictures, labels, *_ = perturb.make_pictures(*chosen)
    normal = utils.Normalizer.fit(pictures)
    model = training.load_weights(
        training.assemble(network, training.OWN), network.__name__, training.PUBLISHED_WEIGHTS[task]
    )
    model.to(device).eval()
    outputs, targets = utils.predict(model, pictures, normal), labels.to(device)
    found = {
        "pictures": len(pictures),
        "network": network.__name__,
        "made_per_second": len(pictures) / median_seconds(lambda: perturb.make_pictures(*chosen)),
        "evaluated_per_second": len(pictures)
        / median_seconds(lambda: utils.score(utils.predict(model, pictures, normal), targets, task)),
    }
    if task == "det":
        outputs = outputs.cpu()
        found["map_seconds"] = median_seconds(lambda: utils.mean_average_precision(outputs, labels, task))
    return found


def measure_data() -> dict[str, Any]:
    """The above for both tasks."""
    training.keep_freed_memory()
    return {task: measure_task(task) for task in SETS}


def data_tables(found: dict[str, Any]) -> str:
    """What `measure_data` has found."""
    rows = []
    for task, each in found.items():
        name = training.NAMES[task]
        rows.append((f"{name}: pictures made", f"{each['made_per_second']:,.0f} per second"))
        rows.append((f"{name}: evaluated by {each['network']}", f"{each['evaluated_per_second']:,.0f} per second"))
        if "map_seconds" in each:
            rows.append((f"{name}: mAP of {each['pictures']:,} pictures", f"{each['map_seconds']:.1f} s"))
    return utils.markdown_table(("what", "speed"), rows)


def train_for_growth(network: type, task: str, loaded: int, count: int, batch_size: int, epochs: int) -> dict[str, Any]:
    """In a new process: seconds of the last epoch, and the process's memory in GB after each, with `count` of the
    `loaded` training pictures."""
    splits = data.load(task, sizes=(loaded, *data.FULL[task][1:]), say=lambda text: None)
    normal = utils.Normalizer.fit(splits.train.pictures)
    splits = replace(splits, train=splits.train.head(count))
    settings = replace(recipe(network), epochs=epochs, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        memory = []

        class Watched(training.Progress):
            def epoch(self, history):
                memory.append(resident())
                super().epoch(history)

        training.Progress = Watched
        run = training.fit(network, splits, normal, task, settings, Path(folder))
    return {
        "network": network.__name__,
        "pictures": count,
        "batch_size": batch_size,
        "seconds": run.history["seconds"][-1],
        "memory": memory,
        "peak_memory": peak_memory(),
    }


def resident() -> float:
    """GB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, in GB: "ram", and "gpu" on one."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage gives on Linux is also that of the process that started this one.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        found = {"ram": int(peak.split()[1]) * 1024 / 1e9}
    else:
        unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kB elsewhere
        found = {"ram": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_reserved() / 1e9
    return found


def in_new_process(function: Callable, *arguments: Any) -> Any:
    """Call a function in a process that ends with it."""
    with worker() as process:
        return process.submit(function, *arguments).result()


def train_what_a_notebook_trains(task: str) -> dict[str, Any]:
    """In a new process: the peak memory of one that, with the full data set, trains every network and every row of the
    study one after another, for time's sake one epoch of few pictures each, and then tests."""
    splits, plan = data.load(task, say=lambda text: None), training.PROFILES["full"]
    normal = utils.Normalizer.fit(splits.train.pictures)
    runs = [(network, recipe(network)) for network in SETS[task]]
    trials = training.plan_ablation(SETS[task][0], SETS[task][-1], task, plan)
    trials += training.plan_comparison(SETS[task], plan)
    runs += [(trial.network, replace(trial.settings, seed=seed)) for trial in trials for seed in trial.seeds]
    # With one epoch for all, some are the same, and would be loaded.
    different = dict.fromkeys((network, replace(settings, epochs=1)) for network, settings in runs)
    with tempfile.TemporaryDirectory() as folder:
        for network, settings in different:
            part = replace(splits, train=splits.train.head(FEW.get(network.__name__, PICTURES)))
            run = training.fit(network, part, normal, task, settings, Path(folder), quiet=True)
        outputs = utils.predict(run.best(), splits.test.pictures, normal).cpu()
    utils.score(outputs, splits.test.labels, task)
    if task == "det":
        utils.mean_average_precision(outputs, splits.test.labels, task)
    return {"trainings": len(different), "peak_memory": peak_memory()}


def measure_growth() -> dict[str, Any]:
    """Time and memory over the number of pictures and the size of a batch; memory over epochs on the full set and over
    all that a notebook trains."""
    full, all_of_loc = data.FULL["det"][0], data.FULL["loc"][0]
    plans = {
        "pictures": [(models.SimpleNet2, "det", full // part, full // part, 64, 2) for part in (8, 4, 2, 1)],
        "batch_size": [(models.CompactNet2, "det", full, full // 8, size, 2) for size in (64, 256, 1024)],
        # The larger set, and the network with the most weights, on a part of it for time's sake.
        "epochs": [
            (models.SimpleNet, "loc", all_of_loc, all_of_loc, 64, 5),
            (models.SkreNet, "loc", all_of_loc, all_of_loc // 16, 64, 5),
        ],
    }
    found = {name: [in_new_process(train_for_growth, *plan) for plan in each] for name, each in plans.items()}
    return found | {"notebooks": {task: in_new_process(train_what_a_notebook_trains, task) for task in SETS}}


def peaks(found: dict[str, Any]) -> str:
    """The peak memory that `train_for_growth` has found."""
    return ", ".join(f"{size:.2f} GB{' of the GPU' * (name == 'gpu')}" for name, size in found["peak_memory"].items())


def growth_tables(found: dict[str, Any]) -> str:
    """What `measure_growth` has found."""
    tables = []
    for name, title, network in (("pictures", "pictures", "SimpleNet2"), ("batch_size", "batch", "CompactNet2")):
        rows = [
            (
                f"{each[name]:,}",
                f"{each['seconds']:.1f} s",
                f"{each['pictures'] / each['seconds']:,.0f}",
                peaks(each),
            )
            for each in found[name]
        ]
        header = (title, f"epoch of {network}, validated", "pictures/s", "peak memory")
        tables.append(utils.markdown_table(header, rows))
    rows = [
        (
            each["network"],
            f"{each['pictures']:,}",
            ", ".join(f"{value:.2f}" for value in each["memory"]),
            peaks(each),
        )
        for each in found["epochs"]
    ]
    tables.append(utils.markdown_table(("network", "pictures", "memory after each epoch, GB", "peak memory"), rows))
    rows = [(training.NAMES[task], each["trainings"], peaks(each)) for task, each in found["notebooks"].items()]
    header = ("all that a notebook trains, in one process", "trainings", "peak memory")
    return "\n\n".join((*tables, utils.markdown_table(header, rows)))


def measure_start() -> dict[str, float]:
    """Seconds from `make run` to the first training step, and of notebooks whose runs are all finished."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"RUNS_DIR": folder}
        began = time.perf_counter()
        process = subprocess.Popen(
            ["make", "--silent", "run"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # the kernel's, when it sees that its parent has been killed
            start_new_session=True,
        )
        try:
            # A run's description is written right before its first step.
            while process.poll() is None and not list(Path(folder).glob("*/run.json")):
                time.sleep(0.02)
            first = time.perf_counter() - began
            if process.poll() is not None:
                raise RuntimeError(f"make run ended with {process.returncode} before training anything")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"RUNS_DIR": folder, "PROFILE": "smoke", "DATA_SOURCE": "digits"}
        command = [sys.executable, "scripts/run.py"]
        both = [
            timed(lambda: subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True))
            for _ in range(2)
        ]
    return {"first_step": first, "trained": both[0], "reloaded": both[1]}


def start_tables(found: dict[str, float]) -> str:
    """What `measure_start` has found."""
    rows = [
        ("from `make run`, installed, to the first training step", f"{found['first_step']:.1f} s"),
        ("both notebooks, profile `smoke`, everything trained", f"{found['trained']:.0f} s"),
        ("both notebooks again, every run loaded", f"{found['reloaded']:.0f} s"),
    ]
    return utils.markdown_table(("what", "time"), rows)


def race(network: type, settings: training.Settings, splits: data.Splits, goal: float, minutes: float) -> dict:
    """Train until the validation mean accuracy reaches the goal or the time, of training and validation, is up."""
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
    return {"network": network.__name__, "goal": goal, "seconds": seconds, "epochs": epoch, "highest": highest}


def measure_accuracy(minutes: float) -> dict[str, Any]:
    """How long the reference's best network and ours, each with its recipe, take to the reference's test mean."""
    training.keep_freed_memory()
    found = {}
    for task, entries in RACES.items():
        splits = data.load(task, say=lambda text: None)
        goal = utils.PUBLISHED[task][0][3]
        found[task] = {
            "source": splits.source,
            "pictures": len(splits.train),
            "races": [race(*entry, splits, goal, minutes) for entry in entries],
        }
    return found


def accuracy_tables(found: dict[str, Any]) -> str:
    """What `measure_accuracy` has found."""
    rows = []
    for each in found.values():
        theirs, ours = each["races"]
        ratio = f"{theirs['seconds'] / ours['seconds']:.1f}"
        for run, text in ((theirs, ""), (ours, ratio if theirs["highest"] >= theirs["goal"] else f"> {ratio}")):
            reached = "" if run["highest"] >= run["goal"] else "not in "
            time_taken = f"{reached}{run['seconds']:.0f} s"
            rows.append((run["network"], text, f"{run['goal']:.4f}", time_taken, run["epochs"], run["highest"]))
    header = ("network, own recipe", "times as fast", "goal", "time to it", "epochs", "highest validation mean")
    return utils.markdown_table(header, rows)


PARTS = {
    "training": ("Training", measure_training, training_tables),
    "data": ("Data, evaluation, average precision", measure_data, data_tables),
    "growth": ("Growth", measure_growth, growth_tables),
    "start": ("Start", measure_start, start_tables),
    "accuracy": ("Time to the reference's accuracy", measure_accuracy, accuracy_tables),
}
IN_README = ("training", "accuracy", "growth", "start")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--minutes", type=float, default=10, help="most that a network gets to reach the accuracy")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    path = Path("figures") / "bench.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for part in arguments.parts or PARTS:
        title, measure, tables = PARTS[part]
        print(f"\n{title}", flush=True)
        found = measure(arguments.minutes) if part == "accuracy" else measure()
        results[part] = {"versions": utils.versions(), "found": found}
        text = json.dumps(results, indent=1).encode()
        write_whole(path, lambda file, text=text: file.write(text))
        print(f"\n{tables(found)}", flush=True)
    if set(results) == set(PARTS):
        chosen = ((PARTS[part][0], PARTS[part][2](results[part]["found"])) for part in IN_README)
        fill_in(HOME / "README.md", "speed", "\n\n".join(f"**{title}**\n\n{text}" for title, text in chosen))


if __name__ == "__main__":
    main()
