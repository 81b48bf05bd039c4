"""Takes part in the search for hyperparameters, and writes what it has found so far to figures/search.json.

python scripts/search.py                     both tasks, one after the other
python scripts/search.py det --trials 40     one task, until it has so many finished trials

Several of these share the work: on one machine as they are, on several with one database, whose address the environment
variable STUDY_DATABASE holds: postgresql+psycopg://user:password@host/name. One that is stopped or killed can be
started again; its trial goes on where it stopped.
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
import utils  # noqa: E402
from data import files  # noqa: E402
from training import search  # noqa: E402

RESULTS = HOME / "figures" / "search.json"
IMAGES, EPOCHS, TRIALS = 12_000, 10, 20  # enough to rank recipes, and an hour or so of two cores for each task


def take_part(task: str, trials: int, images: int = IMAGES, epochs: int = EPOCHS) -> None:
    """Work on a task's study until it is finished, and write it down."""
    splits = data.load(task)
    normal = utils.Normalizer.fit(splits.train.images)
    splits = replace(splits, train=splits.train[:images])
    study = search.open_study(f"{training.NAMES[task]} {images} {epochs}", search.database())
    network, own = models.NETWORKS[task][-1], replace(training.OWN, epochs=epochs)
    lock = training.runs_folder() / "search.lock"  # others may be beginning or writing as well
    with files.lock(lock, 60):
        study.enqueue_trial(search.by_hand(network, own), skip_if_exists=True)  # to be compared with the others
    search.search(study, trials, search.propose_own(network, own), splits, normal)
    found = {"images": len(splits.train), "epochs": epochs, **search.export(study)}
    with files.lock(lock, 60):
        files.save_json(RESULTS, {**files.load_json(RESULTS), task: found}, indent=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*models.NETWORKS, "all"], default="all")
    parser.add_argument("--trials", type=int, default=TRIALS)
    chosen = parser.parse_args(arguments)
    if chosen.trials < 1:
        parser.error(f"--trials: expected at least 1, found {chosen.trials}")
    training.forgive_output()
    training.check_runs_folder()
    for task in models.NETWORKS if "all" in chosen.tasks else chosen.tasks:
        take_part(task, chosen.trials)


if __name__ == "__main__":
    main()
