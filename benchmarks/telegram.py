"""The kill switch in Telegram: from the arrival of /flag_disable at the bot to a running process that sees it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Row, main, started
from jarvis_otel import FeatureFlagManager
from tests.bot_api import TOKEN, BotApi, bot_api

ADMIN = 101
BOUND_MS = 200.0

APP = """
import sys, time
from jarvis_otel import FeatureFlagManager
manager = FeatureFlagManager(sys.argv[1], service="app")
was = manager.is_enabled("FLAG")
print("ready", flush=True)
while True:
    on = manager.is_enabled("FLAG")
    if on != was:
        was = on
        # one clock for all processes of the machine
        print(int(on), time.monotonic(), flush=True)
    time.sleep(0.0005)
"""


def measure(quick: bool) -> list[Row]:
    """The rows of this subject."""
    home = Path(os.environ["JARVIS_HOME"])
    (home / "config" / "flags.yaml").write_text('version: "1.0"\nflags:\n  FLAG: {}\n')
    os.environ |= {"JARVIS_TELEGRAM_TOKEN": TOKEN, "JARVIS_TELEGRAM_ADMINS": str(ADMIN), "OTEL_LOGS_EXPORTER": "none"}
    samples = 30 if quick else 300
    with bot_api() as api:
        os.environ["JARVIS_TELEGRAM_API_URL"] = api.url
        api.know(ADMIN)
        with (
            started("-c", APP, str(home / "config" / "flags.yaml")) as app,
            started("-m", "jarvis_otel.cli.main", "telegram"),
        ):
            assert app.stdout is not None
            app.stdout.readline()
            api.wait(lambda: api.menus, 60)
            manager = FeatureFlagManager(home / "config" / "flags.yaml")
            seen = [_seen_after(api, app, manager, number) for number in range(samples)]
            manager.close()
        peer = [_by_command_line() for _ in range(3 if quick else 10)]
    p99 = sorted(seen)[max(0, int(len(seen) * 0.99) - 1)]
    middle = statistics.median(peer)
    how = (
        f"p99 of {samples}, from when the bot was given the update; audit and state synced to disk, real processes; "
        f"p50 {statistics.median(seen):.1f} ms, worst {max(seen):.1f} ms"
    )
    what = "/flag_disable in Telegram seen by a running process"
    name = "jarvis flags disable, from start to end"
    ratios = [one / middle for one in seen]
    return [Row(what, p99, middle, "ms", name, p99 / middle, min(ratios), max(ratios), None, how, BOUND_MS)]


def _seen_after(api: BotApi, app: subprocess.Popen[str], manager: FeatureFlagManager, number: int) -> float:
    """Milliseconds from when the bot was given /flag_disable to when the application saw the flag off."""
    assert app.stdout is not None
    # beyond twenty a minute the bot turns nothing on
    assert manager.set_enabled("FLAG", True)
    assert app.stdout.readline().startswith("1 ")
    time.sleep(0.01)
    update = api.say(ADMIN, f"/flag_disable FLAG because number {number}")
    state, at = app.stdout.readline().split()
    assert state == "0"
    return (float(at) - api.polled[update]) * 1e3


def _by_command_line() -> float:
    _jarvis("enable", "FLAG")
    begun = time.perf_counter()
    _jarvis("disable", "FLAG")
    return (time.perf_counter() - begun) * 1e3


def _jarvis(*arguments: str) -> None:
    command = [sys.executable, "-m", "jarvis_otel.cli.main", "flags", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(measure)
