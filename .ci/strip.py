"""What an image does not need of an environment is removed; run while it is built.

    python .ci/strip.py /opt/venv

TensorFlow's headers, the C compiler's Python bindings, what OpenVINO needs for Intel's GPUs and the
tests of libraries take half a gigabyte, and no network uses them. The NVIDIA libraries stay whole:
which of them cuDNN opens is known only on a GPU.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

UNUSED = (
    "tensorflow/include", "clang", "tensorboard", "tensorboard_data_server",
    "openvino/libs/libopenvino_intel_gpu*", "openvino/libs/libopenvino_intel_npu*",
    "openvino/libs/cache.json", "openvino/tools/benchmark",
)  # fmt: skip
TESTS = ("numpy", "scipy", "pandas", "nibabel", "matplotlib", "sklearn", "h5py", "bids")


def unneeded(environment: Path) -> Iterator[Path]:
    """Folders and files of an environment that no run opens."""
    for home in environment.glob("lib/python3*/site-packages"):
        for name in UNUSED:
            yield from home.glob(name)
        for library in TESTS:
            yield from (home / library).glob("**/tests")


def main(environment: Path) -> None:
    """Remove them."""
    for path in list(unneeded(environment)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
        sys.stdout.write(f"removed {path}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
