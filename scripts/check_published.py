"""Rebuilds both notebooks from the published run, without training, and compares the cells that print results.

python scripts/check_published.py                fails where MNIST or the published files are not there
python scripts/check_published.py --if-possible  says so, and is content
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import training  # noqa: E402  (found only once the project's folder is on the path)
from data import sources  # noqa: E402
from scripts.test import NBVAL  # noqa: E402

TAG = "published-output"  # of cells that hold in the published run only, and so are not compared by `make test`


def missing(task: str) -> str | None:
    """Why a task's published run cannot be rebuilt; None where it can."""
    results = training.published_results(task)
    if results is None:
        return "figures/results.json holds no such run"
    for path in (Path("histories") / f"{training.NAMES[task]}.pkl", Path("weights") / f"{results['selected']}.pt"):
        if not path.is_file():
            return f"{path} is not there"
    if results["source"] == "mnist" and not all(path.is_file() for path in sources.mnist_files(HOME / "data")):
        return "MNIST's files are not in data/MNIST/raw/"
    return None


def tagged_copy(notebook: Path) -> Path:
    """A copy beside the notebook, for its folder is where it runs, in which the results are compared as well."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata["tags"] = ["nbval-check-output" if tag == TAG else tag for tag in tags]
    copy = notebook.with_name(f"published-{notebook.name}")
    nbformat.write(content, copy)
    return copy


def main() -> int:
    """Check both notebooks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--if-possible", action="store_true", help="where something is missing, say so and pass")
    lenient = parser.parse_args().if_possible
    training.forgive_output()
    reasons = {task: missing(task) for task in training.NAMES}
    for task, reason in reasons.items():
        if reason is not None:
            print(f"{training.NAMES[task]}.ipynb: not compared with the published run: {reason}", flush=True)
    possible = [task for task, reason in reasons.items() if reason is None]
    if not possible or (len(possible) < len(reasons) and not lenient):
        return 0 if lenient else 1
    copies = [tagged_copy(HOME / f"{training.NAMES[task]}.ipynb") for task in possible]
    try:
        with tempfile.TemporaryDirectory() as runs:
            environment = {**os.environ, "PROFILE": "published", "RUNS_DIR": runs}
            environment["DATA_SOURCE"] = training.published_results(possible[0])["source"]
            return subprocess.run([sys.executable, "-m", "pytest", *NBVAL, *copies], env=environment).returncode
    finally:
        for copy in copies:
            copy.unlink()


if __name__ == "__main__":
    sys.exit(main())
