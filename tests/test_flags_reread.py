"""Reading a flag file again after an edit gives what reading it as a whole gives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_flags.parse import parse_flags
from jarvis_flags.reread import read_again, reading_of
from jarvis_flags.tree import TreeError, load_tree

FILE = """\
# flags of the team
version: "1.0"
segments:
  early: {attribute: plan, op: eq, value: pro}
flags:
  # the first
  A:
    enabled: true
    description: |
      Several lines,
        of which one: looks like a key
    rules:
      - {type: user_segment, value: early}

  B: {enabled: false, requires: [A]}
  C:
    rules:
    - type: percentage
      value: 25
    environment_defaults:
      dev: true
  D: {variants: {low: 1, high: 2}, default: low}   # the last
environment: dev
"""


def whole(text):
    try:
        return parse_flags(load_tree(text.encode()), "flags.yaml")
    except TreeError:
        return None


def begin(text):
    tree = load_tree(text.encode())
    reading = reading_of(text.encode(), tree, parse_flags(tree, "flags.yaml"))
    assert reading is not None
    return reading


def same(reading, text):
    """A rereading is a whole reading, in the file's order; and where it gives up there is nothing to compare."""
    if reading is None:
        return
    parsed = whole(text)
    assert parsed is not None
    assert parsed.problems == ()
    assert list(reading.flags.flags.items()) == list(parsed.flags.items())
    assert reading.flags.segments == parsed.segments
    assert reading.flags.environment == parsed.environment
    assert dict(reading.starts) == load_tree(text.encode())["flags"].lines


def test_an_edit_of_one_flag_is_read_without_the_others():
    before = begin(FILE)
    text = FILE.replace("value: 25", "value: 50\n      salt: x")
    after = read_again(before, text.encode(), "flags.yaml")
    assert after is not None
    same(after, text)
    assert after.flags.flags["A"] is before.flags.flags["A"]
    assert after.flags.flags["C"].percentage == 50


def test_flags_that_come_and_go_are_read_without_the_others():
    before = begin(FILE)
    for text in (
        FILE.replace("  B: {", "  NEW: {enabled: true}\n  B: {"),
        FILE.replace("environment: dev", "  LAST: {}\nenvironment: dev"),
        FILE.replace("  B: {enabled: false, requires: [A]}\n", ""),
        FILE.replace("   # the last", ""),
    ):
        after = read_again(before, text.encode(), "flags.yaml")
        assert after is not None, text
        same(after, text)


def test_what_is_not_plainly_an_edit_of_flags_is_read_as_a_whole():
    before = begin(FILE)
    for text in (
        FILE.replace("value: pro", "value: team"),
        FILE.replace("environment: dev", "environment: qa"),
        FILE.replace("  A:\n", "  X:\n"),
        FILE.replace("enabled: false", "enabled: maybe"),
        FILE.replace("  D: {", "  B: {"),
        FILE.replace("[A]", "[NOWHERE]"),
        FILE.replace("enabled: true", "enabled: true\n    requires: [B]"),
        FILE.replace("value: 25", "value: &x 25"),
        FILE.replace("  C:", "\tC:"),
        "",
    ):
        assert read_again(before, text.encode(), "flags.yaml") is None, text


_LINES = FILE.splitlines(keepends=True)
_line = st.sampled_from(
    [
        *_LINES,
        "  E: {enabled: true}\n",
        "    owner: me\n",
        "  'F': {}\n",
        "\n",
        "# x\n",
        "  - x\n",
        "  G: {name: 'a\n",
        "      b'}\n",
        "---\n",
    ]
) | st.text(alphabet=" AB:{}[]'\"#|->,\n", max_size=12)


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["insert", "delete", "replace"]), st.integers(0, len(_LINES)), _line),
        min_size=1,
        max_size=4,
    ),
    st.lists(
        st.tuples(st.sampled_from(["insert", "delete", "replace"]), st.integers(0, len(_LINES)), _line), max_size=2
    ),
)
def test_any_edits_one_after_the_other_give_what_a_whole_reading_gives(first, second):
    lines, reading = list(_LINES), begin(FILE)
    for edits in (first, second):
        for kind, at, text in edits:
            if kind == "insert":
                lines.insert(at, text)
            elif at < len(lines):
                lines[at : at + 1] = [] if kind == "delete" else [text]
        text = "".join(lines)
        reading = read_again(reading, text.encode(), "flags.yaml")
        same(reading, text)
        if reading is None:
            break
