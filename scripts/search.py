"""Takes part in a search for our networks' hyperparameters, and writes what it has found to figures/search.json.

python scripts/search.py                     both tasks, one after the other
python scripts/search.py det --trials 40     one of them, until it has so many finished trials

Several of these share the work: on one machine as they are, on several with one database, see docs/training.md.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
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
IMAGES, EPOCHS, TRIALS = 12_000, 10, 20  # enough to rank recipes, and an hour or so of two cores for each task


def main(arguments: list[str] | None = None) -> None:
    """Search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=list(training.NAMES), help="by default both")
    parser.add_argument("--trials", type=int, default=TRIALS)
    chosen = parser.parse_args(arguments)
    training.check_runs_folder()
    for task in [chosen.task] if chosen.task else training.NAMES:
        study = search.open_study(f"{training.NAMES[task]} {IMAGES} {EPOCHS}")
        splits, recipe = data.load(task), replace(training.OWN, epochs=EPOCHS)
        train = partial(search.train, network=models.OURS[task], recipe=recipe, splits=splits, n_train=IMAGES)
        search.run(study, train, chosen.trials)
        results = {"images": min(IMAGES, len(splits.train)), "epochs": EPOCHS, **search.export(study)}
        with files.lock(RESULTS, 60):  # others may be writing
            files.save_json(RESULTS, {**files.load_json(RESULTS), task: results}, indent=1)


if __name__ == "__main__":
    training.guard(main)
