"""`jarvis logs sql`: the same records as every other command, in SQL, and nothing else of the machine."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path
from jarvis_otel.cli.main import main
from jarvis_otel.query.log_query import LogQuery

pytest.importorskip("duckdb")
JARVIS = (sys.executable, "-m", "jarvis_otel.cli.main")
DATA = Path(__file__).parent / "data" / "otelcol"


def record(number, **more):
    start = {"timestamp": f"2026-01-18T13:00:{number:02d}.123456Z", "level": ("INFO", "ERROR")[number % 2]}
    rest = {
        "message": f"m{number}",
        "service": "trading",
        "active_flags": ["A"],
        "context": {"n": number, "deep": {"x": [1]}},
    }
    return start | rest | {"flags": {"A": "on"}, "duration_ms": number / 2, "_meta": {"uid": f"u{number}"}} | more


RECORDS = [record(number) for number in range(10)]
SPAN = {"timestamp": "2026-01-18T13:00:00.000000Z", "end": "2026-01-18T13:00:01.000000Z", "duration_ms": 1000.0, "name": "POST",
        "kind": "server", "service": "api", "trace_id": "t", "span_id": "s", "status": {"code": "ok"}}  # fmt: skip


@pytest.fixture
def home(own_project):
    logs = own_project / "logs"
    logs.mkdir()
    dump = lambda *items: b"".join(orjson.dumps(item) + b"\n" for item in items)  # noqa: E731
    # a day that is archived, a torn line, a foreign one, repeats, and a line that is not there in full yet
    old = logs / "jarvis-2026-01-17.jsonl"
    old.write_bytes(dump(*RECORDS[:4]))
    target = archive_path(old)
    target.parent.mkdir(parents=True)
    with target.open("wb") as file:
        gzip_blocks.write([old.read_bytes()], file)
    old.unlink()
    (logs / "jarvis-2026-01-18.jsonl").write_bytes(
        dump(*RECORDS[3:7]) + b'{"torn\n{"foreign":1}\nno json\n' + dump(*RECORDS[6:]) + b'{"timestamp":"2026-01'
    )
    (logs / "traces-2026-01-18.jsonl").write_bytes(dump(SPAN, SPAN))
    return own_project


@pytest.fixture
def sql(home, capsysbinary):
    def run(*args):
        code = main(["logs", "sql", *args])
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def test_the_table_logs_has_each_record_once_with_all_that_it_says(sql):
    code, out, err = sql("SELECT * FROM logs ORDER BY timestamp", "--format", "json")
    found = [{key: value for key, value in row.items() if value is not None} for row in json.loads(out)]
    assert (code, err) == (0, "")
    assert found == RECORDS


def test_the_table_spans_has_spans(sql):
    assert json.loads(
        sql('SELECT name, "end" - timestamp AS took, status.code FROM spans', "--format", "jsonl")[1]
    ) == {
        "name": "POST",
        "took": "0:00:01",
        "code": "ok",
    }


def test_fields_within_fields_can_be_asked_for(sql):
    asked = "SELECT count(*) AS n FROM logs WHERE flags->>'A' = 'on' AND (context->>'$.deep.x[0]')::INT = 1 AND 'A' IN active_flags"
    assert json.loads(sql(asked, "--format", "json")[1]) == [{"n": 10}]


def test_the_interval_holds(sql):
    code, out, err = sql(
        "SELECT count(*) AS n FROM logs",
        "--since",
        "2026-01-18T13:00:02Z",
        "--until",
        "2026-01-18T13:00:05Z",
        "--format",
        "json",
    )
    assert (code, json.loads(out)) == (0, [{"n": 3}])
    assert "from 2026-01-18" in err


def test_times_with_an_offset_are_in_utc_too(sql, home):
    odd = [record(1, timestamp=text, _meta={}) for text in ("2026-01-18T14:00:00+01:00", "2026-01-18T13:00:00")]
    (home / "odd.jsonl").write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in odd))
    shutil.rmtree(home / "logs")
    (home / "logs").mkdir()
    (home / "odd.jsonl").rename(home / "logs" / "jarvis-2026-01-18.jsonl")
    out = sql("SELECT DISTINCT timestamp FROM logs", "--format", "jsonl")[1]
    assert json.loads(out) == {"timestamp": "2026-01-18T13:00:00.000000Z"}


def test_formats_are_those_of_the_other_commands(sql):
    asked = "SELECT level, count(*) AS n, '=1+1' AS f FROM logs GROUP BY ALL ORDER BY level"
    assert sql(asked)[1].splitlines() == ["level  n  f", "ERROR  5  =1+1", "INFO   5  =1+1"]
    assert sql(asked, "--format", "csv")[1] == "level,n,f\nERROR,5,'=1+1\nINFO,5,'=1+1\n"
    assert sql("SELECT 1 AS x WHERE false", "--format", "json")[:2] == (1, "[]\n")


def test_values_of_all_types_become_json(sql):
    asked = (
        "SELECT 1.5::DECIMAL(4,2) AS d, 2::HUGEINT AS h, 170141183460469231731687303715884105727::HUGEINT AS big, 'x'::BLOB AS b, "
        "MAP {1: 'a'} AS m, [1, NULL] AS l, DATE '2026-01-18' AS day, TIMESTAMPTZ '2026-01-18 14:00:00+01' AS t, 'nan'::DOUBLE AS n, "
        "uuid() IS NOT NULL AS u, INTERVAL 1 DAY AS i, TIME '10:00' AS c"
    )
    assert json.loads(sql(asked, "--format", "jsonl")[1]) == {
        "d": 1.5,
        "h": 2,
        "big": "170141183460469231731687303715884105727",
        "b": "78",
        "m": {"1": "a"},
        "l": [1, None],
        "day": "2026-01-18",
        "t": "2026-01-18T13:00:00.000000Z",
        "n": None,
        "u": True,
        "i": "1 day, 0:00:00",
        "c": "10:00:00",
    }


def test_lines_of_the_real_collector_are_records_too(sql, home):
    shutil.rmtree(home / "logs")
    shutil.copytree(DATA, home / "logs")
    wanted = Counter(item["level"] for item in LogQuery(home / "logs").iterate())
    code, out, _ = sql("SELECT level, count(*) AS n FROM logs GROUP BY ALL", "--format", "json")
    assert code == 0
    assert {row["level"]: row["n"] for row in json.loads(out)} == wanted
    assert json.loads(sql("SELECT count(*) AS n FROM spans", "--format", "json")[1])[0]["n"] > 0


def test_named_files_are_asked_whatever_they_are_called(sql, home, tmp_path):
    odd = tmp_path / "o'dd [x]*.log"
    odd.write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in (*RECORDS, SPAN)))
    assert json.loads(sql("SELECT count(*) AS n FROM logs", "--file", str(odd), "--format", "json")[1]) == [{"n": 10}]
    assert json.loads(sql("SELECT count(*) AS n FROM spans", "--file", str(odd), "--format", "json")[1]) == [{"n": 1}]
    assert sql("SELECT 1 FROM logs", "--file", str(tmp_path / "none"))[0] == 2


def test_an_empty_directory_has_empty_tables(sql, home):
    shutil.rmtree(home / "logs")
    (home / "logs").mkdir()
    assert json.loads(sql("SELECT count(*) AS n, max(timestamp) AS t FROM logs", "--format", "json")[1]) == [
        {"n": 0, "t": None}
    ]
    assert sql("SELECT * FROM spans")[0] == 1


@pytest.mark.parametrize(
    "asked",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_json('http://127.0.0.1:9/x.json')",
        "COPY (SELECT 1) TO '{home}/logs/jarvis-2026-01-18.jsonl'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{home}/x'",
        "ATTACH '{home}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "PRAGMA enable_profiling",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW logs",
        "SELECT 1; SELECT 2",
        "EXPORT DATABASE '{home}/x'",
        "CALL enable_logging(storage = 'file')",
        "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{home}/x'}})",
        "SELECT * FROM RECORDS",
        "SELECT nothing FROM logs",
        "SELEC",
        "",
        "SELECT 'x",
    ],
)
def test_nothing_but_the_tables_is_reached_and_what_is_wrong_is_one_line(sql, home, asked):
    before = sorted(path for path in home.rglob("*"))
    content = (home / "logs" / "jarvis-2026-01-18.jsonl").read_bytes()
    code, out, err = sql(asked.format(home=home))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("jarvis logs sql: ")
    assert sorted(path for path in home.rglob("*")) == before
    assert (home / "logs" / "jarvis-2026-01-18.jsonl").read_bytes() == content


def test_a_table_of_log_text_is_harmless_on_a_terminal(sql, home):
    evil = "\x1b]52;c;x\x07\u202e\u2028\x9b31m end"
    with (home / "logs" / "jarvis-2026-01-18.jsonl").open("ab") as file:
        file.write(b"\n" + orjson.dumps(record(30, message=evil, context={evil: evil})) + b"\n")
    for form in ("human", "csv", "json"):
        _, out, err = sql(
            f"SELECT message, context, 1 AS \"{evil}\" FROM logs WHERE message LIKE '% end'", "--format", form
        )
        assert (out + err).replace("\n", "").isprintable()
        assert "end" in out


def test_ctrl_c_ends_a_statement_that_would_take_for_ever(home):
    asked = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range < b.range"
    process = subprocess.Popen([*JARVIS, "logs", "sql", asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_without_duckdb_the_cure_is_told(home):
    code = "import sys; sys.modules['duckdb'] = None; from jarvis_otel.cli.main import main; sys.exit(main(['logs', 'sql', 'SELECT 1']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jarvis logs sql: DuckDB is missing: pip install 'jarvis-otel[query]'\n"
