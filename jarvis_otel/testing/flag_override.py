"""Flags as a test wants them: the process's own manager, for a while over a source in memory."""

# ruff: noqa: SLF001 - the manager has no way in that is for tests alone

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from openfeature import api
from openfeature.provider.no_op_provider import NoOpProvider

from jarvis_flags.model import FlagDefinition, FlagStatus
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.parse import Segment, parse_flags, pin_name
from jarvis_flags.provider import YamlFlagProvider
from jarvis_flags.settings import FlagSettings
from jarvis_flags.snapshot import Snapshot, build_snapshot, changed_flags
from jarvis_flags.source import Change, FileSource, FlagSource, MemorySource
from jarvis_flags.tree import TreeError, load_tree
from jarvis_otel.admin.memory_store import MemoryStore
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.bootstrap import get_flags
from jarvis_otel.flag_hook import EvaluationHook
from jarvis_otel.manager import FeatureFlagManager
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.testing.tap import Wrap

__all__ = ["FlagOverride", "OverriddenFlags", "override_flags"]

_NAME_MAX = 64
_KINDS: Mapping[str, tuple[type, ...]] = {
    "boolean": (),
    "string": (str,),
    "integer": (int,),
    "float": (int, float),
    "object": (Mapping, list),
}

_logger = logging.getLogger("jarvis_otel")
_Target = TypeVar("_Target", bound=Callable[..., Any])


@dataclass(eq=False, slots=True)
class _Layer:
    """What one `with override_flags(...)` set.

    Attributes:
        values: By flag id; None means that the flag is not set.
        displaced: Run-time overrides that gave way to the values.
    """

    values: dict[str, Any] = field(default_factory=dict)
    displaced: dict[str, Override] = field(default_factory=dict)


class _World(MemorySource):
    """Flags in memory: those of a file or of another source, and over them what tests set, layer on layer.

    Args:
        base: The flags as they are where nothing is set.
        real: What it stands in for, if that is open.
        file: The file that `base` was read from, if there is one.

    Attributes:
        origin: The flags without anything that was set or changed since.
        values: What tests have set, by flag id.
        undo: Ends it.
    """

    def __init__(self, base: Snapshot, real: FlagSource | None, file: Path | None) -> None:
        super().__init__()
        # a listener to changes may set a flag itself
        self._lock = threading.RLock()  # type: ignore[assignment]
        self.origin = base
        self._base = base
        self._real = real
        self._layers: list[_Layer] = []
        self.values: Mapping[str, Any] = {}
        self._versions = itertools.count(1)
        self._file = file
        self.undo = ExitStack()
        self.snapshot = base if real is None else real.snapshot

    @property
    def in_use(self) -> bool:
        """Whether a layer stands."""
        return bool(self._layers)

    def is_over(self, source: FlagSource) -> bool:
        """Whether a source reads the file that these flags are from."""
        return isinstance(source, FileSource) and source.settings.flags_file == self._file

    def rebase(self, base: Snapshot, file: Path) -> None:
        """Takes its flags from another file; what is set stays."""
        with self._lock:
            self._renew(base)
            self.origin, self._file = base, file

    def push(self, values: Mapping[str, Any]) -> _Layer:
        """Begins a layer.

        Raises:
            ValueError: A flag cannot have its value; nothing changed.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        with self._lock:
            layer = _Layer()
            self._layers.append(layer)
            try:
                self.set(values)
            except ValueError:
                self._layers.remove(layer)
                raise
            return layer

    def pop(self, layer: _Layer) -> None:
        """Ends a layer, whichever it is; with the last one the world is over."""
        with self._lock:
            self._layers.remove(layer)
            standing = self._base.overrides
            back = {**layer.displaced, **standing.overrides}
            self._base = replace(self._base, overrides=OverrideSet(standing.revision, MappingProxyType(back)))
            if self._layers:
                self._renew(self._base)

    def set(self, values: Mapping[str, Any]) -> None:
        """Sets flags in the latest layer.

        Raises:
            ValueError: A flag cannot have its value; nothing changed.
            RuntimeError: All layers have ended.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        with self._lock:
            if not self._layers:
                raise RuntimeError(
                    "the override of these flags has ended: set them within its `with`, or within the test"
                )
            for flag_id, value in values.items():
                _served(flag_id, self._base.definitions.get(flag_id), value)
            layer, standing = self._layers[-1], self._base.overrides
            layer.values.update(copy.deepcopy(dict(values)))
            # what comes later wins, over a kill switch, too
            given_way = {k: o for k, o in standing.overrides.items() if values.get(k) is not None}
            layer.displaced.update(given_way)
            left = {k: o for k, o in standing.overrides.items() if k not in given_way}
            self._renew(replace(self._base, overrides=OverrideSet(standing.revision, MappingProxyType(left))))

    def close(self) -> None:
        """Closes what it stands in for, if that is open."""
        if self._real is not None:
            self._real.close()

    def _swap(
        self, definitions: Mapping[str, FlagDefinition], segments: Mapping[str, Segment], overrides: OverrideSet
    ) -> None:
        """Takes what the application changes in the flags into the base, below what tests set."""
        shown, below = self.snapshot.definitions, self._base.definitions
        own = {
            flag_id: below.get(flag_id) if definition is shown.get(flag_id) else definition
            for flag_id, definition in definitions.items()
        }
        kept = {flag_id: definition for flag_id, definition in own.items() if definition is not None}
        self._renew(replace(self._base, definitions=MappingProxyType(kept), segments=segments, overrides=overrides))

    def _renew(self, base: Snapshot) -> None:
        old = self.snapshot
        values: dict[str, Any] = {}
        for layer in self._layers:
            values.update(layer.values)
        values = {flag_id: value for flag_id, value in values.items() if value is not None}
        definitions = dict(base.definitions)
        for flag_id, value in values.items():
            definitions[flag_id] = _served(flag_id, base.definitions.get(flag_id), value)
        set_pins = set(map(pin_name, values))
        new = replace(
            base,
            definitions=MappingProxyType(definitions),
            bad=MappingProxyType({flag_id: bad for flag_id, bad in base.bad.items() if flag_id not in values}),
            pins=MappingProxyType({name: text for name, text in base.pins.items() if name not in set_pins}),
            version=f"{base.version}+test{next(self._versions)}",
            loaded_at=time.time(),
            # a test does not restart the process to turn a flag on
            held=MappingProxyType({flag_id: flag for flag_id, flag in base.held.items() if flag_id not in values}),
            _compiled={},
        )
        self._base, self.values, self.snapshot = base, values, new
        self._subscribers.add_change(Change(old, new, tuple(changed_flags(old, new))))
        self._subscribers.tell()


def _served(flag_id: str, definition: FlagDefinition | None, value: Any) -> FlagDefinition:
    """A flag that gives this value to everyone, and is otherwise what it was.

    Raises:
        ValueError: It cannot have that value.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    known = definition or FlagDefinition(flag_id)
    if value is None:
        return known
    flag = replace(
        known,
        enabled=True,
        status=FlagStatus.ACTIVE,
        rules=[],
        environment_defaults={},
        requires=[],
        expires_at=None,
    )
    variants, kind = dict(known.variants or {}), known.value_type
    if isinstance(value, str) and value in (variants or (("on", "off") if definition is not None else ())):
        return replace(flag, default=value) if variants else replace(flag, enabled=value == "on")
    if isinstance(value, bool):
        if not variants or kind != "boolean":
            return replace(flag, enabled=value)
        named = [name for name, given in variants.items() if given is value]
        if named or not value:
            return replace(flag, enabled=bool(named), default=named[0] if named else known.default)
    elif isinstance(value, _KINDS[kind] if definition is not None else str | int | float | Mapping | list):
        name = next((name for name, given in variants.items() if type(given) is type(value) and given == value), None)
        if name is None:
            name = str(value) if isinstance(value, str | int | float) else ""
            if not 0 < len(name) <= _NAME_MAX or name in variants:
                name = "test"
            variants[name] = value
        return replace(flag, variants=variants, default=name)
    wanted = "true or false" if kind == "boolean" else f"a value of the type {kind}, or true or false"
    choices = f", or one of the variants {', '.join(variants)}" if variants else ""
    raise ValueError(f"{flag_id}: got {value!r}, want {wanted}{choices}")


class OverriddenFlags:
    """What sets flags for the time of a test: the fixture `jarvis_flags`, and what `with override_flags()` gives.

    Args:
        world: Where they are set.
        manager: Whose flags they are.
    """

    def __init__(self, world: _World, manager: FeatureFlagManager) -> None:
        self._world = world
        self._manager = manager

    def set(self, flag_id: str, value: Any) -> None:
        """Has a flag give this value to everyone, whatever its rules, pins and overrides say.

        Args:
            flag_id: The flag; it need not be in the flag file.
            value: True or False, a value of the flag's type, or the name of a variant; a typed flag that is False is
                off, so it gives the caller's default. None is what it would be if no test had set it.

        Raises:
            ValueError: The flag cannot have that value.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        self._world.set({flag_id: value})

    def __call__(self, values: Mapping[str, Any] | None = None, /, **flags: Any) -> None:
        """Sets several flags, given as keywords or, whatever their ids are, as a mapping; see `set`."""
        __tracebackhide__ = True  # pytest shows the caller's line
        self._world.set({**(values or {}), **flags})

    def override(self, values: Mapping[str, Any] | None = None, /, **flags: Any) -> FlagOverride:
        """Sets flags for a part of the test, as context manager or decorator; the arguments are those of a call."""
        return FlagOverride({**(values or {}), **flags}, manager=self._manager)

    def __repr__(self) -> str:
        shown = ", ".join(f"{flag_id}={value!r}" for flag_id, value in self._world.values.items())
        return f"<flags set: {shown or 'none'}>"


class FlagOverride:
    """Sets flags for as long as a context lasts or a function runs; may be nested, and used many times.

    Flags belong to the process: its threads and tasks all see it.

    Args:
        values: Values by flag id, see `OverriddenFlags.set`.
        manager: Whose flags; those of the process if None.
    """

    def __init__(self, values: Mapping[str, Any], manager: FeatureFlagManager | None = None) -> None:
        self._values = values
        self._manager = manager
        self._entered: list[tuple[FeatureFlagManager, _World, _Layer]] = []

    def __enter__(self) -> OverriddenFlags:
        __tracebackhide__ = True  # pytest shows the caller's line
        manager = self._manager or get_flags()
        with _changing:
            source = manager._source
            world = source if isinstance(source, _World) else _begin(manager)
            try:
                layer = world.push(self._values)
            except ValueError:
                _end_if_over(manager, world)
                raise
        self._entered.append((manager, world, layer))
        return OverriddenFlags(world, manager)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        manager, world, layer = self._entered.pop()
        with _changing:
            world.pop(layer)
            _end_if_over(manager, world)

    def __call__(self, target: _Target) -> _Target:
        """Sets the flags while a function, a coroutine or each `test…` method of a class runs.

        Raises:
            TypeError: It is a generator.
        """
        decorated: Any
        if isinstance(target, type):
            for name, method in list(vars(target).items()):
                if name.startswith("test") and inspect.isfunction(method):
                    setattr(target, name, self(method))
            return target
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise TypeError(f"{target.__qualname__} is a generator: use `with override_flags(...):` within it")
        if inspect.iscoroutinefunction(target):

            @functools.wraps(target)
            async def decorated(*arguments: Any, **options: Any) -> Any:
                with self:
                    return await target(*arguments, **options)
        else:

            @functools.wraps(target)
            def decorated(*arguments: Any, **options: Any) -> Any:
                with self:
                    return target(*arguments, **options)

        result: _Target = decorated
        return result


def override_flags(values: Mapping[str, Any] | None = None, /, **flags: Any) -> FlagOverride:
    """Sets flags of this process for as long as a context lasts, or while a function runs.

    Args:
        values: Values by flag id, for ids that cannot be keywords.
        flags: Values by flag id, see `OverriddenFlags.set`.
    """
    return FlagOverride({**(values or {}), **flags})


# A manager has one world at a time, whichever threads set flags in it.
_changing = threading.RLock()


def _begin(manager: FeatureFlagManager) -> _World:
    """Puts a world of flags in the place of what the manager has its flags from."""
    real = manager.source if manager._in_memory else manager._source
    settings: FlagSettings | None = None
    if isinstance(real, FileSource):
        settings = real.settings
    elif real is None:
        # not opened: that would start a watcher and write state
        settings = manager._settings or FlagSettings.load()
        if manager._path is not None:
            settings = replace(settings, flags_file=Path(manager._path).absolute(), flags_file_named=True)
    if settings is not None:
        world = _World(_as_written(settings), real, settings.flags_file)
    else:
        assert real is not None
        world = _World(real.snapshot, real, None)
    stand_in = YamlFlagProvider(source=world, hooks=[EvaluationHook()])
    configured: dict[str, Any] = {}

    def use(settings: FlagSettings, **options: Any) -> None:
        """Follows a configure() within the test; the manager opens the files themselves after it."""
        configured.update(settings=settings, **options)
        if options.get("service_flags") is not None:
            manager._service_flags = options["service_flags"]
        world.rebase(_as_written(settings), settings.flags_file)

    undo = world.undo  # the last one is undone first
    if manager is RUNTIME.manager:
        undo.callback(_lend_to_process(manager, world, stand_in))
    undo.callback(_use_if_configured, manager, configured)
    undo.callback(_hand_back, manager, world)
    replaced = {
        "_source": world,
        "_provider": stand_in,
        "_admin": FlagAdmin(world, MemoryStore(world), seen_wait=0),
        "use": use,
    }
    for name, value in replaced.items():
        undo.callback(_put(manager, name, value))
    world.subscribe(manager._tell)
    return world


def _end_if_over(manager: FeatureFlagManager, world: _World) -> None:
    if not world.in_use and manager._source is world:
        world.undo.close()


def _put(manager: FeatureFlagManager, name: str, value: Any) -> Callable[[], None]:
    """Gives one manager another attribute; returns what takes it away again."""
    own = vars(manager)
    had, before = name in own, own.get(name)
    own[name] = value

    def take_away() -> None:
        if had:
            own[name] = before
        else:
            del own[name]

    return take_away


def _use_if_configured(manager: FeatureFlagManager, configured: Mapping[str, Any]) -> None:
    if configured:
        manager.use(**configured)


def _hand_back(manager: FeatureFlagManager, world: _World) -> None:
    """Tells who listens to flags that those set by tests are what they were."""
    last, source = world.snapshot, manager._source
    after = world.origin if source is None else source.snapshot
    world.snapshot = after
    manager._tell(Change(last, after, tuple(changed_flags(last, after))))


def _lend_to_process(manager: FeatureFlagManager, world: _World, stand_in: YamlFlagProvider) -> Callable[[], None]:
    """Has OpenFeature's clients and the log records see the flags that tests set; returns what ends that."""
    own = manager._provider

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def resolve(provider: YamlFlagProvider, flag_key: str, *arguments: Any) -> Any:
            if provider is own or flag_key in world.values or world.is_over(provider.source):
                provider = stand_in
            return original(provider, flag_key, *arguments)

        return resolve

    # providers of the application's own, too, those that it makes during the test among them
    wrap = Wrap(YamlFlagProvider, "_resolve", make)
    wrap.place()
    configured_before = RUNTIME.handle
    lent = isinstance(api.get_client().provider, NoOpProvider)
    if lent:
        api.set_provider_and_wait(stand_in)
    if RUNTIME.flag_source is not None:
        RUNTIME.flag_source = world

    def end() -> None:
        wrap.remove()
        if RUNTIME.flag_source is world:
            RUNTIME.flag_source = manager.source
        if lent and api.get_client().provider is stand_in:
            # a configure() within the test found a provider, and would have set the manager's otherwise
            configured = RUNTIME.handle is not None and RUNTIME.handle is not configured_before
            api.set_provider_and_wait(manager.provider if configured else NoOpProvider())

    return end


def _as_written(settings: FlagSettings) -> Snapshot:
    """The flags as the project's file defines them, for this environment and with the pins of this process.

    What a machine has of its own, the local file and what was changed at run time, is no matter of tests.
    """
    path = settings.flags_file
    content, tree = b"", None
    try:
        content = path.read_bytes()
        tree = load_tree(content) if content.strip() else None
    except FileNotFoundError:
        if settings.flags_file_named:
            _logger.warning("%s: there is no such file", path)
    except OSError as error:
        _logger.warning("%s: cannot be read: %s", path, error.strerror)
    except TreeError as error:
        _logger.warning("%s:%d: %s", path, error.line, error)
    flags = parse_flags(tree, str(path))
    for problem in flags.problems:
        _logger.warning("%s", problem)
    return build_snapshot(
        flags,
        pins=settings.pins,
        environment=settings.environment or settings.resource_environment or flags.environment or "prod",
        flag_set_id=path.name,
        version=hashlib.sha256(content).hexdigest()[:12],
        loaded_at=time.time(),
    )
