"""How many records there are over time, by level: counted from the newest part of the files backwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from jarvis_otel.query.chart import length_text
from jarvis_otel.query.counts import Counting, Counts, Question
from jarvis_otel.query.fields import Columns
from jarvis_otel.query.files import LOGS, Seen
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.repeats import first_of
from jarvis_otel.query.scanner import Notes, Scanner
from jarvis_otel.query.stats import OTHER, Bar, bars, count, precision_for
from jarvis_otel.query.times import Interval, line_time
from jarvis_otel.settings import LEVELS
from jarvis_otel.web.log_pages import days_backwards, open_day
from jarvis_otel.web.scans import Budget

__all__ = ["BAR_LEVELS", "Histogram", "count_levels", "svg"]

BAR_LEVELS = (*LEVELS, OTHER)
"""What bars are made of, from their foot up."""

_MANY_BYTES = 64 << 20
_COLORS = {
    "DEBUG": "#8a8f98",
    "INFO": "#4d8fd6",
    "WARNING": "#c98a00",
    "ERROR": "#d64545",
    "CRITICAL": "#a8258f",
    OTHER: "#8a8f98",
}
_WIDTH, _HEIGHT, _FOOT = 960, 120, 18


@dataclass(frozen=True, slots=True)
class Histogram:
    """Records over time.

    Attributes:
        width: How long a bar is.
        bars: The bars in their order.
        records: How many records there are.
        levels: By level, the lowest first.
        counted_from: Where the time was over: older records than about this, an aware time, were not counted.
    """

    width: timedelta
    bars: Sequence[Bar]
    records: int
    levels: dict[str, int]
    counted_from: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """The histogram as the API gives it: a list for each level, one number a bar."""
        return {
            "records": self.records,
            "levels": self.levels,
            "bucket_s": int(self.width.total_seconds()),
            "counted_from": self.counted_from and line_time(self.counted_from),
            "start": [bar.start.timestamp() for bar in self.bars],
            "counts": {level: [bar.counts[level] for bar in self.bars] for level in BAR_LEVELS},
        }


def count_levels(log_dir: Path, criteria: Criteria, budget: Budget) -> Histogram:
    """Counts the records that match by time and level.

    Args:
        log_dir: The directory of the day files.
        criteria: Which records.
        budget: When it is spent, what has been counted by then is the answer.

    Raises:
        FileNotFoundError: There is no such directory.
        OSError: The files cannot be read.
        GoneError: Nobody wants the answer any more.
    """
    days = days_backwards(log_dir)
    size = sum(path.stat().st_size for _, path in days if path.exists())
    precision = precision_for(None, many=size > _MANY_BYTES)
    reach: list[str] = []
    stats = count(_backwards(days, criteria, precision, budget, reach), (), None, precision)
    interval, counted_from = criteria.interval, None
    if reach and stats.records:
        counted_from = datetime.fromisoformat(reach[0])
        interval = Interval(counted_from, interval.until)
    width, drawn = bars(stats, interval)
    return Histogram(width, drawn, stats.records, stats.levels(), counted_from)


def _backwards(
    days: Iterable[tuple[str, Path]], criteria: Criteria, precision: int, budget: Budget, reach: list[str]
) -> Iterator[Counts]:
    """The counts of the parts of the files, the newest one first; `reach` gets the time at which it had to end."""
    seen = Seen()
    counting = Counting(Question((), precision))
    for _, path in days:
        opened = open_day(path, criteria.interval)
        if opened is None:
            continue
        name, file = opened
        with file:
            scanner = Scanner(file, name, LOGS, criteria.filters, criteria.interval)
            for part in reversed(scanner.parts()):
                counts = counting.count(_once(scanner.columns(part, counting.keys, Notes()), seen, budget))
                yield counts
                if budget.is_spent:
                    reach.append(counts.earliest)
                    return


def _once(columns: Iterable[Columns], seen: Seen, budget: Budget) -> Iterator[Columns]:
    """Without the records whose uid was there before."""
    for each in columns:
        budget.check_reader()
        yield first_of(each, seen)


def svg(histogram: Histogram) -> str:
    """The bars as a picture for pages without scripts; the levels are told in its title too."""
    most = max((bar.counts.total() for bar in histogram.bars), default=0)
    step = _WIDTH / max(1, len(histogram.bars))
    room = _HEIGHT - _FOOT
    pieces = []
    for number, bar in enumerate(histogram.bars):
        top = float(room)
        for level in BAR_LEVELS:
            if not bar.counts[level]:
                continue
            height = max(1.0, room * bar.counts[level] / most)
            top -= height
            pieces.append(
                f'<rect x="{number * step + 0.5:.1f}" y="{max(0.0, top):.1f}" width="{max(1.0, step - 1):.1f}" '
                f'height="{height:.1f}" fill="{_COLORS[level]}"/>'
            )
    for at, anchor in ((0, "start"), (len(histogram.bars) - 1, "end")):
        if histogram.bars:
            moment = histogram.bars[at].start.astimezone()
            x = 0 if anchor == "start" else _WIDTH
            pieces.append(
                f'<text x="{x}" y="{_HEIGHT - 4}" text-anchor="{anchor}" font-size="12" font-family="sans-serif" '
                f'fill="#8a8f98">{moment:%Y-%m-%d %H:%M:%S}</text>'
            )
    levels = ", ".join(f"{number} {level}" for level, number in histogram.levels.items()) or "none"
    title = f"{histogram.records} records: {levels}; a bar is {length_text(histogram.width)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img"><title>{escape(title)}</title>{"".join(pieces)}</svg>'
    )
