"""Takes part in a search for hyperparameters, and writes what it has found to figures/; see docs/training.md.

python scripts/search.py                                 our networks, one task after the other
python scripts/search.py --task det --trials 40          one of them, until it has so many finished trials
python scripts/search.py reference_search --task loc     one of the reference's networks, with its recipe
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
import training  # noqa: E402
from data import files  # noqa: E402
from training import search  # noqa: E402

FIGURES = HOME / "figures"
IMAGES, EPOCHS, TRIALS = 12_000, 10, 20  # enough to rank recipes, and an hour or so of two cores for each task


def main(arguments: list[str] | None = None) -> None:
    """Search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", nargs="?", choices=list(search.SEARCHES), default="search")
    parser.add_argument("--task", choices=list(training.NAMES), help="by default both")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--trials", type=int, default=TRIALS)
    chosen = parser.parse_args(arguments)
    training.check_runs_folder()
    networks, recipe, ranges = search.SEARCHES[chosen.search]
    about = {"recipe": replace(recipe, epochs=chosen.epochs), "ranges": ranges, "n_train": chosen.images}
    by_hand, path = {name: getattr(recipe, name) for name in ranges}, FIGURES / f"{chosen.search}.json"
    for task in [chosen.task] if chosen.task else training.NAMES:
        study = search.open_study(f"{chosen.search} {training.NAMES[task]} {chosen.images} {chosen.epochs}")
        splits = data.load(task)
        search.run(study, by_hand, partial(search.train, network=networks[task], splits=splits, **about), chosen.trials)
        results = {"images": min(chosen.images, len(splits.train)), "epochs": chosen.epochs}
        results["trials"] = search.export(study, by_hand)
        with files.lock(path, 60):  # others may be writing
            files.save_json(path, {**files.load_json(path), task: results}, indent=1)


if __name__ == "__main__":
    training.guard(main)
