"""Runs all tests: style; then pytest, both notebooks on a handful of images, and, where the published run's images are,
both rebuilt from it without training, every output compared with what is stored."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("localization.ipynb", "detection.ipynb")
STYLE = (("check", "."), ("format", "--check", "."), ("format", "--check", "--line-length=100", *NOTEBOOKS))
NBVAL = ("--nbval-current-env", "--nbval-cell-timeout=600", "-p", "no:cacheprovider")


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


def execute(mode: str, **variables: str) -> list[Callable[[], str]]:
    """What runs either notebook and compares it, in a mode of nbval's."""
    return [partial(run, "pytest", mode, *NBVAL, name, **variables) for name in NOTEBOOKS]


def published_source() -> str:
    """The source of the published run's images, "" where they are not to be had, which is said."""
    import data
    import training

    source = training.published_results("loc")["source"]
    try:
        for task in training.NAMES:
            data.load(task, source, log=str)
    except data.DataError as error:
        print(f"not compared with the published run: {error}", flush=True)
        return ""
    return source


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
    failed = [] if chosen.published else [run("ruff", *options) for options in STYLE]
    if not any(failed):
        source, jobs = published_source(), []
        if source or chosen.published:
            jobs += execute("--nbval", PROFILE="published", DATA_SOURCE=source)
        if not chosen.published:
            jobs += [partial(run, "pytest"), *execute("--nbval-lax", PROFILE="smoke", DATA_SOURCE="digits")]
        print(f"{len(jobs)} jobs, two at a time: some minutes", flush=True)
        with ThreadPoolExecutor(2) as pool:
            failed = [*pool.map(lambda job: job(), jobs)]
    return f"Failed: {', '.join(filter(None, failed))}" if any(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
