"""What the notebooks' set-up cell does on Colab once it has found the modules."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from data import FOLDER
from data.files import atomic_write
from data.sources import COURSE_FILES, course_files

KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # Kaggle sets it: its google.colab waits for answers that nobody gives
HOME = FOLDER.parent


def prepare_colab(mount_point: Path | str = "/content/drive") -> None:
    """On Colab and Kaggle: install what they lack, keep runs on Google Drive if the user agrees, and find the course's
    files. Harmless when called again, and elsewhere.

    Drive is put at `mount_point`. The course's files are looked for in the project's data/ and the project's folder, in
    data/ beside that folder and beside it, and on Drive in MyDrive, MyDrive/data and MyDrive/digit-data, nowhere else.
    Raises RuntimeError where a package cannot be installed.
    """
    if "google.colab" in sys.modules or KAGGLE in os.environ:
        install_missing(("torchmetrics", "lightning-utilities", "pycocotools"))
        drive = Path(mount_point) / "MyDrive"
        on_drive = [drive, drive / "data", drive / "digit-data"] if keep_runs_on_drive(drive) else []
        find_course_files([FOLDER, HOME, HOME.parent / "data", HOME.parent, *on_drive])


def keep_runs_on_drive(my_drive: Path) -> bool:
    """Let RUNS_DIR name a folder on Drive, unless the user has let it name another. Says where runs are kept, and
    returns whether on Drive: not where Drive is declined, cannot be written to or is not there, as on Kaggle."""
    folder, trial = my_drive / "digit-runs", my_drive / "digit-runs" / "writable"
    if os.environ.get("RUNS_DIR", "") not in ("", str(folder)):
        print(f"Runs are kept in {os.environ['RUNS_DIR']}, as RUNS_DIR says.")
        return False
    try:
        if KAGGLE in os.environ:
            raise OSError("Kaggle has none")
        from google.colab import drive

        try:
            drive.mount(str(my_drive.parent))  # does nothing where Drive is mounted,
            atomic_write(trial, lambda file: file.write(b"a trial"))
        except OSError:  # even if that mount is stale: "Transport endpoint is not connected"
            drive.mount(str(my_drive.parent), force_remount=True)
            atomic_write(trial, lambda file: file.write(b"a trial"))
        trial.unlink()
    except Exception as error:  # Colab raises different ones when the user declines
        os.environ.pop("RUNS_DIR", None)
        print(f"No Drive ({str(error) or type(error).__name__}): runs that earlier sessions kept there are not used,")
        print("and runs are kept on this machine only and are lost with it.")
        return False
    os.environ["RUNS_DIR"] = str(folder)
    print("Runs are kept on Drive, in MyDrive/digit-runs: Run all after a disconnect goes on where it was.")
    return True


def find_course_files(folders: list[Path]) -> None:
    """Let DATA_DIR name the first of the folders that holds any of the course's files, and say so. Where it names one
    already, or DATA_SOURCE another source, that is respected."""
    if os.environ.get("DATA_DIR") or os.environ.get("DATA_SOURCE", "") not in ("", "course"):
        return
    for folder in folders:
        if any(path.is_file() for task in COURSE_FILES for path in course_files(folder, task)):
            os.environ["DATA_DIR"] = str(folder)
            print(f"The course's files are taken from {folder}.")
            return
    print(f"The course's files are in none of {', '.join(map(str, folders))}.")


def install_missing(names: tuple[str, ...]) -> None:
    """Install with pip those of the packages that cannot be imported, in the versions of requirements.txt, and nothing
    that they ask for: Colab has it. Raises RuntimeError, with pip's words, where a package cannot be installed."""
    missing = [name for name in names if importlib.util.find_spec(name.replace("-", "_")) is None]
    lines = (HOME / "requirements.txt").read_text(encoding="utf-8").splitlines() if missing else []
    pins = [pin for line in lines if (pin := line.partition("#")[0].strip()).partition("==")[0] in missing]
    if pins:
        print("installing", *pins)
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, *pins], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise RuntimeError(f"pip cannot install {', '.join(missing)}:\n{done.stdout}{done.stderr}".strip())
        importlib.invalidate_caches()  # else the running process may not see what has just come
