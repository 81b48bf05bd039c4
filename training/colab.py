"""What the notebooks' set-up cell needs on Colab, beyond finding the modules."""

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data import FOLDER
from data.files import atomic_write
from data.sources import COURSE_FILES, course_files

LONGEST_SEARCH = 20.0  # seconds to look for the course's files on Drive, which may hold thousands of folders


def prepare_colab(mount_point: Path | str = "/content/drive") -> None:
    """On Colab: install what it lacks, keep runs on Google Drive if the user agrees, and find the course's files.
    Harmless when called again, and elsewhere.

    mount_point: where Drive is put, in the folder where notebooks start. Raises RuntimeError where a package cannot be
    installed.
    """
    try:
        import google.colab  # noqa: F401
    except ImportError:
        return
    install_lacking(("torchmetrics", "lightning-utilities", "pycocotools"))
    mount_point = Path(mount_point)
    find_course_files(mount_point.parent, keep_runs_on_drive(mount_point))


def keep_runs_on_drive(mount_point: Path) -> Path | None:
    """Let RUNS_DIR name a folder on Drive. Returns that; None where it already names another, which is respected, and
    where Drive is declined, cannot be written to or is not there, as on Kaggle: runs are kept in runs/ then. What is
    the case is said."""
    folder = mount_point / "MyDrive" / "digit-runs"
    if os.environ.get("RUNS_DIR", "") not in ("", str(folder)):
        print(f"Runs are kept in {os.environ['RUNS_DIR']}, as RUNS_DIR says, and not on Drive.")
        return None
    try:
        if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
            raise OSError("Kaggle has none")  # but a google.colab, which would wait for an answer
        from google.colab import drive

        drive.mount(str(mount_point))  # returns at once where Drive is mounted already
        atomic_write(folder / "writable", lambda file: file.write(b"a trial"))
        (folder / "writable").unlink()
    except Exception as error:  # Colab raises different ones when the user declines
        os.environ.pop("RUNS_DIR", None)
        reason = str(error) or type(error).__name__
        print(f"No Drive ({reason}): runs are kept on this machine only and are lost with it.")
        return None
    os.environ["RUNS_DIR"] = str(folder)
    print("Runs are kept on Drive, in MyDrive/digit-runs: Run all after a disconnect goes on where it was.")
    return folder


def find_course_files(start: Path, runs: Path | None) -> None:
    """Let DATA_DIR name the folder with the course's files, unless it names one, and say so: the project's data/, the
    folder where the notebook started, data/ in there, or one on Drive, where `runs` is the folder of runs."""
    if os.environ.get("DATA_DIR") or os.environ.get("DATA_SOURCE", "") not in ("", "course"):
        return
    names = [{path.name for path in course_files(start, task)} for task in COURSE_FILES]
    # What was found on Drive is noted there: a search that finds it in time one day may not do so the next.
    note = runs and runs / "course-files.txt"
    places = [FOLDER, start / "data", start]
    if note and note.is_file():
        places.append(Path(note.read_text(encoding="utf-8")))
    beside = (folder for folder in places if any((folder / name).is_file() for name in set.union(*names)))
    below = folders_of(runs.parent) if runs else ()
    on_drive = (folder for folder, files in below if any(whole <= files for whole in names))
    found = next(beside, None) or next(on_drive, None)
    if found:
        os.environ["DATA_DIR"] = str(found)
        print(f"The course's files are taken from {found}.")
        if runs and found.is_relative_to(runs.parent):
            atomic_write(note, lambda file: file.write(str(found).encode()))
    elif runs:
        print(f"The course's files are not beside the notebook, nor found on Drive in {LONGEST_SEARCH:.0f} s.")


def folders_of(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders at or below `top`, the shallowest first, each with its files' names, for at most LONGEST_SEARCH."""
    until, folders = time.monotonic() + LONGEST_SEARCH, [top]
    for folder in folders:  # which grow meanwhile
        if time.monotonic() > until:
            return
        _, inside, files = next(os.walk(folder), ("", [], []))
        yield folder, set(files)
        folders += [folder / name for name in sorted(inside)]


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
