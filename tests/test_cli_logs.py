"""`jarvis logs`: exact answers, exit codes, and nothing that a terminal or a shell would act on."""

import csv
import io
import json
import os
import pty
import shlex
import subprocess
import sys
import time

import orjson
import pytest

from jarvis_otel.cli.main import main
from jarvis_otel.query.log_query import GROUPS
from tests.trades import ENGINE_SPAN, FAILURE, RECORDS, SPANS, TRACE_ID, record, write_day

FLAGS = """
version: "1.0"
flags:
  LIVE_TRADING_ENABLED: {name: Live, enabled: false, dangerous: true}
  ADVANCED_TRADING_ENABLED: {name: Advanced, enabled: false, dangerous: true}
  NEW_UI: {name: UI, enabled: false}
  TRADE_LIMIT: {name: Limit, enabled: false}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("JARVIS_", "FF_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JARVIS_HOME", str(tmp_path))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "flags.yaml").write_text(FLAGS)
    write_day(tmp_path / "logs", "jarvis", RECORDS)
    write_day(tmp_path / "logs", "traces", SPANS)
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield tmp_path
    time.tzset()


@pytest.fixture
def jarvis(home, capsysbinary):
    def run(*args):
        code = main(["logs", *args])
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def test_query_prints_one_readable_line_a_record_oldest_first(jarvis):
    code, out, err = jarvis("query", "--correlation-id", "trade-xyz789")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "2026-01-18 14:30:01.123  api         INFO     Trade requested  ⚑ NEW_UI=on  id trade-xyz789",
        (
            "2026-01-18 14:30:03.123  trading     ERROR    Trade execution failed: insufficient balance  "
            'symbol=SOL note="two words" requested_amount=1.0  '
            "InsufficientBalanceError: Wallet has 0.5 SOL, need 1.0 SOL  12.5 ms  "
            "⚑ ADVANCED_TRADING_ENABLED=off LIVE_TRADING_ENABLED=on  id trade-xyz789"
        ),
    ]


def test_the_interval_that_is_used_is_told_on_stderr(jarvis):
    code, out, err = jarvis("query", "--since", "2026-01-18T14:30:02", "--until", "14:35", "--format", "jsonl")
    assert (code, len(out.splitlines())) == (0, 3)
    assert err == "jarvis logs query: from 2026-01-18 14:30:02+01:00 to 2026-01-18 14:35:00+01:00\n"


def test_a_time_that_begins_with_a_minus_is_no_option(jarvis):
    assert jarvis("query", "--since", "-3h")[0] == 1
    assert jarvis("query", "--since", "-200000h")[0] == 0


def test_jsonl_gives_the_lines_as_they_stand_in_the_file(jarvis, home):
    code, out, _ = jarvis("query", "--format", "jsonl", "--limit", "0")
    assert code == 0
    assert out == (home / "logs" / "jarvis-2026-01-18.jsonl").read_text()


@pytest.mark.parametrize("limit", ["0", "100"])
def test_json_gives_one_array(jarvis, limit):
    assert json.loads(jarvis("query", "--format", "json", "--limit", limit)[1]) == RECORDS
    assert jarvis("query", "--format", "json", "--limit", limit, "--service", "none")[:2] == (1, "[]\n")


def test_csv_has_a_header_and_is_safe_to_open_in_a_spreadsheet(jarvis, home):
    hostile = record(
        4, "INFO", "=cmd|'/C calc'!A0", "@x", user_id="+1", duration_ms=-5, context={"=a": "=b"}, session_id="\tx"
    )
    write_day(home / "logs", "jarvis", [*RECORDS, hostile])
    code, out, _ = jarvis("query", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert list(rows[0])[:5] == ["timestamp", "level", "service", "message", "correlation_id"]
    assert rows[2]["error.type"] == "InsufficientBalanceError"
    assert rows[2]["error.stack_trace"] == FAILURE["error"]["stack_trace"]
    assert json.loads(rows[2]["context"]) == FAILURE["context"]
    assert rows[3]["message"] == "'=cmd|'/C calc'!A0"
    assert (rows[3]["service"], rows[3]["user_id"], rows[3]["session_id"]) == ("'@x", "'+1", "'\tx")
    assert (rows[3]["duration_ms"], rows[3]["context"]) == ("-5", '{"=a":"=b"}')


def test_a_limit_gives_the_newest_and_says_what_it_left_out(jarvis):
    code, out, err = jarvis("query", "--limit", "1", "--format", "json")
    assert (code, json.loads(out)) == (0, [RECORDS[3]])
    assert err == "jarvis logs query: the newest 1 of 4; --limit 0 gives all, --page 2 those before\n"


def test_options_combine(jarvis):
    asked = ["--level", "error", "--service", "trading", "--user", "tg_1", "--flag", "ADVANCED_TRADING_ENABLED=off"]
    asked += [
        "--search",
        "INSUFFICIENT",
        "--where",
        "duration_ms>10 and context.symbol=SOL",
        "--trace-id",
        TRACE_ID.upper(),
    ]
    assert json.loads(jarvis("query", *asked, "--format", "json")[1]) == [FAILURE]


def test_nothing_found_is_exit_1_and_says_where_was_looked(jarvis, home):
    code, out, err = jarvis("query", "--service", "none")
    assert (code, out, err) == (1, "", f"jarvis logs query: nothing found in {home}/logs (1 file)\n")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["query", "--since", "blah"], "jarvis logs query: --since: got 'blah', want a time such as 2026-01-18,"),
        (["query", "--level", "LOUD"], "jarvis logs query: --level: got 'LOUD', want one of DEBUG, INFO,"),
        (["query", "--flag", "=on"], "jarvis logs query: --flag: got '=on', want FLAG, FLAG=off or FLAG=variant"),
        (["query", "--where", "a>"], "jarvis logs query: --where: column 3: got the end, want a value"),
        (["query", "--limit", "-5"], "jarvis logs query: --limit: got '-5', want a whole number; 0 is all"),
        (["query", "--since", "today", "--until", "yesterday"], "jarvis logs query: --until: got yesterday, which is"),
        (["errors", "--until", "3h"], "jarvis logs errors: --until: got '3h', want a time"),
        (["query", "--dir", "/nowhere/logs"], "jarvis logs query: /nowhere/logs: no such directory; name one by --dir"),
        (["trace", "x", "--dir", "/dev/null"], "jarvis logs trace: /dev/null: cannot be read: Not a directory"),
    ],
)
def test_bad_input_is_exit_2_and_one_line(jarvis, args, complaint):
    code, out, err = jarvis(*args)
    assert (code, out) == (2, "")
    assert err.startswith(complaint)
    assert err.count("\n") == 1


def test_a_day_file_that_cannot_be_read_is_exit_2_and_named(jarvis, home):
    (home / "logs" / "jarvis-2026-01-19.jsonl").mkdir()
    code, _, err = jarvis("query", "--level", "ERROR")
    assert (code, err) == (
        2,
        f"jarvis logs query: {home}/logs/jarvis-2026-01-19.jsonl: cannot be read: Is a directory\n",
    )


def test_settings_that_cannot_be_used_are_exit_2(jarvis, monkeypatch):
    monkeypatch.setenv("JARVIS_CONSOLE", "loud")
    code, out, err = jarvis("query")
    assert (code, out) == (2, "")
    assert err.startswith("jarvis: JARVIS_CONSOLE: got 'loud'")


def test_lines_that_are_no_records_are_told(jarvis, home):
    with (home / "logs" / "jarvis-2026-01-18.jsonl").open("ab") as file:
        file.write(b"torn\n{\n")
    code, out, err = jarvis("query")
    assert (code, len(out.splitlines())) == (0, 4)
    assert err == "jarvis logs query: jarvis-2026-01-18.jsonl: 2 lines are no records, passed over\n"


def test_the_log_directory_of_the_environment_is_honoured(jarvis, tmp_path, monkeypatch):
    write_day(tmp_path / "elsewhere", "jarvis", [record(1, "INFO", "there")])
    monkeypatch.setenv("JARVIS_LOG_DIR", str(tmp_path / "elsewhere"))
    assert json.loads(jarvis("query", "--format", "json")[1])[0]["message"] == "there"


def test_trace_shows_spans_and_records_of_all_processes_with_the_flags_at_each_step(jarvis):
    code, out, err = jarvis("trace", "trade-xyz789")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "trade-xyz789  3 records, 2 spans, 2 services, from 2026-01-18 14:30:01.000 for 2.123 s",
        "   0.000 s  api      ▸ POST /trade  3100.0 ms  ⚑ NEW_UI=on",
        "   0.123 s  api        INFO     Trade requested",
        "   0.500 s  trading    ▸ execute  2500.0 ms  error no balance",
        "   1.123 s  trading      INFO     Sizing  ⚑ LIVE_TRADING_ENABLED=on TRADE_LIMIT=low",
        (
            "   2.123 s  trading      ERROR    Trade execution failed: insufficient balance  "
            'symbol=SOL note="two words" requested_amount=1.0  '
            "InsufficientBalanceError: Wallet has 0.5 SOL, need 1.0 SOL  12.5 ms  ⚑ ADVANCED_TRADING_ENABLED=off"
        ),
        "                                  Traceback (most recent call last):",
        '                                    File "trading.py", line 123',
        "",
        "flags on:    LIVE_TRADING_ENABLED, NEW_UI",
        "flags off:   ADVANCED_TRADING_ENABLED",
        "variants:    TRADE_LIMIT=low",
        "first error: InsufficientBalanceError: Wallet has 0.5 SOL, need 1.0 SOL  (trading, after 2.123 s)",
        "reproduce:   jarvis logs reproduce trade-xyz789",
    ]


def test_trace_as_json_has_records_spans_and_the_last_flags(jarvis):
    code, out, _ = jarvis("trace", "trade-xyz789", "--format", "json")
    assert code == 0
    assert json.loads(out) == {
        "correlation_id": "trade-xyz789",
        "trace_ids": [TRACE_ID],
        "records": RECORDS[:3],
        "spans": [SPANS[1], SPANS[0]],
        "flags": {
            "ADVANCED_TRADING_ENABLED": "off",
            "LIVE_TRADING_ENABLED": "on",
            "NEW_UI": "on",
            "TRADE_LIMIT": "low",
        },
    }


def test_an_unknown_correlation_id_is_exit_1(jarvis):
    assert jarvis("trace", "none")[:2] == (1, "")
    code, out, _ = jarvis("trace", "none", "--format", "json")
    assert (code, json.loads(out)["records"]) == (1, [])
    assert jarvis("reproduce", "none")[:2] == (1, "")


def test_spans_whose_parents_form_a_circle_are_shown_all_the_same(jarvis, home):
    circle = [SPANS[0], SPANS[1] | {"parent_span_id": ENGINE_SPAN}, SPANS[0] | {"span_id": "x", "parent_span_id": "x"}]
    write_day(home / "logs", "traces", circle)
    assert jarvis("trace", "trade-xyz789")[1].count("▸") == 3


def test_errors_are_counted_as_a_table(jarvis):
    code, out, err = jarvis("errors")
    assert (code, out, err) == (0, "error.type                errors\nInsufficientBalanceError       1\n", "")


def test_errors_by_flag_are_rates_by_variant(jarvis):
    code, out, _ = jarvis("errors", "--by", "flag", "--since", "2026-01-01")
    assert code == 0
    assert out.splitlines() == [
        "flag                      variant  records  errors      rate",
        "ADVANCED_TRADING_ENABLED  off            1       1  100.00 %",
        "LIVE_TRADING_ENABLED      on             2       1   50.00 %",
        "NEW_UI                    on             1       0    0.00 %",
        "TRADE_LIMIT               low            1       0    0.00 %",
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_errors_are_grouped_by_all_that_log_query_knows(jarvis, group):
    assert jarvis("errors", "--by", group)[0] == 0


def test_errors_as_json(jarvis):
    assert json.loads(jarvis("errors", "--by", "service", "--format", "json")[1]) == {"trading": 1}
    by_flag = json.loads(jarvis("errors", "--by", "flag", "--format", "json")[1])
    assert by_flag["LIVE_TRADING_ENABLED"] == {"on": {"records": 2, "errors": 1, "rate": 0.5}}
    assert jarvis("errors", "--since", "2027-01-01", "--format", "json")[:2] == (1, "{}\n")


def test_reproduce_prints_the_pins_and_holds_back_dangerous_flags_that_were_on(jarvis):
    code, out, err = jarvis("reproduce", "trade-xyz789")
    assert (code, out.splitlines()) == (
        0,
        [
            "export FF_ADVANCED_TRADING_ENABLED=false",
            "# export FF_LIVE_TRADING_ENABLED=true  # dangerous: it was on",
            "export FF_NEW_UI=true",
            "export FF_TRADE_LIMIT=low",
        ],
    )
    assert err.startswith("jarvis logs reproduce: LIVE_TRADING_ENABLED: dangerous, and was on: only a comment")


def test_reproduce_exports_dangerous_flags_when_told_so(jarvis):
    assert (
        "export FF_LIVE_TRADING_ENABLED=true"
        in jarvis("reproduce", "trade-xyz789", "--include-dangerous")[1].splitlines()
    )


@pytest.mark.parametrize("content", [None, "flags: [", "flags: {NEW_UI: {enabled: 5}}"])
def test_flags_that_the_flag_file_does_not_tell_of_count_as_dangerous(jarvis, home, content):
    path = home / "config" / "flags.yaml"
    path.unlink() if content is None else path.write_text(content)
    code, out, _ = jarvis("reproduce", "trade-xyz789")
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith("#")] == [
        "export FF_ADVANCED_TRADING_ENABLED=false"
    ]


def test_what_reproduce_prints_assigns_variables_and_does_nothing_else(jarvis, home):
    marker = home / "marker"
    evil = {
        "OK": f"$(touch {marker})",
        "QUOTED": f"'; touch {marker}; '",
        f"X; touch {marker}; Y": "on",
        "LINES": f"on\ntouch {marker}",
        "X-Y": "on",
        "ok": "blue",
        "": "on",
        "\u0131d": "on",
    }
    write_day(home / "logs", "jarvis", [record(1, "INFO", "m", correlation_id="evil", flags=evil)])
    code, out, err = jarvis("reproduce", "evil")
    assert code == 0
    assert [line[:2] for line in out.splitlines()] == ["# ", "# "]
    assert err.count("left out") == 6
    out = jarvis("reproduce", "evil", "--include-dangerous")[1]
    done = subprocess.run(["sh", "-c", f"{out}\nenv"], capture_output=True, text=True, check=True)
    assert f"FF_OK=$(touch {marker})\n" in done.stdout
    assert f"FF_QUOTED='; touch {marker}; '\n" in done.stdout
    assert not marker.exists()


HOSTILE = "".join(map(chr, [*range(32), *range(127, 160)])) + "\u202e\u2066\u200f\u2028\ufeff\u200b\U000e0041 end"


@pytest.fixture
def hostile(home):
    spiced = dict.fromkeys(("service", "message", "request_id", "session_id", "user_id", "event", "logger"), HOSTILE)
    one = (
        record(1, "ERROR", "m")
        | spiced
        | {"level": "ERROR", "correlation_id": "c", "context": {HOSTILE: HOSTILE, "d": [HOSTILE]}}
    )
    one |= {
        "flags": {HOSTILE: HOSTILE},
        "active_flags": [HOSTILE],
        "error": dict.fromkeys(("type", "message", "stack_trace"), HOSTILE),
    }
    write_day(home / "logs", "jarvis", [one, one | {"level": HOSTILE, "duration_ms": HOSTILE}])
    span = SPANS[0] | {
        "name": HOSTILE,
        "service": HOSTILE,
        "correlation_id": "c",
        "status": {"code": "error", "message": HOSTILE},
    }
    write_day(home / "logs", "traces", [span])


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    "args",
    [
        ["query"],
        ["query", "--format", "csv"],
        ["trace", "c"],
        ["trace", "c", "--format", "json"],
        ["errors", "--by", "message"],
        ["errors", "--by", "flag"],
        ["errors", "--by", "flag", "--format", "json"],
        ["reproduce", "c"],
    ],
    ids=" ".join,
)
def test_no_control_or_direction_character_of_a_record_gets_out(jarvis, args):
    _, out, err = jarvis(*args)
    assert (out + err).replace("\n", "").replace("\t", "").isprintable()
    assert "end" in out + err


@pytest.mark.parametrize("depth", [300, 1000])
@pytest.mark.parametrize(
    "args",
    [
        *(["query", "--format", form] for form in ("human", "json", "jsonl", "csv")),
        *(["trace", "c", "--format", form] for form in ("human", "json")),
        *(["stats", "--by", "context.x", "--format", form] for form in ("human", "json", "csv")),
        ["errors", "--by", "message"],
    ],
    ids=" ".join,
)
def test_a_record_that_is_nested_deep_is_an_answer_like_others(jarvis, home, args, depth):
    deep = orjson.dumps(record(1, "ERROR", "m", correlation_id="c", context={"x": 1}))
    path = home / "logs" / "jarvis-2026-01-18.jsonl"
    path.write_bytes(deep.replace(b'"x":1', b'"x":%s' % (b"[" * depth + b"]" * depth)) + b"\n")
    code, out, _ = jarvis(*args)
    assert code == 0
    assert out


JARVIS = (sys.executable, "-m", "jarvis_otel.cli.main")


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_on_a_terminal_json_is_escaped_further_and_means_the_same(home, form):
    master, slave = pty.openpty()
    with subprocess.Popen([*JARVIS, "logs", "query", "--format", form], stdout=slave) as process:
        os.close(slave)
        out = b""
        try:
            while block := os.read(master, 65536):
                out += block
        except OSError:
            pass  # the terminal's other end is closed
        os.close(master)
    assert process.returncode == 0
    text = out.decode().replace("\r\n", "\n")
    assert text.replace("\n", "").isprintable()
    found = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert found[0]["message"] == HOSTILE


@pytest.mark.parametrize(("variable", "colored"), [("FORCE_COLOR", True), ("NO_COLOR", False), (None, False)])
def test_colour_is_for_terminals_or_where_it_is_asked_for(jarvis, monkeypatch, variable, colored):
    if variable:
        monkeypatch.setenv(variable, "1")
    assert ("\x1b[31m" in jarvis("query", "--level", "ERROR")[1]) is colored


def test_a_reader_that_goes_away_is_no_error(home):
    many = [record(1, "INFO", "x" * 1000, uid=str(at)) for at in range(2000)]
    write_day(home / "logs", "jarvis", many)
    command = shlex.join([*JARVIS, "logs", "query", "--limit", "0", "--format", "jsonl"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


@pytest.mark.parametrize("command", ["query", "trace", "errors", "reproduce"])
def test_every_command_has_help_with_an_example(jarvis, command):
    code, out, _ = jarvis(command, "--help")
    assert code == 0
    assert f"example: {'eval ' if command == 'reproduce' else 'jarvis logs'}" in out


@pytest.mark.parametrize(
    "args", [[], ["moo"], ["query", "--format", "xml"], ["query", "--moo"], ["trace"], ["errors", "--by", "moon"]]
)
def test_wrong_usage_is_exit_2_and_one_line(jarvis, args):
    code, out, err = jarvis(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("jarvis")
