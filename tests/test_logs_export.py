"""`jarvis logs export`: all that matches, in a file that is there whole or not at all."""

import csv
import signal
import stat
import subprocess
import sys

import orjson
import pytest

from jarvis_otel.cli.main import main
from jarvis_otel.query.log_query import LogQuery

JARVIS = (sys.executable, "-m", "jarvis_otel.cli.main")


def record(number, **more):
    start = {"timestamp": f"2026-01-18T13:{number // 60:02d}:{number % 60:02d}.000000Z", "level": "INFO"}
    rest = {"message": f"=m{number}", "service": "trading", "active_flags": ["A"], "context": {"n": number}}
    return start | rest | {"_meta": {"uid": f"u{number}"}} | more


RECORDS = [record(number) for number in range(300)]


def names(directory, part):
    return [path.name for path in directory.iterdir() if part in path.name]


@pytest.fixture
def logs(own_project):
    path = own_project / "logs"
    path.mkdir()
    (path / "jarvis-2026-01-18.jsonl").write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in RECORDS))
    return path


@pytest.fixture
def export(logs, capsysbinary):
    def run(*args):
        code = main(["logs", "export", *map(str, args)])
        out, err = capsysbinary.readouterr()
        assert out == b""
        return code, err.decode()

    return run


def test_all_records_are_written_as_they_are_without_a_limit(export, logs, own_project):
    target = own_project / "all.jsonl"
    assert export("-o", target) == (0, f"jarvis logs export: 300 records to {target} (jsonl)\n")
    assert target.read_bytes() == (logs / "jarvis-2026-01-18.jsonl").read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(own_project, "all") == ["all.jsonl"]


def test_the_format_is_told_by_the_name_and_filters_hold(export, own_project):
    target = own_project / "some.csv"
    assert export("-o", target, "--where", "context.n<3")[0] == 0
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["message"] for row in rows] == ["'=m0", "'=m1", "'=m2"]
    other = own_project / "some.txt"
    assert export("-o", other, "--format", "csv", "--search", "m299")[0] == 0
    assert other.read_text().count("\n") == 2


def test_parquet_has_the_columns_of_the_table_logs(export, own_project):
    duckdb = pytest.importorskip("duckdb")
    target = own_project / "a'b.parquet"
    assert export("-o", target)[0] == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    with duckdb.connect() as connection:
        text = str(target).replace("'", "''")
        found = connection.execute(
            f"SELECT message, timestamp, context->>'n' FROM '{text}' ORDER BY timestamp"
        ).fetchall()
    assert [row[0] for row in found] == [item["message"] for item in RECORDS]
    assert found[5][1].isoformat() == "2026-01-18T13:00:05"
    assert found[5][2] == "5"


def test_nothing_found_leaves_what_was_there(export, own_project):
    target = own_project / "kept.jsonl"
    target.write_text("before\n")
    code, err = export("-o", target, "--service", "none")
    assert code == 1
    assert "not written: nothing found" in err
    assert target.read_text() == "before\n"
    assert names(own_project, "kept") == ["kept.jsonl"]


def test_a_link_is_followed_and_what_it_leads_to_is_replaced(export, own_project):
    target, link = own_project / "target", own_project / "link.jsonl"
    target.write_text("before\n")
    link.symlink_to(target)
    assert export("-o", link, "--search", "m7")[0] == 0
    assert link.is_symlink()
    assert b"m7" in target.read_bytes()


def test_a_log_file_is_never_replaced_by_an_export_of_itself(export, logs):
    path = logs / "jarvis-2026-01-18.jsonl"
    before = path.read_bytes()
    for target in (path, logs / "jarvis-2026-01-19.jsonl", logs / "archive" / "2026-01" / "jarvis-2026-01-01.jsonl.gz"):
        code, err = export("-o", target)
        assert (code, err.count("\n")) == (2, 1)
        assert "is a log file itself" in err
    assert export("--file", path, "-o", path)[0] == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("target", ["/dev/null", "/nowhere/x.csv", "/dev/full/x"])
def test_a_target_that_cannot_be_written_is_one_line(export, target):
    code, err = export("-o", target)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"jarvis logs export: {target}: ")


@pytest.mark.parametrize("killed", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_export_that_is_ended_leaves_what_was_there(logs, own_project, killed):
    with (logs / "jarvis-2026-01-18.jsonl").open("ab") as file:
        file.writelines(
            orjson.dumps(record(number % 3600, _meta={"uid": f"v{number}"})) + b"\n" for number in range(200_000)
        )
    target = own_project / "out.jsonl"
    target.write_text("before\n")
    process = subprocess.Popen([*JARVIS, "logs", "export", "-o", str(target)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not names(own_project, ".out"):
        pass
    process.send_signal(killed)
    process.wait(30)
    assert target.read_text() == "before\n" or target.read_bytes().count(b"\n") == 200_300
    if killed == signal.SIGINT:
        assert process.returncode in (130, 0)
        assert names(own_project, ".out") == []


def test_pages_and_iteration_give_all_without_a_limit(logs):
    query = LogQuery(logs)
    pages = list(query.pages(128, text="m"))
    assert [len(page) for page in pages] == [128, 128, 44]
    assert [item for page in pages for item in page] == RECORDS == list(query.iterate())
    assert list(query.pages(text="none")) == []
    with pytest.raises(ValueError, match="size"):
        query.pages(0)


def test_pages_of_a_query_go_back_from_the_newest(logs, capsysbinary):
    seen = []
    for page in ("1", "2", "3", "4"):
        code = main(["logs", "query", "--limit", "128", "--page", page, "--format", "jsonl"])
        out, err = capsysbinary.readouterr()
        assert code == (1 if page == "4" else 0)
        seen = [orjson.loads(line) for line in out.splitlines()] + seen
        if page == "2":
            assert b"page 2, the newest 129 to 256 of 300" in err
    assert seen == RECORDS
    assert main(["logs", "query", "--page", "0"]) == 2
    assert main(["logs", "query", "--page", "2", "--limit", "0"]) == 2
