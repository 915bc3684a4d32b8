"""What listeners hear of flags that change, by files and by the clock."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.source import MemorySource
from jarvis_otel.web.by_clock import by_clock, differing
from jarvis_otel.web.events import IDS_MAX, KEPT_MAX, Events

START = datetime(2027, 3, 1, 9, tzinfo=UTC)


def flag(flag_id, *rules, **more):
    return FlagDefinition(id=flag_id, rules=list(rules), **more)


def schedule(**value):
    return RolloutRule(type="schedule", value=value)


def memory(*flags):
    source = MemorySource()
    for one in flags:
        source.put(one)
    return source


def toggle(source, *ids):
    overrides = source.snapshot.overrides
    changed = {**overrides.overrides, **{one: Override("off") for one in ids if one not in overrides.overrides}}
    for one in set(ids) & overrides.overrides.keys():
        del changed[one]
    source.set_overrides(OverrideSet(overrides.revision + 1, changed))


async def heard(events, count, last_id=None):
    """So many events from now on, each with its id."""
    found = []
    async for place, event in events.follow(last_id):
        if event is not None:
            found.append((place, event))
        if len(found) == count:
            return found
    return found


def run(source, scenario, **arguments):
    async def within():
        events = Events(source, **arguments)
        events.start()
        try:
            return await asyncio.wait_for(scenario(events), 20)
        finally:
            events.stop()

    return asyncio.run(within())


async def until(holds):
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_all_who_listen_hear_of_the_same_changes_in_their_order():
    source = memory(flag("A"), flag("B"))

    async def scenario(events):
        listeners = [asyncio.create_task(heard(events, 2)) for _ in range(50)]
        await until(lambda: events.listening == 50)
        toggle(source, "A")
        toggle(source, "A", "B")
        return await asyncio.gather(*listeners), events

    told, events = run(source, scenario)
    assert all(one == told[0] for one in told)
    assert [event.flags for _, event in told[0]] == [("A",), ("A", "B")]
    assert [event.revision for _, event in told[0]] == [1, 2]
    assert events.listening == 0


def test_who_comes_back_gets_what_was_missed_and_whose_place_is_gone_is_told_of_all():
    source = memory(flag("A"))

    async def scenario(events):
        first = asyncio.create_task(heard(events, 1))
        await until(lambda: events.listening == 1)
        toggle(source, "A")
        [(place, _)] = await first
        for _ in range(3):
            toggle(source, "A")
        missed = await heard(events, 3, place)
        for _ in range(KEPT_MAX + 1):
            toggle(source, "A")
        await asyncio.sleep(0)
        gone = [await heard(events, 1, last) for last in (place, "other-1", "nonsense", f"{place}9" * 40)]
        return missed, gone, await heard(events, 1, gone[0][0][0].rpartition("-")[0] + "-200")

    missed, gone, kept = run(source, scenario)
    assert [event.revision for _, event in missed] == [2, 3, 4]
    assert {event.flags for one in gone for _, event in one} == {()}
    assert kept[0][1].flags == ("A",)


def test_who_begins_to_listen_just_after_a_change_is_told_to_look_again():
    source = memory(flag("A"))

    async def scenario(events):
        toggle(source, "A")
        await asyncio.sleep(0)
        [(place, event)] = await heard(events, 1)
        again = asyncio.create_task(heard(events, 1, place))
        await until(lambda: events.listening == 1)
        toggle(source, "A")
        return event, await again

    event, [(_, next_one)] = run(source, scenario)
    assert (event.flags, event.revision) == ((), 1)
    assert (next_one.flags, next_one.revision) == (("A",), 2)


def test_a_change_of_very_many_flags_is_told_as_one_of_all():
    source = memory(*(flag(f"F{number}") for number in range(IDS_MAX + 1)))

    async def scenario(events):
        listener = asyncio.create_task(heard(events, 1))
        await until(lambda: events.listening == 1)
        toggle(source, *source.snapshot.definitions)
        return await listener

    [(_, event)] = run(source, scenario)
    assert event.flags == ()


def test_the_end_sends_everybody_away():
    async def scenario(events):
        listeners = [asyncio.create_task(heard(events, 1)) for _ in range(3)]
        await until(lambda: events.listening == 3)
        events.stop()
        return await asyncio.gather(*listeners)

    assert run(memory(flag("A")), scenario) == [[], [], []]


@pytest.mark.parametrize(
    ("one", "moments"),
    [
        (flag("A", schedule(start="2027-03-01T09:00:00Z")), {-1: (-1,), 0: (100,), 9_999: (100,)}),
        (flag("A", schedule(end="2027-03-01T09:00:00Z")), {-1: (100,), 0: (-1,)}),
        (flag("A", expires_at="2027-03-01T09:00:00Z", on_expiry="disable"), {-1: (0,), 0: (1,)}),
        (flag("A", expires_at="2027-03-01T09:00:00Z"), {-1: None, 0: None}),
        (flag("A", RolloutRule(type="percentage", value=5)), {0: None}),
    ],
)
def test_the_clock_says_something_else_where_the_flag_does(one, moments):
    snapshot = memory(one).snapshot
    for seconds, said in moments.items():
        assert by_clock(snapshot, START.timestamp() + seconds).get("A") == said


def test_what_differs_by_the_clock_are_flags_that_are_there_before_and_after():
    assert differing({"A": (1,), "B": (2,), "C": (3,)}, {"A": (1,), "B": (9,), "D": (3,)}) == ("B",)


def test_a_schedule_that_begins_is_told_though_no_file_changed():
    begins = datetime.now(UTC) + timedelta(seconds=0.3)
    source = memory(flag("A"), flag("LATER", schedule(start=begins.isoformat()), enabled=False))

    async def scenario(events):
        return await heard(events, 1)

    [(_, event)] = run(source, scenario, clock_wait=0.02)
    assert event.flags == ("LATER",)
    assert source.snapshot.evaluate("LATER", source.snapshot.request()).value is True
