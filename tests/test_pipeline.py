"""From the queue to the collector: in order, at least once, bounded, and never in the application's way."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from jarvis_otel.encode import otlp_scope
from jarvis_otel.pipeline import Counters, Pipeline
from tests.otlp_sink import attributes_of, logs_at, otlp_sink, records_of, until
from tests.ports import free_port

SCOPE = otlp_scope("trading")


def line(text):
    return json.dumps({"body": {"stringValue": str(text)}, "attributes": []}).encode()


@pytest.fixture
def sink():
    with otlp_sink() as sink:
        yield sink


@pytest.fixture
def pipeline_to():
    made = []

    def make(url, **options):
        made.append(Pipeline(logs_at(url, **{"timeout": 2.0, **options}), {"service.name": "jarvis"}))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.shutdown(0.0)


def run(script, sink_url, *, timeout=30, **environ):
    """Runs a script with a configured pipeline and the names `pipeline`, `log` and `setup`."""
    prelude = f"""
        import os, signal, sys, threading, time
        from jarvis_otel.handlers import flush_at_sigterm, install_logging
        from jarvis_otel.logger import get_logger
        from jarvis_otel.settings import Settings
        settings = Settings.load({{"OTEL_EXPORTER_OTLP_ENDPOINT": {sink_url!r}, "JARVIS_CONSOLE": "off"}})
        setup = install_logging(settings, {{"service.name": "app"}})
        pipeline = setup.pipeline
        flush_at_sigterm(pipeline)
        log = get_logger("app")
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(script)
    return subprocess.run(
        # since Python 3.12 a fork beside a thread is warned of, in the program itself
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", source],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environ},
        check=False,
    )


def test_records_arrive_in_order_with_their_scopes_and_the_resource(sink, pipeline_to):
    pipeline = pipeline_to(sink.url, headers={"x-tenant": "jarvis"})
    for number in range(50):
        pipeline.emit(otlp_scope("a" if number % 7 else "b"), line(number), urgent=number % 5 == 0)
    assert pipeline.flush(20)
    assert sink.bodies == [str(number) for number in range(50)]
    assert [r["scope"]["name"] for r in sink.received] == ["a" if n % 7 else "b" for n in range(50)]
    assert sink.received[0]["resource"] == {"attributes": [{"key": "service.name", "value": {"stringValue": "jarvis"}}]}
    assert sink.headers[0]["x-tenant"] == "jarvis"
    assert pipeline.counters() == Counters(accepted=50, shipped=50, waiting=0, adopted=0, dropped={})


def test_a_burst_travels_in_bounded_requests(sink, pipeline_to):
    pipeline = pipeline_to(sink.url)
    for number in range(3500):
        pipeline.emit(SCOPE, line(number), urgent=False)
    assert pipeline.flush(20)
    assert sink.bodies == [str(number) for number in range(3500)]
    assert max(len(records_of(request)) for request in sink.requests) <= 1000


def test_a_record_arrives_without_anyone_asking(sink, pipeline_to):
    pipeline = pipeline_to(sink.url)
    for number in range(3):
        pipeline.emit(SCOPE, line(number), urgent=False)
        sink.wait_for(number + 1)
    assert sink.bodies == ["0", "1", "2"]


def test_without_a_collector_records_wait_and_one_line_says_so_and_then_they_all_arrive(pipeline_to, capfd):
    port = free_port()
    pipeline = pipeline_to(f"http://127.0.0.1:{port}")
    for number in range(2500):
        pipeline.emit(SCOPE, line(number), urgent=False)
    assert not pipeline.flush(0.5)
    assert pipeline.counters().waiting == 2500
    with otlp_sink(port) as sink:
        assert pipeline.flush(20)
        assert sink.bodies == [str(number) for number in range(2500)]
    lines = capfd.readouterr().err.splitlines()
    url = f"http://127.0.0.1:{port}"
    assert "\n".join(lines) == (
        f"jarvis: no collector at {url} (Connection refused); records wait in memory, nothing else "
        "is affected. Start one: jarvis collector\n"
        f"jarvis: the collector at {url} is back; 2,500 records waited and are on their way, 0 were dropped"
    )


def test_records_wait_for_a_collector_that_is_busy_and_its_retry_after_is_obeyed(sink, pipeline_to):
    busy = [(503, {"retry-after": "1"}, b""), (429, {}, b""), (502, {}, b"x"), (504, {}, b"")]
    asked = []

    def answer(request):
        asked.append(records_of(request)[0]["body"]["stringValue"])
        return busy.pop(0) if busy else (200, {}, b"{}")

    sink.answer = answer
    pipeline = pipeline_to(sink.url)
    pipeline.emit(SCOPE, line("a"), urgent=False)
    until(lambda: len(asked) == 1)
    assert not pipeline.flush(0.2)
    assert len(asked) == 1
    assert pipeline.flush(20)
    assert asked == ["a"] * 5
    assert sink.bodies == ["a"]


@pytest.mark.parametrize("status", [400, 413, 500])
def test_one_bad_record_never_takes_its_neighbours_along(sink, pipeline_to, capfd, status):
    def answer(request):
        bad = any(record["body"]["stringValue"] in ("13", "14") for record in records_of(request))
        return (status, {}, b"no") if bad else (200, {}, b"{}")

    sink.answer = answer
    pipeline = pipeline_to(sink.url)
    for number in range(100):
        pipeline.emit(SCOPE, line(number), urgent=False)
    assert pipeline.flush(20)
    assert sink.bodies == [str(number) for number in range(100) if number not in (13, 14)]
    assert pipeline.counters().dropped == {"refused": 2}
    assert pipeline.counters().shipped == 98
    assert capfd.readouterr().err.count("\n") == 1


def test_a_partial_success_is_read_and_counted(sink, pipeline_to):
    sink.answer = lambda _: (200, {}, b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}')
    pipeline = pipeline_to(sink.url)
    for number in range(5):
        pipeline.emit(SCOPE, line(number), urgent=False)
    assert pipeline.flush(20)
    assert pipeline.counters().dropped == {"refused": 2}
    assert pipeline.counters().shipped == 3


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b'{"partialSuccess":null}', b"x" * 200_000])
def test_an_answer_that_is_no_otlp_counts_as_all_well(sink, pipeline_to, content):
    sink.answer = lambda _: (200, {}, content)
    pipeline = pipeline_to(sink.url)
    pipeline.emit(SCOPE, line("a"), urgent=False)
    assert pipeline.flush(20)
    pipeline.emit(SCOPE, line("b"), urgent=False)
    assert pipeline.flush(20)
    assert pipeline.counters().shipped == 2


def test_a_wrong_path_or_token_keeps_the_records_and_says_why(sink, pipeline_to, capfd):
    sink.answer = lambda _: (401, {}, b"")
    pipeline = pipeline_to(sink.url)
    pipeline.emit(SCOPE, line("a"), urgent=False)
    seen = []
    until(lambda: seen.append(capfd.readouterr().err) or "HTTP 401 Unauthorized" in "".join(seen))
    assert pipeline.counters().waiting == 1


def test_a_collector_that_never_answers_delays_nobody_and_loses_nothing(pipeline_to):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        pipeline = pipeline_to(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        pipeline.emit(SCOPE, line("a"), urgent=False)
        assert not pipeline.flush(0.5)
        assert pipeline.counters().waiting == 1


def test_shutdown_delivers_what_waits_and_may_be_called_twice(sink, pipeline_to):
    pipeline = pipeline_to(sink.url)
    for number in range(10):
        pipeline.emit(SCOPE, line(number), urgent=False)
    assert pipeline.shutdown(20)
    assert pipeline.shutdown(20)
    assert sink.bodies == [str(number) for number in range(10)]


def test_a_hundred_threads_lose_nothing(sink, pipeline_to):
    pipeline = pipeline_to(sink.url)

    def emit(thread):
        for number in range(20):
            pipeline.emit(SCOPE, line(f"{thread}-{number}"), urgent=False)

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pipeline.flush(20)
    assert Counter(sink.bodies) == Counter(f"{t}-{n}" for t in range(100) for n in range(20))


def test_uids_are_unique():
    pipeline = Pipeline(logs_at("http://127.0.0.1:9"), {})
    assert len({pipeline.new_uid() for _ in range(1000)}) == 1000
    pipeline.shutdown(0.0)


def test_a_normal_end_delivers_everything(sink):
    result = run("for n in range(500): log.info(str(n))", sink.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert sink.bodies == [str(number) for number in range(500)]


def test_an_uncaught_exception_loses_nothing(sink):
    result = run("log.info('before')\nraise SystemExit(3)", sink.url)
    assert result.returncode == 3
    assert sink.bodies == ["before"]


def test_an_end_without_a_collector_says_where_the_records_wait(own_project):
    port = free_port()
    result = run("for n in range(7): log.info(str(n))", f"http://127.0.0.1:{port}")
    assert result.returncode == 0
    (left,) = (own_project / "var" / "spool").iterdir()
    assert result.stderr.splitlines()[-1] == (
        f"jarvis: no collector at http://127.0.0.1:{port} (Connection refused); "
        f"7 records in {left} for the next process, or for: jarvis doctor --ship"
    )


def test_an_end_without_a_collector_and_without_a_disk_says_what_is_lost(own_project):
    (own_project / "var").write_text("in the way")
    port = free_port()
    result = run("for n in range(7): log.info(str(n))", f"http://127.0.0.1:{port}")
    assert result.returncode == 0
    assert result.stderr.splitlines()[-1] == (
        f"jarvis: no collector at http://127.0.0.1:{port} (Connection refused); 7 records of this process are lost"
    )


def test_sigterm_delivers_and_still_kills(sink):
    result = run(
        """
        for n in range(100): log.info(str(n))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        """,
        sink.url,
    )
    assert result.returncode == -signal.SIGTERM
    assert sink.bodies == [str(number) for number in range(100)]


def test_sigterm_in_the_middle_of_logging_delivers_what_was_logged(sink):
    result = run(
        """
        def kill():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=kill, daemon=True).start()
        n = 0
        while True:
            log.info(str(n))
            os.write(1, b"%d\\n" % n)
            n += 1
            time.sleep(0.0005)
        """,
        sink.url,
    )
    assert result.returncode == -signal.SIGTERM
    logged = result.stdout.split()
    assert sink.bodies[: len(logged)] == logged


def test_sigterm_without_a_collector_ends_soon(sink):
    result = run(
        "log.info('x')\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)", f"http://127.0.0.1:{free_port()}"
    )
    assert result.returncode == -signal.SIGTERM


def test_an_application_that_handles_sigterm_keeps_its_handler(sink):
    result = run(
        """
        setup.uninstall()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        flush_at_sigterm(install_logging(settings, {}).pipeline)
        log.info("x")
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        sink.url,
    )
    assert result.returncode == 5
    assert sink.bodies == ["x"]


def test_a_forked_child_ships_its_own_records_and_never_the_parents(sink):
    result = run(
        """
        for n in range(20): log.info(f"parent {n}")
        children = []
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                for n in range(20): log.info(f"child {child} {n}")
                sys.exit(0)
            children.append(pid)
        log.info("parent last")
        for pid in children: assert os.waitpid(pid, 0)[1] == 0
        """,
        sink.url,
    )
    assert (result.returncode, result.stderr) == (0, "")
    expected = [f"parent {n}" for n in range(20)] + ["parent last"]
    expected += [f"child {child} {n}" for child in range(3) for n in range(20)]
    assert sorted(sink.bodies) == sorted(expected)
    uids = [attributes_of(record)["log.record.uid"] for record in sink.received]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_children_deliver_before_they_end(sink, tmp_path, method):
    assert method in multiprocessing.get_all_start_methods()
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing
        from jarvis_otel.handlers import install_logging
        from jarvis_otel.logger import get_logger
        from jarvis_otel.settings import Settings

        install_logging(Settings.load({{"OTEL_EXPORTER_OTLP_ENDPOINT": {sink.url!r}, "JARVIS_CONSOLE": "off"}}), {{}})

        def work(number):
            for n in range(10):
                get_logger("app").info(f"{{number}} {{n}}")

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            processes = [context.Process(target=work, args=(number,)) for number in range(2)]
            for process in processes: process.start()
            for process in processes: process.join()
        """)
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(sink.bodies) == sorted(f"{number} {n}" for number in range(2) for n in range(10))


def test_a_signal_handler_may_log_while_the_queue_is_in_use(sink):
    result = run(
        """
        signal.signal(signal.SIGALRM, lambda *_: log.warning("alarm"))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for n in range(3000): log.info("main")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert pipeline.flush(20)
        print(pipeline.counters().accepted)
        """,
        sink.url,
    )
    assert result.returncode == 0
    assert len(sink.bodies) == int(result.stdout)
    assert sink.bodies.count("main") == 3000


def test_a_remote_collector_gets_gzip_and_a_local_one_does_not(sink, pipeline_to, monkeypatch):
    local = pipeline_to(sink.url)
    local.emit(SCOPE, line("local"), urgent=False)
    assert local.flush(20)
    # a name that is not known to be this machine counts as remote
    monkeypatch.setattr(
        socket,
        "create_connection",
        lambda *_, real=socket.create_connection, **kw: real(("127.0.0.1", sink.port), **kw),
    )
    remote = pipeline_to("http://collector.example:4318")
    remote.emit(SCOPE, line("remote"), urgent=False)
    assert remote.flush(20)
    assert [headers.get("content-encoding") for headers in sink.headers] == [None, "gzip"]
    assert sink.bodies == ["local", "remote"]


def test_the_path_of_the_endpoint_is_kept(pipeline_to):
    with otlp_sink() as sink:
        paths = SimpleNamespace(seen=[])
        handler = sink._server.RequestHandlerClass
        original = handler.do_POST
        handler.do_POST = lambda self: (paths.seen.append(self.path), original(self))
        pipeline = pipeline_to(f"{sink.url}/otlp")
        pipeline.emit(SCOPE, line("a"), urgent=False)
        assert pipeline.flush(20)
        assert paths.seen == ["/otlp/v1/logs"]
