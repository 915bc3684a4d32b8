"""The wheel and the sdist: all that belongs in them, and in an empty environment they are enough."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

from jarvis_otel.version import __version__

ROOT = Path(__file__).parent.parent
PACKAGES = (ROOT / "jarvis_otel", ROOT / "providers" / "jarvis_flags", ROOT / "collector" / "jarvis_collector")
INFO = f"jarvis_otel-{__version__}.dist-info"
VENDORED = (
    ROOT / "jarvis_otel" / "web" / "static" / "vendor",
    ROOT / "tests" / "conformance",
    ROOT / "tests" / "data" / "compose-spec",
)
# what we wrote beside what others did
OURS = {"SHA256SUMS", "SOURCE", "tests/conformance/openfeature/flags.yaml"}


def build(target, *options):
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "build", "--quiet", "--python", sys.executable, "--out-dir", target, *options]
    done = subprocess.run([*command, ROOT], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with the sdist and the wheel that was built from it."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def inside(wheel):
    """The files of the wheel."""
    return contents(wheel)


@pytest.fixture(scope="module")
def metadata(inside):
    return email.message_from_bytes(inside[f"{INFO}/METADATA"])


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def third_party():
    """The rows of THIRD_PARTY.md: file, what it is of, licence, text of the licence."""
    rows = re.findall(
        r"^\| `(.+?)` \| (.+?) \| (.+?) \| `(.+?)` \|$", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 20
    return rows


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(inside, tmp_path):
    (path,) = build(tmp_path, "--wheel").glob("*.whl")
    assert contents(path) == inside


def test_the_wheel_has_every_file_of_the_packages_and_the_example_and_no_other(inside):
    trees = [(package, package.name) for package in PACKAGES]
    trees.append((ROOT / "examples" / "jarvis_bot", "jarvis_otel/examples/jarvis_bot"))
    wanted = {
        f"{name}/{path.relative_to(tree)}": path.read_bytes()
        for tree, name in trees
        for path in tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name: text for name, text in inside.items() if not name.startswith(INFO)} == wanted
    assert all(f"{package.name}/py.typed" in wanted for package in PACKAGES)
    kinds = {Path(name).suffix for name in wanted}
    assert kinds >= {".py", ".html", ".css", ".js", ".svg", ".yaml"}


def test_the_sdist_has_the_whole_checkout_with_its_tests_and_nothing_that_is_ignored(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names > {"tests/test_packaging.py", "docs/logs.md", "config/flags.yaml", "Makefile", "THIRD_PARTY.md"}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("all else is there, but this is no checkout of git, so what is ignored is not known")
    assert names == {*(name for name in listed.stdout.splitlines() if (ROOT / name).is_file()), "PKG-INFO"}


def test_the_metadata_say_what_it_is(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("jarvis-otel", __version__)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).decode() == (ROOT / "README.md").read_text()
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier")))
    matrix = re.search(r"^PYTHONS = \((.+)\)$", (ROOT / "scripts" / "matrix").read_text(), re.MULTILINE)[1]
    assert pythons == re.findall(r"[\d.]+", matrix)
    assert metadata["Requires-Python"] == f">={pythons[0]}"
    assert metadata.get_all("Provides-Extra") == ["all", "auto", "collector", "etcd", "query", "telegram", "web"]


def test_all_has_what_every_other_extra_has(metadata):
    wanted = {}
    for line in metadata.get_all("Requires-Dist"):
        for extra in re.findall(r"extra == '(\w+)'", line):
            wanted.setdefault(extra, set()).add(re.match(r"[^;]+", line)[0])
    assert set.union(*wanted.values()) == wanted["all"]


def test_every_dependency_has_a_lowest_version(metadata):
    assert [line for line in metadata.get_all("Requires-Dist") if ">=" not in line.partition(";")[0]] == []


def test_the_entry_points_lead_somewhere(inside):
    points = ConfigParser()
    points.read_string(inside[f"{INFO}/entry_points.txt"].decode())
    assert set(points.sections()) == {
        "console_scripts",
        "opentelemetry_configurator",
        "opentelemetry_distro",
        "opentelemetry_instrumentor",
        "pytest11",
    }
    for section in points.sections():
        for target in points[section].values():
            module, _, name = target.partition(":")
            found = import_module(module)
            assert not name or callable(getattr(found, name))


def test_every_file_of_others_is_listed_with_its_licence_and_no_other():
    listed = {file for file, *_ in third_party()}
    there = {path.relative_to(ROOT).as_posix() for place in VENDORED for path in place.rglob("*") if path.is_file()}
    texts = {text for *_, text in third_party()}
    assert {path for path in there - texts if not {path, Path(path).name} & OURS} == listed
    assert texts <= there


def test_the_list_names_the_versions_that_are_there():
    versions = dict(re.findall(r"(\w+)=([\d.]+)", (ROOT / "scripts" / "vendor").read_text()))
    for file, what, licence, text in third_party():
        if "/vendor/" in file:
            assert what.split()[-1] == versions[Path(file).name.partition(".")[0].lower()]
        else:
            source = (ROOT / text).with_name("SOURCE").read_text()
            assert all(word.strip("`") in source for word in what.removeprefix("Go module ").split())
            assert licence in source


def test_the_licences_of_what_is_in_the_wheel_come_with_it(inside, metadata):
    ours = [row for row in third_party() if (ROOT / row[0]).is_relative_to(ROOT / "jarvis_otel")]
    assert set(metadata["License-Expression"].split(" AND ")) == {"Apache-2.0", *(licence for _, _, licence, _ in ours)}
    files = {"LICENSE", "THIRD_PARTY.md", *(text for *_, text in ours)}
    assert set(metadata.get_all("License-File")) == files
    assert all(inside[f"{INFO}/licenses/{file}"] == (ROOT / file).read_bytes() for file in files)


def test_in_an_empty_environment_it_is_enough(wheel):
    options = ["--wheel", wheel, "--python", sys.executable, "--dependencies", "newest", "--extras", "none"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "matrix", *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines())
    assert dict(zip(header, row, strict=True)) == {
        "Python": sys.version.split()[0],
        "dependencies": "newest",
        "none": "ok",
        "core tests": "not run",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--extras", "none,kafka"], "--extras: got kafka, want some of none,collector,"),
        (["--dependencies", "latest"], "--dependencies: got latest, want some of lowest,newest"),
        (["--python", "2.6"], "--python: 2.6: not here; name the path of an interpreter"),
    ],
)
def test_the_matrix_says_in_one_line_what_it_does_not_know(options, said):
    command = [sys.executable, ROOT / "scripts" / "matrix", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]
