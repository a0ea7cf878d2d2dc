"""Fashion-MNIST, out of Debian's package `dataset-fashion-mnist`: 60,000 and 10,000 pictures of 28 x 28, ten classes.

It is read where the package is installed (`apt-get install dataset-fashion-mnist`). On a Debian machine where it is not,
the package is downloaded and unpacked into a cache folder, which needs no root. Elsewhere, put the four original files
into that folder. Whatever the way, every file is checked.

    python benchmarks/data.py     # fetch and check, and say where it is
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path(__file__).parent / ".cache" / "fashion-mnist"
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

_DIGESTS = {  # SHA-256 of what the compressed files hold
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_HEADER = {"images": 16, "labels": 8}
_MEAN, _DEVIATION = 0.2860, 0.3530


class DataError(RuntimeError):
    """The data cannot be had; the message says what to do."""


@dataclass(frozen=True)
class FashionMNIST:
    """Pictures UInt8[ndarray, "N 28 28"] and labels UInt8[ndarray, "N"] of both parts."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]


def fashion_mnist() -> FashionMNIST:
    """The data, from the installed package, the cache folder, or a download into it.

    Raises:
        DataError: there is none, or a file is damaged.
    """
    folder = next((place for place in (INSTALLED, CACHE) if _complete(place)), None) or _download()
    parts = {name: _read(folder / f"{name}.gz") for name in _DIGESTS}
    images = {split: parts[f"{split}-images-idx3-ubyte"].reshape(-1, 28, 28) for split in ("train", "t10k")}
    return FashionMNIST(
        images["train"], parts["train-labels-idx1-ubyte"], images["t10k"], parts["t10k-labels-idx1-ubyte"]
    )


def dataset(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> TensorDataset:
    """Standardised pictures Float32[Tensor, "N 1 28 28"] with class numbers Int64[Tensor, "N"]."""
    pixels = torch.from_numpy(images.copy()).unsqueeze(1).float().div_(255)
    return TensorDataset(pixels.sub_(_MEAN).div_(_DEVIATION), torch.from_numpy(labels.astype(np.int64)))


def _complete(folder: Path) -> bool:
    return all((folder / f"{name}.gz").is_file() for name in _DIGESTS)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    name = path.name.removesuffix(".gz")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and try again") from error
    if hashlib.sha256(content).hexdigest() != _DIGESTS[name]:
        raise DataError(f"{path} is not the file of Fashion-MNIST; delete it and try again")
    header = _HEADER["images" if "images" in name else "labels"]
    return np.frombuffer(content, np.uint8, offset=header)


def _download() -> Path:
    """Debian's package, unpacked beside this file; no root needed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DataError(_advice("this is not a Debian machine"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            _run(["apt-get", "download", PACKAGE], folder)
        except DataError:
            # Package lists may be missing or old; refreshing them needs root, and is worth one try.
            _run(["apt-get", "update"], folder)
            _run(["apt-get", "download", PACKAGE], folder)
        archive = next(folder.glob(f"{PACKAGE}_*.deb"))
        _run(["dpkg", "-x", str(archive), "unpacked"], folder)
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in _DIGESTS:
            shutil.copy(folder / "unpacked" / INSTALLED.relative_to("/") / f"{name}.gz", CACHE)
    return CACHE


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise DataError(_advice(f"`{' '.join(command)}` failed: {str(output).strip().splitlines()[-1]}")) from error


def _advice(reason: str) -> str:
    files = ", ".join(f"{name}.gz" for name in _DIGESTS)
    return (
        f"Fashion-MNIST is not here, and cannot be fetched: {reason}. Install Debian's package {PACKAGE} "
        f"(`apt-get install {PACKAGE}`), or put {files} into {CACHE}"
    )


if __name__ == "__main__":
    data = fashion_mnist()
    print(
        f"{len(data.train_images)} + {len(data.test_images)} pictures, in {INSTALLED if _complete(INSTALLED) else CACHE}"
    )
