"""Headers of archives: the same members as tarfile finds, and what it passes over in silence is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import pack, png, sample, shards

from diffin.errors import DatasetError
from diffin.sources.tar import info_of, members, runs

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read(path: Path) -> list[tuple[str, int, int, int]]:
    with path.open("rb") as file:
        return [(m.name, m.offset, m.start, m.size) for m in members(file, path.name)]


def by_tarfile(path: Path) -> list[tuple[str, int, int, int]]:
    with tarfile.open(path, "r:") as archive:
        return [(m.name, m.offset, m.offset_data, m.size) for m in archive]


NAMES = st.text(st.sampled_from("abé.-_ /0🐈"), min_size=1, max_size=150).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and ".." not in name and "//" not in name
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, max_size=4, unique=True), st.sampled_from(FORMATS), st.floats(0, 1e10), st.integers(0, 1600))
def test_members_are_those_of_tarfile(tmp_path: Path, names: list[str], form: int, times: float, size: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = size, times, "ada"
            try:
                archive.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # Too long a name for the format.
                return
    assert read(path) == by_tarfile(path)


def test_all_that_a_header_says_is_found_again(tmp_path: Path) -> None:
    for path in shards(tmp_path):
        with path.open("rb") as file, tarfile.open(path) as archive:
            for ours, theirs in zip(members(file, "a"), archive.getmembers(), strict=True):
                assert info_of(file, ours).get_info() == theirs.get_info()


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [(f"{number}", {"txt": b"x"}) for number in range(3)])
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1  # in the name of the second
    path.write_bytes(data)
    assert len(by_tarfile(path)) == 1  # which is why tarfile is not believed
    with pytest.raises(DatasetError, match=r"damaged or cut off at byte 1,024"):
        read(path)


def test_an_archive_without_its_end_mark_is_read_if_its_members_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pack(tmp_path / "a.tar", [("a", {"txt": b"x" * 700})])
    whole = read(path)
    data = path.read_bytes()
    for length in (512 + 1024 + 512, 512 + 1024):
        path.write_bytes(data[:length])
        assert read(path) == whole
        assert ("has no mark of its end" in caplog.text) == (length == 512 + 1024)
        caplog.clear()
    for length in (512 + 699, 512 + 701):  # also within what fills the last block
        path.write_bytes(data[:length])
        with pytest.raises(DatasetError, match=r"ends within 'a.txt'"):
            read(path)
    path.write_bytes(data[: 512 + 1024] + b"x" * 30)
    with pytest.raises(DatasetError, match="damaged or cut off at byte 1,536"):
        read(path)


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "a.tar",
        [("in/a.b/x", {"seg.PNG": b"1", "cls": b"2"}), ("__meta__/y", {"json": b"{}"}), ("in/a.b/x", {"txt": b"3"})],
    )
    with path.open("rb") as file:
        found = [(key, [m.kind for m in of]) for key, of in runs(file, "a")]
    assert found == [(None, [""]), ("in/a.b/x", ["seg.png", "cls", "txt"])]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("gzip", b"\x1f\x8b\x08" + bytes(600), "compressed with gzip.*unpack it"),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd.*unpack it"),
        ("picture", png(1) * 20, "is no uncompressed tar archive"),
        ("empty", b"", "is empty"),
        ("short", b"abc", "is no uncompressed tar archive"),
    ],
)
def test_what_is_no_archive_is_refused_with_advice(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=told):
        read(path)


def test_real_compressed_archives_are_named(tmp_path: Path) -> None:
    for form in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / form, f"w:{form}") as archive:
            archive.addfile(tarfile.TarInfo("a"))
        with pytest.raises(DatasetError, match="compressed with"):
            read(tmp_path / form)


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png", "C:/a.png", "..\\a.png", "\\a.png"])
def test_names_that_point_out_are_refused_in_every_format(name: str, tmp_path: Path) -> None:
    for form in FORMATS:
        path = pack(tmp_path / f"{form}.tar", [("good", sample(1)), (name.removesuffix(".png"), {"png": b"2"})], form)
        with pytest.raises(DatasetError, match="points out of its folder"):
            read(path)
