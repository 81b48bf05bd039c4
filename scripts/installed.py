"""Says by its exit status whether the Python that runs it has every package of requirements.txt, in that version."""

import sys
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def is_there(pin: str) -> bool:
    """Whether a package is installed as a pin such as torch==2.14.1 says, or in a build of that version, 2.14.1+cpu."""
    name, _, version = pin.partition("==")
    try:
        return metadata.version(name.partition("[")[0]).partition("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    sys.exit(not all(is_there(pin) for line in lines if (pin := line.partition("#")[0].strip())))
