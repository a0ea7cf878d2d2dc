"""What is given away: the wheel and the source archive hold what they should, and the wheel works where it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import diffin
from documented import ROOT

pytest.importorskip("hatchling")
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    _build(ROOT, folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(_wheel(built)) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        described = archive.read(f"diffin-{diffin.__version__}.dist-info/METADATA").decode()
        entries = archive.read(f"diffin-{diffin.__version__}.dist-info/entry_points.txt").decode()
    package = {name for name in names if name.startswith("diffin/")}
    assert package == _files(SOURCE)
    assert {"diffin/py.typed", "diffin/report/template/page.html", "diffin/report/template/page.css"} < package
    info = f"diffin-{diffin.__version__}.dist-info/"
    assert all(name.startswith(info) for name in names - package)
    assert f"{info}licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in described
    assert "diffin = diffin.cli:main" in entries


def test_the_source_archive_is_enough_to_build_the_same_wheel(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"diffin-{diffin.__version__}"
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "mkdocs.yml", "docs/index.md",
                 "examples/digits.py", "tests/test_package.py", "benchmarks/scoring.py"):  # fmt: skip
        assert (unpacked / name).is_file(), name
    assert not list(unpacked.rglob("__pycache__"))
    _build(unpacked, tmp_path / "again", "wheel")
    first, second = (zipfile.ZipFile(_wheel(folder)) for folder in (built, tmp_path / "again"))
    assert sorted(first.namelist()) == sorted(second.namelist())
    assert all(first.read(name) == second.read(name) for name in first.namelist())


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)}, scheme="venv")
    python = Path(paths["scripts"]) / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    _run([*install, "--disable-pip-version-check", str(_wheel(built))], tmp_path)
    # What it depends on is that of the tests. A folder named in a .pth file does not bring its own .pth files, so the
    # package under test is the installed one, and not the working tree.
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = "import diffin.cli, diffin.report; print(diffin.__file__, diffin.report.__file__)"
    imported = _run([str(python), "-I", "-c", code], tmp_path).split()
    assert all(Path(path).is_relative_to(environment) for path in imported)
    script = Path(paths["scripts"]) / "diffin"
    assert _run([str(script), "--version"], tmp_path) == f"diffin {diffin.__version__}\n"
    (tmp_path / "problem.py").write_text("def problem(): return 1\n")
    done = subprocess.run(
        [script, "score", "problem.py", "run", "-o", "x"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "return diffin.Problem" in done.stderr


def test_recipes_of_environments_name_files_that_are_there() -> None:
    recipe = (ROOT / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (.*) \S+$", recipe, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
        ignored = (ROOT / ".dockerignore").read_text().split()
        assert all(f"!{name}" in ignored for name in copied.split())
    assert re.search(r"^USER (?!root)", recipe, re.MULTILINE)
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python={re.search(r'python:([0-9.]+)', recipe)[1]}" in wanted["dependencies"]
    (listed,) = (entry["pip"] for entry in wanted["dependencies"] if isinstance(entry, dict))
    assert (ROOT / listed[0].removeprefix("-c ")).is_file()


def _build(project: Path, output: Path, *targets: str) -> None:
    chosen = [part for target in targets for part in ("-t", target)]
    _run([sys.executable, "-m", "hatchling", "build", "-d", str(output), *chosen], project)


def _wheel(folder: Path) -> Path:
    (found,) = folder.glob("*.whl")
    return found


def _run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _files(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder).as_posix() for path in files}
