"""Hot reload and growth: from the write of a file to the new answer, stalls meanwhile, and what many flags cost."""

from __future__ import annotations

import os
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.harness import Row, compare, main, per_call
from jarvis_flags.files import write_file
from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import Change, FileSource, MemorySource
from jarvis_otel import FeatureFlagManager

SAFE_LOADER = "PyYAML CSafeLoader.load of the same file"
BOUND = "the bound itself"


def measure(quick: bool) -> list[Row]:
    """The rows of this subject."""
    samples = 20 if quick else 120
    return [
        # first, in a process that holds nothing else yet: a full garbage collection is part of what it measures
        _stall_row(1_000, seconds=2 if quick else 8, bound_ms=15),
        _file_row(50, samples, bound_ms=50),
        _file_row(1_000, samples // 2, bound_ms=120),
        _file_row(1_000, samples // 2, bound_ms=120, whole=True),
        _override_row(1_000, samples, bound_ms=20),
        *_growth_rows(quick=quick),
    ]


def flag_file(flags: int, *, on: bool) -> str:
    """A flag file of about 430 bytes a flag, of which the first is on or off."""
    parts = ['version: "1.0"', "flags:"]
    parts += (
        f"""  FLAG_{number:05d}:
    name: Flag number {number}
    description: It does something for somebody, and says so at the length that descriptions have in real files {number}
    category: trading
    owner: team-{number % 7}
    enabled: {str(on and number == 0).lower()}
    rules:
      - {{type: user_ids, value: ["u{number}", "u{number + 1}"], priority: 10}}
      - {{type: percentage, value: {number % 100}, priority: 5}}
    environment_defaults: {{dev: true, staging: true}}
    dangerous: {str(number % 5 == 0).lower()}"""
        for number in range(flags)
    )
    return "\n".join(parts) + "\n"


def _source(flags: int) -> tuple[FileSource, Path]:
    path = Path(os.environ["JARVIS_HOME"]) / "config" / "flags.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(flag_file(flags, on=False))
    return FileSource(FlagSettings.load(), watch=True, service="bench"), path


def _seen_after(write: Callable[[], None], seen: Callable[[], bool]) -> float:
    """Milliseconds from the end of a write to the new answer."""
    write()
    start = time.perf_counter()
    while not seen():
        time.sleep(0.0002)
    return (time.perf_counter() - start) * 1e3


def _p99(samples: list[float]) -> float:
    return sorted(samples)[max(0, int(len(samples) * 0.99) - 1)]


def _row(what: str, ours: list[float], peer: tuple[float, str], target: float | None, how: str) -> Row:
    cost, (peer_cost, peer_name) = _p99(ours), peer
    return Row(
        what,
        cost,
        peer_cost,
        "ms",
        peer_name,
        cost / peer_cost,
        min(ours) / peer_cost,
        max(ours) / peer_cost,
        target,
        how,
    )


def _file_row(flags: int, samples: int, *, bound_ms: float, whole: bool = False) -> Row:
    """An edit of one flag, or (`whole`) one outside the flags, for which the file is read as a whole."""
    source, path = _source(flags)
    texts = {on: flag_file(flags, on=on and not whole) for on in (True, False)}
    if whole:
        texts = {on: f"environment: {'on' if on else 'off'}\n{text}" for on, text in texts.items()}

    def seen(on: bool) -> bool:
        if whole:
            return source.snapshot.environment == ("on" if on else "off")
        return source.snapshot.definitions["FLAG_00000"].enabled is on

    ours, peer = [], []
    for number in range(samples):
        on = number % 2 == 0
        time.sleep(0.02)
        ours.append(
            _seen_after(
                lambda on=on: path.write_text(texts[on]),  # type: ignore[misc, arg-type]
                lambda on=on: seen(on),  # type: ignore[misc]
            )
        )
        if number % 10 == 0:
            start = time.perf_counter()
            yaml.load(texts[on], Loader=yaml.CSafeLoader)
            peer.append((time.perf_counter() - start) * 1e3)
    source.close()
    middle = statistics.median(ours)
    how = f"p99 of {samples}, from the end of the write; the bound is {bound_ms:g} ms; p50 {middle:.1f} ms"
    # the figures: a bound of 120 ms where CSafeLoader takes 237 ms
    target = 120 / 237 if flags >= 1_000 else None
    what = f"edit of a file of {flags} flags{', read as a whole,' if whole else ''} seen"
    return _row(what, ours, (statistics.median(peer), SAFE_LOADER), target, how)


def _override_row(flags: int, samples: int, *, bound_ms: float) -> Row:
    source, _ = _source(flags)
    state = source.settings.flags_state_dir
    state.mkdir(parents=True, exist_ok=True)
    ours = []
    for number in range(1, samples + 1):
        content = OverrideSet(number, {"FLAG_00001": Override("off")}).to_bytes()
        time.sleep(0.02)
        ours.append(
            _seen_after(
                lambda content=content: write_file(state / "overrides.json", content),  # type: ignore[misc, arg-type]
                lambda number=number: source.snapshot.overrides.revision == number,  # type: ignore[misc, arg-type]
            )
        )
    source.close()
    how = f"p99 of {samples}, from the end of the replacement; p50 {statistics.median(ours):.1f} ms"
    return _row(f"run-time override seen, {flags} flags", ours, (bound_ms, f"{BOUND}, {bound_ms:g} ms"), 1.0, how)


def _stall_row(flags: int, *, seconds: float, bound_ms: float) -> Row:
    """Evaluations paced every 2 ms while the file is reloaded again and again, timed from when each was due."""
    source, path = _source(flags)
    source.close()
    manager = FeatureFlagManager(path)
    texts = {on: flag_file(flags, on=on).encode() for on in (True, False)}
    stopping = threading.Event()
    reloads: list[Change] = []
    manager.source.subscribe(reloads.append)

    def edit() -> None:
        on = False
        while not stopping.wait(0.02):
            on = not on
            write_file(path, texts[on], durable=False)

    thread = threading.Thread(target=edit)
    thread.start()
    late, due, end = [], time.perf_counter(), time.perf_counter() + seconds
    while due < end:
        due += 0.002
        if (pause := due - time.perf_counter()) > 0:
            time.sleep(pause)
        manager.is_enabled("FLAG_00002", user_id="u7")
        late.append((time.perf_counter() - due) * 1e3)
    stopping.set()
    thread.join()
    manager.close()
    cost = sorted(late)[int(len(late) * 0.999) - 1]
    how = (
        f"p99.9 of {len(late)}, timed from when each was due, {len(reloads)} reloads; "
        f"p50 {statistics.median(late):.2f} ms, worst {max(late):.1f} ms"
    )
    name = f"{BOUND}, {bound_ms:g} ms"
    what = f"evaluation every 2 ms during reloads of {flags} flags"
    return Row(what, cost, bound_ms, "ms", name, cost / bound_ms, min(late) / bound_ms, max(late) / bound_ms, 1.0, how)


def _growth_rows(*, quick: bool) -> list[Row]:
    many = 10_000 if quick else 100_000
    calls = 5_000 if quick else 50_000
    rounds = 5 if quick else 15
    few_flags, many_flags = (_manager(_flags(count)) for count in (10, many))
    asked = "manager.is_enabled('F7', user_id='u3')"
    growth = compare(
        f"is_enabled of {many:,} flags",
        per_call(asked, {"manager": many_flags}, calls),
        per_call(asked, {"manager": few_flags}, calls),
        rounds=rounds,
        peer_name="of 10 flags",
        target=1.1,
        how="CPU of the call, percentage, no span",
    )
    short, long = (
        _manager([FlagDefinition(id="F7", rules=[RolloutRule("user_ids", [f"u{n}" for n in range(count)])])])
        for count in (10, 100_000)
    )
    users = compare(
        "is_enabled with a list of 100,000 users",
        per_call(asked, {"manager": long}, calls),
        per_call(asked, {"manager": short}, calls),
        rounds=rounds,
        peer_name="of 10 users",
        target=1.1,
        how="CPU of the call, user_ids, no span",
    )
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = _manager(_flags(1_000))
    for number in range(1_000):
        kept.is_enabled(f"F{number}", user_id="u")
    per_flag = (tracemalloc.get_traced_memory()[0] - before) / 1_000
    tracemalloc.stop()
    how = "definition and compiled flag with one rule, evaluated once; source and settings shared"
    memory = Row("memory of a flag", per_flag, 1.0, "bytes", "a byte", per_flag, per_flag, per_flag, None, how)
    return [growth, users, memory]


def _flags(count: int) -> list[FlagDefinition]:
    return [FlagDefinition(id=f"F{number}", rules=[RolloutRule("percentage", 50)]) for number in range(count)]


def _manager(flags: list[FlagDefinition]) -> FeatureFlagManager:
    manager = FeatureFlagManager()
    source = manager.source
    assert isinstance(source, MemorySource)
    from jarvis_flags.parse import FlagSet

    source.replace(FlagSet({flag.id: flag for flag in flags}, {}, {}))
    return manager


if __name__ == "__main__":
    main(measure)
