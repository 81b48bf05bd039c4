"""Conducts studies of full length, and writes what they have found to figures/studies.json.

python scripts/study.py                            all of them, for both tasks: days on two cores
python scripts/study.py box_weight                 one of them
python scripts/study.py recipe --task det          for one task
python scripts/study.py ingredients --only no_shift

Only what is missing there is made, with --again all of it. Runs are resumable and kept with the others. Several of
these may work at once; a run that another is training is left to it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import data  # noqa: E402  (the project's modules are found only once its folder is on the path)
import training  # noqa: E402
from training import study  # noqa: E402


def conduct(name: str, task: str, only: str | None = None, again: bool = False) -> None:
    """Conduct one study of a task, run by run, and write down each."""
    planned = [(trial, seed) for trial in study.PLANS[name](task) for seed in trial.seeds]
    wanted = [(trial, seed) for trial, seed in planned if only in (None, trial.id, trial.network.__name__)]
    missing = study.missing(task, name)
    left = wanted if again else [each for each in wanted if each in missing]
    print(f"{name}, {task}: {len(wanted) - len(left)} of {len(wanted)} rows are there", flush=True)
    splits = data.load(task) if left else None
    for trial, seed in left:
        try:
            study.write_row(task, name, study.conduct(trial, seed, splits))
        except (training.RunInUse, training.NonFiniteLoss) as error:
            print(f"{trial.label}, seed {seed}: {error}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Conduct studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*study.PLANS, "all"], default="all")
    parser.add_argument("--task", choices=list(training.NAMES))
    parser.add_argument("--only", help="the rows with this id, or of the network of this name")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    chosen = parser.parse_args(arguments)
    names = study.PLANS if "all" in chosen.studies else chosen.studies
    asked = [(name, task) for name in names for task in ([chosen.task] if chosen.task else training.NAMES)]
    trials = [trial for name, task in asked for trial in study.PLANS[name](task)]
    known = dict.fromkeys(each for trial in trials for each in (trial.id, trial.network.__name__))
    if chosen.only not in (None, *known):
        parser.error(f"--only: expected one of {', '.join(known)}, found {chosen.only}")
    training.check_runs_folder()
    for name, task in asked:
        conduct(name, task, chosen.only, chosen.again)


if __name__ == "__main__":
    training.guard(main)
