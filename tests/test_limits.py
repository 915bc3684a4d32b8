"""Limits on records: who is let through, who is left out, and that the counts of what was left out never lie."""

import io
import logging
import math
import os
import random
import select
import signal
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from jarvis_flags.settings import SettingsSource
from jarvis_otel import limits
from jarvis_otel.limits import LIMITERS_MAX, MESSAGE_CHARS, MESSAGES_MAX, LeftOut, Limit, Limiter, Limiters
from tests.clocks import Clock

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


@pytest.fixture
def clock():
    return Clock()


def answers(limiter, clock, seconds, *, message="tick", step=1.0):
    """What admit says of a record at each step of a while."""
    given = []
    for _ in range(int(seconds / step)):
        given.append(limiter.admit(INFO, message))
        clock.now += step
    return given


# What is let through


def test_without_a_limit_everything_is_let_through(clock):
    limiter = Limiter(Limit(), clock=clock)
    assert answers(limiter, clock, 5) == [0] * 5
    assert not Limit(below=ERROR, per=5.0).limits_something


def test_dedupe_lets_one_through_in_each_window_and_it_tells_how_many_were_left_out(clock):
    limiter = Limiter(Limit(dedupe=5), clock=clock)
    assert answers(limiter, clock, 12) == [0, -1, -1, -1, -1, 4, -1, -1, -1, -1, 4, -1]


def test_once_lets_the_first_through_and_never_another(clock):
    limiter = Limiter(Limit(once=True), clock=clock)
    assert answers(limiter, clock, 4, step=1) == [0, -1, -1, -1]
    clock.now += 1e8
    assert limiter.admit(INFO, "tick") == -1


def test_a_rate_lets_a_burst_of_its_size_through_and_then_as_many_in_each_second(clock):
    limiter = Limiter(Limit(rate=4), clock=clock)
    assert [limiter.admit(INFO, "tick") for _ in range(6)] == [0, 0, 0, 0, -1, -1]
    clock.now += 0.25
    assert [limiter.admit(INFO, "tick") for _ in range(2)] == [2, -1]
    clock.now += 60
    assert [limiter.admit(INFO, "tick") for _ in range(5)] == [1, 0, 0, 0, -1]


def test_a_rate_per_minute_lets_that_many_through_at_once(clock):
    limiter = Limiter(Limit.parse({"rate": "3/min"}, "x"), clock=clock)
    assert [limiter.admit(INFO, "tick") for _ in range(4)] == [0, 0, 0, -1]
    clock.now += 19
    assert limiter.admit(INFO, "tick") == -1
    clock.now += 2
    assert limiter.admit(INFO, "tick") == 2


def test_a_rate_below_one_lets_one_through_in_each_of_its_intervals(clock):
    limiter = Limiter(Limit(rate=0.5), clock=clock)
    assert answers(limiter, clock, 5) == [0, -1, 1, -1, 1]


@given(
    rate=st.floats(0.1, 50),
    per=st.sampled_from([1.0, 60.0]),
    pauses=st.lists(st.floats(0, 30), min_size=1, max_size=80),
    window=st.floats(0.1, 100),
)
def test_in_no_window_of_time_do_more_pass_than_the_burst_and_what_flows_in_meanwhile(rate, per, pauses, window):
    clock = Clock(0.0)
    limiter = Limiter(Limit(rate=rate, per=per), clock=clock)
    passed = []
    for pause in pauses:
        clock.now += pause
        if limiter.admit(INFO, "tick") >= 0:
            passed.append(clock.now)
    for start in passed:
        within = sum(start <= when <= start + window for when in passed)
        assert within <= max(1.0, rate) + window * rate / per + 1e-6


@given(rate=st.floats(0.1, 50), pauses=st.lists(st.floats(0, 3), max_size=50))
def test_whoever_keeps_to_the_rate_is_never_left_out(rate, pauses):
    clock = Clock(0.0)
    limiter = Limiter(Limit(rate=rate), clock=clock)
    for pause in pauses:
        clock.now += 1 / rate + pause + 1e-9
        assert limiter.admit(INFO, "tick") == 0


def test_other_messages_and_other_levels_are_limited_by_themselves(clock):
    limiter = Limiter(Limit(once=True), clock=clock)
    records = [(INFO, "a"), (INFO, "b"), (DEBUG, "a"), (INFO, "a"), (DEBUG, "a"), (INFO, "b")]
    assert [limiter.admit(*record) for record in records] == [0, 0, 0, -1, -1, -1]


def test_what_a_sample_leaves_out_uses_up_no_rate_and_begins_no_window(clock):
    limiter = Limiter(Limit(sample=0.5, rate=1, dedupe=100, once=True), clock=clock)
    assert limiter.admit(INFO, "tick", trace_id=(1 << 64) - 1) == -1
    assert limiter.admit(INFO, "tick", trace_id=1) == 1
    assert limiter.left_out == {"sampled": 1, "rate": 0, "dedupe": 0, "once": 0}


def test_what_a_rate_leaves_out_begins_no_window_of_dedupe(clock):
    limiter = Limiter(Limit(rate=0.1, dedupe=8), clock=clock)
    assert answers(limiter, clock, 22) == [0, *[-1] * 9, 9, *[-1] * 9, 9, -1]


# Levels


@pytest.mark.parametrize("limit", [Limit(sample=0.0), Limit(rate=0.001), Limit(dedupe=1e6), Limit(once=True)])
def test_a_warning_is_never_left_out_unless_that_is_asked_for(limit, clock):
    limiter = Limiter(limit, clock=clock)
    assert [limiter.admit(level, "tick") for level in (WARNING, ERROR, logging.CRITICAL) * 3] == [0] * 9
    assert sum(limiter.left_out.values()) == 0
    asked = Limiter(Limit(limit.sample, limit.rate, limit.dedupe, limit.once, below=ERROR), clock=clock)
    assert [asked.admit(ERROR, "tick") for _ in range(3)] == [0, 0, 0]
    assert [asked.admit(WARNING, "tick") for _ in range(3)][1:] == [-1, -1]


# Samples


@given(share=st.floats(0, 1), trace_id=st.integers(1, (1 << 128) - 1))
def test_a_sample_keeps_the_records_of_those_traces_that_the_sdk_would_keep(share, trace_id):
    limiter = Limiter(Limit(sample=share))
    kept = TraceIdRatioBased(share).should_sample(None, trace_id, "span").decision is Decision.RECORD_AND_SAMPLE
    given = {limiter.admit(INFO, message, trace_id) >= 0 for message in ("a", "b", "c")}
    assert given == {kept}
    assert limiter.samples


def test_without_a_trace_chance_decides():
    limiter = Limiter(Limit(sample=0.25))
    kept = sum(limiter.admit(INFO, "tick") >= 0 for _ in range(20_000))
    assert 4_000 < kept < 6_000


def test_a_sample_of_all_keeps_all_and_of_none_none():
    every, none = Limiter(Limit(sample=1)), Limiter(Limit(sample=0))
    ids = [0, 1, (1 << 64) - 1, 1 << 64, (1 << 128) - 1]
    assert [every.admit(INFO, "tick", trace_id) for trace_id in ids] == [0] * 5
    assert [none.admit(INFO, "tick", trace_id) for trace_id in ids] == [-1] * 5


# Several limits


def test_a_record_has_to_pass_all_limits(clock):
    limiter = Limiter(Limit(rate=2), Limit(dedupe=0.1), Limit(sample=0.5), clock=clock)
    low, high = 1, (1 << 64) - 1
    assert limiter.admit(INFO, "tick", low) == 0
    assert limiter.admit(INFO, "tick", low) == -1
    clock.now += 0.2
    assert limiter.admit(INFO, "tick", high) == -1
    assert limiter.admit(INFO, "tick", low) == 2
    clock.now += 0.11
    assert limiter.admit(INFO, "tick", low) == -1
    assert limiter.left_out == {"sampled": 1, "rate": 1, "dedupe": 1, "once": 0}


def test_each_of_several_limits_holds_below_its_own_level(clock):
    limiter = Limiter(Limit(once=True), Limit(dedupe=10, below=ERROR), Limit(), clock=clock)
    assert answers(limiter, clock, 3) == [0, -1, -1]
    clock.now += 10
    assert limiter.admit(INFO, "tick") == -1
    assert [limiter.admit(WARNING, "tick") for _ in range(2)] == [0, -1]
    clock.now += 10
    assert [limiter.admit(WARNING, "tick") for _ in range(2)] == [1, -1]
    assert [limiter.admit(ERROR, "tick") for _ in range(2)] == [0, 0]


def test_of_several_samples_the_smallest_counts(clock):
    limiter = Limiter(Limit(sample=0.75), Limit(sample=0.25), clock=clock)
    assert [limiter.admit(INFO, "tick", (1 << 64) * eighth // 8) >= 0 for eighth in (1, 3, 5, 7)] == [
        True,
        False,
        False,
        False,
    ]


@given(
    rates=st.lists(st.tuples(st.floats(0.1, 20), st.sampled_from([1.0, 60.0])), min_size=2, max_size=3),
    pauses=st.lists(st.floats(0, 10), max_size=60),
)
def test_two_rates_let_no_more_through_than_either_alone_allows(rates, pauses):
    clock = Clock(0.0)
    limiter = Limiter(*(Limit(rate=rate, per=per) for rate, per in rates), clock=clock)
    checks = [Limiter(Limit(rate=rate, per=per), clock=clock) for rate, per in rates]
    for pause in pauses:
        clock.now += pause
        if limiter.admit(INFO, "tick") >= 0:
            clock.now += 1e-9
            assert [check.admit(INFO, "tick") for check in checks] == [0] * len(checks)


# Counts


def test_what_no_later_record_tells_a_summary_tells_when_the_time_of_the_limit_is_over(clock):
    limiter = Limiter(Limit(dedupe=5), clock=clock)
    assert answers(limiter, clock, 4) == [0, -1, -1, -1]
    assert limiter.drain() == []
    clock.now += 3
    assert limiter.drain() == [LeftOut(INFO, "tick", 3, "dedupe")]
    assert limiter.drain(math.inf) == []
    assert limiter.admit(INFO, "tick") == 0


@pytest.mark.parametrize("limit", [Limit(dedupe=5), Limit(rate=0.2), Limit(rate=3, per=15)])
def test_while_like_records_go_on_they_tell_and_no_summary_does(limit, clock):
    limiter = Limiter(limit, clock=clock)
    told = 0
    for _ in range(600):
        told += max(0, limiter.admit(INFO, "tick"))
        assert limiter.drain() == []
        clock.now += 0.5
    assert told > 400


def test_what_once_leaves_out_is_told_once_a_day_and_at_the_end(clock):
    limiter = Limiter(Limit(once=True), clock=clock)
    summaries = []
    for _ in range(48):
        limiter.admit(INFO, "tick")
        clock.now += 3_600
        summaries += limiter.drain()
    assert [summary.count for summary in summaries] == [24]
    assert [summary.count for summary in limiter.drain(math.inf)] == [23]


def test_a_summary_names_every_reason(clock):
    limiter = Limiter(Limit(rate=0.1, dedupe=3, below=50), clock=clock)
    assert answers(limiter, clock, 6) == [0, -1, -1, -1, -1, -1]
    assert limiter.drain(math.inf) == [LeftOut(INFO, "tick", 5, "rate, dedupe")]
    assert limiter.left_out == {"sampled": 0, "rate": 3, "dedupe": 2, "once": 0}


def test_of_many_messages_the_most_frequent_are_named_and_the_rest_is_summed_up(clock):
    limiter = Limiter(Limit(once=True, below=50), clock=clock)
    for number in range(20):
        for _ in range(number + 1):
            limiter.admit(INFO if number else ERROR, f"message {number}")
    told = limiter.drain(math.inf, most=3)
    assert [(left.message, left.count) for left in told[:3]] == [
        ("message 19", 19),
        ("message 18", 18),
        ("message 17", 17),
    ]
    assert told[3:] == [LeftOut(INFO, None, sum(range(17)), "once")]
    assert limiter.drain(math.inf) == []


def test_memory_is_bounded_and_what_is_forgotten_keeps_its_count(clock):
    limiter = Limiter(Limit(dedupe=5), clock=clock)
    long = "x" * 100_000
    for number in range(3 * MESSAGES_MAX):
        for _ in range(3):
            limiter.admit(INFO, f"{number} {long}")
    assert len(limiter._likes) == MESSAGES_MAX
    assert {len(message) for _, message in limiter._likes} == {MESSAGE_CHARS}
    clock.now += 6
    told = limiter.drain()
    assert len(told) == 9
    assert told[-1] == LeftOut(INFO, None, 6 * MESSAGES_MAX - 16, "dedupe")
    assert limiter.left_out["dedupe"] == 6 * MESSAGES_MAX


def test_the_message_that_was_heard_longest_ago_is_forgotten_first(clock):
    limiter = Limiter(Limit(once=True), clock=clock)
    limiter.admit(INFO, "steady")
    for number in range(2 * MESSAGES_MAX):
        assert limiter.admit(INFO, f"passing {number}") == 0
        assert limiter.admit(INFO, "steady") == -1


limit_values = st.builds(
    Limit,
    sample=st.none() | st.sampled_from([0.0, 0.3, 1.0]),
    rate=st.none() | st.sampled_from([0.5, 2.0]),
    dedupe=st.none() | st.sampled_from([1.0, 7.0]),
    once=st.booleans(),
    below=st.sampled_from([INFO, WARNING, ERROR]),
)
steps = st.one_of(
    st.tuples(
        st.just("admit"), st.sampled_from([DEBUG, INFO, WARNING]), st.sampled_from("abcdef"), st.integers(0, 1 << 128)
    ),
    st.tuples(st.just("pause"), st.floats(0, 100)),
    st.tuples(st.just("drain"), st.integers(0, 3)),
)


@given(
    given=st.lists(limit_values, max_size=2),
    steps=st.lists(steps, max_size=120),
    remembered=st.integers(1, 8) | st.just(18),
)
def test_every_record_left_out_is_told_exactly_once_whatever_happens(given, steps, remembered):
    clock = Clock()
    untold = dict.fromkeys([(level, message) for level in (DEBUG, INFO, WARNING) for message in "abcdef"], 0)
    left_out = told = 0
    before, limits.MESSAGES_MAX = limits.MESSAGES_MAX, remembered
    try:
        limiter = Limiter(*given, clock=clock)
        for step, *arguments in [*steps, ("end",)]:
            if step == "admit":
                level, message, trace_id = arguments
                answer = limiter.admit(level, message, trace_id)
                if answer < 0:
                    left_out += 1
                    untold[level, message] += 1
                    assert level < max((limit.below for limit in given), default=0)
                else:
                    told += answer
                    assert answer <= untold[level, message]
                    assert answer == untold[level, message] or remembered < 18
                    untold[level, message] -= answer
            elif step == "pause":
                clock.now += arguments[0]
            else:
                most = arguments[0] if arguments and remembered < 18 else 18
                for left in limiter.drain(math.inf if step == "end" else None, most):
                    assert left.count > 0
                    told += left.count
                    if left.message is not None:
                        untold[left.level, left.message] -= left.count
                        assert untold[left.level, left.message] >= 0
        assert told == left_out == sum(limiter.left_out.values())
        assert limiter.drain(math.inf) == []
        assert len(limiter._likes) <= remembered
    finally:
        limits.MESSAGES_MAX = before


@pytest.mark.parametrize("limit", [Limit(sample=0.5, dedupe=1e-6), Limit(rate=1_000), Limit(once=True)])
def test_counts_are_right_whatever_threads_do(limit):
    limiter = Limiter(limit)
    calls, threads = 4_000, 6
    sums = []
    barrier = threading.Barrier(threads + 1)

    def log(seed):
        chance = random.Random(seed)
        admitted = told = left_out = 0
        barrier.wait()
        for _ in range(calls):
            answer = limiter.admit(INFO, f"message {chance.randrange(3)}", chance.randrange(1 << 64))
            if answer < 0:
                left_out += 1
            else:
                admitted += 1
                told += answer
        sums.append((admitted, left_out, told))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=log, args=(seed,)) for seed in range(threads)]
        for thread in running:
            thread.start()
        barrier.wait()
        summed = 0
        while any(thread.is_alive() for thread in running):
            summed += sum(left.count for left in limiter.drain(math.inf))
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    summed += sum(left.count for left in limiter.drain(math.inf))
    admitted, left_out, told = map(sum, zip(*sums, strict=True))
    assert admitted + left_out == calls * threads
    assert left_out == told + summed == sum(limiter.left_out.values())
    assert left_out > 0
    if limit.once:
        assert admitted == 3


# Interruptions


class Probe(str):
    """A message that does something while the limiter looks it up, as a signal handler or a finaliser might."""

    __slots__ = ("action",)

    def __hash__(self):
        self.action()
        return 1


def test_a_record_of_a_signal_handler_that_interrupts_the_limiter_is_let_through():
    limiter = Limiter(Limit(once=True))
    nested = []
    probe = Probe("outer")
    probe.action = lambda: nested.append((limiter.admit(INFO, "inner"), limiter.drain(), limiter.retire()))
    limiter.admit(INFO, "tick")
    limiter.admit(INFO, "tick")
    limiter.admit(INFO, probe)
    assert nested
    assert set(map(str, nested)) == {"(0, [], False)"}
    assert limiter.drain(math.inf) == [LeftOut(INFO, "tick", 1, "once")]
    nested.clear()
    limiter.admit(INFO, probe)
    assert not any(retired for _, _, retired in nested), "a count may be on its way"


def test_a_child_forked_while_a_thread_is_within_a_limiter_logs_on_and_leaves_the_parents_counts_to_it():
    limiters = Limiters()
    limiter = limiters.of("trading", Limit(once=True))
    answer = [limiter.admit(INFO, "tick") for _ in range(3)]
    assert answer == [0, -1, -1]
    within, leave = threading.Event(), threading.Event()
    probe = Probe("outer")
    probe.action = lambda: (within.set(), leave.wait(60))
    thread = threading.Thread(target=limiter.admit, args=(INFO, probe))
    thread.start()
    assert within.wait(60)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = [limiter.admit(INFO, "tick"), sum(limiter.left_out.values())]
        told.append(sum(left.count for _, left in limiters.drain(math.inf)))
        told.append(limiters.of("trading", Limit(once=True)) is limiter)
        os.write(writer, repr(told).encode())
        os._exit(0)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 30)[0], "the child hangs"
        with io.FileIO(reader) as pipe:
            assert pipe.readall() == b"[-1, 1, 1, True]"
    finally:
        leave.set()
        thread.join()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert limiter.drain(math.inf) == [LeftOut(INFO, "tick", 2, "once")]


# The limiters of a process


def test_the_same_limits_of_the_same_service_share_a_limiter(clock):
    limiters = Limiters(clock)
    for number in range(3):
        limiter = limiters.of("trading", Limit(once=True), Limit(rate=10))
        assert limiter.admit(INFO, "tick") == (-1 if number else 0)
    assert limiters.of("telegram", Limit(once=True), Limit(rate=10)).admit(INFO, "tick") == 0
    assert limiters.drain() == []
    assert limiters.drain(math.inf) == [("trading", LeftOut(INFO, "tick", 2, "once"))]
    assert limiters.left_out == {"sampled": 0, "rate": 0, "dedupe": 0, "once": 2}


def test_where_nothing_is_limited_there_is_no_limiter():
    assert Limiters().of("trading") is None
    assert Limiters().of("trading", Limit(), Limit(below=ERROR)) is None


def test_limiters_are_bounded_and_none_goes_before_its_counts_are_told(clock):
    limiters = Limiters(clock)
    made = [limiters.of("trading", Limit(dedupe=number + 1)) for number in range(LIMITERS_MAX)]
    for limiter in made:
        assert [limiter.admit(INFO, "tick") for _ in range(2)] == [0, -1]
    assert limiters.of("trading", Limit(once=True)) is None
    assert sum(left.count for _, left in limiters.drain(math.inf)) == LIMITERS_MAX
    assert limiters.of("trading", Limit(dedupe=1)) is made[0]
    fresh = limiters.of("trading", Limit(once=True))
    assert [fresh.admit(INFO, "tick") for _ in range(2)] == [0, -1]
    assert made[0].admit(INFO, "tick") == -1
    assert made[1].admit(INFO, "tick") == 0, "the one that was asked for longest ago made room"
    assert limiters.left_out["dedupe"] == LIMITERS_MAX + 1


def test_a_limiter_that_is_retired_lets_everything_through_even_what_was_on_its_way(clock):
    limiter = Limiter(Limit(dedupe=5), clock=clock)
    assert [limiter.admit(INFO, "tick") for _ in range(2)] == [0, -1]
    assert not limiter.retire()
    assert limiter.admit(INFO, "tick") == -1
    clock.now += 5
    assert limiter.admit(INFO, "tick") == 2
    retired = []
    limiter._clock = lambda: (retired.append(limiter.retire()), clock.now)[1]  # as another thread may at that moment
    assert limiter.admit(INFO, "tick") == 0
    assert retired == [True]
    assert limiter.admit(INFO, "tick") == 0


# Settings


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, Limit()),
        ({"sample": 0.1, "rate": None, "once": False}, Limit(sample=0.1)),
        ({"rate": 100}, Limit(rate=100)),
        ({"rate": "100/s"}, Limit(rate=100.0)),
        ({"rate": " 2.5 / S "}, Limit(rate=2.5)),
        ({"rate": "10/min"}, Limit(rate=10.0, per=60.0)),
        ({"rate": "5/h"}, Limit(rate=5.0, per=3600.0)),
        ({"dedupe": 5, "once": True}, Limit(dedupe=5, once=True)),
        ({"below": "ERROR"}, Limit(below=ERROR)),
        ({"below": "debug"}, Limit(below=DEBUG)),
        ({"below": 60}, Limit(below=60)),
    ],
)
def test_a_limit_is_read_as_it_is_written(given, limit):
    assert Limit.parse(given, "limits.trading") == limit


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.1, "f: limits.x: got 0.1, want a mapping of sample, rate, dedupe, once, below"),
        ({"rates": 1}, "f: limits.x.rates: unknown setting; did you mean rate?"),
        ({"zzz": 1}, "f: limits.x.zzz: unknown setting; want one of sample, rate, dedupe, once, below"),
        ({"sample": 10}, "f: limits.x.sample: got 10, want a share from 0 to 1 (0.1 is 10 %)"),
        ({"sample": True}, "f: limits.x.sample: got True, want a share from 0 to 1 (0.1 is 10 %)"),
        ({"sample": math.nan}, "f: limits.x.sample: got nan, want a share from 0 to 1 (0.1 is 10 %)"),
        (
            {"rate": "fast"},
            "f: limits.x.rate: got 'fast', want records per second above 0, or text such as 100/s, 10/min or 5/h",
        ),
        (
            {"rate": "0/s"},
            "f: limits.x.rate: got '0/s', want records per second above 0, or text such as 100/s, 10/min or 5/h",
        ),
        ({"dedupe": "5s"}, "f: limits.x.dedupe: got '5s', want seconds above 0"),
        ({"dedupe": 0}, "f: limits.x.dedupe: got 0, want seconds above 0"),
        ({"dedupe": math.inf}, "f: limits.x.dedupe: got inf, want seconds above 0"),
        ({"once": "on"}, "f: limits.x.once: got 'on', want true or false"),
        (
            {"below": "eror"},
            "f: limits.x.below: got 'eror', want one of debug, info, warning, error, critical; did you mean error?",
        ),
        ({"below": True}, "f: limits.x.below: got True, want one of debug, info, warning, error, critical"),
        ({1: 1}, "f: limits.x.1: unknown setting; want one of sample, rate, dedupe, once, below"),
    ],
)
def test_a_limit_that_cannot_be_used_says_where_what_and_what_is_wanted(given, message):
    with pytest.raises(ValueError) as error:
        Limit.parse(given, "f: limits.x")
    assert str(error.value) == message


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.dictionaries(
            st.sampled_from(["sample", "rate", "dedupe", "once", "below", "per", "x"]), inner, max_size=5
        ),
    )
)
def test_whatever_is_written_it_is_a_limit_that_works_or_one_message(value):
    limit, problem = None, ""
    try:
        limit = Limit.parse(value, "limits.x")
    except ValueError as error:
        problem = str(error)
    if limit is None:
        assert problem.startswith("limits.x")
        assert ": got " in problem or "unknown setting" in problem
        return
    limiter = Limiter(limit)
    given = [limiter.admit(INFO, "tick", trace_id) for trace_id in (0, 1, 1 << 127)]
    told = sum(answer for answer in given if answer > 0) + sum(left.count for left in limiter.drain(math.inf))
    assert given.count(-1) == told == sum(limiter.left_out.values())


def test_limits_stand_in_the_settings_file(own_project):
    (own_project / "config" / "jarvis.yaml").write_text(
        """limits:
  trading: {sample: 0.1, rate: 100/s, dedupe: 5, once: false, below: error}
  "*": {rate: 2.50}
"""
    )
    given = SettingsSource({}, own_project).mapping("limits")
    assert {service: Limit.parse(value, service) for service, value in given.items()} == {
        "trading": Limit(sample=0.1, rate=100.0, dedupe=5, once=False, below=ERROR),
        "*": Limit(rate=2.5),
    }
