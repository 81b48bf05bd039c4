"""What the notebooks' set-up cell needs on Colab, beyond fetching the modules."""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import atomic_write


def prepare_colab(drive: Any, mount_point: Path | str = "/content/drive") -> None:
    """On Colab: install what it lacks, and keep runs on Google Drive if the user agrees. Harmless when called again.

    drive: the module google.colab.drive. mount_point: where it puts Drive. Where Drive is declined, or cannot be
    written to, runs are kept in runs/ on the machine, and that is said. A RUNS_DIR that names another folder is
    respected. Raises RuntimeError where a package cannot be installed.
    """
    install_lacking(("torchmetrics", "lightning-utilities", "pycocotools"))
    folder = Path(mount_point) / "MyDrive" / "digit-runs"
    if os.environ.get("RUNS_DIR", "") not in ("", str(folder)):
        print(f"Runs are kept in {os.environ['RUNS_DIR']}, as RUNS_DIR says, and not on Drive.")
        return
    try:
        drive.mount(str(mount_point))  # returns at once where Drive is mounted already
        atomic_write(folder / "writable", lambda file: file.write(b"a trial"))
        (folder / "writable").unlink()
    except Exception as error:  # Colab raises different ones when the user declines
        os.environ.pop("RUNS_DIR", None)
        reason = str(error) or type(error).__name__
        print(f"No Drive ({reason}): runs are kept on this machine only and are lost with it.")
    else:
        os.environ["RUNS_DIR"] = str(folder)
        print("Runs are kept on Drive, in MyDrive/digit-runs: Run all after a disconnect goes on where it was.")


def install_lacking(names: Sequence[str]) -> None:
    """Install with pip those of the packages that cannot be imported, in the versions of requirements.txt, and nothing
    that they ask for: Colab has it. Raises RuntimeError, with pip's words, where a package cannot be installed."""
    lacking = [name for name in names if importlib.util.find_spec(name.replace("-", "_")) is None]
    if not lacking:
        return
    lines = (Path(__file__).resolve().parent.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    wanted = [pin for pin in pins if pin.partition("==")[0] in lacking]
    print("installing", *wanted)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", *wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(f"pip cannot install {', '.join(lacking)}:\n{done.stdout.strip()}")
    importlib.invalidate_caches()  # else the running process may not see what has just come
