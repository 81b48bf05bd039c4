"""Runs all tests, in this order, until one fails: style, pytest, the notebooks, what is published.

python scripts/test.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = ["localization.ipynb", "detection.ipynb"]
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "-p", "no:cacheprovider"]
COMMANDS = [
    ["-m", "ruff", "check", "."],
    ["-m", "ruff", "format", "--check", "."],
    ["-m", "ruff", "format", "--check", "--line-length", "100", *NOTEBOOKS],
    ["-m", "pytest"],
    ["-m", "pytest", *NBVAL, *NOTEBOOKS],
    ["scripts/check_published.py", "--if-possible"],
]


def main() -> int:
    """Run the commands; returns the exit status of the first that fails."""
    for command in COMMANDS:
        print("python", *command, flush=True)
        with tempfile.TemporaryDirectory(prefix="runs-", ignore_cleanup_errors=True) as runs:
            # Notebooks need no download so, and take no finished run for theirs.
            small = {"PROFILE": "smoke", "DATA_SOURCE": "digits", "RUNS_DIR": runs} if NBVAL[0] in command else {}
            status = subprocess.run([sys.executable, *command], cwd=HOME, env=os.environ | small).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
