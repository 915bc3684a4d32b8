"""What ends, breaks or misbehaves around a logging application: nothing that was logged is lost, and nobody waits."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate

import pytest

from jarvis_otel.pipeline import Pipeline
from tests.otlp_sink import attributes_of, logs_at, otlp_sink, records_of, until
from tests.ports import free_port

PRELUDE = """
import atexit, contextlib, gc, logging, os, signal, sys, threading, time

def said(what):
    os.write(1, f"{what}\\n".encode())
"""
CONFIGURED = """
from jarvis_otel import configure, get_logger
configure("app", console=False)
log, std = get_logger("app"), logging.getLogger("std")
"""
FOREVER = 30.0
"""Seconds after which nobody believes any more that something will happen."""


def bug(what):
    """A test that fails as long as there is a fault that is known."""
    return pytest.mark.xfail(strict=True, reason=what)


class Application:
    """A process that logs."""

    def __init__(self, path, url, arguments=(), **options):
        environ = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "otlp",
            "JARVIS_CONSOLE": "off",
            **options.pop("environ", {}),
        }
        # a pipe that nobody reads would hold up whoever prints
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # noqa: SIM115 - it lives as long as the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env=environ,
            text=True,
            start_new_session=True,
            **{**pipes, **options},
        )

    def line(self):
        """The next line that it says, without its end."""
        with self.patience():
            return self.process.stdout.readline().rstrip("\n")

    @contextmanager
    def patience(self):
        """Who says nothing for so long never will, and is ended."""
        timer = threading.Timer(FOREVER, self.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def kill(self):
        """Ends it with all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def says(self, what):
        """Waits until it says something."""
        if (line := self.line()) != what:
            self.kill()
            pytest.fail(f"it said {line!r}, not {what!r}: {self.end().stderr[-2000:]}")

    def end(self, timeout=FOREVER):
        """Lets it go on where it waits for its input, and gives what became of it."""
        process = self.process
        try:
            out, _ = process.communicate("", timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, _ = process.communicate()
            pytest.fail(f"it never ended; it said {out[-500:]!r} and {self.errors()!r}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, self.errors())

    def errors(self):
        """The end of what it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-3000:]

    def close(self):
        """Ends it, if it has not ended."""
        self.kill()
        self.process.communicate()
        self._errors.close()


@pytest.fixture
def application(tmp_path):
    """Starts a script as an application; with `configured` it has the names `log` and `std`."""
    started = []

    def start(script, url, *arguments, configured=True, before="", **options):
        path = tmp_path / f"app{len(started)}.py"
        parts = [textwrap.dedent(before), PRELUDE, CONFIGURED if configured else "", textwrap.dedent(script)]
        path.write_text("".join(parts))
        started.append(Application(path, url, arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def sink():
    with otlp_sink() as sink:
        yield sink


@pytest.fixture
def heir(own_project):
    """Another live process, as far as the spool can tell: it delivers what others leave behind."""
    made = []

    def inherit(url):
        pipeline = Pipeline(logs_at(url), {"service.name": "heir"}, spool_dir=own_project / "var" / "spool", quiet=True)
        made.append(pipeline)
        pipeline.start()
        pipeline.flush(0.0)

    yield inherit
    for pipeline in made:
        pipeline.shutdown(0.0)


def uid_of(record):
    return attributes_of(record)["log.record.uid"]


def by_uid(sink):
    """What has arrived, without what readers drop: delivery is at least once, and what came twice has the same uid."""
    arrived = {}
    for record in list(sink.received):
        known = arrived.setdefault(uid_of(record), record)
        assert known["body"] == record["body"]
    return arrived


def expect(sink, bodies, seconds=FOREVER, *, once=False):
    """Waits until all of these have arrived; `once` if none of the processes died while it was sending."""
    wanted = Counter(bodies)

    def missing():
        return wanted - Counter(record["body"].get("stringValue") for record in by_uid(sink).values())

    with contextlib.suppress(AssertionError):
        until(lambda: len(sink.received) >= wanted.total() and not missing(), seconds)
    lost = missing()
    assert not lost, f"{lost.total()} never arrived: {list(lost)[:5]}"
    if once:
        assert len(by_uid(sink)) == len(sink.received)


def left_in(project):
    """Whether any segment is left of anybody's spool."""
    try:
        return list((project / "var" / "spool").glob("*/*.seg"))
    except FileNotFoundError:  # one is being removed at this moment
        return True


# ---- ends

ENDS = {
    "it returns": ("", 0),
    "an uncaught exception": ("raise RuntimeError('no')", 1),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(3)", 3),
    "a segfault": ("import ctypes, faulthandler; faulthandler.disable(); ctypes.string_at(0)", -signal.SIGSEGV),
    "abort": ("os.abort()", -signal.SIGABRT),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(60)", -signal.SIGHUP),
    "SIGINT": ("time.sleep(0.5); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
    "SIGTERM with a handler of its own": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
        5,
    ),
    "exec of another program": ("os.execv('/bin/sh', ['sh', '-c', 'exit 4'])", 4),
    "sys.exit in a thread": (
        "t = threading.Thread(target=lambda: (log.info('in a thread'), sys.exit(9))); t.start(); t.join()",
        0,
    ),
    "SIGKILL in a thread that logs": (
        """
        threading.Thread(target=lambda: [log.info("more") for _ in iter(int, 1)], daemon=True).start()
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        -signal.SIGKILL,
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_however_a_process_ends_what_it_logged_is_delivered(sink, application, heir, own_project, how):
    script, code = ENDS[how]
    begin = """
        for number in range(100):
            log.info(f"ours {number}", number=number)
            std.info("standard %d", number)
        log.error("urgent")
    """
    app = application(textwrap.dedent(begin) + textwrap.dedent(script), sink.url)
    assert app.end().returncode == code
    heir(sink.url)
    expect(sink, [f"ours {number}" for number in range(100)] + [f"standard {number}" for number in range(100)])
    expect(sink, ["urgent"])
    bodies = [record["body"]["stringValue"] for record in by_uid(sink).values()]
    ours = [body for body in bodies if body.startswith("ours")]
    assert ours == [f"ours {number}" for number in range(100)]
    until(lambda: not left_in(own_project))


def test_each_record_that_was_acknowledged_before_sigkill_is_delivered(sink, application, heir):
    script = """
        number = 0
        while True:
            log.info(str(number), text="x" * (number % 700))
            os.write(1, b"%d\\n" % number)
            number += 1
    """
    heir(sink.url)
    for _ in range(3):
        app = application(script, sink.url)
        with app.patience():
            for _ in range(3000):
                assert app.process.stdout.readline()
        app.process.kill()
        said = 3000 + app.process.stdout.read().count("\n")
        until(lambda said=said: len(set(sink.bodies)) >= said, FOREVER)
        assert {str(number) for number in range(said)} <= set(sink.bodies)
        # at least once; what came twice has the same uid, and readers drop it
        assert len({uid_of(record) for record in sink.received}) <= said + 1
        sink.received.clear()


def test_what_is_exec_ed_delivers_what_came_before_it(sink, application):
    script = """
        if len(sys.argv) > 1:
            log.info("second life")
            sys.stdin.read()
        else:
            for number in range(50): log.info(str(number))
            os.execv(sys.executable, [sys.executable, __file__, "again"])
    """
    app = application(script, sink.url)
    expect(sink, [*map(str, range(50)), "second life"])
    assert app.end().returncode == 0


def test_children_of_every_kind_of_end_lose_nothing_and_repeat_nothing_of_their_parent(sink, application):
    script = """
        for number in range(20): log.info(f"parent {number}")
        ends = [
            lambda: os._exit(0),
            lambda: os.execv("/bin/true", ["true"]),
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60),
            lambda: sys.exit(0),
            lambda: os.fork() == 0 and (log.info("grandchild"), os._exit(0)) or (os.wait(), os._exit(0)),
        ]
        children = []
        for child, end in enumerate(ends):
            pid = os.fork()
            if pid == 0:
                for number in range(20): (log if number % 2 else std).info(f"child {child} {number}")
                end()
            children.append(pid)
        log.info("parent last")
        for pid in children: os.waitpid(pid, 0)
        said("done")
        sys.stdin.read()
    """
    app = application(script, sink.url)
    app.says("done")
    expected = [f"parent {number}" for number in range(20)] + ["parent last", "grandchild"]
    expect(sink, expected + [f"child {child} {number}" for child in range(6) for number in range(20)])
    assert app.end().returncode == 0
    assert len(by_uid(sink)) == len(expected) + 120


def test_children_that_are_forked_while_threads_log_neither_hang_nor_lose_anything(sink, application):
    script = """
        over = threading.Event()

        def chatter(thread):
            for number in range(10_000):
                if over.is_set(): return
                log.info("chatter")
                logging.getLogger(f"new.{thread}.{number}").info("chatter")

        threads = [threading.Thread(target=chatter, args=(thread,)) for thread in range(3)]
        for thread in threads: thread.start()
        for child in range(20):
            pid = os.fork()
            if pid == 0:
                log.info(f"child {child}")
                logging.getLogger(f"child.{child}").warning(f"child {child} too")
                os._exit(0)
            deadline = time.monotonic() + 10
            while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.001)
            if ended != (pid, 0):
                os.kill(pid, signal.SIGKILL)
                said(f"child {child}: {ended}")
                os._exit(1)
        over.set()
        for thread in threads: thread.join()
        said("done")
        sys.stdin.read()
    """
    app = application(script, sink.url)
    app.says("done")
    expect(sink, [f"child {child}{more}" for child in range(20) for more in ("", " too")])
    assert app.end().returncode == 0


def test_workers_of_pools_that_are_killed_lose_nothing(sink, application):
    script = """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        def work(name):
            log.info(f"{name}")
            std.info("%s too", name)
            return name

        def die(name):
            work(name)
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
            with fork.Pool(2) as pool:
                pool.map(work, [f"pool {number}" for number in range(20)])
            with ProcessPoolExecutor(2, mp_context=fork) as executor:
                list(executor.map(work, [f"executor {number}" for number in range(20)]))
                with contextlib.suppress(BrokenProcessPool):
                    executor.submit(die, "executor dies").result()
            for context, name in ((fork, "forked"), (spawn, "spawned")):
                for end in (work, die):
                    process = context.Process(target=end, args=(f"{name} {end.__name__}",))
                    process.start()
                    process.join()
            said("done")
            sys.stdin.read()
    """
    app = application(script, sink.url)
    app.says("done")
    names = [f"{kind} {number}" for kind in ("pool", "executor") for number in range(20)]
    names += ["executor dies", "forked work", "forked die", "spawned work", "spawned die"]
    expect(sink, [f"{name}{more}" for name in names for more in ("", " too")])
    assert app.end().returncode == 0
    assert len(by_uid(sink)) == 2 * len(names)


def test_threads_that_still_log_while_the_interpreter_ends_lose_nothing_of_what_was_acknowledged(
    sink, application, heir
):
    script = """
        def last_words():
            time.sleep(0.2)
            for number in range(300): log.info(f"not daemon {number}")

        def chatter(thread):
            number = 0
            while True:
                log.info(f"daemon {thread} {number}")
                said(f"daemon {thread} {number}")
                number += 1
                time.sleep(0.0005)

        threading.Thread(target=last_words).start()
        for thread in range(4): threading.Thread(target=chatter, args=(thread,), daemon=True).start()
    """
    app = application(script, sink.url)
    result = app.end()
    assert result.returncode == 0
    # the very last line may be cut off in the middle
    said = [line for line in result.stdout.split("\n")[:-1] if line.startswith("daemon")]
    heir(sink.url)
    expect(sink, [f"not daemon {number}" for number in range(300)])
    wanted = set(said)
    with contextlib.suppress(AssertionError):
        until(lambda: wanted <= set(sink.bodies), 10)
    assert sorted(wanted - set(sink.bodies))[:5] == []


def test_what_is_logged_in_handlers_at_exit_and_in_finalisers_is_delivered(sink, application, heir):
    before = """
        import atexit
        atexit.register(lambda: (log.info("registered before"), std.info("registered before, standard")))
    """
    script = """
        atexit.register(lambda: (log.info("registered after"), std.info("registered after, standard")))

        class Thing:
            def __init__(self, name): self.name = name
            def __del__(self, get=log.info): get(f"finaliser of {self.name}")

        thing = Thing("a global")
        cycle = Thing("a cycle")
        cycle.itself = cycle
        del cycle
        log.info("end")
    """
    app = application(script, sink.url, before=before)
    result = app.end()
    assert (result.returncode, result.stderr) == (0, "")
    heir(sink.url)
    expect(sink, ["end", "registered after", "registered after, standard"])
    expect(sink, ["registered before", "registered before, standard", "finaliser of a global"], 5)
    expect(sink, ["finaliser of a cycle"], 5)


def test_a_finaliser_that_logs_at_the_very_end_does_not_wait_for_a_thread_that_is_no_more(sink, application):
    """A daemon thread that the interpreter stopped may hold a lock for ever."""
    script = """
        def chatter():
            while True: log.info("chatter", text="x" * 20_000)

        class Thing:
            def __del__(self, info=log.info):
                for _ in range(50): info("finaliser")

        thing = Thing()
        for _ in range(8): threading.Thread(target=chatter, daemon=True).start()
        sys.setswitchinterval(1e-5)
        time.sleep(0.05)
    """
    apps = [application(script, f"http://127.0.0.1:{free_port()}") for _ in range(2)]
    for app in apps:
        assert app.end(30).returncode == 0


EXITS = {
    "returns": "",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
    "Handle.shutdown": "from jarvis_otel.runtime import RUNTIME; RUNTIME.handle.shutdown()",
}


@pytest.mark.parametrize("how", EXITS)
@pytest.mark.parametrize("collector", ["refuses", "never answers"])
def test_without_a_collector_a_process_ends_within_two_seconds(application, own_project, collector, how):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if collector == "never answers":
            silent.listen()
        script = f"""
            import subprocess
            with log.context(correlation_id="c"):
                for number in range(100): log.info(str(number))
            time.sleep(0.3)
            said("ends")
            {EXITS[how]}
        """
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # with spans, which wait as well: the two must not add up
        app = application(script, url, environ={"OTEL_TRACES_EXPORTER": "otlp"})
        app.says("ends")
        start = time.monotonic()
        result = app.end()
        took = time.monotonic() - start
    assert result.returncode == (-signal.SIGTERM if how == "SIGTERM" else 0)
    assert took < 3.5
    (home,) = (own_project / "var" / "spool").iterdir()
    assert list(home.glob("*.seg"))


# ---- collectors


def test_ten_thousand_records_wait_for_the_collector_and_arrive_in_order_and_once(application, own_project):
    port = free_port()
    script = """
        for number in range(10_000):
            (log.warning if number % 10 == 0 else log.info)(str(number), number=number)
        said("logged")
        sys.stdin.read()
    """
    app = application(script, f"http://127.0.0.1:{port}")
    app.says("logged")
    with otlp_sink(port) as sink:
        expect(sink, map(str, range(10_000)), once=True)
        assert sink.bodies == [str(number) for number in range(10_000)]
        assert app.end().returncode == 0


def test_what_waited_in_a_process_that_was_killed_arrives_in_order_and_once_too(application, heir):
    port = free_port()
    app = application("for n in range(10_000): log.info(str(n))\nos._exit(0)", f"http://127.0.0.1:{port}")
    assert app.end().returncode == 0
    with otlp_sink(port) as sink:
        heir(sink.url)
        expect(sink, map(str, range(10_000)), once=True)
        assert sink.bodies == [str(number) for number in range(10_000)]


def test_a_live_process_that_logs_all_the_time_still_delivers_what_others_left_behind(sink, application):
    app = application("for n in range(100): log.info(f'left {n}')\nos._exit(0)", f"http://127.0.0.1:{free_port()}")
    assert app.end().returncode == 0
    script = """
        said("begins")
        until = time.monotonic() + 40
        while time.monotonic() < until and not os.path.exists("enough"):
            log.info("busy")
            time.sleep(0.0002)
    """
    app = application(script, sink.url)
    app.says("begins")
    until(lambda: "busy" in sink.bodies, FOREVER)
    try:
        until(lambda: sum(body != "busy" for body in sink.bodies) == 100, 15)
    finally:
        with open("enough", "w"):  # noqa: PTH123
            pass
        app.end()


class Peer:
    """A collector that may do anything to a connection.

    Args:
        behave: Is given the connection, the request's records and the number of the request, and returns whether it
            took them.
    """

    def __init__(self, behave):
        self.received = []
        self.requests = 0
        self.connections = 0
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            while head := stream.readline():
                length = 0
                while (head := stream.readline().strip()) != b"":
                    if head.lower().startswith(b"content-length:"):
                        length = int(head.split(b":")[1])
                request = json.loads(stream.read(length))
                self.requests += 1
                if self._behave(connection, records_of(request), self.requests - 1):
                    self.received += records_of(request)

    @property
    def bodies(self):
        return [record["body"].get("stringValue") for record in self.received]

    def close(self):
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def peer(behave):
    made = Peer(behave)
    try:
        yield made
    finally:
        made.close()


def answer(connection, status="200 OK", headers="", body=b"{}"):
    connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body)
    return status.startswith("2")


def at_first(times, misbehave):
    """A collector that misbehaves so many times, and is then as it should be."""

    def behave(connection, records, number):
        if number < times:
            return bool(misbehave(connection, records))
        return answer(connection)

    return behave


def hang_up(connection, data):
    connection.sendall(data)
    connection.shutdown(socket.SHUT_RDWR)


def trickle(connection, data, seconds=0.05):
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(seconds)


def trickle_for_ever(connection, data):
    connection.sendall(data)
    while True:
        trickle(connection, b"x: y\r\n", 0.02)


MISBEHAVIOUR = {
    "503": lambda c, _: answer(c, "503 Service Unavailable"),
    "429 with seconds": lambda c, _: answer(c, "429 Too Many Requests", "retry-after: 1\r\n"),
    "503 with a date": lambda c, _: answer(
        c, "503 Service Unavailable", f"retry-after: {formatdate(time.time() + 1, usegmt=True)}\r\n"
    ),
    "503 with nonsense": lambda c, _: answer(c, "503 Service Unavailable", "retry-after: soon\r\n"),
    "garbage": lambda c, _: hang_up(c, b"\x00\xff not HTTP at all \r\n\r\n" * 100),
    "a 503 that is garbage": lambda c, _: answer(c, "503 \xff", "\x01: \x02\r\n", b"\x00" * 100_000),
    "closing without an answer": lambda c, _: hang_up(c, b""),
    "a redirect": lambda c, _: answer(c, "307 Temporary Redirect", "location: http://127.0.0.1:1/\r\n"),
    "no end of the answer": lambda c, _: c.sendall(b"HTTP/1.1 503 x\r\ncontent-length: 100\r\n\r\n{"),
    "no answer": lambda _, __: None,
    "an answer byte by byte that never ends": lambda c, _: trickle_for_ever(c, b"HTTP/1.1 200 OK\r\n"),
    "endless continue": lambda c, _: [
        c.sendall(b"HTTP/1.1 100 Continue\r\n\r\n") or time.sleep(0.01) for _ in range(10**6)
    ],
}

LOGS_ALL_THE_WHILE = """
    slowest = 0.0
    for number in range(300):
        start = time.thread_time()
        began = time.monotonic()
        log.info(str(number))
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.001)
    said(slowest)
    said("logged")
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_a_collector_that_misbehaves_delays_nobody_and_gets_all_in_order_in_the_end(application, how):
    with peer(at_first(2, MISBEHAVIOUR[how])) as collector:
        app = application(LOGS_ALL_THE_WHILE, collector.url, environ={"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"})
        # less than the answer takes, and much more than a call does on a busy machine
        assert float(app.line()) < 0.45
        app.says("logged")
        expect(collector, map(str, range(300)), 20)
        assert collector.bodies == [str(number) for number in range(300)]
        assert app.end().returncode == 0


TAKEN = {
    "no body": lambda c, _: answer(c, body=b""),
    "a body that is garbage": lambda c, _: answer(c, body=b"\xff\x00 garbage"),
    "a large body": lambda c, _: answer(c, body=b"x" * 300_000),
    "closing in the body": lambda c, _: hang_up(c, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{") or True,
    "byte by byte": lambda c, _: trickle(c, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 0.002) or True,
    "closing in the headers": lambda c, _: hang_up(c, b"HTTP/1.1 200 OK\r\ncontent-le") or True,
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_2xx_is_a_2xx_however_the_rest_of_the_answer_looks(application, how):
    with peer(lambda connection, records, _: TAKEN[how](connection, records)) as collector:
        app = application("for n in range(50): log.info(str(n))\nsaid('logged')\nsys.stdin.read()", collector.url)
        app.says("logged")
        until(lambda: len(set(collector.bodies)) == 50, FOREVER)
        assert app.end().returncode == 0
        # nobody sends again what was taken, unless the end of the connection overtook the answer
        assert how.startswith("closing") or Counter(collector.bodies).most_common(1)[0][1] == 1


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Content Too Large"])
def test_one_record_that_is_refused_takes_no_other_along_and_is_told(application, status):
    def behave(connection, records, _):
        bad = any(record["body"]["stringValue"] == "77" for record in records)
        return answer(connection, status if bad else "200 OK")

    with peer(behave) as collector:
        app = application("for n in range(200): log.info(str(n))", collector.url)
        result = app.end()
    assert collector.bodies == [str(number) for number in range(200) if number != 77]
    assert result.stderr.count("\n") == 1
    assert "refused a record" in result.stderr


def test_a_partial_success_is_counted_and_nothing_is_sent_again(application):
    body = b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"\\u001b[31mtoo old\\n"}}'
    with peer(lambda connection, *_: answer(connection, body=body)) as collector:
        script = """
            from jarvis_otel.runtime import RUNTIME
            for n in range(20): log.info(str(n))
            assert RUNTIME.pipeline.flush(30)
            counters = RUNTIME.pipeline.counters()
            said(counters.shipped + counters.dropped["refused"])
        """
        result = application(script, collector.url).end()
    assert (result.returncode, result.stdout) == (0, "20\n")
    assert [body for body in collector.bodies if body.isdigit()] == [str(number) for number in range(20)]
    assert "too old" in result.stderr
    assert "\x1b" not in result.stderr


# ---- what is logged


def test_nothing_that_can_be_logged_harms_the_application_or_another_record(sink, application, heir):
    script = """
        import collections, datetime, decimal

        class Raises:
            def __str__(self): raise RuntimeError("no")
            __repr__ = __str__

        class Exits(Raises):
            def __str__(self): raise RecursionError
            __repr__ = __str__

        class Lies(dict):
            def items(self): raise OSError

        class Text(str):
            def __str__(self): raise RuntimeError("no")
            def encode(self, *_): raise RuntimeError("no")

        # the application's own console would print all of it
        logging.getLogger().addHandler(logging.NullHandler())
        cycle = {}; cycle["itself"] = cycle
        deep = []
        for _ in range(100_000): deep = [deep]
        million = {str(n): n for n in range(1_000_000)}
        values = [
            "line\\nbreak\\r\\n", "\\x1b[31mred\\x1b[0m\\x1b]52;c;x\\x07", "nul \\0 in it", "\\u2028\\u2029\\x85", "\\ud800 lone",
            "tab\\tand {brace} %s %(x)s", "\\u202e bidi", "x" * 1_000_000, "y" * 4_000_000, "\\U0001f600",
            float("nan"), float("inf"), float("-inf"), -0.0, 2**63, -(2**63) - 1, 10**4000, 10**5000, True, None,
            b"bytes \\xff", bytearray(b"\\0"), memoryview(b"x"), {1: 2, None: 3, ("t",): 4, "\\ud800": 5}, {1, 2}, cycle, deep, million,
            Raises(), Exits(), Lies(a=1), Text("text"), decimal.Decimal("NaN"), datetime.datetime.max, object, object(),
            range(10**12), collections.deque([1]), (x for x in [1]), sys, RuntimeError("e"), 1j,
        ]
        for number, value in enumerate(values):
            log.info(f"before {number}")
            log.info(value)
            log.info(f"with {number}", value=value, **{"a b\\n\\ud800": value})
            std.info(value)
            std.info("with %s", value)
            std.info("extra %d" % number, extra={"value": value})
            try:
                raise ValueError(value)
            except ValueError:
                log.exception(f"error {number}")
        std.info("%d", "x")
        std.info("%s")
        log.info("after")
        said(len(values))
    """
    app = application(script, sink.url)
    result = app.end()
    assert result.returncode == 0, result.stderr[-2000:]
    count = int(result.stdout)
    # as they can be told by their message: before, with, extra, error
    heir(sink.url)
    names = [f"{kind} {number}" for number in range(count) for kind in ("before", "with", "extra", "error")]
    expect(sink, [*names, "after"])
    by_body = {record["body"].get("stringValue"): record for record in sink.received}
    assert len(sink.received) == count * 7 + 3
    context = [attributes_of(by_body[f"with {number}"])["value"] for number in range(count)]
    assert context[:4] == ["line\nbreak\r\n", "\x1b[31mred\x1b[0m\x1b]52;c;x\x07", "nul \0 in it", "\u2028\u2029\x85"]
    assert context[4] == "\\ud800 lone"
    assert context[7].startswith("x" * 1000)
    assert "…[truncated " in context[7]
    assert "…[truncated " in context[8]
    assert [str(value) for value in context[10:13]] == ["NaN", "Infinity", "-Infinity"]
    assert context[14:16] == [str(2**63), str(-(2**63) - 1)]
    assert "unprintable" in context[28]


def test_a_text_of_64_megabytes_is_cut_at_once(sink, application):
    script = """
        logging.getLogger().addHandler(logging.NullHandler())
        text, items = "y" * 64_000_000, ["y" * 64_000_000]
        calls = {
            "message": lambda: log.info(text),
            "keyword": lambda: log.info("keyword", value=text),
            "inner": lambda: log.info("inner", value=items),
            "standard": lambda: std.info(text),
            "extra": lambda: std.info("extra", extra={"value": text}),
            "error": lambda: log.error("error", exc_info=ValueError(text)),
        }
        for name, call in calls.items():
            start = time.thread_time()
            call()
            said(f"{name} {time.thread_time() - start}")
    """
    result = application(script, sink.url).end()
    assert result.returncode == 0, result.stderr
    times = dict(line.split() for line in result.stdout.splitlines())
    assert len(times) == 6
    assert {name: took for name, took in times.items() if float(took) > 1.0} == {}
    expect(sink, ["keyword", "inner", "extra", "error"])
    assert sum(body.startswith("yyyy") and "…[truncated " in body for body in sink.bodies) == 2


def test_a_record_shows_its_objects_as_they_were_when_it_was_logged(sink, application):
    script = """
        items, table, inner = [1], {"a": 1}, {"deep": [1]}
        message = bytearray(b"first")
        log.info("first", items=items, table=table, inner={"x": inner})
        std.info("standard %s", items, extra={"table": table})
        with log.context(items=items):
            items.append(2); table["b"] = 2; inner["deep"].clear(); table.pop("a")
            log.info("second")
            items.clear()
        said("done")
    """
    application(script, sink.url).end()
    expect(sink, ["first", "standard [1]", "second"])
    first, standard, second = map(attributes_of, sink.received)
    assert (first["items"], first["table"], first["inner"]) == ([1], {"a": 1}, {"x": {"deep": [1]}})
    assert standard["table"] == {"a": 1}
    assert second["items"] == [1, 2]


def test_a_hundred_threads_lose_and_repeat_nothing(sink, application, heir):
    script = """
        start = threading.Barrier(100)

        def work(thread):
            start.wait()
            for number in range(50):
                (log.info if number % 2 else std.info)(f"{thread} {number}")

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(100)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    assert application(script, sink.url).end().returncode == 0
    heir(sink.url)
    expect(sink, [f"{thread} {number}" for thread in range(100) for number in range(50)])
    assert len(by_uid(sink)) == 5000


RECURSIONS = {
    "a handler": """
        class Handler(logging.Handler):
            def emit(self, record):
                log.info("inner")
                std.info("inner")

        logging.getLogger().addHandler(Handler())
    """,
    "a filter": """
        class Filter(logging.Filter):
            def filter(self, record):
                if not getattr(busy, "is", False):
                    setattr(busy, "is", True)
                    log.info("inner")
                    setattr(busy, "is", False)
                return True

        busy = threading.local()
        std.addFilter(Filter())
        logging.getLogger("app").addFilter(Filter())
    """,
    "a processor": """
        from opentelemetry._logs import get_logger_provider
        from opentelemetry.sdk._logs import LogRecordProcessor

        class Processor(LogRecordProcessor):
            def on_emit(self, record):
                log.info("inner")
                log.info("inner")
            def shutdown(self): pass
            def force_flush(self, timeout_millis=0): return True

        get_logger_provider().add_log_record_processor(Processor())
    """,
    "an exporter": """
        from opentelemetry._logs import get_logger_provider
        from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult, SimpleLogRecordProcessor

        class Exporter(LogRecordExporter):
            def export(self, batch):
                log.info("inner")
                std.warning("inner")
                return LogRecordExportResult.SUCCESS
            def shutdown(self): pass
            def force_flush(self, timeout_millis=0): return True

        get_logger_provider().add_log_record_processor(SimpleLogRecordProcessor(Exporter()))
    """,
    "a stream": """
        class Stream:
            def write(self, text):
                log.info("inner")
                return len(text)
            def flush(self): log.info("inner")

        sys.stderr = Stream()
        logging.getLogger().addHandler(logging.StreamHandler())
    """,
}


@pytest.mark.parametrize("what", RECURSIONS)
def test_what_logs_while_it_is_given_a_record_comes_to_an_end(sink, application, what):
    script = """
        for number in range(20):
            log.info(f"ours {number}")
            std.info("standard %d", number)
            log.error(f"error {number}")
        said("done")
    """
    app = application(textwrap.dedent(RECURSIONS[what]) + textwrap.dedent(script), sink.url)
    result = app.end(30)
    assert (result.returncode, result.stdout) == (0, "done\n")
    expect(sink, [f"{kind} {number}" for kind in ("ours", "standard", "error") for number in range(20)])
    # a few for each, and not what fits on the stack
    assert len(sink.received) <= 60 * 12


def test_a_value_that_logs_when_it_is_asked_for_its_text_comes_to_an_end(sink, application):
    script = """
        class Value:
            def __str__(self):
                log.info("inner", value=self)
                std.info("inner")
                return "value"
            __repr__ = __str__

        for number in range(5):
            log.info(f"ours {number}", value=Value())
            std.info("standard %d %s", number, Value())
        said("done")
    """
    result = application(script, sink.url).end(30)
    assert (result.returncode, result.stdout) == (0, "done\n")
    expect(sink, [f"ours {number}" for number in range(5)])
    assert sum(body.startswith("standard") for body in sink.bodies) == 5
    assert len(sink.received) < 2000


# ---- signals


def test_a_signal_handler_may_log_at_any_moment(sink, application, heir):
    script = """
        import itertools
        alarms = itertools.count()

        def alarm(*_):
            number = next(alarms)
            log.info(f"alarm {number}")
            logging.getLogger("alarm").info("standard alarm %d", number)
            # the next one comes soon, however long this one took
            signal.setitimer(signal.ITIMER_REAL, 0.0002)

        for name in ("std", "alarm"): logging.getLogger(name).info("first")
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        for number in range(4000):
            log.info(f"main {number}")
            std.info("standard main %d", number)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        said(next(alarms))
    """
    result = application(script, sink.url).end()
    assert result.returncode == 0, result.stderr
    alarms, kinds = int(result.stdout), ("main", "standard main")
    expected = [f"{kind} {number}" for kind in kinds for number in range(4000)]
    expected += [f"{kind} {number}" for kind in ("alarm", "standard alarm") for number in range(alarms)]
    assert alarms > 100
    heir(sink.url)
    expect(sink, expected)


def test_a_signal_handler_may_log_while_a_logger_is_seen_for_the_first_time(sink, application):
    script = """
        class Logger(logging.Logger):
            def addFilter(self, filter):
                os.kill(os.getpid(), signal.SIGUSR1)
                super().addFilter(filter)

        signal.signal(signal.SIGUSR1, lambda *_: logging.getLogger("in the handler").info("inner"))
        logging.getLogger("in the handler")
        logging.setLoggerClass(Logger)
        logging.getLogger("in main").info("outer")
        said("done")
    """
    app = application(script, sink.url)
    app.says("done")
    assert app.end().returncode == 0
    expect(sink, ["inner", "outer"])


def test_an_exception_out_of_a_signal_handler_breaks_no_lock_and_no_other_record(sink, application, heir):
    script = """
        import random

        class Interrupt(KeyboardInterrupt): pass

        def alarm(*_): raise Interrupt

        signal.signal(signal.SIGALRM, alarm)
        log.info("begin")
        number = 0
        for round in range(1500):
            try:
                # one alarm a round, somewhere in what follows
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0003))
                while True:
                    log.info(f"ours {number}", text="x" * 2000)
                    said(f"ours {number}")
                    logging.getLogger(f"new.{number}").warning("standard %d", number)
                    said(f"standard {number}")
                    number += 1
            except Interrupt:
                number += 1
        log.info("end")
        from jarvis_otel.runtime import RUNTIME
        said(f"flushed {RUNTIME.pipeline.flush(30)}")
        said(f"threads {sum(t.name == 'jarvis-pipeline' for t in threading.enumerate())}")
    """
    result = application(script, sink.url).end()
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-2:] == ["flushed True", "threads 1"]
    heir(sink.url)
    expect(sink, [*(line for line in lines if line.startswith(("ours", "standard"))), "begin", "end"], once=True)


def test_an_interrupt_in_the_very_first_call_leaves_one_shipper(sink, own_project):
    """The first record starts the thread."""
    script = f"""
        import random
        from jarvis_otel.otlp_settings import OtlpTarget
        from jarvis_otel.pipeline import Pipeline

        class Interrupt(KeyboardInterrupt): pass

        def alarm(*_): raise Interrupt

        signal.signal(signal.SIGALRM, alarm)
        interrupted = 0
        for round in range(300):
            pipeline = Pipeline(OtlpTarget({sink.url + "/v1/logs"!r}), {{}})
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.0006))
                pipeline.emit(b'{{"scope":{{}},"logRecords":[', b'{{"attributes":[]}}', urgent=False)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupted += 1
            pipeline.emit(b'{{"scope":{{}},"logRecords":[', b'{{"attributes":[]}}', urgent=False)
            deadline = time.monotonic() + 5
            while (alive := sum(t.is_alive() and "pipeline" in t.name for t in threading.enumerate())) != 1:
                assert time.monotonic() < deadline, f"{{alive}} shippers"
            assert pipeline.shutdown(10)
        said(interrupted)
    """
    source = PRELUDE + textwrap.dedent(script)
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=FOREVER, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) > 0


# ---- the process's surroundings


def test_a_process_without_stderr_keeps_its_stdout_for_itself(application, own_project):
    app = application(
        """
        said("begins")
        log.info("x")
        time.sleep(1)
        print("ends")
        """,
        f"http://127.0.0.1:{free_port()}",
        stderr=None,
        preexec_fn=lambda: os.close(2),
    )
    assert app.end().stdout == "begins\nends\n"


def test_whatever_stands_for_stderr_the_shipper_goes_on(application):
    port = free_port()
    script = """
        class Stream:
            def write(self, text): raise RuntimeError("no")

        sys.stderr = Stream()
        log.info("a")
        said("logged")
        sys.stdin.readline()
        log.info("b")
        sys.stdin.read()
    """
    app = application(script, f"http://127.0.0.1:{port}")
    app.says("logged")
    # long enough for the line that says that there is no collector
    time.sleep(1)
    with otlp_sink(port) as sink:
        app.process.stdin.write("\n")
        app.process.stdin.flush()
        expect(sink, ["a", "b"], 15)
        app.end()


def test_a_daemon_that_closes_all_descriptors_finds_its_own_files_untouched(sink, application):
    script = """
        for number in range(100): log.info(str(number))
        from jarvis_otel.runtime import RUNTIME
        assert RUNTIME.pipeline.flush(30)
        os.closerange(3, 4096)
        files = [open(f"file {number}", "w+b", buffering=0) for number in range(30)]
        for number in range(100, 200): log.info(str(number), text="x" * 20_000)
        said("logged")
        sys.stdin.read()
        for number, file in enumerate(files):
            assert os.fstat(file.fileno()).st_ino == os.stat(f"file {number}").st_ino, number
            assert os.fstat(file.fileno()).st_size == 0, os.pread(file.fileno(), 100, 0)
        RUNTIME.handle.shutdown()
        for number, file in enumerate(files):
            file.write(b"ours")
            assert open(f"file {number}", "rb").read() == b"ours", number
    """
    app = application(script, sink.url)
    app.says("logged")
    with contextlib.suppress(AssertionError):
        until(lambda: "199" in sink.bodies, 20)
    result = app.end()
    assert (result.returncode, result.stderr) == (0, "")
    assert set(sink.bodies) == {str(number) for number in range(200)}


def test_a_spool_that_is_removed_or_truncated_under_a_live_process_stops_nothing(sink, application, own_project):
    script = """
        over = threading.Event()

        def work(thread):
            number = 0
            while not over.is_set():
                log.info(f"{thread} {number}")
                number += 1
                time.sleep(0.001)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
        for thread in threads: thread.start()
        said("begins")
        sys.stdin.readline()
        over.set()
        for thread in threads: thread.join()
        log.info("end")
        sys.stdin.read()
    """
    app = application(script, sink.url)
    app.says("begins")
    spool = own_project / "var" / "spool"
    for command in (': > "$0"', "cat $0 > /dev/null", 'truncate -s 5 "$0"', 'rm -rf "$(dirname "$0")"', "true"):
        until(lambda: list(spool.glob("*/*.seg")), FOREVER)
        segment = next(iter(spool.glob("*/*.seg")))
        subprocess.run(["sh", "-c", command, str(segment)], check=True, timeout=30)
        before = len(sink.received)
        until(lambda before=before: len(sink.received) > before + 20)
        assert app.process.poll() is None
        if command.startswith("rm"):
            break
    app.process.stdin.write("\n")
    app.process.stdin.flush()
    expect(sink, ["end"])
    assert app.end().returncode == 0
