"""The project's pages as tests see them: fenced blocks with what is said of them, links, headings, commands in the text."""

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
_MARKER = re.compile(r"<!--\s*test:(.*?)-->", re.DOTALL)
_OPERATOR = re.compile(r"[();<>|&]+")

WORDS = frozenset(("server", "eventually", "continues"))
VALUES = frozenset(("file", "until", "says", "exits", "given", "needs", "skip"))


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its page's path in the checkout.
        line: The line of its first line of text, from 1 on.
        language: What stands behind the fence.
        text: What is in it.
        words: The words of its comment that have no value.
        values: The values of the others, in their order.
    """

    page: str
    line: int
    language: str
    text: str
    words: frozenset[str] = frozenset()
    values: dict[str, list[str]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def value(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[-1]

    def commands(self) -> Iterator[tuple[int, str]]:
        """Each command line with its number: lines of a shell, or what follows the prompt in what a terminal shows."""
        lines = self.text.splitlines()
        while lines:
            number = self.line + self.text.count("\n") - len(lines)
            line = lines.pop(0)
            while line.endswith("\\") and lines:
                line = line[:-1] + lines.pop(0)
            if self.language == "sh":
                yield number, line
            elif line.startswith("$ "):
                yield number, line[2:]


@dataclass(frozen=True)
class Page:
    """A page as it is read.

    Attributes:
        path: Its path in the checkout.
        blocks: Its fenced blocks.
        links: Where its links and pictures lead, with their lines.
        code: What it sets as code within its text, with the line.
        anchors: The names of its headings.
        problems: What tests cannot read, a line each that names the place.
    """

    path: str
    blocks: tuple[Block, ...]
    links: tuple[tuple[int, str], ...]
    code: tuple[tuple[int, str], ...]
    anchors: frozenset[str]
    problems: tuple[str, ...]


def pages() -> list[str]:
    """The pages whose blocks are run, by their path in the checkout."""
    found = [*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md"))]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_file())


@cache
def read_page(path: str) -> Page:
    """Reads a page."""
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / path).read_text())
    blocks, links, code, headings, problems = [], [], [], [], []
    marker = ""
    for at, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence":
            blocks.append(_block(path, token, marker, problems))
        elif token.type == "code_block":
            problems.append(f"{path}:{line}: an indented block; fence it and name its language")
        elif token.type == "heading_open":
            headings.append(_plain(tokens[at + 1]))
        elif token.type == "inline":
            for child in token.children or ():
                if child.type in ("link_open", "image"):
                    links.append((line, str(child.attrs.get("href") or child.attrs.get("src"))))
                elif child.type == "code_inline":
                    code.append((line, child.content))
        if marker and token.type != "fence":
            problems.append(f"{path}:{line}: between a comment for the tests and its block")
        found = _MARKER.search(token.content) if token.type == "html_block" else None
        marker = found[1] if found else ""
    return Page(path, tuple(blocks), tuple(links), tuple(code), frozenset(_anchors(headings)), tuple(problems))


def _block(path: str, token: Token, marker: str, problems: list[str]) -> Block:
    line = token.map[0] + 2
    language = token.info.partition(" ")[0]
    if not language:
        problems.append(f"{path}:{line - 1}: a block without a language; sh, python, yaml, json, console, text, …")
    words, values = set(), {}
    try:
        items = shlex.split(marker)
    except ValueError as error:
        items = []
        problems.append(f"{path}:{line - 2}: {error} in the comment for the tests")
    for item in items:
        name, equals, value = item.partition("=")
        if equals and name in VALUES:
            values.setdefault(name, []).append(value)
        elif not equals and name in WORDS:
            words.add(name)
        else:
            problems.append(f"{path}:{line - 2}: {item!r} in the comment for the tests; tests/test_docs.py lists all")
    return Block(path, line, language, token.content, frozenset(words), values)


def _plain(heading: Token) -> str:
    return "".join(child.content for child in heading.children or () if child.type in ("text", "code_inline"))


def _anchors(headings: list[str]) -> Iterator[str]:
    """The names that GitHub gives to headings."""
    seen: dict[str, int] = {}
    for heading in headings:
        kept = (char for char in heading.lower() if char in " -_" or unicodedata.category(char)[0] in "LNM")
        name = "".join(kept).replace(" ", "-")
        seen[name] = seen.get(name, -1) + 1
        yield f"{name}-{seen[name]}" if seen[name] else name


def programs(command: str) -> Iterator[list[str]]:
    """The programs that a command line of a shell starts, each with its arguments."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not _OPERATOR.fullmatch(word):
            words.append(word)
            continue
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words
        words = []
