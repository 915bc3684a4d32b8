"""Operations: what they hold, where they begin and end, and which code runs in them."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import json
import logging
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util._once import Once

from jarvis_collector.record import FLAGS_MAX
from jarvis_otel.context import LogContext, Operation, OperationSpanProcessor, current_operation
from jarvis_otel.logger import get_logger

log = get_logger("trading")


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(OperationSpanProcessor())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    use(provider, monkeypatch)
    return exporter


def use(provider, monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


@pytest.fixture(autouse=True)
def nothing_stays(caplog):
    """Each test ends outside of any operation and span, and OpenTelemetry had nothing to complain of."""
    yield
    assert (current_operation(), dict(otel_context.get_current())) == (None, {})
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


def correlation():
    operation = current_operation()
    return operation.correlation_id if operation is not None else None


def trace_id():
    return trace.get_current_span().get_span_context().trace_id


# What an operation holds


def test_its_version_changes_with_each_note_that_changes_something():
    operation = Operation()
    versions = [operation.version]
    for note in (("A", "on", True), ("A", "on", True), ("A", "off", False), ("B", "on", True), ("B", "on", False)):
        operation.note(*note)
        versions.append(operation.version)
    assert versions == [0, 1, 1, 2, 3, 4]
    assert operation.evaluated == {"A": ("off", False), "B": ("on", False)}
    assert Operation(operation).version == 0


def test_a_note_beyond_the_bound_changes_neither_flags_nor_version():
    operation = Operation()
    for number in range(FLAGS_MAX + 5):
        operation.note(f"F{number}", "on", True)
    assert (len(operation.evaluated), operation.version) == (FLAGS_MAX, FLAGS_MAX)
    operation.note("F0", "off", False)
    assert operation.version == FLAGS_MAX + 1


def test_no_two_notes_of_many_threads_give_the_same_version():
    operation, seen = Operation(), []

    def note(thread):
        for number in range(2_000):
            operation.note("F", f"{thread}/{number}", True)
            seen.append(operation.version)

    threads = [threading.Thread(target=note, args=(number,)) for number in range(4)]
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(former)
    assert next(operation._versions) == 8_001


# Decorated functions


def test_a_decorated_function_runs_in_an_operation_of_its_own_and_leaves_none(spans):
    @log.context(correlation_id="c", user_id="u", tenant="t")
    def function(value, *, factor=2):
        """Doc."""
        operation = current_operation()
        return operation.correlation_id, operation.user_id, dict(operation.fields), value * factor

    assert function(3, factor=5) == ("c", "u", {"tenant": "t"}, 15)
    assert (function.__name__, function.__doc__, list(inspect.signature(function).parameters)) == (
        "function", "Doc.", ["value", "factor"],
    )  # fmt: skip


def test_a_decorated_coroutine_function_is_one_and_its_tasks_keep_apart(spans):
    @log.context(correlation_id="task-{number}")
    async def work(number):
        seen = set()
        for _ in range(5):
            await asyncio.sleep(0)
            seen.add((correlation(), trace_id()))
        return seen

    async def main():
        assert inspect.iscoroutinefunction(work)
        return await asyncio.gather(*map(work, range(20)))

    results = asyncio.run(main())
    assert [len(seen) for seen in results] == [1] * 20
    assert [next(iter(seen))[0] for seen in results] == [f"task-{number}" for number in range(20)]
    assert len({next(iter(seen))[1] for seen in results}) == 20


def test_methods_class_methods_and_static_methods_can_be_decorated(spans):
    class Engine:
        name = "E"

        @log.context(correlation_id="{self.name}-{number}")
        def method(self, number):
            return correlation()

        @classmethod
        @log.context(correlation_id="{cls.name}-{number}")
        def inner_class_method(cls, number):
            return correlation()

        @log.context(correlation_id="{cls.name}-{number}")
        @classmethod
        def outer_class_method(cls, number):
            return correlation()

        @log.context(correlation_id="{number}")
        @staticmethod
        def static_method(number):
            return correlation()

    engine = Engine()
    engine.name = "F"
    assert [engine.method(1), Engine.inner_class_method(2), engine.outer_class_method(3), Engine.static_method(4)] == [
        "F-1", "E-2", "E-3", "4",
    ]  # fmt: skip
    assert spans.get_finished_spans()[0].name.endswith("Engine.method")


def test_a_function_that_calls_itself_has_an_operation_for_each_call(spans):
    @log.context(correlation_id="depth-{depth}")
    def count(depth):
        before = correlation()
        inner = count(depth - 1) if depth else []
        assert correlation() == before
        return [before, *inner]

    assert count(3) == ["depth-3", "depth-2", "depth-1", "depth-0"]
    assert len(spans.get_finished_spans()) == 1


def test_a_decorated_function_may_be_called_by_many_threads_at_once(spans):
    barrier = threading.Barrier(8)

    @log.context(correlation_id="{number}")
    def work(number):
        barrier.wait(10)
        first = correlation()
        barrier.wait(10)
        return first, correlation()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [(str(number), str(number)) for number in range(8)]


@pytest.mark.parametrize("wrong", [5, None, "text", int, SimpleNamespace])
def test_what_is_no_function_cannot_be_decorated_and_the_error_says_so(wrong):
    with pytest.raises(TypeError, match=r"want a function; write @logger\.context"):
        log.context()(wrong)


def test_without_parentheses_the_first_call_says_what_is_wrong():
    @log.context
    def function(value):
        return value

    with pytest.raises(TypeError, match="with parentheses"):
        function(5)


# Decorated generators


def test_the_body_of_a_generator_runs_in_its_operation_and_its_consumer_does_not(spans):
    @log.context(correlation_id="gen-{name}")
    def numbers(name):
        for number in range(3):
            yield number, correlation(), trace_id()

    assert inspect.isgeneratorfunction(numbers)
    with log.context(correlation_id="consumer"):
        mine = trace_id()
        seen = []
        for one, other in zip(numbers("a"), numbers("b"), strict=True):
            seen += [one[1], other[1], correlation()]
            assert (one[2], other[2], trace_id()) == (mine, mine, mine)
    assert seen == ["gen-a", "gen-b", "consumer"] * 3


def test_a_generator_outside_of_any_operation_has_one_trace_and_leaves_none_to_its_consumer(spans):
    @log.context()
    def numbers():
        yield trace_id()
        yield trace_id()

    values = numbers()
    first = next(values)
    assert (trace_id(), current_operation()) == (0, None)
    assert (next(values), trace_id(), list(values)) == (first, 0, [])
    assert len(spans.get_finished_spans()) == 1


def test_what_a_generator_opens_across_its_yields_stays_its_own(spans):
    tracer = trace.get_tracer("app")

    @log.context(correlation_id="outer")
    def numbers():
        with tracer.start_as_current_span("inside") as span, log.context(correlation_id="inner"):
            yield span.get_span_context().span_id
            yield trace.get_current_span().get_span_context().span_id
            assert correlation() == "inner"
        assert correlation() == "outer"
        yield correlation()

    values = numbers()
    span_id = next(values)
    assert (trace_id(), correlation()) == (0, None)
    with log.context(correlation_id="consumer"):
        assert next(values) == span_id
        assert correlation() == "consumer"
        assert list(values) == ["outer"]
    assert spans.get_finished_spans()[0].name == "inside"


def test_other_context_variables_of_a_generator_are_shared_with_its_consumer_as_ever(spans):
    variable = contextvars.ContextVar("variable", default=0)

    @log.context()
    def body():
        variable.set(1)
        yield variable.get()
        yield variable.get()

    def run():
        values = body()
        next(values)
        assert variable.get() == 1
        variable.set(2)
        assert next(values) == 2
        values.close()

    contextvars.copy_context().run(run)


class PokeError(Exception):
    pass


def echo(told):
    """A generator that does whatever it is told, and says what happened to it."""
    given = "first"
    count = 0
    try:
        while True:
            try:
                count += 1
                given = yield (count, given)
            except PokeError as error:
                told.append(str(error))
                given = f"caught {error}"
                if str(error) == "raise":
                    raise KeyError(count) from error
            if given == "stop":
                return f"returned after {count}"
            if given == "fail":
                raise ZeroDivisionError(count)
    except GeneratorExit:
        told.append("closed")
        if count == 3:
            raise LookupError("while closing") from None
        raise
    finally:
        told.append(("ended", count))


STEPS = st.lists(
    st.sampled_from(
        [("next",), ("send", 1), ("send", "stop"), ("send", "fail"), ("throw", "a"), ("throw", "raise"), ("close",)]
    ),
    max_size=8,
)


def outcome(action):
    try:
        return "gave", action()
    except StopIteration as end:
        return "stopped", end.value
    except BaseException as error:
        return type(error), str(error), type(error.__cause__)


def drive(function, steps):
    told = []
    values = function(told)
    results = []
    for name, *argument in steps:
        if name == "next":
            results.append(outcome(functools.partial(next, values)))
        elif name == "throw":
            results.append(outcome(functools.partial(values.throw, PokeError(*argument))))
        else:
            results.append(outcome(functools.partial(getattr(values, name), *argument)))
    results.append(outcome(values.close))
    return results, told


@settings(deadline=None)
@given(STEPS)
def test_a_decorated_generator_does_what_the_plain_one_does(steps):
    assert drive(log.context(correlation_id="c")(echo), steps) == drive(echo, steps)
    assert (current_operation(), trace_id()) == (None, 0)


async def echo_async(told):
    given = "first"
    count = 0
    try:
        while True:
            try:
                count += 1
                await asyncio.sleep(0)
                given = yield (count, given)
            except PokeError as error:
                await asyncio.sleep(0)
                told.append(str(error))
                given = f"caught {error}"
                if str(error) == "raise":
                    raise KeyError(count) from error
            if given == "stop":
                return
            if given == "fail":
                raise ZeroDivisionError(count)
    except GeneratorExit:
        told.append("closed")
        if count == 3:
            raise LookupError("while closing") from None
        raise
    finally:
        await asyncio.sleep(0)
        told.append(("ended", count))


async def outcome_async(action):
    try:
        return "gave", await action
    except StopAsyncIteration:
        return "stopped"
    except BaseException as error:
        return type(error), str(error), type(error.__cause__)


async def drive_async(function, steps):
    told = []
    values = function(told)
    results = []
    for name, *argument in steps:
        if name == "next":
            action = anext(values)
        elif name == "throw":
            action = values.athrow(PokeError(*argument))
        else:
            action = getattr(values, f"a{name}")(*argument)
        results.append(await outcome_async(action))
        assert (current_operation(), trace_id()) == (None, 0)
    await outcome_async(values.aclose())
    return results, told


@settings(deadline=None)
@given(STEPS)
def test_a_decorated_async_generator_does_what_the_plain_one_does(steps):
    decorated = log.context(correlation_id="c")(echo_async)
    assert inspect.isasyncgenfunction(decorated)
    assert asyncio.run(drive_async(decorated, steps)) == asyncio.run(drive_async(echo_async, steps))


def test_the_body_of_an_async_generator_runs_in_its_operation_and_its_consumer_does_not(spans):
    @log.context(correlation_id="gen-{name}")
    async def ticks(name):
        for _ in range(3):
            await asyncio.sleep(0)
            yield correlation(), trace_id()

    async def consume(name):
        seen = set()
        async with log.context(correlation_id=name):
            async for tick in ticks(name):
                assert correlation() == name
                await asyncio.sleep(0)
                seen.add(tick)
            assert {trace for _, trace in seen} == {trace_id()}
        return {one for one, _ in seen}

    async def main():
        return await asyncio.gather(consume("a"), consume("b"))

    assert asyncio.run(main()) == [{"gen-a"}, {"gen-b"}]


def test_an_async_generator_that_is_left_early_is_ended_and_leaks_nothing(spans):
    ended = []

    @log.context(correlation_id="gen")
    async def ticks():
        try:
            while True:
                yield correlation()
        finally:
            await asyncio.sleep(0)
            ended.append(correlation())

    async def main():
        async for tick in ticks():
            assert tick == "gen"
            break
        assert (correlation(), trace_id()) == (None, 0)
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (correlation(), trace_id()) == (None, 0)

    asyncio.run(main())
    assert ended == ["gen"]
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET


def test_a_generator_may_be_advanced_from_one_thread_and_then_from_another(spans):
    @log.context(correlation_id="gen")
    def numbers():
        with log.context(correlation_id="inner"):
            yield correlation()
            yield correlation()
        yield correlation()

    values = numbers()
    seen = []

    def advance():
        seen.append(next(values, "end"))
        assert (current_operation(), trace_id()) == (None, 0)

    for _ in range(4):
        thread = threading.Thread(target=advance)
        thread.start()
        thread.join()
    assert seen == ["inner", "inner", "gen", "end"]
    assert len(spans.get_finished_spans()) == 1


def test_a_decorated_generator_function_still_makes_context_managers(spans):
    @contextlib.contextmanager
    @log.context(correlation_id="held")
    def held():
        yield correlation()

    with held() as within:
        assert (within, correlation()) == ("held", None)


# Texts that name arguments


def test_texts_name_arguments_by_position_keyword_default_and_attribute(spans):
    @log.context(
        correlation_id="trade-{order.id}", user_id="{user}", session_id="{more[0]}", size="{size:.2f}", a="{{a}}"
    )
    def execute(order, user="anyone", *, size=1.5, more=("s",)):
        operation = current_operation()
        return operation.correlation_id, operation.user_id, operation.session_id, operation.fields

    order = SimpleNamespace(id=7)
    assert execute(order) == ("trade-7", "anyone", "s", {"size": "1.50", "a": "{a}"})
    assert execute(order=order, user="ann", size=2) == ("trade-7", "ann", "s", {"size": "2.00", "a": "{a}"})


def test_an_argument_that_is_none_leaves_its_text_out(spans):
    @log.context(correlation_id="trade-{trade}", user_id="{user}", request_id="r")
    def execute(trade=None, user=None):
        operation = current_operation()
        return operation.correlation_id, operation.user_id, operation.request_id

    assert execute() == (None, None, "r")
    assert execute(0, "ann") == ("trade-0", "ann", "r")
    with log.context(correlation_id="outer"):
        assert execute() == ("outer", None, "r")


class Hostile:
    def __format__(self, spec):
        raise RuntimeError("never")

    def __str__(self):
        raise RuntimeError("never")

    def __getattr__(self, name):
        raise RuntimeError("never")


@pytest.mark.parametrize(
    "text",
    [
        "trade-{nothing}",
        "{",
        "}{",
        "{}",
        "{0}",
        "{value",
        "{value!x}",
        "{value:%%%}",
        "{value.attribute}",
        "{value[0]}",
        '{"a": 1}',
    ],
)
def test_a_text_that_cannot_be_filled_is_left_out_with_one_warning_and_the_call_goes_on(spans, caplog, text):
    @log.context(correlation_id=text, side="buy")
    def execute(value):
        return correlation(), current_operation().fields

    assert execute(Hostile()) == execute(Hostile()) == (None, {"side": "buy"})
    (record,) = [record for record in caplog.records if record.name == "jarvis_otel"]
    assert record.levelno == logging.WARNING
    assert "execute(): correlation_id=" in record.getMessage()
    assert repr(text) in record.getMessage()


@settings(deadline=None)
@given(st.text(max_size=30), st.one_of(st.text(max_size=5), st.integers(), st.none(), st.lists(st.text(max_size=2))))
def test_no_text_of_a_decorator_ever_makes_a_call_fail(text, value):
    @log.context(correlation_id=text, field=text)
    def execute(value):
        return value

    logging.disable(logging.CRITICAL)
    try:
        assert execute(value) == value
    finally:
        logging.disable(logging.NOTSET)


def test_braces_in_a_with_statement_are_only_text(spans):
    with log.context(correlation_id="trade-{id}", note="{"):
        assert (correlation(), current_operation().fields) == ("trade-{id}", {"note": "{"})


# One instance, entered by many


def test_one_instance_may_be_entered_by_many_threads_and_tasks_at_once(spans):
    shared = log.context(correlation_id="shared")
    barrier = threading.Barrier(6)
    traces = []

    def thread():
        for _ in range(50):
            with shared:
                barrier.wait(10)
                assert correlation() == "shared"
                traces.append(trace_id())
                with shared:
                    assert correlation() == "shared"
            assert current_operation() is None

    async def task(number):
        for _ in range(number % 5):
            await asyncio.sleep(0)
        async with shared:
            mine = current_operation()
            traces.append(trace_id())
            for _ in range((number * 7) % 5):
                await asyncio.sleep(0)
                assert current_operation() is mine
        assert (current_operation(), trace_id()) == (None, 0)

    async def main():
        await asyncio.gather(*map(task, range(50)))

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(thread) for _ in range(6)]:
            future.result()
    asyncio.run(main())
    assert len(set(traces)) == len(traces) == len(spans.get_finished_spans()) == 350
    assert shared._entered == {}


def test_left_in_another_context_nothing_is_raised_and_nothing_stays_there(spans):
    context = log.context(correlation_id="c")
    elsewhere = contextvars.copy_context()
    elsewhere.run(context.__enter__)
    assert current_operation() is None
    context.__exit__(None, None, None)
    assert current_operation() is None
    # where it was entered it cannot be taken down, but it says nothing any more
    assert elsewhere.run(correlation) is None
    assert len(spans.get_finished_spans()) == 1


def test_left_in_a_copy_of_its_context_it_is_gone_from_both(spans):
    async def main():
        async with log.context(correlation_id="outer"):
            mine = trace.get_current_span()
            context = log.context(correlation_id="inner")
            context.__enter__()

            async def leave():
                context.__exit__(None, None, None)
                return correlation()

            assert await asyncio.create_task(leave()) == "outer"
            assert correlation() == "outer"
            assert trace.get_current_span() is mine
            context.__exit__(None, None, None)
        assert (current_operation(), trace_id()) == (None, 0)

    asyncio.run(main())


def test_an_async_generator_with_a_context_of_its_own_that_is_closed_elsewhere_leaves_its_consumer(spans):
    async def ticks():
        async with log.context(correlation_id="gen", user_id="u"):
            while True:
                yield correlation()

    async def main():
        async with log.context(correlation_id="consumer"):
            async for tick in ticks():
                assert tick == "gen"
                break
            gc.collect()
            for _ in range(5):
                await asyncio.sleep(0)
            assert (correlation(), current_operation().user_id) == ("consumer", None)
        assert correlation() is None

    asyncio.run(main())


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 2), (2, 1, 0)])
def test_contexts_left_in_the_order_of_their_entering_do_not_come_back(spans, order):
    contexts = [log.context(correlation_id=str(number), user_id="u") for number in order]
    with log.context(correlation_id="around"):
        around, span = current_operation(), trace.get_current_span()
        for context in contexts:
            context.__enter__()
        for number in order:
            contexts[number].__exit__(None, None, None)
        assert (current_operation(), trace.get_current_span()) == (around, span)
    for context in contexts:
        context.__enter__()
    for number in order:
        contexts[number].__exit__(None, None, None)
    assert current_operation() is None
    # of the span the last one knows no better than that it was current when it began
    otel_context.attach(otel_context.Context())


def test_leaving_what_was_never_entered_does_nothing():
    log.context(correlation_id="c").__exit__(None, None, None)


# The span of an operation


def test_a_span_is_opened_where_none_is_active_and_named_after_service_and_function(spans):
    @log.context(correlation_id="c-{value}")
    def execute(value):
        return trace_id()

    with log.context(correlation_id="c"):
        assert trace_id() != 0
    assert execute(5) != 0
    first, second = spans.get_finished_spans()
    assert (first.name, dict(first.attributes)) == (
        "trading operation", {"jarvis.service": "trading", "jarvis.correlation_id": "c"},
    )  # fmt: skip
    assert (second.name, second.attributes["jarvis.correlation_id"]) == ("trading execute", "c-5")


def test_within_a_span_none_is_opened_and_it_gets_the_correlation_id(spans):
    with trace.get_tracer("app").start_as_current_span("mine") as span, log.context(correlation_id="c"):
        assert trace.get_current_span() is span
    (span,) = spans.get_finished_spans()
    assert dict(span.attributes) == {"jarvis.correlation_id": "c"}


@pytest.mark.parametrize("kind", ["with", "function", "coroutine", "generator", "async generator"])
def test_an_error_passes_through_and_is_told_once_by_the_span_that_was_opened(spans, kind):
    def fail():
        with log.context(user_id="inner"):
            raise ValueError("no funds")

    context = log.context(correlation_id="c")

    @context
    async def coroutine():
        fail()

    @context
    def generator():
        yield 1
        fail()

    @context
    async def async_generator():
        yield 1
        fail()

    async def consume():
        async for _ in async_generator():
            pass

    def plain():
        with log.context(correlation_id="c"):
            fail()

    ways = {
        "with": plain,
        "function": context(fail),
        "coroutine": lambda: asyncio.run(coroutine()),
        "generator": lambda: list(generator()),
        "async generator": lambda: asyncio.run(consume()),
    }
    with pytest.raises(ValueError, match=r"^no funds$") as caught:
        ways[kind]()
    assert caught.value.__cause__ is None
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: no funds")
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_what_ends_an_operation_without_being_an_error_is_none(spans, error):
    with pytest.raises(error), log.context(correlation_id="c"):
        raise error
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())


def test_an_exception_that_has_no_text_passes_through_as_itself(spans):
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("never")

    with pytest.raises(MuteError), log.context(correlation_id="c"):
        raise MuteError
    assert len(spans.get_finished_spans()) == 1


def test_below_a_span_that_is_not_sampled_no_new_trace_is_begun(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    use(provider, monkeypatch)
    with trace.get_tracer("app").start_as_current_span("not sampled") as span, log.context(correlation_id="c"):
        assert trace.get_current_span() is span
    with log.context(correlation_id="c"):
        mine = trace_id()
        with log.context(user_id="u"):
            assert trace_id() == mine != 0
        assert not trace.get_current_span().get_span_context().trace_flags.sampled
    assert exporter.get_finished_spans() == ()


def test_below_the_span_of_another_process_one_of_this_process_is_opened(spans):
    remote = trace.SpanContext(5, 7, is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(remote)), log.context(correlation_id="c"), log.context(user_id="u"):
        assert trace_id() == 5
    (span,) = spans.get_finished_spans()
    assert (span.parent.span_id, span.attributes["jarvis.correlation_id"]) == (7, "c")


def test_where_nothing_traces_an_operation_has_a_trace_all_the_same():
    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
    seen = set()
    for _ in range(100):
        with log.context(correlation_id="c"):
            context = trace.get_current_span().get_span_context()
            with log.context(user_id="u"):
                assert trace.get_current_span().get_span_context() == context
            assert (context.is_valid, context.is_remote) == (True, False)
            seen.add((context.trace_id, context.span_id))
    assert len({one for one, _ in seen}) == len({one for _, one in seen}) == 100


def test_the_trace_of_an_operation_does_not_follow_the_seed_of_a_simulation():
    def trace_of(seed):
        random.seed(seed)
        with log.context():
            return trace_id()

    assert trace_of(1) != trace_of(1)


def test_a_disabled_sdk_leaves_records_their_trace():
    code = """
import json, logging
from jarvis_otel import configure, get_logger
from jarvis_otel.propagation import inject_headers
configure("trading")
class Show(logging.Handler):
    def emit(self, record): print(record.getMessage())
logging.getLogger("trading").addHandler(Show())
with get_logger("trading").context(correlation_id="c"):
    get_logger("trading").info("x")
    print(json.dumps(inject_headers({}, "http://127.0.0.1/")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "OTEL_SDK_DISABLED": "true"},
    )
    entry, headers = map(json.loads, done.stdout.splitlines()[:2])
    assert entry["correlation_id"] == "c"
    assert headers["traceparent"].split("-")[1] == entry["trace_id"]


def test_a_sampler_that_raises_costs_the_span_and_not_the_operation(monkeypatch):
    class Broken(Sampler):
        def should_sample(self, *args, **kwargs):
            raise RuntimeError("never")

        def get_description(self):
            return "broken"

    use(TracerProvider(sampler=Broken()), monkeypatch)
    with log.context(correlation_id="c"):
        assert (correlation(), trace_id() != 0) == ("c", True)


# Server spans and operations


def test_a_server_span_within_an_operation_has_one_of_its_own(spans):
    tracer = trace.get_tracer("app")
    with log.context(correlation_id="boot", user_id="root"):
        boot = current_operation()
        with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER):
            served = current_operation()
            assert served is not boot
            assert (served.correlation_id, served.user_id) == (None, None)
            with tracer.start_as_current_span("below"):
                assert current_operation() is served
            with log.context(correlation_id="request"):
                assert (correlation(), current_operation().user_id) == ("request", None)
                with tracer.start_as_current_span("below"):
                    assert correlation() == "request"
            assert current_operation() is served
            with tracer.start_as_current_span("GET /inner", kind=SpanKind.SERVER):
                assert current_operation() not in (served, boot)
        assert current_operation() is boot
        with tracer.start_as_current_span("below"):
            assert current_operation() is boot


def test_an_operation_that_a_request_was_served_in_is_afterwards_what_it_was(spans):
    tracer = trace.get_tracer("app")
    with tracer.start_as_current_span("root"), log.context(correlation_id="c"):
        operation = current_operation()
        with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER):
            assert current_operation() is not operation
        assert current_operation() is operation


def test_code_that_only_has_the_span_finds_the_operation_in_which_it_was_started(spans):
    with log.context(correlation_id="c"):
        span = trace.get_tracer("app").start_span("handed on")
    seen = []

    def other():
        with trace.use_span(span):
            seen.append(correlation())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["c"]


# asyncio


def test_tasks_share_what_was_evaluated_and_their_own_contexts_do_not_leak_out(spans):
    async def evaluate(number):
        current_operation().note(f"SHARED{number}", "on", True)
        with log.context(correlation_id=f"task-{number}"):
            await asyncio.sleep(0)
            current_operation().note(f"OWN{number}", "on", True)
            assert correlation() == f"task-{number}"
        assert correlation() == "outer"

    async def main():
        async with log.context(correlation_id="outer"):
            operation = current_operation()
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(evaluate(number))
            await asyncio.gather(evaluate(3), asyncio.create_task(evaluate(4)))
            assert current_operation() is operation
            assert set(operation.evaluated) == {f"SHARED{number}" for number in range(5)}
            assert operation.version == 5

    asyncio.run(main())


def test_callbacks_of_the_loop_run_in_the_operation_that_asked_for_them(spans):
    async def main():
        loop = asyncio.get_running_loop()
        seen = {}
        done = asyncio.Event()

        def see(name):
            seen[name] = correlation()
            if len(seen) == 4:
                done.set()

        future = loop.create_future()
        async with log.context(correlation_id="c"):
            loop.call_soon(see, "soon")
            loop.call_later(0.001, see, "later")
            loop.call_soon_threadsafe(see, "threadsafe")
            future.add_done_callback(lambda _: see("future"))
        async with log.context(correlation_id="other"):
            future.set_result(None)
            await done.wait()
            return {**seen, "thread": await asyncio.to_thread(correlation)}

    assert asyncio.run(main()) == {"soon": "c", "later": "c", "threadsafe": "c", "future": "c", "thread": "other"}


def test_a_task_that_outlives_its_operation_stays_in_it_and_cancelled_ones_leave_nothing(spans):
    async def main():
        release = asyncio.Event()

        @log.context(user_id="u")
        async def late():
            await release.wait()
            return correlation()

        async with log.context(correlation_id="c"):
            task, cancelled = asyncio.create_task(late()), asyncio.create_task(late())
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        release.set()
        assert current_operation() is None
        return await task

    assert asyncio.run(main()) == "c"


def test_the_public_class_can_be_used_without_a_logger(spans):
    with LogContext("svc", "c", flags="F"):
        assert (current_operation().service, current_operation().declared) == ("svc", ("F",))
