"""Runs all tests: style; then pytest, both notebooks on a handful of images, and, where the published run's images are,
both rebuilt from it without training, every table of scores compared with what is stored."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = {"loc": "localization.ipynb", "det": "detection.ipynb"}
STYLE = (("check", "."), ("format", "--check", "."), ("format", "--check", "--line-length=100", *NOTEBOOKS.values()))
NBVAL = ("pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "-p", "no:cacheprovider")
TAGS = "nbval-check-output", "published-output"  # of cells that are compared: in any run, in the published run only


def run(*command: str, **variables: str) -> str:
    """Run a Python module, with training runs of its own; print what it printed, and return its name if it failed."""
    variables |= {"STORE": "", "OMP_NUM_THREADS": str(max(1, os.cpu_count() // 2))}  # for there are two of these
    with tempfile.TemporaryDirectory(prefix="runs-", ignore_cleanup_errors=True) as runs:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=HOME, env=os.environ | variables | {"RUNS_DIR": runs},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )  # fmt: skip
    print(f"{' '.join(command)}\n{done.stdout}", flush=True)
    return f"{command[0]} {command[-1]}" if done.returncode else ""


def compare_published(task: str, must: bool) -> str:
    """Rebuild a task's notebook from the published run; return its name if it differs, or if it `must` be done and the
    images are not to be had."""
    import nbformat

    import data
    import training

    name, source = NOTEBOOKS[task], training.published_results(task)["source"]
    notebook = nbformat.read(HOME / name, as_version=4)
    compared = [cell for cell in notebook.cells if {*TAGS} & {*cell.metadata.get("tags", [])}]
    try:
        data.load(task, source, log=lambda text: None)
    except data.DataError as error:
        print(f"{name}: not compared with the published run: {error}")
        return name if must else ""
    for cell in compared:
        cell.metadata["tags"] = TAGS[:1]
    copy = HOME / f".published-{os.getpid()}-{name}"  # beside it, for a notebook runs where it lies
    try:
        nbformat.write(notebook, copy)
        return run(*NBVAL, copy.name, PROFILE="published", DATA_SOURCE=source)
    finally:
        copy.unlink(missing_ok=True)
        print(f"{name}: {len(compared)} cells compared with the published run", flush=True)


def main() -> str | int:
    """Run the tests; returns the exit status, or what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", action="store_true", help="the last alone; fails where that cannot be done")
    parser.add_argument("--installed", action="store_true", help="whether requirements.txt is: 0 is the exit status")
    chosen = parser.parse_args()
    if chosen.installed:
        pins = re.findall(r"(?m)^([\w-]+)==(\S+)", (HOME / "requirements.txt").read_text(encoding="utf-8"))
        with suppress(metadata.PackageNotFoundError):  # torch 2.14.1+cpu is torch==2.14.1 as well
            return int(any(metadata.version(name).partition("+")[0] != version for name, version in pins))
        return 1
    sys.path.insert(0, str(HOME))
    os.chdir(HOME)
    failed, jobs = "", [partial(compare_published, task, chosen.published) for task in NOTEBOOKS]
    if not chosen.published:
        failed = ", ".join(filter(None, (run("ruff", *options) for options in STYLE)))
        smoke = [partial(run, *NBVAL, name, PROFILE="smoke", DATA_SOURCE="digits") for name in NOTEBOOKS.values()]
        jobs = [jobs[0], partial(run, "pytest"), jobs[1], *smoke]  # the longest first
    if not failed:
        print(f"{len(jobs)} jobs, two at a time: some minutes", flush=True)
        with ThreadPoolExecutor(2) as pool:
            failed = ", ".join(filter(None, pool.map(lambda job: job(), jobs)))
    return f"Failed: {failed}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())
