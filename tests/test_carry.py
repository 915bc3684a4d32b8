"""Operations in threads, thread pools, processes and process pools."""

import asyncio
import gc
import json
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from multiprocessing.pool import Pool, ThreadPool
from multiprocessing.process import BaseProcess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context

from jarvis_otel.carry import Carried, carry_operations
from jarvis_otel.context import Operation, Scope, current_operation
from jarvis_otel.logger import get_logger

log = get_logger("trading")


@pytest.fixture(autouse=True)
def carried():
    undo = carry_operations()
    yield
    undo()
    assert Scope.current().operation is None


def seen():
    """What the code that runs here knows: its correlation id, and its trace."""
    operation = current_operation()
    return (
        operation.correlation_id if operation is not None else None,
        trace.get_current_span().get_span_context().trace_id,
    )


NOTHING = (None, 0)


# Threads


@pytest.mark.parametrize("daemon", [False, True])
def test_a_thread_begins_in_the_operation_of_who_started_it(daemon):
    results = []
    with log.context(correlation_id="c"):
        here = seen()
        thread = threading.Thread(target=lambda: results.append(seen()), daemon=daemon)
        thread.start()
    thread.join()
    assert results == [here] != [NOTHING]


def test_so_do_timers_and_threads_of_a_class_with_a_run_or_start_of_its_own():
    class Runs(threading.Thread):
        def run(self):
            self.result = seen()

    class Starts(Runs):
        def start(self):
            super().start()

    results = []
    with log.context(correlation_id="c"):
        here = seen()
        timer = threading.Timer(0.001, lambda: results.append(seen()))
        threads = [Runs(), Starts(), timer]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert [threads[0].result, threads[1].result, *results] == [here] * 3


def test_what_a_thread_opens_stays_in_it_and_what_was_evaluated_is_shared():
    def work():
        current_operation().note("SHARED", "on", True)
        with log.context(correlation_id="inner"):
            current_operation().note("OWN", "on", True)

    with log.context(correlation_id="c"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert (seen()[0], current_operation().evaluated) == ("c", {"SHARED": ("on", True)})


def test_a_thread_that_is_done_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        with log.context(correlation_id="c"):
            thread = threading.Thread(target=seen)
            thread.start()
            thread.join()
            assert "run" not in vars(thread)
            gone = weakref.ref(thread)
            del thread
            assert gone() is None
    finally:
        gc.enable()


def test_a_thread_cannot_be_started_twice_and_keeps_a_run_that_was_set_on_it():
    results = []
    thread = threading.Thread()
    thread.run = lambda: results.append(seen()[0])
    own = thread.run
    with log.context(correlation_id="c"):
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
    assert (results, thread.run is own) == (["c"], True)


def test_an_error_in_a_thread_is_reported_as_ever(monkeypatch):
    reports = []
    monkeypatch.setattr(threading, "excepthook", reports.append)
    with log.context(correlation_id="c"):
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
    assert [(report.exc_type, report.thread) for report in reports] == [(ZeroDivisionError, thread)]


def test_our_own_threads_begin_in_no_operation():
    results = []
    with log.context(correlation_id="c"):
        thread = threading.Thread(target=lambda: results.append(seen()), name="jarvis-shipper")
        thread.start()
        thread.join()
    assert results == [NOTHING]


# Thread pools


def test_work_for_a_thread_pool_runs_in_the_operation_that_gave_it_and_the_pools_threads_in_none():
    initialized = []
    with ThreadPoolExecutor(1, initializer=lambda: initialized.append(seen())) as pool:
        with log.context(correlation_id="a"):
            a = seen()
            first = pool.submit(seen)
            mapped = list(pool.map(lambda _: seen(), range(3)))
        with log.context(correlation_id="b"):
            b = seen()
            second = pool.submit(seen)
        after = pool.submit(seen)
    assert (first.result(), mapped, second.result(), after.result()) == (a, [a] * 3, b, NOTHING)
    assert initialized == [NOTHING]


def test_a_thread_that_work_of_a_pool_starts_is_in_the_operation_of_that_work():
    results = []

    def work():
        thread = threading.Thread(target=lambda: results.append(seen()))
        thread.start()
        thread.join()

    with ThreadPoolExecutor(1) as pool, log.context(correlation_id="c"):
        here = seen()
        pool.submit(work).result()
    assert results == [here]


def test_one_and_the_same_work_may_be_done_by_many_threads_at_once():
    barrier = threading.Barrier(4)

    def work(_):
        results = []
        for _ in range(20):
            barrier.wait(10)
            results.append(seen())
        return set(results)

    with ThreadPool(4) as pool, log.context(correlation_id="c"):
        one, here = Carried(work, Scope.current()), seen()
        with Scope(None, otel_context.Context()):
            assert (
                pool.map(lambda _: (one(_), one(_), seen()), range(4), chunksize=1) == [({here}, {here}, NOTHING)] * 4
            )


def test_futures_are_what_they_were():
    class Own(BaseException):
        pass

    def fail():
        raise Own("x")

    release = threading.Event()
    with ThreadPoolExecutor(1) as pool, log.context(correlation_id="c"):
        blocked = pool.submit(release.wait, timeout=10)
        waiting = pool.submit(seen)
        failed = pool.submit(fail)
        assert type(waiting) is Future
        assert waiting.cancel()
        release.set()
        assert blocked.result() is True
        with pytest.raises(Own, match="x"):
            failed.result()
        assert pool.submit(lambda *args, **kwargs: (args, kwargs), 1, fn=2, pool=3, function=4).result() == (
            (1,), {"fn": 2, "pool": 3, "function": 4},
        )  # fmt: skip
    with log.context(), pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(seen)


def test_work_that_waits_in_a_pool_still_has_its_name_for_tools():
    pool = ThreadPoolExecutor(1)
    release = threading.Event()
    with pool, log.context(correlation_id="c"):
        pool.submit(release.wait)
        pool.submit(seen)
        (item,) = list(pool._work_queue.queue) if hasattr(pool._work_queue, "queue") else [None]
        work = item.fn if item is not None else Carried(seen, Scope.current())
        assert (work.__name__, work.__qualname__, work.__wrapped__, repr(work)) == ("seen", "seen", seen, repr(seen))
        release.set()


def test_executors_of_the_loop_and_worker_threads_of_anyio_run_in_the_callers_operation():
    in_thread = pytest.importorskip("anyio.to_thread")

    async def main():
        loop = asyncio.get_running_loop()
        results = []
        for name in ("a", "b"):
            async with log.context(correlation_id=name):
                here = seen()
                results += [
                    await loop.run_in_executor(None, seen) == here,
                    await asyncio.to_thread(seen) == here,
                    await in_thread.run_sync(seen) == here,
                ]
        return [
            *results,
            await loop.run_in_executor(None, seen),
            await asyncio.to_thread(seen),
            await in_thread.run_sync(seen),
        ]

    assert asyncio.run(main()) == [True] * 6 + [NOTHING] * 3


def test_a_multiprocessing_thread_pool_does_it_too():
    initialized = []
    with log.context(correlation_id="a"):
        here = seen()
        with ThreadPool(2, initializer=lambda: initialized.append(seen())) as pool:
            results = [
                pool.apply(seen),
                pool.apply_async(func=seen).get(10),
                *pool.map(lambda _: seen(), range(3)),
                *pool.starmap(lambda *_: seen(), [(1, 2)]),
                *pool.imap(lambda _: seen(), range(2)),
                *pool.imap_unordered(lambda _: seen(), range(3), chunksize=2),
            ]
            contextless = []

            def outside():
                with Scope(None, otel_context.Context()):
                    contextless.append(pool.apply(seen))

            outside()
    assert results == [here] * len(results)
    assert (initialized, contextless) == ([NOTHING] * 2, [NOTHING])


# What it costs where there is nothing to carry, and its undoing


def test_outside_of_operations_and_spans_nothing_is_touched():
    thread = threading.Thread(target=seen)
    thread.start()
    assert "run" not in vars(thread)
    thread.join()
    pool = ThreadPoolExecutor(1)
    release = threading.Event()
    with pool:
        pool.submit(release.wait)
        future = pool.submit(seen)
        item = pool._work_queue.get_nowait()
        assert item.fn is seen
        pool._work_queue.put(item)
        release.set()
        assert future.result(10) == NOTHING


def test_undoing_leaves_all_as_it_was_and_keeps_what_others_put_on_top(monkeypatch):
    owners = [
        (threading.Thread, "start"),
        (ThreadPoolExecutor, "submit"),
        (ProcessPoolExecutor, "submit"),
        (BaseProcess, "start"),
        (Pool, "__init__"),
        (Pool, "apply_async"),
        (Pool, "imap"),
        (Pool, "imap_unordered"),
        (Pool, "_map_async"),
    ]
    before = [getattr(*owner) for owner in owners]
    undo = carry_operations()
    changed = [getattr(*owner) for owner in owners]
    assert [one.__name__ for one in changed] == [one.__name__ for one in before]
    assert all(new is not old for new, old in zip(changed, before, strict=True))

    def theirs(thread):
        changed[0](thread)

    monkeypatch.setattr(threading.Thread, "start", theirs)
    undo()
    assert threading.Thread.start is theirs
    assert [getattr(*owner) for owner in owners[1:]] == before[1:]
    monkeypatch.setattr(threading.Thread, "start", before[0])


# What goes to another process


class Unpicklable:
    def __reduce__(self):
        raise TypeError("never")

    def __str__(self):
        return "something"


class Hostile(Unpicklable):
    def __str__(self):
        raise RuntimeError("never")


def there(function=seen):
    """The work as another process gets it."""
    return pickle.loads(pickle.dumps(Carried(function, Scope.current())))


def state():
    operation = current_operation()
    return {name: getattr(operation, name) for name in Operation.__slots__ if not name.startswith("_")}


def span_context():
    return trace.get_current_span().get_span_context()


def test_ids_flags_and_plain_fields_arrive_with_the_trace():
    fields = {
        "symbol": "SOL",
        "amount": Decimal("1.5"),
        "at": datetime(2026, 11, 1, tzinfo=UTC),
        "nested": {"list": [1, 2.5, None, (True, b"x")], 5: "five"},
    }
    with log.context("c", "u", ["DECLARED"], request_id="r", session_id="s", **fields):
        operation = current_operation()
        operation.note("EVALUATED", "low", True)
        here = state()
        work, span_work, mine = there(state), there(span_context), span_context()
        for name in ("correlation_id", "user_id", "request_id", "session_id"):
            assert here[name]
    arrived = work()
    for own in ("version", "shared"):
        here.pop(own)
        arrived.pop(own)
    assert arrived == here
    assert here["fields"] == fields
    span = span_work()
    assert (span.trace_id, span.span_id, span.trace_flags, span.is_remote) == (
        mine.trace_id, mine.span_id, mine.trace_flags, True,
    )  # fmt: skip
    assert current_operation() is None


def test_what_is_not_plain_arrives_as_text_and_never_stops_the_work():
    class Zone(tzinfo):
        def utcoffset(self, _):
            return timedelta(hours=1)

    endless = []
    endless.append(endless)
    here = datetime(2026, 11, 1, 12, tzinfo=Zone())
    with log.context(
        "c",
        a=Unpicklable(),
        b=Hostile(),
        c=[Unpicklable()],
        d={Hostile(): 1},
        e=endless,
        f=open,
        g="\udc80",
        h=here,
        i=set(range(100_000)),
        j=dict.fromkeys(range(100_000)),
        k="x" * 100_000,
    ):
        work = there(state)
    fields = work()["fields"]
    assert (fields["a"], fields["b"], fields["c"]) == ("something", "<unprintable Hostile>", ["something"])
    assert (fields["d"], fields["g"]) == ({"<unprintable Hostile>": 1}, "\udc80")
    assert isinstance(fields["e"][0][0][0][0], str)
    assert (len(fields["i"]), len(fields["j"]), len(fields["k"])) == (64, 64, 32 * 1024 + 1)
    assert fields["h"] == "2026-11-01 12:00:00+01:00"
    assert fields["f"].startswith("<built-in function open")


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda key: key not in ("self", "service")),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.decimals(),
                st.datetimes(), st.times(), st.uuids(), st.complex_numbers(), st.builds(Unpicklable), st.builds(Hostile),
            ),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner), st.sets(st.integers())),
        ),
        max_size=4,
    )
)  # fmt: skip
def test_whatever_the_fields_are_work_can_be_handed_over(fields):
    fields.pop("flags", None)
    with log.context(**fields):
        work = there(state)
    assert set(work()["fields"]) <= set(fields)


def test_baggage_and_tracestate_arrive_too():
    remote = trace.SpanContext(
        5, 7, is_remote=False, trace_flags=trace.TraceFlags(0), trace_state=trace.TraceState([("vendor", "x")])
    )
    context = baggage.set_baggage("tenant", "t", trace.set_span_in_context(trace.NonRecordingSpan(remote)))
    with Scope(None, context):
        work = there(lambda_free)
    assert work() == (None, 5, 7, 0, {"vendor": "x"}, {"tenant": "t"})


def lambda_free():
    span = span_context()
    return (
        current_operation(), span.trace_id, span.span_id, int(span.trace_flags), dict(span.trace_state),
        dict(baggage.get_all()),
    )  # fmt: skip


def test_what_cannot_be_pickled_fails_as_it_does_without_us():
    with pytest.raises((pickle.PicklingError, AttributeError)) as plain:
        pickle.dumps(lambda: 1)
    with log.context(correlation_id="c"), pytest.raises(type(plain.value), match="lambda"):
        pickle.dumps(Carried(lambda: 1, Scope.current()))


WORK = """
    import json, logging, multiprocessing, os, sys, threading
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from jarvis_otel import get_logger
    from jarvis_otel.carry import carry_operations
    from jarvis_otel.context import current_operation

    log = get_logger("trading")

    def seen(*_):
        operation = current_operation()
        context = trace.get_current_span().get_span_context()
        return [operation and operation.correlation_id, operation and operation.fields.get("tenant"), context.trace_id]

    def with_thread(*_):
        # the worker carries on by itself: its own threads too, if it is told to
        undo = carry_operations()
        results = []
        thread = threading.Thread(target=lambda: results.append(seen()))
        thread.start()
        thread.join()
        undo()
        return results[0]

    def fail(*_):
        raise KeyError("from the worker")

    def put(queue, tag):
        queue.put([tag, seen()])

    class Runs(multiprocessing.Process):
        def __init__(self, queue):
            super().__init__()
            self.queue = queue
        def run(self):
            self.queue.put(["class", seen()])

    initial = []
    def initialize():
        initial.append(seen())
    def initialized(*_):
        return initial
"""


def run(own_project, code, method):
    script = own_project / "app.py"
    script.write_text(textwrap.dedent(WORK) + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script), method],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
def test_work_for_a_process_pool_runs_in_the_operation_that_gave_it(own_project, method):
    code = """
    if __name__ == "__main__":
        carry_operations()
        context = multiprocessing.get_context(sys.argv[1])
        with ProcessPoolExecutor(1, mp_context=context, initializer=initialize) as pool:
            with log.context("a", tenant="t", odd=threading.Lock()):
                a = seen()
                results = [pool.submit(seen).result(), pool.submit(with_thread).result(), *pool.map(seen, range(3), chunksize=2)]
                try:
                    pool.submit(fail).result()
                except KeyError as error:
                    failed = error.args
                try:
                    pool.submit(lambda: 1).result()
                except Exception as error:
                    unpicklable = "lambda" in str(error)
            with log.context("b"):
                b = seen()
                other = pool.submit(seen).result()
            after, first = pool.submit(seen).result(), pool.submit(initialized).result()
        print(json.dumps([a, results, failed, unpicklable, b == other, after, first]))
    """
    a, results, failed, unpicklable, same, after, first = run(own_project, code, method)
    assert a[:2] == ["a", "t"]
    assert results == [a] * 5
    assert (failed, unpicklable, same, after, first) == (
        ["from the worker"], True, True, [None, None, 0], [[None, None, 0]],
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_work_for_a_multiprocessing_pool_runs_in_the_operation_that_gave_it(own_project, method):
    code = """
    if __name__ == "__main__":
        carry_operations()
        context = multiprocessing.get_context(sys.argv[1])
        with log.context("a", tenant="t"):
            a = seen()
            with context.Pool(1, initializer=initialize, maxtasksperchild=2) as pool:
                results = [
                    pool.apply(seen), pool.apply_async(seen).get(60), pool.apply(with_thread),
                    *pool.map(seen, range(2)), *pool.starmap(seen, [(1, 2)]),
                    *pool.imap(seen, range(2)), *pool.imap_unordered(seen, range(2), chunksize=2),
                ]
                try:
                    pool.apply(fail)
                except KeyError as error:
                    failed = error.args
                first = pool.apply(initialized)
        print(json.dumps([a, results, failed, first]))
    """
    a, results, failed, first = run(own_project, code, method)
    assert a[:2] == ["a", "t"]
    assert results == [a] * len(results)
    assert (failed, first) == (["from the worker"], [[None, None, 0]])


@pytest.mark.parametrize("method", METHODS)
def test_a_process_begins_in_the_operation_of_who_started_it(own_project, method):
    code = """
    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        carry_operations()
        queue = multiprocessing.SimpleQueue()
        with log.context("a", tenant="t", odd=threading.Lock()):
            a = seen()
            processes = [
                multiprocessing.Process(target=put, args=(queue, "target")),
                multiprocessing.get_context(sys.argv[1]).Process(target=put, args=(queue, "context")),
                Runs(queue),
            ]
            for process in processes:
                process.start()
                assert "run" not in vars(process)
                process.join()
        later = multiprocessing.Process(target=put, args=(queue, "later"))
        later.start()
        later.join()
        codes = [process.exitcode for process in [*processes, later]]
        print(json.dumps([a, dict(queue.get() for _ in range(4)), codes]))
    """
    a, results, codes = run(own_project, code, method)
    assert a[:2] == ["a", "t"]
    assert results == {"target": a, "context": a, "class": a, "later": [None, None, 0]}
    assert codes == [0] * 4


def test_a_span_that_a_worker_opens_is_a_child_of_the_span_that_gave_the_work(own_project):
    code = """
    def work():
        trace.set_tracer_provider(TracerProvider())
        with log.context(user_id="u"):
            span = trace.get_current_span()
            return [span.name, span.parent.span_id, span.get_span_context().trace_id, current_operation().correlation_id]

    if __name__ == "__main__":
        carry_operations()
        trace.set_tracer_provider(TracerProvider())
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(sys.argv[1])) as pool, log.context("a"):
            span = trace.get_current_span().get_span_context()
            print(json.dumps([[span.span_id, span.trace_id], pool.submit(work).result()]))
    """
    here, there = run(own_project, code, "spawn")
    assert there == ["trading operation", *here, "a"]


def test_a_forked_child_carries_into_pools_of_its_own(own_project):
    code = """
    if __name__ == "__main__":
        carry_operations()
        with log.context("a", tenant="t"):
            a = seen()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(seen).result()
                read, write = os.pipe()
                child = os.fork()
                if child == 0:
                    with ThreadPoolExecutor(1) as own:
                        os.write(write, json.dumps([own.submit(seen).result(), with_thread()]).encode())
                    os._exit(0)
                os.waitpid(child, 0)
                print(json.dumps([a, json.loads(os.read(read, 10_000))]))
    """
    a, theirs = run(own_project, code, "")
    assert theirs == [a, a]
