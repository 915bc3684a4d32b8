"""Editing flag files: only the touched text changes, and nothing is written that would not load as intended."""

import difflib
import json
import os
import random
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_flags import edit
from jarvis_flags.edit import add_flag, save_flags, set_flag_fields
from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.parse import parse_flags
from jarvis_flags.tree import load_tree

FILE = """\
# The flags of a picky team.
version:   "1.0"     # text, not a number

segments:
    early:  { any: [ {attribute: plan, op: in, value: [ 'pro', "team" ]},
                     {attribute: version, op: semver_ge, value: 1.10} ] }   # two lines

flags:
    # trading
    DEXTER:
        name:  'Dexter'           # aligned
        description: a text that
          goes on
        enabled:   false          # the switch
        rules:                    # highest first
        # the team
        - {type: user_ids, value: ["1", "2"],   priority: 10}
        - type: percentage
          value: 25   # careful
        owner: ~

    # ui
    NEW_UI: {  enabled: true, name: "New UI" }   # short

    LIMIT:
        variants: &limits
            low:  100
            high: 1000
        default: low
        # the last word
# the end
"""


@pytest.fixture
def file(flag_file):
    return flag_file(FILE)


def flags_of(path):
    parsed = parse_flags(load_tree(path.read_bytes()), path.name)
    assert parsed.problems == ()
    return parsed.flags


def difference(before, after):
    """The lines that differ, without their places."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def edited(path, change):
    before = path.read_text()
    change(path)
    return difference(before, path.read_text())


@pytest.mark.parametrize(
    ("flag_id", "fields", "wanted"),
    [
        (
            "DEXTER",
            {"enabled": True},
            [
                "-        enabled:   false          # the switch",
                "+        enabled: true          # the switch",
            ],
        ),
        (
            "DEXTER",
            {"description": "new"},
            ["-        description: a text that", "-          goes on", "+        description: new"],
        ),
        ("DEXTER", {"owner": "trading"}, ["-        owner: ~", "+        owner: trading"]),
        ("DEXTER", {"name": None}, ["-        name:  'Dexter'           # aligned"]),
        ("DEXTER", {"category": "on"}, ["+        category: 'on'"]),
        (
            "DEXTER",
            {"rules": [{"type": "percentage", "value": 50}]},
            [
                '-        - {type: user_ids, value: ["1", "2"],   priority: 10}',
                "-        - type: percentage",
                "-          value: 25   # careful",
                "+          - {type: percentage, value: 50}",
            ],
        ),
        (
            "DEXTER",
            {"rules": None},
            [
                "-        rules:                    # highest first",
                "-        # the team",
                '-        - {type: user_ids, value: ["1", "2"],   priority: 10}',
                "-        - type: percentage",
                "-          value: 25   # careful",
            ],
        ),
        (
            "NEW_UI",
            {"enabled": False, "owner": "ui"},
            [
                '-    NEW_UI: {  enabled: true, name: "New UI" }   # short',
                '+    NEW_UI: {  enabled: false, name: "New UI", owner: ui }   # short',
            ],
        ),
        (
            "NEW_UI",
            {"enabled": None},
            ['-    NEW_UI: {  enabled: true, name: "New UI" }   # short', '+    NEW_UI: {  name: "New UI" }   # short'],
        ),
        (
            "NEW_UI",
            {"enabled": None, "name": None},
            ['-    NEW_UI: {  enabled: true, name: "New UI" }   # short', "+    NEW_UI: {}   # short"],
        ),
        (
            "LIMIT",
            {"variants": {"low": 5}},
            [
                "-        variants: &limits",
                "-            low:  100",
                "-            high: 1000",
                "+        variants: {low: 5}",
            ],
        ),
        (
            "LIMIT",
            {"rules": [{"type": "percentage", "value": {"low": 90, "high": 10}}]},
            ["+        rules:", "+          - {type: percentage, value: {low: 90, high: 10}}"],
        ),
    ],
    ids=str,
)
def test_setting_a_field_touches_only_its_own_text(file, flag_id, fields, wanted):
    assert edited(file, lambda path: set_flag_fields(path, flag_id, fields)) == wanted
    written = flags_of(file)[flag_id].to_dict()
    for name, value in fields.items():
        assert written.get(name, "enabled" if name == "enabled" else None) == value or value is None


def test_a_new_flag_stands_behind_the_last_one_in_the_files_own_style(file):
    definition = FlagDefinition(
        id="PAPER",
        name="Paper: on",
        enabled=True,
        rules=[RolloutRule("user_segment", "early", priority=2), RolloutRule("percentage", 12.5)],
        environment_defaults={"prod": False},
        expires_at="2027-03-01",
    )
    assert edited(file, lambda path: add_flag(path, definition)) == [
        "+",
        "+    PAPER:",
        "+      name: 'Paper: on'",
        "+      enabled: true",
        "+      rules:",
        "+        - {type: user_segment, value: early, priority: 2}",
        "+        - {type: percentage, value: 12.5}",
        "+      environment_defaults: {prod: false}",
        "+      expires_at: '2027-03-01'",
    ]
    assert file.read_text().endswith("expires_at: '2027-03-01'\n# the end\n")
    assert flags_of(file)["PAPER"] == definition


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "flags:\n  A:\n    enabled: true\n"),
        ("# nothing yet\n", "# nothing yet\nflags:\n  A:\n    enabled: true\n"),
        ("flags:\n", "flags:\n  A:\n    enabled: true\n"),
        ("flags: {} # none\nversion: '1'", "flags: # none\n  A:\n    enabled: true\nversion: '1'"),
        ("version: '1'", "version: '1'\nflags:\n  A:\n    enabled: true\n"),
        ("---\nflags: ~\n...\n", "---\nflags:\n  A:\n    enabled: true\n...\n"),
        ("{flags: {B: {}}}", "{flags: {B: {}, A: {enabled: true}}}"),
        ("flags:\r\n  B: {}\r\n", "flags:\r\n  B: {}\r\n  A:\r\n    enabled: true\r\n"),
        ("\ufeffflags:\n  B: {}", "\ufeffflags:\n  B: {}\n  A:\n    enabled: true\n"),
        (
            "flags:\n  B:\n    name: |\n      ä\n      b\n\n# end",
            "flags:\n  B:\n    name: |\n      ä\n      b\n  A:\n    enabled: true\n\n# end",
        ),
        (
            "flags:\n  B: &b {enabled: true}\n  C: *b\n",
            "flags:\n  B: &b {enabled: true}\n  C: *b\n  A:\n    enabled: true\n",
        ),
    ],
)
def test_a_flag_can_be_added_to_any_file(own_project, before, after):
    path = own_project / "config" / "flags.yaml"
    path.write_bytes(before.encode())
    add_flag(path, FlagDefinition(id="A", enabled=True))
    assert path.read_bytes().decode() == after


def test_a_file_that_is_not_there_is_made(own_project):
    add_flag("config/new.yaml", FlagDefinition(id="A"))
    add_flag("config/new.json", FlagDefinition(id="A"))
    assert (own_project / "config/new.yaml").read_text() == 'version: "1.0"\nflags:\n  A:\n    enabled: false\n'
    assert json.loads((own_project / "config/new.json").read_text()) == {
        "version": "1.0",
        "flags": {"A": {"enabled": False}},
    }


def test_json_stays_json_and_keeps_its_style(flag_file):
    text = '{\n  "version": "1.0", "flags": {\n    "A": {"enabled": false,\n      "rules": []},\n    "B": {}\n  }\n}\n'
    path = flag_file(text, "feature_flags.json")
    set_flag_fields(path, "A", {"enabled": True, "owner": "me"})
    add_flag(path, FlagDefinition(id="C", description="x" * 90))
    assert path.read_text() == (
        '{\n  "version": "1.0", "flags": {\n    "A": {"enabled": true,\n      "rules": [],\n      "owner": "me"},\n    "B": {},\n'
        f'    "C": {{\n      "description": "{"x" * 90}",\n      "enabled": false\n    }}\n  }}\n}}\n'
    )
    assert json.loads(path.read_text())["flags"]["C"]["description"] == "x" * 90


def test_json_that_yaml_cannot_read_is_written_whole(flag_file):
    path = flag_file('{"flags":\t{"A": {"name": "\\ud83d\\ude00"}}}', "feature_flags.json")
    set_flag_fields(path, "A", {"enabled": True})
    assert (
        path.read_text()
        == json.dumps({"flags": {"A": {"name": "😀", "enabled": True}}}, indent=2, ensure_ascii=False) + "\n"
    )


def test_saving_what_a_file_says_changes_no_byte(file):
    definitions = list(flags_of(file).values())
    assert edited(file, lambda path: save_flags(path, definitions)) == []


def test_saving_adds_changes_and_takes_away(file):
    flags = dict(flags_of(file))
    del flags["NEW_UI"]
    flags["DEXTER"].enabled = True
    flags["MORE"] = FlagDefinition(id="MORE", rules=[RolloutRule("user_segment", "late")])
    late = {"attribute": "plan", "op": "eq", "value": "free"}
    assert edited(file, lambda path: save_flags(path, flags.values(), {"late": late})) == [
        "+    late: {attribute: plan, op: eq, value: free}",
        "-        enabled:   false          # the switch",
        "+        enabled: true          # the switch",
        '-    NEW_UI: {  enabled: true, name: "New UI" }   # short',
        "+",
        "+    MORE:",
        "+      enabled: false",
        "+      rules:",
        "+        - {type: user_segment, value: late}",
    ]
    assert flags_of(file) == flags


def test_saving_to_a_new_file_writes_all_and_saving_nothing_empties_it(own_project, file):
    definitions = [*flags_of(file).values()]
    save_flags("config/copy.yaml", definitions, {})
    assert flags_of(own_project / "config/copy.yaml") == flags_of(file)
    save_flags("config/copy.yaml", [])
    assert (own_project / "config/copy.yaml").read_text() == 'version: "1.0"\nflags: {}\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: add_flag(path, FlagDefinition(id="LIMIT")), "flags.LIMIT: there is such a flag already"),
        (lambda path: set_flag_fields(path, "NOWHERE", {}), "flags.NOWHERE: there is no such flag"),
        (
            lambda path: set_flag_fields(path, "LIMIT", {"default": "none"}),
            "flags.LIMIT.default: got 'none', want one of low, high",
        ),
        (lambda path: set_flag_fields(path, "LIMIT", {"enabeld": True}), "unknown field; did you mean enabled?"),
        (lambda path: add_flag(path, FlagDefinition(id="LI-MIT", requires=["X"])), "unknown flag 'X'"),
        (lambda path: add_flag(path, FlagDefinition(id="new_ui")), "its pin FF_NEW_UI is also that of NEW_UI"),
        (lambda path: set_flag_fields(path, "LIMIT", {"metadata": {"a": object()}}), "cannot be edited"),
        (
            lambda path: save_flags(path, [FlagDefinition(id="A", rules=[RolloutRule("user_segment", "no")])]),
            "unknown segment 'no'",
        ),
    ],
)
def test_what_would_not_load_is_refused_and_nothing_is_written(file, change, message):
    before = (file.stat().st_ino, file.stat().st_mtime_ns)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        change(file)
    assert str(caught.value).startswith(str(file))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before
    assert [entry.name for entry in file.parent.iterdir()] == ["flags.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "flags:\n  A: &a {enabled: true}\n  B: *a\n",
        "flags:\n  B: &a {enabled: true}\n  A: *a\n",
        "flags: {A: &a {enabled: &x true}, B: {enabled: *x}}\n",
        "flags:\n  ? A\n  : enabled: true\n",
    ],
)
def test_a_change_that_cannot_be_made_alone_is_refused(flag_file, text):
    path = flag_file(text)
    with pytest.raises(ValueError, match="edit it by hand"):
        set_flag_fields(path, "A", {"enabled": False})
    assert path.read_text() == text


@pytest.mark.parametrize("content", [b"not: [yaml", b"- a list\n", b"\xff\xfe\x00", b"flags: {A: {}, A: {}}"])
def test_a_file_that_is_no_flag_file_is_left_alone(own_project, content):
    path = own_project / "config" / "flags.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^config/flags\.yaml"):
        add_flag("config/flags.yaml", FlagDefinition(id="A"))
    assert path.read_bytes() == content


def test_a_flag_that_was_broken_before_stays_and_does_not_block_another(flag_file):
    path = flag_file("flags:\n  BAD: {enabled: maybe}\n  A: {enabled: false}\n")
    set_flag_fields(path, "A", {"enabled": True})
    assert path.read_text() == "flags:\n  BAD: {enabled: maybe}\n  A: {enabled: true}\n"


def test_the_mode_is_kept_and_a_symbolic_link_is_followed(own_project):
    real = own_project / "shared.yaml"
    real.write_text("flags: {A: {}}\n")
    real.chmod(0o664)
    link = own_project / "config" / "flags.yaml"
    link.symlink_to("../shared.yaml")
    set_flag_fields(link, "A", {"enabled": True})
    assert link.is_symlink()
    assert real.read_text() == "flags: {A: {enabled: true}}\n"
    assert real.stat().st_mode & 0o777 == 0o664


def test_an_edit_by_somebody_else_in_between_is_noticed(file, monkeypatch):
    check = edit._check

    def slow_check(*args):
        check(*args)
        file.write_text("# theirs\n" + FILE)

    monkeypatch.setattr(edit, "_check", slow_check)
    with pytest.raises(ValueError, match="somebody else"):
        set_flag_fields(file, "LIMIT", {"owner": "me"})
    assert file.read_text() == "# theirs\n" + FILE


def test_processes_that_add_flags_at_the_same_time_lose_none(flag_file):
    path = flag_file("flags: {}\n")
    code = """
        import sys
        from jarvis_flags import FlagDefinition
        from jarvis_flags.edit import add_flag
        for number in range(15):
            add_flag("config/flags.yaml", FlagDefinition(id=f"F{sys.argv[1]}_{number}"))
    """
    workers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(n)]) for n in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert len(flags_of(path)) == 45


def test_a_directory_that_is_locked_too_long_is_told(file, monkeypatch):
    import fcntl

    monkeypatch.setattr(edit, "_LOCK_SECONDS", 0.05)
    descriptor = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is editing"):
        set_flag_fields(file, "LIMIT", {"owner": "me"})
    os.close(descriptor)


_tricky = st.text(max_size=12) | st.sampled_from(
    [
        "on",
        "off",
        "yes",
        "null",
        "~",
        "1e3",
        "0o17",
        "010",
        "1.10",
        "12:30",
        "2027-03-01",
        "- a",
        "a: b",
        "# c",
        " x ",
        "a\nb\n",
        "'",
        '"',
        "{",
        "\u2028",
        "\x85",
        "😀",
        "=",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    text=st.sampled_from(
        [
            FILE,
            FILE.replace("\n", "\r\n"),
            "flags: {DEXTER: {}, NEW_UI: {enabled: true}, LIMIT: {enabled: true, name: x}}",
        ]
    ),
    flag_id=st.sampled_from(["DEXTER", "NEW_UI", "LIMIT"]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "name": st.none() | _tricky,
            "description": _tricky,
            "owner": st.none() | _tricky,
            "enabled": st.none() | st.booleans(),
            "services": st.none() | st.lists(_tricky, max_size=3),
            "metadata": st.none() | st.dictionaries(_tricky, _tricky | st.integers() | st.booleans(), max_size=3),
            "environment_defaults": st.dictionaries(_tricky, st.booleans(), max_size=3),
        },
    ),
    seed=st.integers(0, 3),
)
def test_any_text_comes_back_as_it_was_given_whatever_it_looks_like(tmp_path_factory, text, flag_id, fields, seed):
    path = tmp_path_factory.mktemp("edit") / ("flags.json" if seed == 3 and text.startswith("{") else "flags.yaml")
    path.write_bytes(text.encode())
    names = list(fields)
    random.Random(seed).shuffle(names)
    before = load_tree(text)
    set_flag_fields(path, flag_id, {name: fields[name] for name in names})
    after = load_tree(path.read_bytes())
    for name, value in fields.items():
        assert after["flags"][flag_id].get(name) == value
        before["flags"][flag_id].pop(name, None)
        after["flags"][flag_id].pop(name, None)
    assert after == before


def test_one_field_is_set_in_a_file_of_a_thousand_flags(own_project):
    path = own_project / "config" / "flags.yaml"
    save_flags(
        path, [FlagDefinition(id=f"F{n}", name=f"Flag {n}", rules=[RolloutRule("percentage", 5)]) for n in range(1000)]
    )
    set_flag_fields(path, "F500", {"enabled": True})
    assert flags_of(path)["F500"].enabled
