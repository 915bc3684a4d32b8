"""The code base's own rules: ARCHITECTURE.md is the tree, the environment is read in one file, names are known."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "jarvis_flags": ROOT / "providers" / "jarvis_flags",
    "jarvis_collector": ROOT / "collector" / "jarvis_collector",
    "jarvis_otel": ROOT / "jarvis_otel",
}


def modules(package):
    return [path for path in package.rglob("*.py") if path.name not in ("__init__.py", "sitecustomize.py")]


def test_the_map_of_the_architecture_names_every_module_and_no_other():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text[text.index("## The map") : text.index("## The three flows")]
    parts = re.split(r"\*\*(?:providers|collector|examples)?/?(jarvis_\w+)/\*\*", section)
    mapped = dict(zip(parts[1::2], parts[2::2], strict=False))
    for name, package in PACKAGES.items():
        named = set(re.findall(r"`(\w+)`", mapped[name].split("**examples")[0]))
        there = {path.stem for path in modules(package)}
        assert there - named == set(), f"{name}: not on the map"
        others = {"jarvis_flags", "jarvis_collector", "jarvis_otel"}
        assert named - there - others == set(), f"{name}: on the map, but not there"


SOURCES = {path: path.read_text() for package in PACKAGES.values() for path in modules(package)}
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def section(title):
    return ARCHITECTURE.split(f"## {title}\n")[1].split("\n## ")[0]


def defined(body):
    """The names that a module or class defines, each with what it defines in turn."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = defined(node.body)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id: {} for target in targets if isinstance(target, ast.Name)}
    return found


def test_each_place_in_the_code_that_the_architecture_and_the_decisions_point_at_is_there():
    pointer = re.compile(r"`(\w+)\.([A-Za-z_]\w*(?:\.\w+)*)`")
    modules_by_name = {}
    for path, source in SOURCES.items():
        modules_by_name.setdefault(path.stem, []).append(defined(ast.parse(source).body))
    decisions = pointer.findall((ROOT / "docs" / "decisions.md").read_text())
    # the decisions speak of other code too
    pointed = [*pointer.findall(ARCHITECTURE), *((name, way) for name, way in decisions if name in modules_by_name)]
    places = [(name, way) for name, way in pointed if way.rpartition(".")[2] not in ("json", "jsonl", "yaml")]
    assert len(places) > 10
    for name, way in places:
        levels = modules_by_name.get(name, [])
        for part in way.split("."):
            levels = [level[part] for level in levels if part in level]
        assert levels, f"{name}.{way}"


def test_the_architecture_names_each_thread_and_no_other():
    named = set(re.findall(r"`(jarvis-[\w-]+)`", section("Threads and processes")))
    started = {
        name for source in SOURCES.values() for name in re.findall(r'Thread\(.*?name=f?"(jarvis-[^"]+)"', source)
    }
    # the worker of telegram/ and the threads of etcd/ and alerts/ take a part of their name from a variable
    patterns = {name: re.compile(re.sub(r"\{[^}]*\}", r"\\w+", name)) for name in started}
    assert [name for name, pattern in patterns.items() if not any(map(pattern.fullmatch, named))] == []
    assert [name for name in named if not any(pattern.fullmatch(name) for pattern in patterns.values())] == []


def test_each_file_of_state_that_the_architecture_names_is_one_that_the_code_names():
    named = set(re.findall(r"[/`]([a-z_]+\.jsonl?)`", section("Files and formats")))
    assert named >= {"overrides.json", "audit.jsonl", "loki.json", "pending.json", "resource.json"}
    assert [name for name in named if not any(f'"{name}"' in source for source in SOURCES.values())] == []


def test_no_class_has_more_than_one_of_ours_above_it_exceptions_aside():
    above = {}
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
                above[node.name] = above.get(node.name, set()) | bases - {node.name}
    deep = {
        name: bases
        for name, bases in above.items()
        if not name.endswith("Error") and any(above[base] & above.keys() for base in bases & above.keys())
    }
    assert deep == {}


def test_the_map_of_the_tests_names_every_helper_and_no_other():
    text = (ROOT / "tests" / "README.md").read_text()
    named = set(re.findall(r"`(\w+)`", text[text.index("## What they stand on") :])) - {"until"}
    helpers = {path.stem for path in (ROOT / "tests").glob("*.py") if not path.stem.startswith(("test_", "conftest"))}
    assert named == helpers


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_reads_the_environment_in_one_file(name):
    readers = {
        path.name
        for path in modules(PACKAGES[name])
        if re.search(r"os\.environ\b(?!\s*=)|os\.getenv", path.read_text()) and path.name not in ALLOWED.get(name, ())
    }
    assert readers <= {"settings.py"}


# terminal.py: NO_COLOR and FORCE_COLOR belong to the terminal; run.py, up.py, propagation.py: hand the environment on;
# activation.py: what OpenTelemetry's own auto-instrumentation is told by
ALLOWED = {"jarvis_otel": ("terminal.py", "run.py", "up.py", "demo.py", "propagation.py", "activation.py")}


def test_every_public_module_says_what_it_exports():
    for package in PACKAGES.values():
        for path in modules(package):
            if "site" not in path.parts:
                assert path.parent.name == "auto" or "__all__ = [" in path.read_text(), path


def test_the_contracts_names_can_be_imported():
    code = """from jarvis_otel import configure, configure_logging, flags, get_flags, is_enabled, get_logger, FeatureFlagManager, \
FlagDefinition, RolloutRule, FlagType, FlagStatus, EvaluationContext, StructuredLogger, LogContext, LogEntry, JSONFormatter, \
HumanFormatter, LogQuery, YamlFlagProvider
import jarvis_otel
missing = [name for name in jarvis_otel.__all__ if not hasattr(jarvis_otel, name)]
print(missing, flags is get_flags())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


def test_nothing_happens_at_import(own_project):
    code = """
import sys, threading, os
before = set(os.listdir('.')), threading.active_count(), len(os.listdir('/proc/self/fd'))
import jarvis_otel
for name in jarvis_otel.__all__: getattr(jarvis_otel, name)
import logging
assert not logging.getLogger().handlers
heavy = [m for m in ('grpc', 'duckdb', 'httptools', 'starlette', 'telegram') if m in sys.modules]
print(before == (set(os.listdir('.')), threading.active_count(), len(os.listdir('/proc/self/fd'))), heavy)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
