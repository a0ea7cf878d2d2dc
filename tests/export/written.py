"""Small training sets on disk, one of every kind, and readers of them that share nothing with the code under test."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ["ant", "bee", "cat"]
Sample = tuple[int, str]
"""What was drawn on it, which tells samples apart, and its label."""


def picture(number: int) -> bytes:
    """A PNG of which the size is the number."""
    file = io.BytesIO()
    Image.new("L", (number + 1, 1), number % 256).save(file, "png")
    return file.getvalue()


def number_in(data: bytes) -> int:
    return int(Image.open(io.BytesIO(data)).size[0]) - 1


def labels_of(size: int, seed: int = 0) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(3, size=size).tolist()
    return drawn


def write_images(folder: Path, labels: list[int]) -> None:
    """Sample i is the i-th in the order of the files; the labels must ascend."""
    for number, label in enumerate(labels):
        path = folder / NAMES[label] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def read_images(folder: Path) -> list[Sample]:
    """Every file, in the order of ``torchvision.datasets.ImageFolder`` for folders without folders in them."""
    return [
        (number_in(path.read_bytes()), of.name)
        for of in sorted(folder.iterdir(), key=lambda of: of.name)
        for path in sorted(of.iterdir(), key=lambda path: path.name)
    ]


def hugging_face(labels: list[int]) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "intent": datasets.ClassLabel(names=NAMES), "text": datasets.Value("string")}
    )
    rows = {
        "image": [{"bytes": picture(number), "path": None} for number in range(len(labels))],
        "intent": labels,
        "text": [f"words {number}" for number in range(len(labels))],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def read_hugging_face(folder: Path) -> list[Sample]:
    dataset = datasets.load_from_disk(str(folder))
    assert dataset.column_names == ["image", "intent", "text"]
    assert dataset.features["intent"].names == NAMES
    rows = dataset.with_format("arrow")[:].to_pylist()
    for row in rows:
        assert row["text"] == f"words {number_in(row['image']['bytes'])}"
        assert row["image"]["bytes"] == picture(number_in(row["image"]["bytes"]))
    return [(number_in(row["image"]["bytes"]), NAMES[row["intent"]]) for row in rows]


def write_parquet(folder: Path, labels: list[int], files: int = 3, group: int = 4) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [
            pa.field("id", pa.int16(), nullable=False),
            pa.field("when", pa.timestamp("ns", "UTC"), metadata={"unit": "of a test"}),
            pa.field("label", pa.dictionary(pa.int8(), pa.string())),
            pa.field("nested", pa.list_(pa.struct([("a", pa.float32())]))),
        ],
        metadata={"about": "ants"},
    )
    paths = []
    for part, numbers in enumerate(np.array_split(np.arange(len(labels)), files)):
        columns = [
            pa.array(numbers, pa.int16()),
            pa.array(numbers, pa.timestamp("ns", "UTC")),
            pa.array([NAMES[labels[number]] for number in numbers]).dictionary_encode().cast(schema.field(2).type),
            pa.array([[{"a": float(number)}] * (number % 3) for number in numbers], schema.field(3).type),
        ]
        paths.append(folder / f"part-{part}.parquet")
        pq.write_table(pa.table(columns, schema=schema), paths[-1], row_group_size=group, compression="zstd")
    return paths


def read_parquet(folder: Path) -> list[Sample]:
    found = []
    for path in sorted(folder.iterdir()):
        table = pq.read_table(path)
        assert table.column("when").cast(pa.int64()).to_pylist() == table.column("id").to_pylist()
        for row in table.drop_columns("when").to_pylist():
            assert row["nested"] == [{"a": float(row["id"])}] * (row["id"] % 3)
            found.append((row["id"], row["label"]))
    return found


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname = len(data), 1_600_000_000.25, 0o640, "ada"
    archive.addfile(info, io.BytesIO(data))


def write_shards(folder: Path, labels: list[int], shards: int = 3, label: str = "cls") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part, numbers in enumerate(np.array_split(np.arange(len(labels)), shards)):
        paths.append(folder / f"train-{part:03}.tar")
        form = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT][part % 3]
        with tarfile.open(paths[-1], "w", format=form) as archive:
            for number in numbers.tolist():
                # Long names need headers of their own.
                key = f"{'long' * 30 if form != tarfile.USTAR_FORMAT else 'in'}/{number:05}"
                add(archive, f"{key}.seg.png", picture(number))
                if label == "cls":
                    add(archive, f"{key}.cls", f"{labels[number]}\n".encode())
                else:
                    content = {"size": number, label: NAMES[labels[number]], "é": [1.5]}
                    add(archive, f"{key}.json", json.dumps(content, ensure_ascii=False).encode())
    return paths


def read_shards(folder: Path, label: str = "cls") -> list[Sample]:
    found = []
    for path in sorted(folder.iterdir()):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for name in names[::2]:
                member, key = archive.extractfile(name), name.split(".")[0]
                other = archive.extractfile(f"{key}.{'cls' if label == 'cls' else 'json'}")
                assert member is not None
                assert other is not None
                text = other.read().decode()
                number = number_in(member.read())
                if label == "cls":
                    assert text.endswith("\n")
                    found.append((number, NAMES[int(text)]))
                else:
                    content = json.loads(text)
                    assert content["size"] == number
                    assert list(content) == ["size", label, "é"]
                    found.append((number, content[label]))
    return found
