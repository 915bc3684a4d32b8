"""Decorated functions: each call is an operation of its own, and its ids are made of the call's arguments."""

from __future__ import annotations

import functools
import inspect
import logging
import string
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from types import TracebackType
from typing import Any

from jarvis_otel.context import LogContext, Scope, text_of

__all__ = ["decorated"]


def decorated(
    function: Any, texts: Mapping[str, str], opened: Callable[[str, Mapping[str, str | None]], LogContext]
) -> Any:
    """A function that does the same, each call in an operation of its own.

    Args:
        function: A function, coroutine function, generator function or async generator function.
        texts: What the operation carries, by keyword; braces name arguments of the call.
        opened: Makes the operation of a call, from the name of its span and the texts that were filled.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__).rpartition("<locals>.")[2]
    templates = {key: _Template(key, text, name) for key, text in texts.items() if "{" in text}
    arguments = _Arguments(function) if templates else None

    def operation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LogContext:
        if arguments is None:
            return opened(name, {})
        named = arguments.named(args, kwargs)
        return opened(name, {key: template.fill(named) for key, template in templates.items()})

    run: Any
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            generator = function(*args, **kwargs)
            with _Apart(operation(args, kwargs)) as body:
                resume, argument = generator.asend, None
                while True:
                    try:
                        with body:
                            item = await resume(argument)
                    except StopAsyncIteration:
                        return
                    try:
                        argument = yield item
                    except GeneratorExit:
                        with body:
                            await generator.aclose()
                        raise
                    except BaseException as thrown:
                        resume, argument = generator.athrow, thrown
                    else:
                        resume = generator.asend

    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            generator = function(*args, **kwargs)
            with _Apart(operation(args, kwargs)) as body:
                resume, argument = generator.send, None
                while True:
                    try:
                        with body:
                            item = resume(argument)
                    except StopIteration as end:
                        return end.value
                    try:
                        argument = yield item
                    except GeneratorExit:
                        with body:
                            generator.close()
                        raise
                    except BaseException as thrown:
                        resume, argument = generator.throw, thrown
                    else:
                        resume = generator.send

    elif inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            with operation(args, kwargs):
                return await function(*args, **kwargs)

    else:

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with operation(args, kwargs):
                return function(*args, **kwargs)

    return run


class _Arguments:
    """The names of the arguments of a function."""

    def __init__(self, function: Any) -> None:
        self._names: tuple[str, ...] = ()
        self._defaults: dict[str, Any] = {}
        try:
            parameters = inspect.signature(function).parameters.values()
        except (ValueError, TypeError):  # some builtins have none: then only keywords have names
            return
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._names = tuple(parameter.name for parameter in parameters if parameter.kind in by_position)
        self._defaults = {
            parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
        }

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of a call by name; `Signature.bind` takes ten times as long."""
        return {**self._defaults, **dict(zip(self._names, args, strict=False)), **kwargs}


class _Template:
    """A text that names arguments of a call.

    Args:
        key: What the text is for.
        text: In the syntax of `str.format`.
        function: Whose arguments it names.
    """

    _formatter = string.Formatter()

    def __init__(self, key: str, text: str, function: str) -> None:
        self._key = key
        self._text = text
        self._function = function
        self._warned = False
        self._parts: list[Any] = []
        try:
            self._parts = list(self._formatter.parse(text))
        except ValueError as problem:
            self._warn(problem)

    def fill(self, arguments: Mapping[str, Any]) -> str | None:
        """The text with the arguments in it; None where one is None or it cannot be filled."""
        texts = []
        try:
            for literal, name, form, conversion in self._parts:
                texts.append(literal)
                if name is not None:
                    value, _ = self._formatter.get_field(name, (), arguments)
                    if value is None:
                        return None
                    value = self._formatter.convert_field(value, conversion)
                    texts.append(self._formatter.format_field(value, form))
            return text_of("".join(texts)) if self._parts else None
        except Exception as problem:  # attributes and formats of the application's own objects may do anything
            self._warn(problem)
            return None

    def _warn(self, problem: Exception) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("jarvis_otel").warning(
                "logger.context: %s(): %s=%r cannot be filled from the arguments (%s: %s); it is left out."
                " Write {name} or {name.attribute} of an argument, and {{ for a brace.",
                *(self._function, self._key, self._text, type(problem).__name__, text_of(problem)),
            )


class _Apart:
    """The operation of a generator, from its first value to its last; its body runs in it, its consumer does not."""

    def __init__(self, context: LogContext) -> None:
        self._context = context
        self._body = _Body()

    def __enter__(self) -> _Body:
        with self._body:
            self._context.__enter__()
        return self._body

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._body:
            self._context.__exit__(kind, error, traceback)


class _Body:
    """What is current while the body of a generator runs, and is put away while its consumer does."""

    __slots__ = ("_kept", "_scope")

    def __init__(self) -> None:
        self._kept = Scope.current()

    def __enter__(self) -> None:
        self._scope = self._kept
        self._scope.__enter__()

    def __exit__(self, *error: object) -> None:
        self._kept = Scope.current()
        self._scope.__exit__(*error)
