"""Flag files, local files, overrides, settings, and flagd's documents: whatever stands in them."""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from re import _constants as codes
from re import _parser as sre
from types import MappingProxyType

from jarvis_flags.edit import add_flag, set_flag_fields
from jarvis_flags.evaluate import Evaluation
from jarvis_flags.flagd import export_flagd, import_flagd
from jarvis_flags.jsonlogic import Frame, LogicError, compile_logic, truthy
from jarvis_flags.local import merge_local
from jarvis_flags.model import EvaluationContext, FlagDefinition
from jarvis_flags.overrides import Override, OverrideError, OverrideSet
from jarvis_flags.parse import FlagSet, parse_flag, parse_flags
from jarvis_flags.regex import TEXT_MAX, RegexError, compile_regex
from jarvis_flags.request import CALLERS_DEFAULT
from jarvis_flags.reread import read_again, reading_of
from jarvis_flags.schedule import ScheduleError, parse_schedule
from jarvis_flags.snapshot import Snapshot, build_snapshot
from jarvis_flags.tree import TreeError, load_tree, plain
from jarvis_otel.settings import Settings
from tests.fuzz.properties import DATA, Family, as_json, as_text, one_line, scratch

FAMILY = Family("flags")

YAML = (
    b"flags: ,A: ,B: ,enabled: ,true,false,on,~,null,- ,[,],{,},: ,\n,\n  ,\n    ,'\"',&a ,*a,<<: ,|\n,>\n,# ,!!int ,!!float ,---\n,"
    b"0x10,0o7,.inf,.nan,1.10,1e400,\\ud800,\\t,\t,%YAML 1.1\n,version: ,segments: ,environment: ,rules: ,type: ,value: ,"
    b"priority: ,percentage,user_ids,user_segment,environments,schedule,jsonlogic,variants: ,default: ,variant: ,salt: ,by: ,"
    b"hash: ,flagd-v3,segment: ,requires: ,services: ,dangerous: ,approvals: ,expires_at: ,2027-03-01,status: ,disabled,"
    b"environment_defaults: ,attribute: ,op: ,all: ,any: ,not: ,matches,in,exists,semver_ge,25,100"
).split(b",")
CONTEXTS = (
    EvaluationContext(),
    EvaluationContext(user_id="1", environment="dev", attributes={"plan": "pro", "version": "1.10.0", "n": 5}),
    EvaluationContext(
        request_id="r", environment="prod", attributes={"a": {"b": [1, None]}, "n": math.nan, "plan": 10**400}
    ),
)
TIMES = (0.0, 1.0, 1_772_323_200.5, 4_102_444_800.0)


def snapshot_of(flags: FlagSet, **parts: object) -> Snapshot:
    return build_snapshot(flags, clock=lambda: TIMES[2], **parts)


def evaluate_all(snapshot: Snapshot) -> Iterator[Evaluation]:
    """What each flag gives in some contexts; the same when it is asked again, and as `explain` tells."""
    for flag_id in (*snapshot.definitions, *snapshot.bad):
        for context in CONTEXTS:
            result = snapshot.evaluate(flag_id, snapshot.request(context))
            assert same(result, snapshot.evaluate(flag_id, snapshot.request(context)))
            explained, steps = snapshot.explain(flag_id, snapshot.request(context))
            assert same(result, explained)
            assert steps
            yield result


def same(first: Evaluation, second: Evaluation) -> bool:
    return repr(first) == repr(second)


def uses_logic(definition: FlagDefinition) -> bool:
    return any(rule.type == "jsonlogic" or rule.hash for rule in definition.rules)


SEEDS = [
    DATA / "design_flags.yaml",
    DATA / "feature_flags.json",
    "flags:\n  A: &a {enabled: true, dangerous: true}\n  B: {<<: *a, requires: [A]}\n",
    "flags:\n  A:\n    rules:\n    - {type: schedule, value: {start: 2026-01-01, days: [mon], hours: 09:00-17:00}}\n",
    "flags:\n  A:\n    rules:\n    - {type: schedule, value: {ramp: {start: 2026-01-01, end: 2027-01-01, from: 0, to: 50}}}\n",
    "flags:\n  A: {variants: {a: 1, b: 2.5}, default: a, rules: [{type: percentage, value: {a: 50, b: 50}, by: plan, salt: x}]}\n",
    "{segments: {s: {not: {attribute: a.b, op: matches, value: '^x[0-9]+$'}}}, flags: {A: {rules: [{type: user_segment, value: s}, {type: percentage, value: 25, segment: s, environments: [dev]}]}}}\n",
    "flags: {A: {variants: {x: a, y: b}, rules: [{type: jsonlogic, hash: flagd-v3, value: {fractional: [[x, 50], [y, 50]]}}]}}\n",
    '{"flags": {"A\\ud83d\\ude00": {"expires_at": "2026-01-01T00:00:00+02:00", "on_expiry": "disable", "metadata": {"n": 1e3}}}}',
    '{"flags": {"A": {"variants": {"a": 1%s}, "default": "\\ud800"}}}' % ("0" * 400),
]


@FAMILY.add(seeds=SEEDS, words=YAML)
def flag_file(data: bytes) -> None:
    """A flag file is read or refused with its own error; each flag is good or bad, and can be evaluated."""
    try:
        tree = load_tree(data)
    except TreeError as error:
        one_line(error, data)
        return
    flags = parse_flags(tree, "flags.yaml")
    assert not flags.flags.keys() & flags.bad.keys()
    if isinstance(tree, dict) and isinstance(tree.get("flags"), dict):
        assert flags.flags.keys() | flags.bad.keys() == tree["flags"].keys()
    assert set(flags.bad) <= {problem.flag for problem in flags.problems}
    for problem in flags.problems:
        assert str(problem).isprintable() or not repr(tree).isascii() or "\\" in repr(tree), problem
    for result in evaluate_all(snapshot_of(flags)):
        definition = flags.flags.get(result.flag_id)
        if definition is None:
            assert result.value is (False if flags.bad[result.flag_id] else CALLERS_DEFAULT)
        elif not uses_logic(definition):
            assert result.error_code is None
            assert result.value is CALLERS_DEFAULT or result.value in (
                True,
                False,
                *(definition.variants or {}).values(),
            )
    # what a flag says is written so that it is read as the same
    for flag_id, definition in flags.flags.items():
        assert repr(parse_flag(flag_id, definition.to_dict(), flags.segments)) == repr(definition)


@FAMILY.add(seeds=SEEDS, words=YAML)
def yaml_is_json(data: bytes) -> None:
    """A document that is written as JSON is read as the same."""
    with contextlib.suppress(TreeError):
        tree = plain(load_tree(data))
        assert repr(plain(load_tree(json.dumps(_bounded(tree))))) == repr(_bounded(tree))


def _bounded(tree: object) -> object:
    """The tree without what JSON has no numbers for, and without numbers too long for ours."""
    if isinstance(tree, Mapping):
        return {key: _bounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_bounded(item) for item in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return str(tree)
    return str(tree) if isinstance(tree, int) and abs(tree) >= 10**99 else tree


@FAMILY.add(seeds=["flags: {A: {enabled: true}}\0flags: {A: {enabled: false}, B: {}}", "flags: {A: {environment_defaults: {dev: true}}}\0flags: {A: {environment_defaults: {dev: false}}}"], words=[*YAML, b"\0"])  # fmt: skip
def local_file(data: bytes) -> None:
    """A local file in prod turns nothing on, whatever it says; and it lies over any flag file without raising."""
    base, _, local = data.partition(b"\0")
    try:
        tree, over = load_tree(base), load_tree(local)
    except TreeError:
        return
    before = parse_flags(tree, "flags.yaml")
    merged, _ = merge_local(tree, over, "flags.local.yaml", off_only=True)
    after = parse_flags(merged, "flags.yaml")
    parse_flags(merge_local(tree, over, "flags.local.yaml", off_only=False)[0], "flags.yaml")
    assert repr(before) == repr(parse_flags(tree, "flags.yaml")), "the flag file's tree is not changed"
    assert after.flags.keys() | after.bad.keys() == before.flags.keys() | before.bad.keys()
    was, is_ = snapshot_of(before), snapshot_of(after)
    for flag_id, definition in before.flags.items():
        if flag_id in after.flags and not any(other.requires or other.variants for other in (definition,)):
            for context in CONTEXTS:
                on = is_.evaluate(flag_id, is_.request(context)).on
                assert not on or was.evaluate(flag_id, was.request(context)).on


@FAMILY.add(seeds=["flags:\n  A: {enabled: true}\n  B: {enabled: false}\n\0flags:\n  A: {enabled: true}\n  B: {enabled: true}\n"], words=[*YAML, b"\0"])  # fmt: skip
def reread_file(data: bytes) -> None:
    """What is read anew of a file that was edited is what reading it whole gives."""
    before, _, after = data.partition(b"\0")
    try:
        tree = load_tree(before)
    except TreeError:
        return
    if not isinstance(tree, dict):
        return
    reading = reading_of(before, tree, parse_flags(tree, "f"))
    again = None if reading is None else read_again(reading, after, "f")
    if again is not None:
        whole = parse_flags(load_tree(after), "f")
        assert repr(again.flags.flags) == repr(whole.flags)
        assert (again.flags.bad, again.flags.segments, again.flags.environment) == (
            whole.bad,
            whole.segments,
            whole.environment,
        )
        assert again.flags.problems == whole.problems


@FAMILY.add(seeds=["true", "0", "OFF", "a", " on ", "yes"], words="true false 1 0 on off a b yes")
def pin(data: bytes) -> None:
    """A pin that is not plainly on, or a variant, turns the flag off, dangerous or not."""
    text = as_text(data)
    tree = load_tree("flags: {A: {enabled: true, dangerous: true}, B: {variants: {a: x, b: y}, default: b}}")
    snapshot = snapshot_of(parse_flags(tree, ""), pins={"FF_A": text, "FF_B": text})
    boolean, typed = list(evaluate_all(snapshot))[:: len(CONTEXTS)]
    assert boolean.on is (text.strip().lower() in ("1", "true", "on"))
    if text in ("a", "b"):
        assert typed.variant == text
    elif not boolean.on:
        assert typed.value is CALLERS_DEFAULT


@FAMILY.add(
    seeds=[
        '{"start": "2026-01-01", "end": "2027-01-01T09:00:00Z", "days": ["mon", "Friday"], "hours": "22:00-06:00", "timezone": "Europe/Vienna"}',
        '{"ramp": {"start": "2026-01-01", "end": "2026-02-01", "from": 1, "to": 99.5}}',
        '{"hours": "09:00+01:00-17:00"}',
    ],
    words=b'start,end,days,hours,timezone,ramp,from,to,2026-01-01,09:00,24:00,-,mon,UTC,Europe/Vienna,../x,0001-01-01,9999-12-31T23:59:59,+14:00,T,Z,1e400,",:,{,}'.split(
        b","
    ),
)
def schedule(data: bytes) -> None:
    """A schedule is read or refused with its own error, and what was read holds or not at any time."""
    try:
        value = plain(load_tree(data))
        read = parse_schedule(value)
    except (TreeError, ScheduleError):
        return
    for now in (*TIMES, -62135596800.0, 253402300799.0):
        if -62000000000 < now < 253300000000 or read.zone.utcoffset(None) is not None:
            assert read.holds(now) in (True, False)
        if read.ramp is not None:
            assert 0 <= read.buckets(now) <= 100_000


PATTERNS = "(a+)+ (a|b)* ^x[0-9]+$ (?i)abc a{2,5} (?:x) (?=a) (?<!b) [^a-z] \\d+ .* a+?b \\1 (?P<n>a) (?(1)a|b) a++ (?>a) [[a] \\b (?u) (?a) (?s)"


@FAMILY.add(seeds=[*PATTERNS.split(), "a" * 501, "(" * 200, "x{4294967296}", "a*b*", "^a*b*c*$"], words=[*PATTERNS.split(), "(", ")", "*", "+", "?", "|", "{1,9}", "[", "]", "^", "$", "\\", "a", "b"])  # fmt: skip
def regex(data: bytes) -> None:
    """A pattern is taken or refused with its own error; one that is taken needs few steps on hostile texts."""
    pattern = as_text(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compiled = compile_regex(pattern)
        except RegexError:
            return
        tree = sre.parse(pattern)
    literals = [chr(argument) for argument in _literals(tree)][:3] or ["a"]
    for char in literals:
        text = char * 24 + "\n"
        steps = Steps(4_000 * (len(pattern) + 1) + 24**3 * 8)
        steps.search(tree, text)
        compiled.search((char * TEXT_MAX)[:TEXT_MAX])


def _literals(tree: object) -> Iterator[int]:
    for code, argument in tree:
        if code is codes.LITERAL and argument < 0xD800:
            yield argument
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            yield from _literals(argument[2])
        elif code is codes.SUBPATTERN:
            yield from _literals(argument[-1])
        elif code is codes.BRANCH:
            for branch in argument[1]:
                yield from _literals(branch)


class Steps:
    """A matcher that tries what a backtracking matcher tries, one after the other, and counts it.

    Args:
        most: So many steps are few.
    """

    def __init__(self, most: int) -> None:
        self.left = most

    def search(self, tree: object, text: str) -> None:
        for start in range(len(text) + 1):
            # no end is good enough, so that everything is tried
            for _ in self._match(list(tree), text, start):
                pass

    def _match(self, parts: list[tuple[object, object]], text: str, at: int) -> Iterator[int]:
        self.left -= 1
        assert self.left > 0, "it takes too many steps"
        if not parts:
            yield at
            return
        (code, argument), rest = parts[0], parts[1:]
        for end in self._one(code, argument, text, at):
            yield from self._match(rest, text, end)

    def _one(self, code: object, argument: object, text: str, at: int) -> Iterator[int]:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = argument
            yield from self._repeat(list(inner), min(int(least), 30), min(int(most), 30), text, at)
        elif code is codes.SUBPATTERN:
            yield from self._match(list(argument[-1]), text, at)
        elif code is codes.BRANCH:
            for branch in argument[1]:
                yield from self._match(list(branch), text, at)
        elif code is codes.LITERAL:
            if at < len(text) and ord(text[at]) == argument:
                yield at + 1
        elif code in (codes.AT, codes.ASSERT, codes.ASSERT_NOT):
            if code is codes.AT and argument in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING) and at:
                return
            yield at
        elif at < len(text):  # any, a set: taken for one that matches
            yield at + 1

    def _repeat(self, inner: list[tuple[object, object]], least: int, most: int, text: str, at: int) -> Iterator[int]:
        self.left -= 1
        assert self.left > 0, "it takes too many steps"
        if most:
            for end in self._match(inner, text, at):
                if end > at:
                    yield from self._repeat(inner, max(0, least - 1), most - 1, text, end)
        if not least:
            yield at


LOGIC = b'{"if":[,{"var":",targetingKey,$flagd.timestamp,{"fractional":[,["a",50],{"sem_ver":[,{"==":[,{"===":[,{"<":[,{"in":[,{"cat":[,{"+":[,{"*":[,{"/":[,{"%":[,{"-":[,{"min":[,{"some":[,{"all":[,{"none":[,{"and":[,{"or":[,{"!":[,{"!!":[,{"starts_with":[,"^",",[,],},1,0,1e308,null,true,","'.split(b",")  # fmt: skip


@FAMILY.add(
    seeds=[
        '{"if": [{"in": ["@x", {"var": "plan"}]}, "a", {"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "n"}]}, ["a", 50], ["b", 50]]}]}',
        '{"sem_ver": [{"var": "version"}, "^", "1.0.0"]}',
        '{"some": [{"var": "a.b"}, {"==": [{"var": ""}, 1]}]}',
        '{"*": [1e308, 1e308, {"var": "plan"}]}',
        '{"cat": [{"var": "plan"}]}',
    ],
    words=LOGIC,
)
def jsonlogic(data: bytes) -> None:
    """An expression is compiled or refused with its own error; evaluating it gives a value, or an error that is caught."""
    expression = as_json(data)
    try:
        logic = compile_logic(expression, "flagd-v3")
    except LogicError as error:
        one_line(error, data)
        return
    for context in CONTEXTS:
        request = snapshot_of(parse_flags(None, "")).request(context)
        # what `evaluate` and `parse` catch
        with contextlib.suppress(ArithmeticError, RecursionError, TypeError, ValueError):
            value = logic(Frame("A", lambda: 0.0).data(request))
            assert truthy(value) in (True, False)


@FAMILY.add(
    seeds=[
        '{"flags": {"a": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off", "targeting": {"if": [{"ends_with": [{"var": "email"}, "@x"]}, "on"]}}}}',
        '{"$evaluators": {"e": {"in": ["@x", {"var": "email"}]}}, "flags": {"a": {"state": "DISABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "a", "targeting": {"fractional": [{"var": "email"}, ["a", 10], ["b", 90]]}, "metadata": {"x": 1}}}}',
        '{"$evaluators": {"e": {"$ref": "e"}}, "flags": {"a": {"state": "ENABLED", "variants": {"a": "x"}, "targeting": {"if": [{"$ref": "e"}, "a", null]}}}}',
    ],
    words=[*LOGIC, b'{"flags":{', b'"state":"ENABLED"', b'"variants":{', b'"defaultVariant":', b'"targeting":', b'{"$ref":"e"}', b'"$evaluators":{', b'"metadata":{'],
)  # fmt: skip
def flagd(data: bytes) -> None:
    """flagd's document is read or refused; what was taken over is a flag file without a fault, and goes back."""
    document = as_json(data)
    try:
        imported = import_flagd(document)
    except ValueError:
        return
    flags = parse_flags(imported.document, "flags.yaml")
    assert not flags.problems
    assert {refusal.flag_id for refusal in imported.refused if refusal.flag_id} | flags.flags.keys() | {""} == {
        *document["flags"],
        "",
    }
    exported = export_flagd(flags.flags, flags.segments)
    if exported.document["flags"]:
        back = import_flagd(exported.document)
        assert not back.refused
    list(evaluate_all(snapshot_of(flags)))


OVERRIDES = [
    OverrideSet(
        3, MappingProxyType({"A": Override("on", 25.0, None, 1.5, "ann", "why", "2026-01-01T00:00:00Z")})
    ).to_bytes(),
    '{"format": 1, "revision": 1, "overrides": {"A": {"state": "off", "expires_at": 1e400}}}',
    '{"format": 1, "revision": 18446744073709551615, "overrides": {"A": {"state": "on", "percentage": NaN}}}',
]


@FAMILY.add(seeds=OVERRIDES, words='"format":1 "revision": "overrides":{ "A":{ "state": "on" "off" "percentage": "variant": "expires_at": "by": 25 1e308 -1 null [ ] } ,')  # fmt: skip
def overrides(data: bytes) -> None:
    """An override file is read or refused; what was read is written as the same, and every flag can be evaluated."""
    try:
        read = OverrideSet.from_bytes(data)
    except OverrideError as error:
        one_line(error, data)
        return
    assert OverrideSet.from_bytes(read.to_bytes()) == read
    assert read.standing(TIMES[2]).overrides.items() <= read.overrides.items()
    tree = load_tree(
        "flags: {A: {enabled: true, rules: [{type: percentage, value: 50}]}, B: {variants: {a: 1}, default: a}}"
    )
    for result in evaluate_all(snapshot_of(parse_flags(tree, ""), overrides=read)):
        override = read.standing(TIMES[2]).overrides.get(result.flag_id)
        assert not (override is not None and override.state == "off" and result.on)


@FAMILY.add(
    seeds=[
        "",
        "environment: dev\nlevels: {a: DEBUG}\nservice_flags: {a: [B]}\nredact_keys: [x]\nredact_patterns: {a: 'x[0-9]'}\nlimits: {a: 5/s}\n",
        "etcd_endpoints: [https://a:b@c:1]\ncollector_port: 1e400\nloki_url: http://[::1\ntelegram_admins: 5, 6\n",
        '{"collector_port": 1%s, "x": "\\ud83d\\ude00"}' % ("0" * 400),
        "web_tokens: {a: {role: admin}}\nwebhooks: ['http://x y']\nretention: {plain_days: x}\n",
        'level: "\\e[31m"\n"a\\nb": 1\n',
    ],
    words=[*YAML, *(f"{name}: ".encode() for name in ("levels", "level", "limits", "environment", "redact_patterns", "collector_port", "max_total_bytes", "etcd_endpoints", "web_roles", "alert_webhooks", "loki_url", "baggage_hosts", "telegram_admins", "spool_max_bytes"))],
)  # fmt: skip
def settings_file(data: bytes) -> None:
    """A settings file never keeps anything from starting."""
    path = scratch() / "jarvis.yaml"
    path.write_bytes(data)
    settings = Settings.load({"JARVIS_HOME": str(scratch()), "JARVIS_CONFIG": str(path)})
    assert all(isinstance(problem, str) for problem in settings.problems)


@FAMILY.add(
    seeds=["JARVIS_COLLECTOR_PORT=x\0OTEL_EXPORTER_OTLP_HEADERS=a=b,c=%zz\0OTEL_EXPORTER_OTLP_ENDPOINT=http://[::1", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=%ff,a\0JARVIS_LEVEL=\xb2\0JARVIS_MAX_TOTAL_BYTES=\xb2GB"],
    words=[*(f"\0{name}=".encode() for name in ("JARVIS_LEVEL", "JARVIS_LEVELS", "JARVIS_LIMITS", "JARVIS_COLLECTOR_PORT", "JARVIS_MAX_TOTAL_BYTES", "JARVIS_LOKI_URL", "JARVIS_LOKI_HEADERS", "JARVIS_ETCD_ENDPOINTS", "JARVIS_TELEGRAM_ADMINS", "JARVIS_TELEGRAM_API_URL", "JARVIS_WEB_ALLOWED_HOSTS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME", "HTTP_PROXY", "NO_PROXY", "FF_A")), b"http://", b"https://", b"[::1]", b"%00", b"5m", b"1e400", b"nan", b"20 GB", b",", b"="],
)  # fmt: skip
def environment(data: bytes) -> None:
    """No value of a variable keeps anything from starting."""
    environ = {"JARVIS_HOME": str(scratch())}
    for pair in data.split(b"\0"):
        name, _, value = as_text(pair).partition("=")
        if re.fullmatch(r"(JARVIS|OTEL|FF)_\w+|(HTTPS?|NO|ALL)_PROXY", name, re.ASCII) and name != "JARVIS_HOME":
            environ[name] = value
    settings = Settings.load(environ)
    assert all(isinstance(problem, str) for problem in settings.problems)


@FAMILY.add(seeds=[f"{seed}\0{value}" for seed in ("# a\nflags:\n  A: {enabled: true} # b\n", "flags:\n  A:\n    name: x\n\n    # c\n  B: {}\n", "{}", "flags: {A: {}}") for value in ("x", "- a: b", "'\"\\n#")], words=[*YAML, b"\0"])  # fmt: skip
def edited_file(data: bytes) -> None:
    """An edit of any file is refused with a ValueError, or changes just what it was to change."""
    content, _, name = data.rpartition(b"\0")
    text = as_text(name)
    path = scratch() / "edited.yaml"
    for edit in (
        lambda: set_flag_fields(path, "A", {"name": text, "enabled": True}),
        lambda: add_flag(path, FlagDefinition(id="NEW", name=text)),
    ):
        path.write_bytes(content)
        try:
            edit()
        except ValueError:
            assert path.read_bytes() == content
            continue
        before, after = plain(load_tree(content)) or {}, plain(load_tree(path.read_bytes()))
        there = (before.get("flags") or {}).get("A")
        wanted = {**(before.get("flags") or {})}
        if "NEW" in after["flags"] and "NEW" not in wanted:
            wanted["NEW"] = after["flags"]["NEW"]
            assert (after["flags"]["NEW"] or {}).get("name", "") == text
        else:
            wanted["A"] = {**(there if isinstance(there, Mapping) else {}), "name": text, "enabled": True}
        assert repr(after) == repr({**before, "flags": wanted}) or after == {**before, "flags": wanted}
