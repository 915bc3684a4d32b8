"""Flags on etcd: from a change to its effect elsewhere, after the loss of a leader, and what following costs.

The peer is a plain watch of etcd over the same gateway in the same run: httpx, and the lines of its answer. Both sides
are changed in turns, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.harness import OwnProcess, Row, compare, main, per_call
from benchmarks.reload import flag_file
from jarvis_flags.overrides import Override
from jarvis_flags.settings import EtcdSettings, FlagSettings
from jarvis_otel import FeatureFlagManager
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.opening import open_flags
from jarvis_otel.admin.store import FlagStore, StoreError
from jarvis_otel.etcd.client import b64
from tests.etcd_cluster import EtcdCluster

PLAIN = "plain watch of etcd"
FLAGS = 50
ANN = Author("ann", "bench", "because")
VALUE = b64("x" * 700)
"""About what a change of ours writes."""

LIMIT_S = 60.0


def measure(quick: bool) -> list[Row]:
    """The rows of this subject; none where there is no etcd."""
    if shutil.which("etcd") is None:
        print("etcd: the real etcd is not installed here: apt-get install etcd-server", file=sys.stderr)
        return []
    watchers, changes = (20, 40) if quick else (200, 300)
    with tempfile.TemporaryDirectory(prefix="jarvis-etcd-") as directory, EtcdCluster(directory) as cluster:
        return [
            *_spread_rows(cluster.urls, 1, changes, "another process", target=2.0),
            *_spread_rows(cluster.urls, watchers, changes // 15, f"the last of {watchers} watchers", target=None),
            _throughput_row(cluster.urls, rounds=5 if quick else 15),
            _memory_row(cluster.urls, watchers),
            _evaluation_row(cluster.urls, quick=quick),
            _leader_row(cluster, losses=2 if quick else 5),
        ]


# --- both sides, each in a process of its own where it follows ---


def _settings(name: str, urls: tuple[str, ...], store: str = "etcd") -> FlagSettings:
    home = Path(os.environ["JARVIS_HOME"]) / name
    file = home / "config" / "flags.yaml"
    if not file.exists():
        file.parent.mkdir(parents=True)
        file.write_text(flag_file(FLAGS, on=False))
    etcd = EtcdSettings(urls, prefix=f"/{name}/")
    return FlagSettings(home=home, flags_file=file, state_dir=home / "var", store=store, etcd=etcd)


def _follower(name: str, urls: tuple[str, ...], count: int) -> Callable[[int], dict[int, float]]:
    """Follows flags `count` times; says when the last of them had each revision, once all have the one asked for."""
    seen: list[dict[int, float]] = [{} for _ in range(count)]
    sources = [open_flags(_settings(name, urls), watch=True, service="bench")[0] for _ in range(count)]
    for source, times in zip(sources, seen, strict=True):
        source.subscribe(
            lambda change, times=times: times.setdefault(change.new.overrides.revision, time.monotonic())  # type: ignore[misc]
        )
    return lambda number: _when_all(seen, number)


def _plain(key: str, urls: tuple[str, ...], count: int) -> Callable[[int], dict[int, float]]:
    """The same by what whoever follows etcd by hand writes: a request that does not end, begun again where it does."""
    seen: list[dict[int, float]] = [{} for _ in range(count)]
    started = threading.Barrier(count + 1)

    def follow(first: int, times: dict[int, float]) -> None:
        revision, begun = 0, False
        with httpx.Client(timeout=httpx.Timeout(1.0, read=None), trust_env=False) as client:
            for turn in range(first, 1 << 30):
                create = {"key": b64(key), **({"start_revision": str(revision + 1)} if revision else {})}
                try:
                    with client.stream(
                        "POST", f"{urls[turn % len(urls)]}/v3/watch", json={"create_request": create}
                    ) as stream:
                        for line in stream.iter_lines():
                            if not begun:
                                begun = True
                                started.wait()
                            result = json.loads(line)["result"]
                            for event in result.get("events", ()):
                                times.setdefault(int(event["kv"]["version"]), time.monotonic())
                                revision = int(event["kv"]["mod_revision"])
                except (httpx.HTTPError, KeyError, ValueError):
                    time.sleep(0.05)

    for number in range(count):
        threading.Thread(target=follow, args=(number, seen[number]), daemon=True).start()
    started.wait()
    return lambda number: _when_all(seen, number)


def _when_all(seen: list[dict[int, float]], number: int) -> dict[int, float]:
    deadline = time.monotonic() + LIMIT_S
    while not all(max(times, default=0) >= number for times in seen):
        if time.monotonic() > deadline:
            raise TimeoutError(number)
        time.sleep(0.001)
    # who was told of a later change only has that since then
    return {
        wanted: max(min(at for have, at in times.items() if have >= wanted) for times in seen)
        for wanted in range(1, number + 1)
    }


class _Puts:
    """Writes one key by hand."""

    def __init__(self, key: str, urls: tuple[str, ...]) -> None:
        self._client = httpx.Client(timeout=2.0, trust_env=False)
        self._urls = urls
        self._request = {"key": b64(key), "value": VALUE}

    def __call__(self) -> None:
        self._client.post(f"{self._urls[0]}/v3/kv/put", json=self._request).raise_for_status()

    def until_taken(self) -> None:
        """Asks the members in turns until one takes it."""
        while True:
            try:
                return self()
            except httpx.HTTPError:
                self._urls = (*self._urls[1:], self._urls[0])
                time.sleep(0.05)


def _change(store: FlagStore, number: int) -> None:
    override = Override("on" if number % 2 else "off")
    store.commit("enable", ANN, lambda _: {"FLAG_00001": override})


# --- the rows ---


def _spread_rows(urls: tuple[str, ...], count: int, changes: int, name: str, *, target: float | None) -> list[Row]:
    """From the beginning of a change to its effect in processes that follow, ours and the plain one in turns."""
    label = f"spread{count}"
    source, store = open_flags(_settings(f"{label}", urls), watch=True)
    workers = min(count, 2)
    with ExitStack() as ends:
        ends.callback(source.close)
        ours_there, plain_there = (
            [ends.enter_context(OwnProcess(make, key, urls, count // workers)) for _ in range(workers)]
            for make, key in ((_follower, label), (_plain, f"/{label}-plain"))
        )
        put = _Puts(f"/{label}-plain", urls)
        for one in (*ours_there, *plain_there):
            one(0)  # it follows by then
        began: tuple[list[float], list[float]] = ([], [])
        for number in range(1, changes + 1):
            began[0].append(time.monotonic())
            _change(store, number)
            if count > 1:
                [one(number) for one in ours_there]
            time.sleep(0.02)
            began[1].append(time.monotonic())
            put()
            if count > 1:
                [one(number) for one in plain_there]
            time.sleep(0.02)
        ours, plain = (
            [(max(times[number] for times in all_times) - start) * 1e3 for number, start in enumerate(starts, 1)]
            for starts, all_times in zip(
                began, ([one(changes) for one in there] for there in (ours_there, plain_there)), strict=True
            )
        )
    rows = []
    for percent in (50, 99):
        our_cost, plain_cost = (sorted(side)[max(0, int(changes * percent / 100) - 1)] for side in (ours, plain))
        ratio = our_cost / plain_cost
        how = f"p{percent} of {changes}, from the beginning of the change; ours is in the audit and in a snapshot"
        what = f"change seen by {name}, p{percent}"
        rows.append(Row(what, our_cost, plain_cost, "ms", PLAIN, ratio, ratio, ratio, target, how))
    return rows


def _throughput_row(urls: tuple[str, ...], *, rounds: int) -> Row:
    source, store = open_flags(_settings("throughput", urls), watch=True)
    put, numbers = _Puts("/throughput-plain", urls), iter(range(1_000_000))

    def side(make: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            for _ in range(20):
                make()
            return (time.perf_counter() - began) * 1e3 / 20

        return run

    row = compare(
        "one writer, change after change",
        side(lambda: _change(store, next(numbers))),
        side(put),
        rounds=rounds,
        peer_name="plain put into etcd",
        how="ms a change, 20 in a row; ours compares, writes state and audit, and keeps both on this machine",
        unit="ms",
    )
    source.close()
    return row


def _growth(make: Callable[[], object], count: int) -> float:
    before = _resident()
    kept = make()
    grown = (_resident() - before) / count
    del kept
    return grown


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _our_memory(urls: tuple[str, ...], count: int) -> Callable[[], float]:
    _follower("memory", urls, 1)  # what is there once
    return lambda: _growth(lambda: _follower("memory", urls, count), count)


def _plain_memory(urls: tuple[str, ...], count: int) -> Callable[[], float]:
    _plain("/memory-plain", urls, 1)
    return lambda: _growth(lambda: _plain("/memory-plain", urls, count), count)


def _memory_row(urls: tuple[str, ...], count: int) -> Row:
    with OwnProcess(_our_memory, urls, count) as ours, OwnProcess(_plain_memory, urls, count) as plain:
        our_cost, plain_cost = ours(), plain()
    ratio = our_cost / plain_cost
    how = f"resident memory by {count} in one process; ours holds {FLAGS} flags, two connections and three threads"
    return Row("memory of a watcher", our_cost, plain_cost, "bytes", PLAIN, ratio, ratio, ratio, None, how)


def _evaluation_row(urls: tuple[str, ...], *, quick: bool) -> Row:
    managers = []
    for store in ("etcd", "files"):
        manager = FeatureFlagManager(settings=_settings("evaluation", urls, store))
        assert manager.is_enabled("FLAG_00007", user_id="u7")
        managers.append(manager)
    calls = 5_000 if quick else 50_000
    asked = "manager.is_enabled('FLAG_00007', user_id='u3')"
    row = compare(
        "is_enabled with etcd as store",
        *(per_call(asked, {"manager": manager}, calls) for manager in managers),
        rounds=5 if quick else 15,
        peer_name="with files as store",
        target=1.1,
        how="CPU of the call, two rules, no span",
    )
    for manager in managers:
        manager.close()
    return row


def _leader_row(cluster: EtcdCluster, *, losses: int) -> Row:
    """From the kill of the leader to the first change after it in a process that follows, both sides at once."""
    urls = cluster.urls
    source, store = open_flags(_settings("leader", urls), watch=True)
    put = _Puts("/leader-plain", urls)
    pairs = []
    with (
        OwnProcess(_follower, "leader", urls, 3) as ours_there,
        OwnProcess(_plain, "/leader-plain", urls, 3) as plain_there,
    ):
        ours_there(0), plain_there(0)
        for loss in range(1, losses + 1):
            leader = cluster.leader()
            killed = time.monotonic()
            leader.kill()
            writers = [
                threading.Thread(target=make)
                for make in (lambda: _until_made(store, 2 * loss - 1), put.until_taken)  # noqa: B023
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            pairs.append(tuple(there(loss)[loss] - killed for there in (ours_there, plain_there)))
            cluster.start()
            time.sleep(2)
    source.close()
    ratios = [ours / plain for ours, plain in pairs]
    return Row(
        "fresh after the leader was killed",
        statistics.median(ours for ours, _ in pairs),
        statistics.median(plain for _, plain in pairs),
        "s",
        PLAIN,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        2.0,
        f"from the kill to the first change after it in the last of three that follow; {losses} losses",
    )


def _until_made(store: FlagStore, number: int) -> None:
    while True:
        try:
            return _change(store, number)
        except StoreError:
            time.sleep(0.05)


if __name__ == "__main__":
    main(measure)
