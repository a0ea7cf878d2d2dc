"""What each kind of data keeps: bytes, schemas, names; and what it refuses."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from written import add, labels_of, number_in, picture, write_images, write_parquet, write_shards

from diffin.errors import DatasetError
from diffin.export import Chosen, export, open_data

SIZE = 30
LABELS = sorted(labels_of(SIZE))
EVERYTHING = Chosen(SIZE, np.arange(SIZE))


def test_folders_in_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    # The folder itself before the folders in it, capital letters before small ones.
    order = ["B/z.PNG", "a/b.png", "a/c.jpeg", "a/b/a.png", "a/b.d/a.png"]
    order = [*order[:3], *sorted(order[3:], key=lambda name: name.rsplit("/", 1)[0])]
    for number, name in enumerate(order):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(picture(number))
    (tmp_path / "data" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "data" / "alone.png").write_bytes(picture(9))
    for number, name in enumerate(order):
        export(open_data(tmp_path / "data"), tmp_path / str(number), Chosen(5, np.array([number])))
        (found,) = [path for path in (tmp_path / str(number)).rglob("*") if path.is_file()]
        assert str(found.relative_to(tmp_path / str(number))) == name
        assert number_in(found.read_bytes()) == number


def test_no_image_takes_the_place_of_another(tmp_path: Path) -> None:
    names = ["a/1.png", "a/1.from-b.png", "b/1.png", "b/x/1.png", "c/1.PNG"]
    names.sort()
    for number, name in enumerate(names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(picture(number))
    given, labels = np.array([0, 0, 1, 1, 2]), np.zeros(5, dtype=np.int64)
    export(open_data(tmp_path / "data"), tmp_path / "out", Chosen(5, np.arange(5), given, labels))
    found = {
        str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*.*") if path.is_file()
    }
    assert sorted(number_in(path.read_bytes()) for path in found.values()) == list(range(5))
    assert set(found) == {"a/1.png", "a/1.from-b.png", "a/1.from-b-2.png", "a/x/1.png", "a/1.from-c.PNG"}
    # Readers number the classes by the folders.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c"]


def test_hard_links_cost_no_space_and_copies_are_apart(tmp_path: Path) -> None:
    write_images(tmp_path / "data", LABELS)
    export(open_data(tmp_path / "data", link=True), tmp_path / "linked", EVERYTHING)
    export(open_data(tmp_path / "data"), tmp_path / "copied", EVERYTHING)
    for path in (tmp_path / "data").rglob("*.png"):
        name = path.relative_to(tmp_path / "data")
        assert (tmp_path / "linked" / name).samefile(path)
        assert not (tmp_path / "copied" / name).samefile(path)
        assert (tmp_path / "copied" / name).read_bytes() == path.read_bytes()


def test_symbolic_links_become_files(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "real.png").write_bytes(picture(3))
    (tmp_path / "data" / "a" / "x.png").symlink_to(tmp_path / "real.png")
    for link in (True, False):
        out = tmp_path / f"out-{link}"
        export(open_data(tmp_path / "data", link=link), out, Chosen(1, np.array([0])))
        assert not (out / "a" / "x.png").is_symlink()
        assert (out / "a" / "x.png").read_bytes() == picture(3)


def test_parquet_keeps_schema_metadata_compression_and_row_groups(tmp_path: Path) -> None:
    paths = write_parquet(tmp_path / "data", LABELS)
    index = np.array([*range(4), 5, *range(25, 30)])  # Nothing of the second file.
    labels = np.array(LABELS)[index]
    labels[-1] = 0
    export(open_data(paths), tmp_path / "out", Chosen(SIZE, index, np.array(LABELS), labels))
    for path in paths:
        before, after = pq.ParquetFile(path), pq.ParquetFile(tmp_path / "out" / path.name)
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        groups = range(after.num_row_groups)
        assert all(after.metadata.row_group(group).column(0).compression == "ZSTD" for group in groups)
    sizes = [
        [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        for metadata in (pq.read_metadata(tmp_path / "out" / path.name) for path in paths)
    ]
    assert sizes == [[4, 1], [], [3, 2]]


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        open_data(tmp_path / "a.parquet")


def test_damaged_parquet_leaves_nothing(tmp_path: Path) -> None:
    (path,) = write_parquet(tmp_path / "data", LABELS, files=1)
    damaged = bytearray(path.read_bytes())
    damaged[4:600] = bytes(596)
    path.write_bytes(damaged)
    with pytest.raises(DatasetError):
        export(open_data(path), tmp_path / "out", EVERYTHING)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def members_of(path: Path) -> dict[str, bytes]:
    """Every member with its headers, as bytes."""
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
        ends = [info.offset for info in infos[1:]] + [infos[-1].offset_data + -(-infos[-1].size // 512) * 512]
    return {info.name: data[info.offset : end] for info, end in zip(infos, ends, strict=True)}


def test_shards_are_copied_byte_for_byte_but_for_new_labels(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "data", LABELS)
    export(open_data(tmp_path / "data"), tmp_path / "all", EVERYTHING)
    for path in paths:
        assert members_of(path) == members_of(tmp_path / "all" / path.name)
        assert (tmp_path / "all" / path.name).stat().st_size % tarfile.RECORDSIZE == 0
    given = np.array(LABELS)
    labels = given.copy()
    labels[[0, 15, 29]] = (labels[[0, 15, 29]] + 1) % 3
    export(open_data(tmp_path / "data"), tmp_path / "out", Chosen(SIZE, np.arange(SIZE), given, labels))
    for path in paths:
        before, after = members_of(path), members_of(tmp_path / "out" / path.name)
        (changed,) = [name for name in before if before[name] != after[name]]
        assert changed.endswith(".cls")
        with tarfile.open(path) as old, tarfile.open(tmp_path / "out" / path.name) as new:
            was, is_now = old.getmember(changed), new.getmember(changed)
            for name in ("mode", "uid", "uname", "size", "type"):
                assert getattr(was, name) == getattr(is_now, name)
            assert is_now.mtime == pytest.approx(was.mtime, abs=1)


def test_what_is_of_no_sample_goes_along_and_shards_may_become_empty(tmp_path: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            folder = tarfile.TarInfo("in")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            add(archive, "README", b"words")
            add(archive, "__meta__/about.json", b"{}")
            add(archive, "in/a.b/1.png", picture(1))
            add(archive, "in/a.b/1.CLS", b"0")
    data = open_data([tmp_path / "0.tar", tmp_path / "1.tar"])
    assert data.size == 2
    export(data, tmp_path / "out", Chosen(2, np.array([1])))
    assert list(members_of(tmp_path / "out" / "0.tar")) == ["in", "README", "__meta__/about.json"]
    assert members_of(tmp_path / "out" / "1.tar") == members_of(tmp_path / "1.tar")


def test_samples_that_would_run_together_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for key in ("x", "y", "x"):
            add(archive, f"{key}.png", picture(1))
    assert open_data(tmp_path / "a.tar").size == 3
    with pytest.raises(DatasetError, match="none left between"):
        export(open_data(tmp_path / "a.tar"), tmp_path / "out", Chosen(3, np.array([0, 2])))
    assert not (tmp_path / "out").exists()
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for _ in range(2):
            add(archive, "x.png", picture(1))
    with pytest.raises(DatasetError, match="twice in one sample"):
        open_data(tmp_path / "b.tar")


@pytest.mark.parametrize(
    "name", ["../a.png", "x/../../a.png", "/etc/a.png", "C:/a.png", "..\\a.png", "\\a.png", "x/.."]
)
def test_names_that_point_out_of_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.png", picture(1))
        add(archive, name, picture(2))
    with pytest.raises(DatasetError, match="points out of its folder"):
        open_data(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.png", picture(1))
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = kind, "a.png"
        archive.addfile(info)
    with pytest.raises(DatasetError, match="neither a plain file nor a folder"):
        open_data(tmp_path / "a.tar")


def test_archives_that_cannot_be_copied_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        add(archive, "a.png", picture(1))
    with tarfile.open(tmp_path / "global.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as archive:
        add(archive, "a.png", picture(1))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add(archive, "a.png", bytes(5000))
    (tmp_path / "cut.tar").write_bytes(buffer.getvalue()[:3000])
    for name in ("empty", "packed", "global", "cut"):
        with pytest.raises(DatasetError, match="pack it again"):
            open_data(tmp_path / f"{name}.tar")
