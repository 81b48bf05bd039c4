"""Conducts studies of full length, and writes what they have found to figures/studies.json.

python scripts/study.py                         all of them, for both tasks: days on two cores
python scripts/study.py reproduction            one of them
python scripts/study.py recipes --task det      for one task
python scripts/study.py reproduction --only SimpleNet2

Only what is lacking there is made, with --again all of it. Runs are resumable and kept with the others. Several of
these may work at once, on different studies, tasks or networks.
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
import utils  # noqa: E402
from data import files  # noqa: E402
from training import study  # noqa: E402
from training.study_tables import lacking  # noqa: E402

RESULTS = HOME / "figures" / "studies.json"


def conduct(name: str, task: str, only: str | None = None, again: bool = False) -> None:
    """Conduct one study of a task, run by run, and write down each."""
    rows = files.load_json(RESULTS).get(task, {}).get(name, [])
    trials = study.PLANS[name](task) if again else lacking(task, name, rows)
    trials = [trial for trial in trials if only in (None, trial.name, trial.network.__name__)]
    if not trials:
        print(f"{name}, {task}: nothing is lacking")
        return
    splits = data.load(task)
    normal = utils.Normalizer.fit(splits.train.pictures)
    for trial in trials:
        for seed in trial.seeds:
            try:
                write_down(name, task, study.conduct(trial, seed, splits, normal))
            except training.RunInUse as error:
                print(error)


def write_down(name: str, task: str, row: dict) -> None:
    """Put a row into studies.json, in the place of one with the same name, network and settings, in the plan's order,
    whatever was finished first."""
    plan = [(trial.name, trial.network.__name__) for trial in study.PLANS[name](task)]

    def place(row: dict) -> tuple[int, int]:
        key = row["name"], row["network"]
        return plan.index(key) if key in plan else len(plan), row["settings"]["seed"]

    with files.lock(training.runs_folder() / "studies.lock", 60):  # others may be writing
        results = files.load_json(RESULTS)
        rows = results.setdefault(task, {}).setdefault(name, [])
        others = [each for each in rows if study.row_identity(**each) != study.row_identity(**row)]
        rows[:] = sorted([*others, row], key=place)
        files.save_json(RESULTS, results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Conduct studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*study.PLANS, "all"], default="all")
    parser.add_argument("--task", choices=list(training.NAMES))
    parser.add_argument("--only", help="the rows of this name, or of the network of this name")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    chosen = parser.parse_args(arguments)
    names = study.PLANS if "all" in chosen.studies else chosen.studies
    asked = [(name, task) for name in names for task in ([chosen.task] if chosen.task else training.NAMES)]
    trials = [trial for name, task in asked for trial in study.PLANS[name](task)]
    known = dict.fromkeys(each for trial in trials for each in (trial.name, trial.network.__name__))
    if chosen.only not in (None, *known):
        parser.error(f"--only: expected one of {', '.join(known)}, found {chosen.only}")
    training.forgive_output()
    training.check_runs_folder()
    for name, task in asked:
        conduct(name, task, chosen.only, chosen.again)


if __name__ == "__main__":
    main()
