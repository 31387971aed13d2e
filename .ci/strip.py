"""What an image does not need of an environment is removed; run while it is built.

    python .ci/strip.py /opt/venv

TensorFlow's headers, the C compiler's Python bindings and the tests of libraries take half a
gigabyte, and no network uses them. The NVIDIA libraries stay whole: which of them cuDNN opens
is known only on a GPU.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

UNUSED = ("tensorflow/include", "clang", "tensorboard", "tensorboard_data_server")
TESTS = ("numpy", "scipy", "pandas", "nibabel", "matplotlib", "sklearn", "h5py", "bids")


def unneeded(environment: Path) -> Iterator[Path]:
    """Folders of an environment that no run opens."""
    for home in environment.glob("lib/python3*/site-packages"):
        for name in UNUSED:
            yield from home.glob(name)
        for library in TESTS:
            yield from (home / library).glob("**/tests")


def main(environment: Path) -> None:
    """Remove them."""
    for folder in list(unneeded(environment)):
        shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.write(f"removed {folder}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
