"""`jarvis logs` on a terminal: the pager, progress, and text that could do harm."""

import contextlib
import os
import re
import subprocess
import sys

import orjson
import pytest

from jarvis_otel.cli.main import main
from jarvis_otel.query.filters import searched_texts
from jarvis_otel.query.output import Output, Progress
from tests.terminals import JARVIS, on_terminal


def record(number, **more):
    start = {"timestamp": f"2026-01-18T13:{number // 60 % 60:02d}:{number % 60:02d}.000000Z", "level": "INFO"}
    rest = {"message": f"m{number}", "service": "trading", "active_flags": [], "context": {}}
    return start | rest | {"_meta": {"uid": f"u{number}"}} | more


@pytest.fixture
def home(own_project, monkeypatch):
    for name in ("PAGER", "LESS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    write(own_project, [record(number) for number in range(60)])
    return own_project


def write(home, records, name="jarvis-2026-01-18.jsonl"):
    (home / "logs").mkdir(exist_ok=True)
    (home / "logs" / name).write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in records))


# --- the pager -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pager(home):
    """A pager that says what it got."""
    path = home / "pager"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nprint('paged', len(sys.stdin.read().splitlines()), sys.argv[1:])\n"
    )
    path.chmod(0o755)
    return path


def test_what_is_longer_than_the_screen_goes_through_the_pager(pager):
    out, code = on_terminal("logs", "query", PAGER=f"{pager} -x 'a b'", NO_COLOR="1")
    assert (code, out) == (0, "paged 60 ['-x', 'a b']\n")


@pytest.mark.parametrize("args", [("--limit", "5"), ("--no-pager",), ("--format", "jsonl")])
def test_what_fits_or_is_for_programs_does_not(pager, args):
    out, code = on_terminal("logs", "query", *args, PAGER=str(pager))
    assert code == 0
    assert "paged" not in out
    assert "m59" in out


@pytest.mark.parametrize("setting", ["", "cat", "/nowhere/pager", "'open"])
def test_without_a_pager_the_text_is_written_all_the_same(home, setting):
    out, code = on_terminal("logs", "query", PAGER=setting)
    assert (code, out.count("\n")) == (0, 60)


def test_what_is_said_about_the_answer_comes_after_the_pager(pager):
    write(pager.parent, [record(number) for number in range(120)])
    out, code = on_terminal("logs", "query", "--since", "2026-01-18T00:00Z", PAGER=str(pager))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("jarvis logs query: from 2026-01-18")
    assert lines[1:] == [
        "paged 100 []",
        "jarvis logs query: the newest 100 of 120; --limit 0 gives all, --page 2 those before",
    ]


def test_less_shows_colours_and_leaving_it_early_is_no_error(home):
    if subprocess.run(["which", "less"], capture_output=True, check=False).returncode:
        pytest.skip("less is not installed")
    write(home, [record(number, message="x" * 500) for number in range(3000)])
    out, code = on_terminal("logs", "query", "--limit", "0", keys=b"q")
    assert code == 0
    assert "\x1b[32mINFO" in out
    assert "ESC[" not in out
    assert "Traceback" not in out


# --- progress ------------------------------------------------------------------------------------------------------


def test_progress_is_told_on_a_terminal_and_wiped_and_never_stands_in_the_data(home, tmp_path):
    code = (
        "import sys, time\n"
        "from jarvis_otel.query.output import Output, Progress\n"
        "with Progress(lambda: 'reading') as progress, Output(paged=False, on_first=progress.end) as out:\n"
        "    end = time.monotonic() + 1.6\n"
        "    while time.monotonic() < end: pass\n"
        "    out.write('data\\n')\n"
    )
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    out = process.communicate(timeout=30)[0]
    told = ""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while part := os.read(master, 65536):
            told += part.decode()
    os.close(master)
    assert out == b"data\n"
    assert told.startswith("\rreading, ")
    assert told.endswith("\r\x1b[K")


def test_progress_ends_before_the_first_data_gets_to_the_same_terminal(home):
    import pty

    code = (
        "import time\n"
        "from jarvis_otel.query.output import Output, Progress\n"
        "def spin(seconds):\n"
        "    end = time.monotonic() + seconds\n"
        "    while time.monotonic() < end: pass\n"
        "with Progress(lambda: 'reading') as progress, Output(paged=False, on_first=progress.end) as out:\n"
        "    spin(1.4)\n"
        "    out.write('data\\n')\n"
        "    out.flush()\n"
        "    spin(0.7)\n"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave)
    os.close(slave)
    told = ""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while part := os.read(master, 65536):
            told += part.decode()
    process.wait(30)
    os.close(master)
    assert "reading" in told
    assert told.endswith("\r\x1b[Kdata\r\n")


def test_progress_says_nothing_where_nobody_looks(home, capfd):
    with Progress(lambda: "reading") as progress, Output(paged=False):
        progress.wipe()
    assert capfd.readouterr() == ("", "")


# --- text that could do harm ---------------------------------------------------------------------------------------

EVIL = (
    "\x1b[2J\x1b]8;;http://x\x07link\x1b]8;;\x07\x1b]52;c;eA==\x07"
    + "".join(map(chr, [*range(32), *range(127, 160)]))
    + "\u202e\u2066\u200f\u2028\u2029\ufeff\u200b\U000e0041 end"
)
WORDS = [
    "timestamp",
    "level",
    "message",
    "service",
    "correlation_id",
    "trace_id",
    "span_id",
    "request_id",
    "user_id",
    "session_id",
    "event",
    "logger",
]


@pytest.fixture
def evil(home):
    spiced = dict.fromkeys(WORDS[2:], EVIL) | {"timestamp": "2026-01-18T13:00:00.000000Z", "level": "ERROR"}
    one = spiced | {
        "context": {EVIL: EVIL, "d": [{EVIL: EVIL}]},
        "flags": {EVIL: EVIL},
        "active_flags": [EVIL],
        "error": dict.fromkeys(("type", "message", "stack_trace"), EVIL),
        "correlation_id": "c",
        "trace_id": "t",
        "duration_ms": EVIL,
        "_meta": {"uid": "1", EVIL: EVIL},
        EVIL: EVIL,
    }
    event = {
        "event": "feature_flag.evaluation",
        "context": {"feature_flag.result.reason": EVIL, "feature_flag.key": EVIL},
    }
    write(home, [one, one | {"level": EVIL, "_meta": {"uid": "2"}}, one | event | {"_meta": {"uid": "3"}}])
    span = {"timestamp": spiced["timestamp"], "name": EVIL, "kind": EVIL, "service": EVIL, "correlation_id": "c", "span_id": EVIL,
            "trace_id": "t", "parent_span_id": EVIL, "flags": {EVIL: EVIL}, "status": {"code": "error", "message": EVIL}}  # fmt: skip
    write(home, [span], "traces-2026-01-18.jsonl")
    return home


COMMANDS = [
    ["query"],
    ["query", "--format", "csv"],
    ["query", "--search", EVIL[:5]],
    ["query", "--service", EVIL],
    ["tail"],
    ["tail", "--format", "csv"],
    ["stats", "--by", "service", "--by", "level,message", "--by", "context.d", "--by", EVIL],
    ["stats", "--by", "message", "--format", "csv"],
    ["stats", "--by", "message", "--by", EVIL, "--format", "json"],
    ["trace", "c"],
    ["trace", "c", "--format", "json"],
    ["errors", "--by", "message"],
    ["errors", "--by", "message", "--collapse"],
    ["errors", "--by", "service"],
    ["errors", "--by", "flag"],
    ["errors", "--by", "flag", "--format", "json"],
    ["reproduce", "c"],
    ["trace", EVIL],
    ["reproduce", EVIL],
    ["query", "--where", EVIL],
    ["query", "--level", EVIL],
    ["query", "--since", EVIL],
    ["query", "--limit", EVIL],
    ["stats", "--bucket", EVIL],
    ["query", "--flag", "=" + EVIL],
    ["export", "-o", "/nowhere/" + EVIL.replace("\0", "")],
    ["query", "--dir", "/nowhere/" + EVIL.replace("\0", "")],
    ["tail", "--file", "/nowhere/" + EVIL.replace("\0", "")],
]


@pytest.mark.parametrize("args", COMMANDS, ids=lambda args: " ".join(args)[:40].encode("unicode_escape").decode())
def test_nothing_that_a_terminal_would_act_on_gets_out(evil, capsysbinary, args):
    main(["logs", *args])
    out, err = (part.decode() for part in capsysbinary.readouterr())
    assert (out + err).replace("\n", "").replace("\t", "").isprintable()
    assert out + err


@pytest.mark.parametrize("args", [["--regex", "(" + EVIL], ["--regex", "end$"]])
def test_nothing_gets_out_of_a_regular_expression_either(evil, capsysbinary, args):
    pytest.importorskip("re2")
    main(["logs", "query", *args])
    out, err = (part.decode() for part in capsysbinary.readouterr())
    assert (out + err).replace("\n", "").isprintable()


def test_names_of_files_are_harmless_too(evil, capsysbinary):
    path = evil / ("x" + EVIL.replace("\0", "").replace("/", "") + ".jsonl")
    path.write_bytes(b"torn\n" + (evil / "logs" / "jarvis-2026-01-18.jsonl").read_bytes())
    for command in (["query"], ["tail"], ["stats"], ["query", "--service", "none"]):
        main(["logs", *command, "--file", str(path)])
        out, err = (part.decode() for part in capsysbinary.readouterr())
        assert (out + err).replace("\n", "").replace("\t", "").isprintable()
        assert "is no record" in err or command[-1] == "none"


def test_a_terminal_that_follows_gets_no_harmful_text_either(evil):
    out, code = on_terminal("logs", "tail", "-f", "--until", "2026-01-19")
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m|\x1b\[K|\r", "", out)
    assert plain.replace("\n", "").isprintable()
    assert "end" in plain


# --- searching -----------------------------------------------------------------------------------------------------


def test_a_catastrophic_pattern_ends_on_a_long_line(home, capsysbinary):
    pytest.importorskip("re2")
    write(home, [record(1, message="a" * 500_000 + "!"), record(2, message="aaa")])
    assert main(["logs", "query", "--regex", "(a+)+$", "--format", "jsonl"]) == 0
    assert [orjson.loads(line)["message"] for line in capsysbinary.readouterr()[0].splitlines()] == ["aaa"]


def test_a_search_text_is_never_a_pattern(home, capsysbinary):
    write(home, [record(1, message="a" * 500_000 + "!"), record(2, message="(a+)+$ [x")])
    for text in ("(A+)+$", "[x"):
        assert main(["logs", "query", "--search", text, "--format", "jsonl"]) == 0
        assert capsysbinary.readouterr()[0].count(b"\n") == 1


def test_a_pattern_is_tried_on_the_same_texts_as_a_search(home, capsysbinary):
    pytest.importorskip("re2")
    found = record(3, message="x", error={"type": "E", "message": "Wallet has 0.5", "stack_trace": "line 12\nline 13"})
    found["context"] = {"deep": [{"n": 17, "text": "needle"}]}
    write(home, [record(1), found])
    assert sorted(searched_texts(found)) == ["17", "Wallet has 0.5", "line 12\nline 13", "needle", "x"]
    for pattern in ("^Wallet has [0-9.]+$", "(?m)^line 13$", "^1.$", "(?i)NEED.E", "ne{2}dle"):
        assert main(["logs", "query", "--regex", pattern, "--format", "jsonl"]) == 0
        assert orjson.loads(capsysbinary.readouterr()[0]) == found
    assert main(["logs", "query", "--regex", "^line 13$", "--level", "ERROR"]) == 1


@pytest.mark.parametrize("pattern", ["(", "(?=x)", r"(a)\1", "x{2000}", "y" * 2000])
def test_a_pattern_that_is_none_is_exit_2_and_one_line(home, capsysbinary, pattern):
    pytest.importorskip("re2")
    assert main(["logs", "query", "--regex", pattern]) == 2
    out, err = capsysbinary.readouterr()
    assert (out, err.count(b"\n")) == (b"", 1)
    assert err.startswith(b"jarvis logs query: --regex: got ")


def test_without_re2_the_cure_is_told(home):
    code = "import sys; sys.modules['re2'] = None; from jarvis_otel.cli.main import main; sys.exit(main(['logs', 'query', '--regex', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "jarvis logs query: RE2 is missing: pip install 'jarvis-otel[query]'; --search TEXT needs nothing\n"
    )


# --- times ---------------------------------------------------------------------------------------------------------

TIMES = [
    "2026-01-18",
    "2026-01-18T13:00:05Z",
    "2026-01-18 14:00:05+01:00",
    "-200000h",
    "200000 hours ago",
    "yesterday",
    "00:00",
]


@pytest.mark.parametrize(
    "command",
    [["query"], ["tail"], ["stats"], ["export", "-o", "out.jsonl"], ["errors"], ["sql", "SELECT 1 FROM logs"]],
)
@pytest.mark.parametrize("text", TIMES)
def test_every_form_of_a_time_is_understood_by_every_command_and_told(home, capsysbinary, command, text):
    if command[0] == "sql":
        pytest.importorskip("duckdb")
    assert main(["logs", *command, "--since", text]) in (0, 1)
    err = capsysbinary.readouterr()[1].decode()
    assert re.match(rf"jarvis logs {command[0]}: from \d{{4}}-\d\d-\d\d \d\d:\d\d", err)


@pytest.mark.parametrize("command", [["tail"], ["stats"], ["export", "-o", "x"], ["sql", "SELECT 1"]])
def test_what_is_no_time_is_exit_2(home, capsysbinary, command):
    assert main(["logs", *command, "--since", "soon"]) == 2
    assert b"--since: got 'soon', want a time such as" in capsysbinary.readouterr()[1]


# --- the start -----------------------------------------------------------------------------------------------------


def test_help_and_ordinary_questions_import_nothing_heavy(home):
    code = (
        "import sys\nfrom jarvis_otel.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(sorted({'duckdb', 're2', 'opentelemetry', 'openfeature', 'yaml', 'tempfile', 'subprocess'} & set(sys.modules)), file=sys.stderr)"
    )
    for args in (["logs", "--help"], ["logs", "stats", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["query", "tail", "trace", "errors", "stats", "export", "sql", "reproduce"])
def test_every_command_has_help_with_an_example(home, command):
    done = subprocess.run([*JARVIS, "logs", command, "--help"], capture_output=True, text=True, check=True)
    assert "example:" in done.stdout
