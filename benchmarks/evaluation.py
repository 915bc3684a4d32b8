"""One evaluation of a flag, against flagd's evaluator and the OpenFeature SDK's in-memory provider."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.hook.opentelemetry import TracingHook
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext as OpenFeatureContext
from openfeature.hook import Hook
from openfeature.provider import AbstractProvider
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.harness import Row, Side, compare, main, per_call
from jarvis_flags import YamlFlagProvider
from jarvis_otel import EvaluationContext, FeatureFlagManager
from jarvis_otel.context import OperationSpanProcessor
from jarvis_otel.flag_hook import EvaluationHook

FLAGS = """
version: "1.0"
segments:
  insiders:
    all:
      - {attribute: plan, op: in, value: [pro, team]}
      - {attribute: email, op: ends_with, value: "@jarvis.dev"}
      - {attribute: trades, op: ge, value: 100}
flags:
  STATIC: {enabled: true}
  PERCENTAGE: {enabled: false, rules: [{type: percentage, value: 25}]}
  SEGMENT: {enabled: false, rules: [{type: user_segment, value: insiders}]}
"""

FLAGD_INSIDERS = {
    "and": [
        {"in": [{"var": "plan"}, ["pro", "team"]]},
        {"ends_with": [{"var": "email"}, "@jarvis.dev"]},
        {">=": [{"var": "trades"}, 100]},
    ]
}
FLAGD_TARGETING: dict[str, Any] = {
    "STATIC": {},
    "PERCENTAGE": {"fractional": [["on", 25], ["off", 75]]},
    "SEGMENT": {"if": [FLAGD_INSIDERS, "on", "off"]},
}

USERS = [f"user{number}" for number in range(1000)]
FLAGD = "flagd-core 2.0.0"
MEMORY = "in-memory provider"


class EmptyHook(Hook):
    """Does nothing: what is left is what the SDK spends on a hook."""


def measure(quick: bool) -> list[Row]:
    rounds, calls = (9, 4_000) if quick else (30, 8_000)
    path = Path(os.environ["JARVIS_HOME"], "config", "flags.yaml")
    path.write_text(FLAGS)
    flags = FeatureFlagManager(path)
    flagd = FlagdCore()
    flagd.set_flags({"flags": {flag: _flagd_flag(targeting) for flag, targeting in FLAGD_TARGETING.items()}})
    insider: dict[str, Any] = {"plan": "pro", "email": "dexter@jarvis.dev", "trades": 250}
    contexts = [EvaluationContext(user_id=user, attributes=insider) for user in USERS]
    flagd_contexts = [OpenFeatureContext(user, insider) for user in USERS]
    _same_answers(flags, flagd, contexts, flagd_contexts)
    names: dict[str, Any] = {
        "flags": flags,
        "flagd": flagd,
        "users": itertools.cycle(USERS),
        "contexts": itertools.cycle(contexts),
        "flagd_contexts": itertools.cycle(flagd_contexts),
    }

    def against_flagd(what: str, ours: str, peer: str, target: float, how: str) -> Row:
        sides = per_call(ours, names, calls), per_call(peer, names, calls)
        how = f"CPU of the call, {how}; flagd's evaluator alone, without client or telemetry"
        return compare(what, *sides, rounds=rounds, peer_name=FLAGD, target=target, how=how)

    rows = [
        against_flagd(
            "is_enabled, static",
            'flags.is_enabled("STATIC")',
            'flagd.resolve_boolean_value("STATIC", False)',
            0.40,
            "no user, no span",
        ),
        against_flagd(
            "is_enabled, percentage",
            'flags.is_enabled("PERCENTAGE", user_id=next(users))',
            'flagd.resolve_boolean_value("PERCENTAGE", False, next(flagd_contexts))',
            0.10,
            "1,000 users in turn, no span",
        ),
        against_flagd(
            "is_enabled, segment of three conditions",
            'flags.is_enabled("SEGMENT", context=next(contexts))',
            'flagd.resolve_boolean_value("SEGMENT", False, next(flagd_contexts))',
            0.10,
            "1,000 users in turn, all in it, no span",
        ),
    ]

    provider = YamlFlagProvider(path)
    memory = InMemoryProvider({"STATIC": InMemoryFlag("on", {"on": True, "off": False})})
    names |= {"ours": _client(provider, "ours", EmptyHook()), "memory": _client(memory, "memory", EmptyHook())}
    by_client = per_call('memory.get_boolean_value("STATIC", False)', names, calls)
    rows += [
        compare(
            "OpenFeature client, static",
            per_call('ours.get_boolean_value("STATIC", False)', names, calls),
            by_client,
            rounds=rounds,
            peer_name=MEMORY,
            target=1.1,
            how="CPU of the call; bare YamlFlagProvider, one empty hook on both clients, no span",
        ),
        compare(
            "is_enabled, static",
            per_call('flags.is_enabled("STATIC")', names, calls),
            by_client,
            rounds=rounds,
            peer_name=f"{MEMORY} through the client",
            how="CPU of the call; ours with its own telemetry and no client, the peer with one empty hook; no span",
        ),
    ]

    rows.append(_hook_row(memory, names, calls, rounds))

    tracers = TracerProvider()
    tracers.add_span_processor(OperationSpanProcessor())
    tracer = tracers.get_tracer("benchmarks")
    evaluated = per_call('flags.is_enabled("STATIC")', names, calls)

    def in_span() -> float:
        with tracer.start_as_current_span("trade"):
            return evaluated()

    rows.append(
        compare(
            "is_enabled, static, in a recording span",
            in_span,
            evaluated,
            rounds=rounds,
            peer_name="itself without a span",
            how=f"CPU of the call; each span sees {calls:,} evaluations of one flag, so it is marked once",
        )
    )
    provider.shutdown()
    flags.close()
    return rows


def _flagd_flag(targeting: dict[str, Any]) -> dict[str, Any]:
    default = "off" if targeting else "on"
    variants = {"on": True, "off": False}
    return {"state": "ENABLED", "variants": variants, "defaultVariant": default, "targeting": targeting}


def _hook_row(memory: InMemoryProvider, names: dict[str, Any], calls: int, rounds: int) -> Row:
    """What a hook costs above an empty one, ours and the official one, on the same provider in a recording span."""
    tracer = TracerProvider().get_tracer("benchmarks")
    hooks = {"ours_hooked": EvaluationHook(), "theirs_hooked": TracingHook(), "unhooked": EmptyHook()}
    for domain, hook in hooks.items():
        names[domain] = _client(memory, domain, hook)

    def above(domain: str) -> Side:
        with_hook, without = (
            per_call(f'{name}.get_boolean_value("STATIC", False)', names, calls) for name in (domain, "unhooked")
        )

        def cost() -> float:
            with tracer.start_as_current_span("one"):
                hooked = with_hook()
            with tracer.start_as_current_span("other"):
                return max(0.01, hooked - without())

        return cost

    return compare(
        "our hook above an empty hook",
        above("ours_hooked"),
        above("theirs_hooked"),
        rounds=rounds,
        peer_name="openfeature-hooks-opentelemetry 0.3.1",
        target=0.4,
        how="CPU of the call through the client, in a recording span, less that with an empty hook; one flag",
    )


def _client(provider: AbstractProvider, domain: str, hook: Hook) -> OpenFeatureClient:
    api.set_provider_and_wait(provider, domain)
    client = api.get_client(domain)
    client.add_hooks([hook])
    return client


def _same_answers(
    flags: FeatureFlagManager,
    flagd: FlagdCore,
    contexts: list[EvaluationContext],
    flagd_contexts: list[OpenFeatureContext],
) -> None:
    """Nothing is measured before both sides do the same; percentages have different hashes, so shares are compared."""
    assert flags.is_enabled("STATIC")
    assert flagd.resolve_boolean_value("STATIC", False).value
    for ours, theirs in zip(contexts, flagd_contexts, strict=True):
        assert flags.is_enabled("SEGMENT", context=ours)
        assert flagd.resolve_boolean_value("SEGMENT", False, theirs).value
    assert not flags.is_enabled("SEGMENT", user_id="user0")
    assert not flagd.resolve_boolean_value("SEGMENT", False, OpenFeatureContext("user0")).value
    our_share = sum(flags.is_enabled("PERCENTAGE", user_id=user) for user in USERS)
    flagd_share = sum(flagd.resolve_boolean_value("PERCENTAGE", False, context).value for context in flagd_contexts)
    assert 200 < our_share < 300, our_share
    assert 200 < flagd_share < 300, flagd_share


if __name__ == "__main__":
    main(measure)
