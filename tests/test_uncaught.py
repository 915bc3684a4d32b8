"""Uncaught exceptions and warnings are reported, and the process prints and ends exactly as it did without us."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import types
import warnings

import pytest

from jarvis_otel.uncaught import capture_warnings, install_uncaught
from tests.otlp_sink import attributes_of, otlp_sink

CRITICAL, ERROR, WARNING = logging.CRITICAL, logging.ERROR, logging.WARNING

# Loaded by Python itself before the application: so that is the same, line by line, with us and without.
SITE = """
import os
if mode := os.environ.get("REPORT"):
    import json, sys, traceback
    from jarvis_otel.uncaught import capture_warnings, install_uncaught

    def write(*fields):
        file = os.open(os.environ["REPORTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (json.dumps(fields) + "\\n").encode())
        os.close(file)
        if mode == "raise":
            raise RuntimeError("the report itself")
        if mode == "exit":
            sys.exit(77)

    def report(level, message, exc_info):
        kind, error, frames = exc_info
        write(level, message, kind.__name__, [frame.name for frame in traceback.extract_tb(frames)])

    def report_warning(warning):
        write(warning.category.__name__, str(warning.message), os.path.basename(warning.filename), warning.lineno)

    install_uncaught(report)
    capture_warnings(report_warning)
"""


@pytest.fixture
def play(tmp_path):
    """Runs a script without us and with us, and gives what was reported, if all else was the same."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    app = tmp_path / "app.py"

    def run(source, options, arguments, environ, stdin):
        app.write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, *options, *(arguments or [app])],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), **environ},
        )
        # what differs from run to run, and in what Python says of an exception that it cannot print: a hook holds it
        varying = re.compile(rb"0x[0-9a-f]+|object refcount : \d+")
        return done.returncode, varying.sub(b"*", done.stdout), varying.sub(b"*", done.stderr)

    def play(source="", *options, mode="plain", arguments=None, stdin=b"", status=None, printed=b""):
        reports = tmp_path / "reports"
        reports.unlink(missing_ok=True)
        before = run(source, options, arguments, {}, stdin)
        after = run(source, options, arguments, {"REPORT": mode, "REPORTS": str(reports)}, stdin)
        assert after == before
        assert status is None or before[0] == status
        assert printed in before[2]
        lines = reports.read_text().splitlines() if reports.exists() else []
        return [json.loads(line) for line in lines]

    return play


# Exceptions


@pytest.mark.parametrize("mode", ["plain", "raise", "exit"])
def test_an_uncaught_exception_is_reported_and_printed_whatever_becomes_of_the_report(play, mode):
    source = """
        def trade():
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise ValueError("no\\nprice") from error
        trade()
    """
    reported = play(source, mode=mode, status=1, printed=b"ValueError: no\nprice\n")
    assert reported == [[CRITICAL, "Uncaught exception: ValueError: no\nprice", "ValueError", ["<module>", "trade"]]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class OwnError(Exception): pass\nraise OwnError", "OwnError"),
        ("import json\njson.loads('{')", "json.decoder.JSONDecodeError: Expecting property name enclosed in"),
        ("raise ExceptionGroup('several', [ValueError(1), KeyError(2)])", "ExceptionGroup: several (2 sub-exceptions)"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("import asyncio\nasync def f(): 1 / 0\nasyncio.run(f())", "ZeroDivisionError: division by zero"),
        ("eval('1 +')", "SyntaxError: invalid syntax"),
        ("class Odd(Exception):\n  def __str__(self): raise RuntimeError\nraise Odd", "Odd"),
        ("class Odd(Exception):\n  def __str__(self): return 5\nraise Odd", "Odd"),
        ("raise ValueError('\\udcff')", "ValueError: \udcff"),
        ("raise ValueError('x' * 1_000_000)", f"ValueError: {'x' * 1000}…"),
        ("class Odd(BaseException): pass\nraise Odd(1)", "Odd: 1"),
        ("import sys\nsys.stderr.close()\nraise ValueError('unseen')", "ValueError: unseen"),
        ("import sys\nsys.stderr = None\nraise ValueError('unseen')", "ValueError: unseen"),
        ("import sys\nsys.tracebacklimit = 0\nraise ValueError('short')", "ValueError: short"),
        ("import os\nif os.fork(): os.wait()\nelse: raise ValueError('child')", "ValueError: child"),
    ],
)
def test_any_exception_that_ends_the_process_is_reported(play, source, message):
    (reported,) = play(source)
    assert reported[0] == CRITICAL
    assert reported[1].startswith(f"Uncaught exception: {message}")
    assert len(reported[1]) < 1_100


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("import sys\nsys.exit(3)", 3),
        ("raise SystemExit('a word')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)", -signal.SIGINT),
        ("import asyncio\nasync def f(): raise KeyboardInterrupt\nasyncio.run(f())", -signal.SIGINT),
        ("import threading, sys\nthreading.Thread(target=sys.exit, args=(3,)).start()", 0),
        ("print('all is well')", 0),
    ],
)
def test_an_end_that_was_asked_for_is_not_reported(play, source, status):
    assert play(source, status=status) == []


@pytest.mark.parametrize("mode", ["plain", "raise", "exit"])
def test_an_exception_that_ends_a_thread_is_reported_with_the_name_of_the_thread(play, mode):
    source = """
        import threading
        def work():
            raise ValueError("boom")
        thread = threading.Thread(target=work, name="prices")
        thread.start()
        thread.join()
        print("goes on")
    """
    (reported,) = play(source, mode=mode, status=0, printed=b"Exception in thread prices:")
    assert reported[:3] == [ERROR, "Uncaught exception in thread prices: ValueError: boom", "ValueError"]
    assert reported[3][-1] == "work"


@pytest.mark.parametrize("mode", ["plain", "raise"])
def test_an_exception_that_python_ignores_is_reported_as_a_warning(play, mode):
    source = """
        import atexit
        class Connection:
            def __repr__(self):
                raise RuntimeError
            def __del__(self):
                raise ValueError("closed")
        Connection()
        class Hostile:
            def __call__(self):
                raise KeyError("late")
            def __repr__(self):
                raise RuntimeError
        import _thread, time
        _thread.start_new_thread(Hostile(), ())
        time.sleep(0.2)
        def at_end():
            raise OSError("gone")
        atexit.register(at_end)
    """
    reported = play(source, mode=mode, status=0, printed=b"ValueError: closed")
    assert [(level, kind) for level, _, kind, _ in reported] == [
        (WARNING, "ValueError"),
        (WARNING, "KeyError"),
        (WARNING, "OSError"),
    ]
    assert re.fullmatch(r"Exception ignored in.*Connection.__del__.*: ValueError: closed", reported[0][1])
    assert reported[1][1].endswith(": KeyError: 'late'")
    assert reported[2][1].endswith(": OSError: gone")


def test_what_goes_wrong_at_an_interactive_prompt_is_no_end_of_the_process(play):
    lines = b"1 / 0\nraise ValueError('typed')\nprint('still here')\n"
    assert play(stdin=lines, arguments=["-i", "-q"], status=0, printed=b"ValueError: typed") == []


def test_a_hook_of_the_application_is_called_as_ever(play):
    source = """
        import sys, threading
        previous = sys.excepthook
        def own(kind, error, frames):
            print("own hook")
            previous(kind, error, frames)
        sys.excepthook = own
        threading.excepthook = lambda given: print("own thread hook")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        1 / 0
    """
    reported = play(source, status=1)
    assert [message for _, message, *_ in reported] == ["Uncaught exception: ZeroDivisionError: division by zero"]


# Undoing it


@pytest.fixture
def hooks(monkeypatch):
    """Hooks of another library under ours; gives what they were called with."""
    called = []
    for module, name in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, name, lambda *given, place=(module.__name__, name): called.append(place))
    return called


def raise_everywhere(kind=ValueError):
    error = kind("boom")
    sys.excepthook(kind, error, None)
    threading.excepthook(threading.ExceptHookArgs((kind, error, None, threading.current_thread())))
    sys.unraisablehook(
        types.SimpleNamespace(exc_type=kind, exc_value=error, exc_traceback=None, err_msg=None, object=None)
    )


ALL = [("sys", "excepthook"), ("threading", "excepthook"), ("sys", "unraisablehook")]


def test_undone_it_leaves_the_hooks_that_it_found(hooks):
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    reported = []
    undo = install_uncaught(lambda *given: reported.append(given))
    raise_everywhere()
    assert [given[:2] for given in reported] == [
        (CRITICAL, "Uncaught exception: ValueError: boom"),
        (ERROR, f"Uncaught exception in thread {threading.current_thread().name}: ValueError: boom"),
        (WARNING, "Exception ignored in: ValueError: boom"),
    ]
    assert hooks == ALL
    undo()
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook) == before
    undo()
    raise_everywhere()
    assert len(reported) == 3
    assert hooks == ALL * 2


def test_what_is_not_reported_is_passed_on(hooks):
    reported = []
    undo = install_uncaught(lambda *given: reported.append(given))
    raise_everywhere(KeyboardInterrupt)
    assert reported == []
    raise_everywhere(SystemExit)
    undo()
    assert [message for _, message, _ in reported] == ["Exception ignored in: SystemExit: boom"]
    assert hooks == ALL * 2


def test_a_library_that_wrapped_it_since_keeps_its_hook_and_ours_only_passes_on(hooks, monkeypatch):
    reported, theirs = [], []
    undo = install_uncaught(lambda *given: reported.append(given))
    ours = sys.excepthook, threading.excepthook, sys.unraisablehook
    for (module, name), inner in zip(
        [(sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")], ours, strict=True
    ):
        monkeypatch.setattr(module, name, lambda *given, inner=inner: (theirs.append(1), inner(*given)))
    wrapped = sys.excepthook, threading.excepthook, sys.unraisablehook
    undo()
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook) == wrapped
    raise_everywhere()
    assert (reported, len(theirs), hooks) == ([], 3, ALL)


def test_a_shell_that_puts_its_hook_over_ours_and_takes_it_off_later_finds_all_as_it_was(hooks, monkeypatch):
    reported = []
    undo = install_uncaught(lambda *given: reported.append(given))
    saved = sys.excepthook
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    raise_everywhere()
    assert [level for level, *_ in reported] == [ERROR, WARNING]
    sys.excepthook = saved
    raise_everywhere()
    assert [level for level, *_ in reported] == [ERROR, WARNING, CRITICAL, ERROR, WARNING]
    undo()
    sys.excepthook = saved
    raise_everywhere()
    assert len(reported) == 5
    assert hooks.count(("sys", "excepthook")) == 2


def test_an_exception_within_a_report_is_not_reported_in_its_turn(hooks):
    reported = []

    def report(*given):
        reported.append(given)
        raise_everywhere()

    undo = install_uncaught(report)
    try:
        raise_everywhere()
    finally:
        undo()
    assert [level for level, *_ in reported] == [CRITICAL, ERROR, WARNING]
    assert len(hooks) == 12


def test_a_thread_exception_without_a_value_is_reported_too(hooks):
    reported = []
    undo = install_uncaught(lambda *given: reported.append(given))
    threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, None)))
    undo()
    assert reported == [(ERROR, "Uncaught exception in thread unknown: ValueError", (ValueError, None, None))]


# Warnings


@pytest.mark.parametrize("mode", ["plain", "raise"])
def test_a_warning_is_reported_and_shown_whatever_becomes_of_the_report(play, mode):
    source = """
        import warnings
        for _ in range(3):
            warnings.warn("deprecated thing", FutureWarning)
        warnings.warn("ignored", PendingDeprecationWarning)
    """
    reported = play(source, mode=mode, printed=b"FutureWarning: deprecated thing\n  warnings.warn(")
    assert reported == [["FutureWarning", "deprecated thing", "app.py", 4]]


@pytest.mark.parametrize("options", [["-W", "always"], ["-W", "always", "-X", "tracemalloc=3"], ["-X", "dev"]])
def test_a_resource_warning_still_says_where_the_object_came_from(play, options):
    source = """
        def leak():
            open(__file__)
        leak()
    """
    traced = "tracemalloc=3" in options
    (reported,) = play(source, *options, printed=b"Object allocated at" if traced else b"Enable tracemalloc to get")
    assert reported[0] == "ResourceWarning"
    assert reported[2:] == ["app.py", 3]


def test_a_warning_made_an_error_is_an_exception_as_ever(play):
    source = "import warnings\nwarnings.warn('strict')"
    (reported,) = play(source, "-W", "error", status=1, printed=b"UserWarning: strict")
    assert reported[:2] == [CRITICAL, "Uncaught exception: UserWarning: strict"]


def test_recorded_warnings_are_not_reported(play):
    source = """
        import warnings
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            warnings.warn("seen by a test")
        print(len(recorded), recorded[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.warn("unwanted")
        warnings.warn("after")
    """
    assert [message for _, message, *_ in play(source)] == ["after"]


def test_an_applications_own_ways_to_show_warnings_work_as_ever(play):
    source = """
        import sys, warnings
        original = warnings.showwarning
        warnings.showwarning = lambda *given: print("own", given[0])
        warnings.warn("one")
        warnings.showwarning = lambda *given: (print("chained", given[0]), original(*given))
        warnings.warn("two")
        warnings.showwarning = original
        warnings.formatwarning = lambda *given: f"formatted {given[0]}\\n"
        warnings.warn("three")
        warnings.showwarning("four", UserWarning, "f.py", 1, sys.stdout)
    """
    assert [message for _, message, *_ in play(source, printed=b"formatted three")] == ["two", "three"]


@pytest.mark.parametrize("sink", ["sys.stderr = None", "sys.stderr.close()"])
def test_a_warning_that_nobody_can_see_is_reported(play, sink):
    source = f"import sys, warnings\n{sink}\nwarnings.warn('unseen')"
    assert play(source)[0] == ["UserWarning", "unseen", "app.py", 3]


def test_a_warning_without_a_text_fails_as_ever(play):
    source = """
        import warnings
        class Odd(UserWarning):
            def __str__(self):
                raise RuntimeError("no text")
        try:
            warnings.warn(Odd())
        except RuntimeError:
            print("as ever")
    """
    assert play(source, status=0) == []


def warn(text):
    warnings.warn(text, stacklevel=2)


class Collected(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append((record.name, record.getMessage()))


@pytest.fixture
def shown(monkeypatch):
    """Warnings as a process has them, outside of pytest's own recording; and the log of py.warnings."""
    handler = Collected()
    logging.getLogger("py.warnings").addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "_showwarnmsg_impl", lambda warning: print(warning.message, file=sys.stderr))
        yield handler.messages
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").removeHandler(handler)


@pytest.mark.parametrize("first", [True, False])
def test_with_logging_capture_warnings_a_warning_arrives_once_whoever_came_first(shown, capsys, first):
    reported = []
    if first:
        logging.captureWarnings(True)
    undo = capture_warnings(reported.append)
    if not first:
        logging.captureWarnings(True)
    warn("logged")
    assert reported == []
    assert [(name, "UserWarning: logged" in text) for name, text in shown] == [("py.warnings", True)]
    logging.captureWarnings(False)
    warn("reported")
    assert [str(warning.message) for warning in reported] == ["reported"]
    logging.captureWarnings(True)
    undo()
    warn("logged again")
    logging.captureWarnings(False)
    warn("neither")
    assert (len(shown), len(reported)) == (2, 1)
    assert capsys.readouterr().err == "reported\nneither\n"


def test_undone_within_a_test_that_records_warnings_it_only_passes_on(shown, capsys):
    reported = []
    before = warnings._showwarnmsg_impl
    undo = capture_warnings(reported.append)
    with warnings.catch_warnings(record=True) as recorded:
        warn("before")
        undo()
        warn("after")
    assert [str(warning.message) for warning in recorded] == ["before", "after"]
    assert warnings._showwarnmsg_impl is not before, "the end of the recording put ours back"
    warn("shown")
    assert reported == []
    undo()
    assert warnings._showwarnmsg_impl is before
    assert capsys.readouterr().err == "shown\n"


def test_warnings_recorded_without_replacing_anything_are_not_reported(shown, monkeypatch):
    # as catch_warnings does where sys.flags.context_aware_warnings is set, from Python 3.14 on
    reported = []
    undo = capture_warnings(reported.append)
    monkeypatch.setattr(warnings, "_get_context", lambda: types.SimpleNamespace(log=[]), raising=False)
    warn("recorded")
    monkeypatch.setattr(warnings, "_get_context", lambda: types.SimpleNamespace(log=None))
    warn("shown")
    undo()
    assert [str(warning.message) for warning in reported] == ["shown"]


def test_undone_it_leaves_warnings_as_it_found_them(shown):
    before = warnings._showwarnmsg_impl, warnings.showwarning
    undo = capture_warnings(lambda _: None)
    assert warnings._showwarnmsg_impl is not before[0]
    undo()
    assert (warnings._showwarnmsg_impl, warnings.showwarning) == before


def test_warnings_of_our_own_threads_are_shown_but_not_reported(shown, capsys):
    reported = []
    undo = capture_warnings(reported.append)
    for name in ("jarvis-pipeline", "worker"):
        thread = threading.Thread(target=warn, args=(f"from {name}",), name=name)
        thread.start()
        thread.join()
    undo()
    assert [str(warning.message) for warning in reported] == ["from worker"]
    assert capsys.readouterr().err == "from jarvis-pipeline\nfrom worker\n"


def test_a_warning_with_an_exception_report_inside_does_not_go_round_in_circles(shown, hooks):
    reported = []

    def report(*given):
        reported.append(given)
        warn("again")
        raise_everywhere()

    undo_warnings, undo_uncaught = capture_warnings(report), install_uncaught(report)
    try:
        warn("once")
    finally:
        undo_uncaught()
        undo_warnings()
    assert len(reported) == 1


# asyncio: standard logging sees it already

ASYNCIO = """
import asyncio, gc, os
import jarvis_otel
if os.environ.get("CONFIGURE"):
    jarvis_otel.configure("app", console=False)

async def fail():
    raise ValueError("in a task")

def callback():
    raise KeyError("in a callback")

async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_what_asyncio_finds_in_tasks_and_callbacks_arrives_with_its_stack_trace(tmp_path):
    app = tmp_path / "app.py"
    app.write_text(ASYNCIO)

    def run(**environ):
        return subprocess.run(
            [sys.executable, app],
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none", **environ},
        )

    with otlp_sink() as sink:
        before = run()
        after = run(CONFIGURE="1", OTEL_EXPORTER_OTLP_ENDPOINT=sink.url)
        assert (after.returncode, after.stdout, after.stderr) == (0, before.stdout, before.stderr)
        assert b"ValueError: in a task" in after.stderr
        records = [record for record in sink.received if record["scope"]["name"] == "asyncio"]
    assert len(records) == 2
    for record, kind, text in zip(records, ["ValueError", "KeyError"], ["in a task", "'in a callback'"], strict=True):
        attributes = attributes_of(record)
        assert record["severityText"] == "ERROR"
        assert (attributes["exception.type"], attributes["exception.message"]) == (kind, text)
        assert attributes["exception.stacktrace"].startswith("Traceback (most recent call last):\n")
        assert attributes["exception.stacktrace"].endswith(f"{kind}: {text}")
