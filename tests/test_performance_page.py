"""docs/performance.md says what the last runs of the benchmarks found."""

from pathlib import Path

from benchmarks.report import PAGE, load, page

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_page_is_what_the_kept_results_say():
    text = PAGE.read_text()
    assert page(text, load()) == text


def test_each_benchmark_has_its_results_on_the_page():
    names = {path.stem for path in BENCHMARKS.glob("*.py") if "\ndef measure(" in path.read_text()}
    assert names == set(load())


def test_each_target_that_was_missed_is_explained():
    rows = [row for result in load().values() for row in result.rows]
    missed = {row.what for row in rows if row.target is not None and row.ratio > row.target}
    missed |= {row.what for row in rows if row.limit is not None and row.ours > row.limit}
    explained = PAGE.read_text().partition("## What bounds the rest")[2]
    assert [what for what in missed if what not in explained] == []
