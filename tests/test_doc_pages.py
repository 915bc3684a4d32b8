"""The test of the docs finds what is wrong with a page, and says where."""

import pytest

from tests.doc_pages import read_page
from tests.doc_reader import broken_links, take, unknown_commands


@pytest.fixture
def page_of(tmp_path):
    """A page with a text."""

    def write(text):
        path = tmp_path / "page.md"
        path.write_text(text)
        return read_page(str(path))

    return write


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# A\n\n```\nls\n```\n", "page.md:3: a block without a language"),
        ("# A\n\n    ls\n", "page.md:3: an indented block"),
        ("<!-- test: ofen=1 -->\n```sh\nls\n```\n", "page.md:1: 'ofen=1' in the comment"),
        (
            "<!-- test: server -->\n\nText\n\n```sh\nls\n```\n",
            "page.md:3: between a comment for the tests and its block",
        ),
    ],
)
def test_a_page_that_cannot_be_read_says_where(page_of, text, problem):
    (found,) = page_of(text).problems
    assert problem in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A\n\n```sh\ntrue\nfalse\n```\n", "page.md:5: ended with 1"),
        (
            "A\n\n```sh\nexport A=1\ncd /\n```\n\n```sh\ntest $A = 1\ntest $PWD = /tmp\n```\n",
            "page.md:10: ended with 1",
        ),
        ("A\n\n<!-- test: says=yes -->\n```sh\necho no\n```\n", "page.md:5: 'yes' is not in what was said"),
        ("A\n\n<!-- test: exits=3 -->\n```sh\nexit 2\n```\n", "page.md:5: ended with 2, want 3"),
        ("A\n\n```python\nx = 1\ny = z\n```\n", "line 5, in <module>"),
        ("A\n\n```python\nx =\n```\n", "page.md:4: invalid syntax"),
        ("```python\nx = 1\n```\n\n<!-- test: continues -->\n```python\nassert x == 2\n```\n", "line 7, in <module>"),
        ("A\n\n```yaml\nflags: {A: {rules: [{type: percentage, value: 110}]}}\n```\n", "got 110, want 0 to 100"),
        ("A\n\n```yaml\nlog_level: loud\n```\n", "page.md:4: "),
        ("A\n\n```json\n{]\n```\n", "page.md:4: "),
        ("A\n\n```console\n$ jarvis flags list --fromat json\n```\n", "page.md:4: 'jarvis flags list --fromat json'"),
        ("A\n\n<!-- test: skip=x -->\n```sh\njarvis logs quarry\n```\n", "page.md:5: 'jarvis logs quarry'"),
        ("A\n\n```sh\npip install 'jarvis-otel[colector]'\n```\n", "page.md:4: jarvis-otel has no extra colector"),
        ("A\n\n```sh\nmake coffee\n```\n", "page.md:4: 'make coffee': no such target"),
        ("A\n\n```nginx\nx\n```\n", "page.md:4: nginx is neither run nor checked"),
        ('A\n\n<!-- test: server until="never" -->\n```sh\necho ever; exit 4\n```\n', "ended with 4 without 'never'"),
    ],
)
def test_a_block_that_does_not_work_says_where(page_of, tmp_path, text, problem):
    page = page_of(text)
    assert page.problems == ()
    with pytest.raises((AssertionError, pytest.fail.Exception)) as failed:
        take(page, tmp_path / "reader", is_real=False)
    assert problem in str(failed.value)


def test_what_a_page_writes_and_starts_is_there_for_its_later_blocks_and_ends_with_it(page_of, tmp_path):
    page = page_of(
        "<!-- test: file=a/serve.py -->\n```python\nimport http.server\nprint('here', flush=True)\n"
        "http.server.HTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()\n```\n\n"
        "```sh\ncd a\nexport WORD=yes\n```\n\n"
        '<!-- test: server until="here" -->\n```sh\npython serve.py\n```\n\n'
        "<!-- test: says=serve.py says=yes -->\n```sh\ncurl -s http://127.0.0.1:8000/\necho $WORD; echo $$ > pid\n```\n\n"
        "<!-- test: needs=a-program-that-is-not-here -->\n```sh\nfalse\n```\n"
    )
    assert [name.split()[0] for name in take(page, tmp_path / "reader", is_real=False)] == [
        "a-program-that-is-not-here"
    ]


def test_a_broken_link_and_a_command_that_does_not_exist_are_named_with_their_line(page_of, tmp_path):
    page = page_of(
        "# One two\n\n[a](#one-two) [b](#three)\n[c](other.md)\n\nAsk `jarvis flags lst`, `jarvis doctor --ship`.\n"
    )
    assert [link.split(": ")[1] for link in broken_links(page)] == ["#three", "other.md"]
    assert [command.split(": ")[1] for command in unknown_commands(page)] == ["jarvis flags lst"]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("## FastAPI, Starlette and other ASGI applications", "fastapi-starlette-and-other-asgi-applications"),
        ("## `jarvis run` & co.", "jarvis-run--co"),
        ("## From `core.feature_flags`", "from-corefeature_flags"),
        ("## Same\n\n## Same", "same-1"),
    ],
)
def test_headings_have_the_names_that_github_gives_them(page_of, heading, anchor):
    assert anchor in page_of(heading + "\n").anchors
