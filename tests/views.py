"""Virtual environments like the one that runs the tests, without some distributions: made of links, in no time."""

import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path


def view(target: Path, *without: str) -> Path:
    """The interpreter of a new environment in which these distributions are not installed."""
    site = Path(sysconfig.get_path("purelib"))
    venv.EnvBuilder(symlinks=True).create(target)
    hidden = set()
    for name in without:
        files = distribution(name).files
        assert files
        hidden |= {site / file for file in files}
    around = {parent for path in hidden for parent in path.parents}
    copy = target / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    _link(site, copy, hidden, around)
    return target / "bin" / "python"


def _link(source: Path, target: Path, hidden: set[Path], around: set[Path]) -> None:
    target.mkdir(exist_ok=True)
    for entry in source.iterdir():
        if entry in around:
            _link(entry, target / entry.name, hidden, around)
        elif entry not in hidden and entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry)
    if not any(target.iterdir()):
        target.rmdir()
