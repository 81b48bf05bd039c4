"""Takes part in the search for hyperparameters, and writes what it has found to figures/search.json.

python scripts/search.py                     of our networks, one task after the other
python scripts/search.py det --trials 40     of one, until it has so many finished trials
python scripts/search.py --network FloNet    of one of the reference's networks, with the reference's recipe

Several of these share the work: on one machine as they are, on several with one database, whose address the environment
variable STUDY_DATABASE holds, such as postgresql+psycopg://user:password@host/name (pip install "psycopg[binary]").
One that is stopped or killed can be started again; its trial goes on where it stopped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import data  # noqa: E402  (the project's modules are found only once its folder is on the path)
import models  # noqa: E402
import training  # noqa: E402
from data import files  # noqa: E402
from training import search  # noqa: E402

RESULTS = HOME / "figures" / "search.json"
IMAGES, EPOCHS, TRIALS = 12_000, 10, 20  # enough to rank recipes, and an hour or so of two cores for each of ours
NETWORKS = {network.__name__: (task, network) for task in models.NETWORKS for network in models.NETWORKS[task]}


def take_part(name: str, trials: int) -> None:
    """Work on the study of a network until it is finished, and write it down: of ours under its task, "loc" or "det",
    of the reference's under its name."""
    task, network = NETWORKS[name]
    if network is models.OURS[task]:
        space, name = search.propose_own(network, replace(training.OWN, epochs=EPOCHS)), task
    else:
        space = search.propose_reference(network, replace(training.REFERENCE, epochs=EPOCHS))
    study = search.open_study(f"{training.NAMES.get(name, name)} {IMAGES} {EPOCHS}")
    splits = data.load(task)
    search.search(study, space, splits, trials, IMAGES)
    results = {"images": min(IMAGES, len(splits.train)), "epochs": EPOCHS, **search.export(study, space)}
    with files.lock(RESULTS, 60):  # others may be writing
        files.save_json(RESULTS, {**files.load_json(RESULTS), name: results}, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*models.OURS, "all"], default="all")
    parser.add_argument("--network", choices=NETWORKS, help="instead of ours")
    parser.add_argument("--trials", type=int, default=TRIALS)
    chosen = parser.parse_args(arguments)
    tasks = models.OURS if "all" in chosen.tasks else chosen.tasks
    if chosen.trials < 1:
        parser.error(f"--trials: expected at least 1, found {chosen.trials}")
    if chosen.network and NETWORKS[chosen.network][0] not in tasks:
        parser.error(f"--network: expected a network of {', '.join(tasks)}, found {chosen.network}")
    training.check_runs_folder()
    try:
        for name in [chosen.network] if chosen.network else [models.OURS[task].__name__ for task in tasks]:
            take_part(name, chosen.trials)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    training.guard(main)
