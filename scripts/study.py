"""Conducts studies of full length, and writes what is missing of them to figures/studies.json.

python scripts/study.py                            all of them, for both tasks: days on two cores
python scripts/study.py recipe --task det          one of them, for one task
python scripts/study.py ingredients --only no_shift

Several of these may work at once; a run in use is left to its trainer.
"""

import argparse
import os
import sys
from functools import cache
from itertools import product
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import data  # noqa: E402  (the project's modules are found only once its folder is on the path)
import training  # noqa: E402
from training import study  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Conduct studies, run by run, and write down each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*study.PLANS, "all"], default="all")
    parser.add_argument("--task", choices=list(training.NAMES))
    parser.add_argument("--only", help="the rows with this id, or of the network of this name")
    chosen = parser.parse_args(arguments)
    training.check_runs_folder()
    names, load = study.PLANS if "all" in chosen.studies else chosen.studies, cache(data.load)
    for name, task in product(names, [chosen.task] if chosen.task else training.NAMES):
        for trial, seed in study.missing(task, name):
            if chosen.only in (None, trial.id, trial.network.__name__):
                print(f"{name}, {task}: {trial.label}, seed {seed}", flush=True)
                try:
                    study.write_row(task, name, study.conduct(trial, seed, load(task)))
                except (training.RunInUse, training.NonFiniteLoss) as error:
                    print(error, flush=True)


if __name__ == "__main__":
    training.guard(main)
