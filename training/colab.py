"""What the notebooks' set-up cell does on Colab once it has found the modules."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from data import FOLDER
from data.sources import COURSE_FILES, course_files
from training.settings import check_runs_folder

KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # Kaggle sets it: its google.colab waits for answers that nobody gives
HOME = FOLDER.parent


def prepare_colab(mount_point: Path | str = "/content/drive") -> None:
    """On Colab and Kaggle: install what they lack, keep runs on Google Drive, mounted at `mount_point`, if the user
    agrees, and find the course's files. Harmless when called again, and elsewhere."""
    if "google.colab" in sys.modules or KAGGLE in os.environ:
        install_missing(("torchmetrics", "lightning-utilities", "pycocotools"))
        drive = Path(mount_point) / "MyDrive"
        on_drive = [drive, drive / "data", drive / "digit-data"] if keep_runs_on_drive(drive) else []
        find_course_files([FOLDER, HOME, HOME.parent / "data", HOME.parent, *on_drive])


def keep_runs_on_drive(my_drive: Path) -> bool:
    """Let RUNS_DIR name a folder on Drive, unless the user has set it. Says where runs are kept, and returns whether on
    Drive: not where Drive is declined, cannot be written to or does not exist, as on Kaggle."""
    folder = str(my_drive / "digit-runs")
    if os.environ.get("RUNS_DIR", "") not in ("", folder):
        print(f"Runs are kept in {os.environ['RUNS_DIR']}, as RUNS_DIR says.")
        return False
    os.environ["RUNS_DIR"] = folder
    try:
        if KAGGLE in os.environ:
            raise OSError("Kaggle has none")
        from google.colab import drive

        try:
            drive.mount(str(my_drive.parent))  # does nothing where Drive is mounted,
            check_runs_folder()
        except OSError:  # even if that mount is stale: "Transport endpoint is not connected"
            drive.mount(str(my_drive.parent), force_remount=True)
            check_runs_folder()
    except Exception as error:  # Colab raises different ones when the user declines
        del os.environ["RUNS_DIR"]
        print(f"No Drive ({error}): runs kept there before are not used, and new ones are lost with this machine.")
        return False
    print("Runs are kept on Drive, in MyDrive/digit-runs: Run all after a disconnect goes on where it was.")
    return True


def find_course_files(folders: list[Path]) -> None:
    """Let DATA_DIR name the first of the folders that holds any of the course's files, and say so; unless the user has
    set it, or let DATA_SOURCE name another source."""
    if os.environ.get("DATA_DIR") or os.environ.get("DATA_SOURCE", "") not in ("", "course"):
        return
    wanted = [path for folder in folders for task in COURSE_FILES for path in course_files(folder, task)]
    if there := [str(path.parent) for path in wanted if path.is_file()]:
        os.environ["DATA_DIR"] = there[0]
    print("The course's files are", f"taken from {there[0]}" if there else f"in none of {', '.join(map(str, folders))}")


def install_missing(names: tuple[str, ...]) -> None:
    """Install those packages that cannot be imported, in the versions of requirements.txt, without what they depend on:
    Colab has it. Raises CalledProcessError; pip says why."""
    missing = [name for name in names if importlib.util.find_spec(name.replace("-", "_")) is None]
    pinned = (HOME / "requirements.txt").read_text(encoding="utf-8").split()
    if pins := [pin for pin in pinned if pin.partition("==")[0] in missing]:
        print("installing", *pins)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *pins], check=True)
        importlib.invalidate_caches()  # else the running process may not see what has just come
