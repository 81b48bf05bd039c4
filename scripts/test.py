"""Runs all tests, in this order, until one fails: style, pytest, the notebooks, what is published.

python scripts/test.py
python scripts/test.py --published    the last alone: rebuilds both notebooks from the published run, without training,
                                      and compares the cells that print results; fails where that cannot be done
python scripts/test.py --installed    says by its exit status whether this Python has all of requirements.txt
"""

import argparse
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = ["localization.ipynb", "detection.ipynb"]
NBVAL = ["-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "-p", "no:cacheprovider"]
COMMANDS = [
    ["-m", "ruff", "check", "."],
    ["-m", "ruff", "format", "--check", "."],
    ["-m", "ruff", "format", "--check", "--line-length", "100", *NOTEBOOKS],
    ["-m", "pytest"],
    [*NBVAL, *NOTEBOOKS],
]
SMOKE = {"PROFILE": "smoke", "DATA_SOURCE": "digits"}  # so the notebooks need no download
COMPARED = "nbval-check-output"  # tag of cells whose outputs nbval compares
TAG = "published-output"  # tag of cells that hold in the published run only, which --published compares as well


def run(command: list[str], **environment: str) -> int:
    """Run Python with the arguments; returns its exit status. Runs are kept for it alone, and nothing is published."""
    with tempfile.TemporaryDirectory(prefix="runs-", ignore_cleanup_errors=True) as runs:
        environment |= {"RUNS_DIR": runs, "STORE": ""} if environment else {}
        return subprocess.run([sys.executable, *command], cwd=HOME, env=os.environ | environment).returncode


def is_installed(pin: str) -> bool:
    """Whether a package is installed as a pin such as torch==2.14.1 says, or in a build of that version, 2.14.1+cpu."""
    name, _, version = pin.partition("==")
    try:
        return metadata.version(name.partition("[")[0]).partition("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


def compare_published(task: str, must: bool) -> int:
    """Rebuild a task's notebook from the published run and compare it; returns the exit status. Where that cannot be
    done, say why, and fail if it `must` be done."""
    import nbformat

    import data
    import training

    notebook = Path(f"{training.NAMES[task]}.ipynb")
    content = nbformat.read(notebook, as_version=4)
    tagged = {tag: [cell for cell in content.cells if tag in cell.metadata.get("tags", [])] for tag in (COMPARED, TAG)}
    try:
        results = training.published_results(task) or {}
        if not results:
            raise data.DataError("figures/results.json does not hold it")
        for path in (f"histories/{training.NAMES[task]}.pkl", f"weights/{results['selected']}.pt"):
            if not Path(path).is_file():
                raise data.DataError(f"{path} is missing")
        data.load(task, results["source"], log=lambda text: None)
    except data.DataError as error:
        instead = "" if must else f"; {len(tagged[COMPARED])} cells compared, those that hold in any run"
        print(f"{notebook}: not compared with the published run: {error}{instead}", flush=True)
        return int(must)
    for cell in tagged[TAG]:
        cell.metadata["tags"] = [COMPARED]
    copy = Path(f"published-{notebook}")  # beside it, for a notebook's folder is where it runs
    try:
        nbformat.write(content, copy)
        status = run([*NBVAL, str(copy)], PROFILE="published", DATA_SOURCE=results["source"])
    finally:
        copy.unlink(missing_ok=True)
    print(f"{notebook}: {sum(map(len, tagged.values()))} cells compared with the published run", flush=True)
    return status


def main() -> int:
    """Run the tests; returns the exit status of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--installed", action="store_true")
    chosen = parser.parse_args()
    if chosen.installed:
        lines = (HOME / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return int(not all(is_installed(pin) for line in lines if (pin := line.partition("#")[0].strip())))
    for command in [] if chosen.published else COMMANDS:
        print("python", *command, flush=True)
        if status := run(command, **(SMOKE if NBVAL[2] in command else {})):
            return status
    sys.path.insert(0, str(HOME))
    os.chdir(HOME)
    return max([compare_published(task, chosen.published) for task in ("loc", "det")])


if __name__ == "__main__":
    sys.exit(main())
