"""Nothing turns a guarded flag on that was not confirmed: not a lower percentage, not an end, not a way back."""

import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_flags.model import EvaluationContext, FlagDefinition, RolloutRule
from jarvis_flags.source import MemorySource
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.memory_store import MemoryStore
from jarvis_otel.admin.preview import with_override
from jarvis_otel.admin.service import FlagAdmin

FLAG = "DANGER"
ADMIN = Author("ann", "web", "it is time")
EDITOR = Author("ed", "web", "it is time", Role.EDITOR)
PERCENTS = st.sampled_from([0, 5, 25, 60, 100])
LASTS = st.sampled_from([None, 60.0, 3600.0])
HOURS = (0.0, 61.0, 3601.0, 1e6)
WHO = [
    EvaluationContext(user, environment, attributes=attributes)
    for user in (None, "ann", *(f"user{number}" for number in range(12)))
    for environment in ("dev", "prod")
    for attributes in ({}, {"plan": "pro", "team": f"t-{user}"})
]
PRO = {"attribute": "plan", "op": "eq", "value": "pro"}

limits = st.builds(
    RolloutRule,
    type=st.just("percentage"),
    value=PERCENTS,
    priority=st.integers(0, 3),
    segment=st.none() | st.just(PRO),
    environments=st.none() | st.just(["dev"]),
    by=st.none() | st.just("team"),
    salt=st.none() | st.just("salt"),
    variant=st.none() | st.sampled_from(["on", "off"]),
)
named = st.builds(
    RolloutRule,
    type=st.just("user_ids"),
    value=st.just(["ann", "user1"]),
    priority=st.integers(0, 3),
    variant=st.none() | st.just("off"),
)
places = st.builds(RolloutRule, type=st.just("environments"), value=st.just(["dev"]), priority=st.integers(0, 3))
definitions = st.builds(
    FlagDefinition,
    id=st.just(FLAG),
    enabled=st.booleans(),
    rules=st.lists(limits | named | places, max_size=3),
    environment_defaults=st.sampled_from([{}, {"prod": True}, {"prod": False, "dev": True}]),
    dangerous=st.just(True),
)
steps = st.tuples(
    st.sampled_from(["enable", "variant", "disable", "rollout", "reset", "revert", "toggle"]),
    PERCENTS,
    LASTS,
    st.integers(0, 6),
    st.booleans(),
)


def make(admin, step, author, *, confirmed):
    action, percent, lasts, number, is_off = step
    match action:
        case "enable":
            return admin.enable(FLAG, author, confirmed=confirmed, lasts=lasts)
        case "variant":
            variant = "off" if is_off else "on"
            return admin.enable(FLAG, author, confirmed=confirmed, lasts=lasts, variant=variant)
        case "disable":
            return admin.disable(FLAG, author, lasts=lasts)
        case "rollout":
            return admin.rollout(FLAG, percent, author, confirmed=confirmed, lasts=lasts)
        case "reset":
            return admin.reset(FLAG, author, confirmed=confirmed)
        case "revert":
            revision = number % (admin.source.snapshot.overrides.revision + 1)
            return admin.revert(FLAG, revision, author, confirmed=confirmed)
        case _:
            return admin.toggle(FLAG, author, confirmed=confirmed, lasts=lasts)


def who_is_on(snapshot, now):
    """For whom the flag is on, now and after each time at which something may have lapsed."""
    override = snapshot.overrides.overrides.get(FLAG)
    found = set()
    for later in HOURS:
        stands = override is not None and (override.expires_at is None or override.expires_at > now + later)
        then = with_override(snapshot, FLAG, replace(override, expires_at=None) if stands else None)
        found |= {(number, later) for number, one in enumerate(WHO) if then.evaluate(FLAG, then.request(one)).on}
    return found


@settings(max_examples=150, deadline=None)
@given(definition=definitions, before=st.lists(steps, max_size=3), step=steps, by_editor=st.booleans())
def test_what_is_not_confirmed_turns_a_dangerous_flag_on_for_nobody_now_or_later(definition, before, step, by_editor):
    source = MemorySource({FLAG: definition})
    admin = FlagAdmin(source, MemoryStore(source), seen_wait=0)
    for one in before:
        make(admin, one, ADMIN, confirmed=True)
    now = time.time()
    on = who_is_on(source.snapshot, now)
    outcome = make(admin, step, EDITOR if by_editor else ADMIN, confirmed=False)
    assert who_is_on(source.snapshot, now) <= on, outcome.message
    if step[0] == "disable":
        assert outcome.applied
        assert not source.snapshot.evaluate(FLAG, source.snapshot.request()).on
