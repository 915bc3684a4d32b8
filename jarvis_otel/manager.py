"""FeatureFlagManager: the flags of a process, for those who do not want to spell out OpenFeature."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from openfeature import api
from openfeature.evaluation_context import EvaluationContext as OpenFeatureContext
from openfeature.flag_evaluation import FlagEvaluationDetails
from openfeature.hook import get_hooks
from openfeature.transaction_context import get_transaction_context

from jarvis_flags.forks import importing
from jarvis_flags.request import CALLERS_DEFAULT, PROVIDER_NAME, Request, targeting_key
from jarvis_otel.context import current_operation
from jarvis_otel.flag_hook import EvaluationHook, record_evaluation, report_event
from jarvis_otel.logger import emit_event
from jarvis_otel.runtime import RUNTIME

# What reads, compiles and changes flags is imported when there are flags to open: an application may import us and
# never ask for one, and half of what the import would cost is there.
if TYPE_CHECKING:
    from jarvis_flags.evaluate import Evaluation
    from jarvis_flags.model import EvaluationContext, FlagDefinition, FlagStatus
    from jarvis_flags.provider import YamlFlagProvider
    from jarvis_flags.settings import FlagSettings
    from jarvis_flags.snapshot import ExplainedStep, Snapshot
    from jarvis_flags.source import Change, FlagSource
    from jarvis_otel.admin.audit import AuditEntry
    from jarvis_otel.admin.author import Author
    from jarvis_otel.admin.outcome import Outcome
    from jarvis_otel.admin.service import FlagAdmin
    from jarvis_otel.admin.store import FlagStore
    from jarvis_otel.testing import FlagOverride

__all__ = ["FeatureFlagManager", "announce"]

_DECLARED_MAX = 1_024
_DOMAIN = "jarvis"
_DEFAULTS: Mapping[str, Any] = {"boolean": False, "string": "", "integer": 0, "float": 0.0, "object": {}}

_logger = logging.getLogger("jarvis_otel")
_Value = TypeVar("_Value")


class FeatureFlagManager:
    """The flags of a process: evaluates, tells of changes, and changes them.

    Without arguments it is empty and in memory, for tests. It opens its file when it is first asked something.

    Args:
        path: A flag file; its state is that of the settings.
        settings: Where flags and state are; read from the environment if None and a path is given.
        service: What the process is called.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        settings: FlagSettings | None = None,
        service: str | None = None,
    ) -> None:
        self._path = path
        self._settings = settings
        self._service = service
        self._in_memory = path is None and settings is None
        self._source: FlagSource | None = None
        self._opening = threading.RLock()
        self._store: FlagStore | None = None
        self._admin: FlagAdmin | None = None
        self._provider: YamlFlagProvider | None = None
        self._listeners: tuple[tuple[str, Callable[[str, bool, bool], Any]], ...] = ()
        self._service_flags: Mapping[str, tuple[str, ...]] = {}
        self._declared: tuple[Snapshot | None, dict[Any, Mapping[str, tuple[str, bool]]]] = (None, {})

    @classmethod
    def of_process(cls) -> FeatureFlagManager:
        """A manager over the project's own flag file, found when it is first asked something."""
        manager = cls()
        manager._in_memory = False
        return manager

    def use(
        self,
        settings: FlagSettings,
        *,
        service: str | None = None,
        service_flags: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Settles where its flags come from; what was open is closed.

        Args:
            settings: Where flags and state are.
            service: What the process is called.
            service_flags: Ids of flags that a service declares beside those that name it.
        """
        from jarvis_flags.snapshot import changed_flags  # noqa: PLC0415
        from jarvis_flags.source import Change  # noqa: PLC0415

        with self._opening:
            old = self._source
            self._settings, self._service, self._in_memory = settings, service, False
            self._path = None
            if service_flags is not None:
                self._service_flags = service_flags
            self._source = self._admin = None
            if old is None:
                return
            # who listens, and the provider, go on with the new flags
            new = self._open()
            if self._provider is not None:
                self._provider.use_source(new)
            before, after = old.snapshot, new.snapshot
            old.close()
        self._tell(Change(before, after, tuple(changed_flags(before, after))))

    @property
    def source(self) -> FlagSource:
        """Where its flags come from."""
        return self._source or self._open()

    @property
    def provider(self) -> YamlFlagProvider:
        """The OpenFeature provider over the same flags, with our hook."""
        from jarvis_flags.provider import YamlFlagProvider  # noqa: PLC0415

        source = self.source
        with self._opening:
            if self._provider is None:
                self._provider = YamlFlagProvider(source=source, hooks=[EvaluationHook()])
            return self._provider

    @property
    def admin(self) -> FlagAdmin:
        """The service that changes its flags."""
        from jarvis_flags.source import MemorySource  # noqa: PLC0415
        from jarvis_otel.admin.memory_store import MemoryStore  # noqa: PLC0415
        from jarvis_otel.admin.service import FlagAdmin  # noqa: PLC0415 - few processes change flags

        source = self.source
        with self._opening:
            if self._admin is None:
                if isinstance(source, MemorySource):
                    self._admin = FlagAdmin(source, MemoryStore(source), tell=announce, seen_wait=0)
                else:
                    assert self._store is not None
                    self._admin = FlagAdmin(source, self._store, tell=announce)
            return self._admin

    def _open(self) -> FlagSource:
        from jarvis_flags.settings import FlagSettings  # noqa: PLC0415
        from jarvis_flags.source import MemorySource  # noqa: PLC0415

        with self._opening:
            if self._source is None:
                if self._in_memory:
                    self._source = MemorySource()
                else:
                    settings = self._settings or FlagSettings.load()
                    if self._path is not None:
                        from pathlib import Path  # noqa: PLC0415

                        settings = replace(settings, flags_file=Path(self._path).absolute(), flags_file_named=True)
                    from jarvis_otel.admin.file_edits import FileEdits  # noqa: PLC0415 - not before there are flags
                    from jarvis_otel.admin.opening import open_flags  # noqa: PLC0415

                    service = self._service or settings.service
                    source, self._store = open_flags(settings, watch=True, service=service, tell=announce)
                    self._source = source
                    FileEdits(source, self._store, announce).follow()
                self._source.subscribe(self._tell)
                if RUNTIME.flag_source is not None and RUNTIME.manager is self:
                    RUNTIME.flag_source = self._source
            return self._source

    def override(self, values: Mapping[str, Any] | None = None, /, **flags: Any) -> FlagOverride:
        """Sets flags for a test, as context manager or decorator; see `jarvis_otel.testing`.

        Args:
            values: Values or names of variants by flag id.
            flags: The same, as keywords.
        """
        from jarvis_otel.testing import FlagOverride  # noqa: PLC0415 - for tests only

        return FlagOverride({**(values or {}), **flags}, manager=self)

    # --- evaluating ---

    def is_enabled(
        self,
        flag_id: str,
        default: bool = False,
        user_id: str | int | None = None,
        context: EvaluationContext | None = None,
    ) -> bool:
        """Whether a flag is on.

        Args:
            flag_id: The flag.
            default: The answer where the flag is unknown or cannot be evaluated.
            user_id: The user; else the context's, the operation's (`logger.context`) or OpenFeature's.
            context: For whom and where.
        """
        try:
            if get_hooks():
                return self._by_client(flag_id, default, user_id, context).value is True
            value = self._evaluate(flag_id, user_id, context).value
            return value if value is True or value is False else default
        except Exception:
            # evaluation never raises to the application, whatever it is given
            _logger.warning("flag %r could not be evaluated", flag_id, exc_info=True)
            return default

    def value(
        self,
        flag_id: str,
        default: _Value,
        user_id: str | int | None = None,
        context: EvaluationContext | None = None,
    ) -> _Value:
        """The value of a flag of any type; the arguments are those of `is_enabled`."""
        try:
            if get_hooks():
                details = self._by_client(flag_id, default, user_id, context)
                return default if default is None and details.variant is None else details.value
            result = self._evaluate(flag_id, user_id, context)
            value: Any = result.value
            if value is CALLERS_DEFAULT or not _fits(value, default):
                return default
            # a copy of an object: what the application does with it must not change the flag
            return copy.deepcopy(value) if isinstance(value, Mapping | list) else value  # type: ignore[return-value]
        except Exception:
            # evaluation never raises to the application, whatever it is given
            _logger.warning("flag %r could not be evaluated", flag_id, exc_info=True)
            return default

    def variant(
        self,
        flag_id: str,
        default: str | None = None,
        user_id: str | int | None = None,
        context: EvaluationContext | None = None,
    ) -> str | None:
        """The name of the variant that a flag gives; the arguments are those of `is_enabled`."""
        try:
            if get_hooks():
                return self._by_client(flag_id, None, user_id, context).variant or default
            return self._evaluate(flag_id, user_id, context).variant or default
        except Exception:
            _logger.warning("flag %r could not be evaluated", flag_id, exc_info=True)
            return default

    def evaluate(
        self, flag_id: str, user_id: str | int | None = None, context: EvaluationContext | None = None
    ) -> Evaluation:
        """What a flag gives with all that is known of it, and without any telemetry; see `is_enabled`."""
        snapshot = self.source.snapshot
        return snapshot.evaluate(flag_id, self._request(snapshot, user_id, context))

    def explain(
        self, flag_id: str, user_id: str | int | None = None, context: EvaluationContext | None = None
    ) -> tuple[Evaluation, tuple[ExplainedStep, ...]]:
        """What a flag gives, and every step of the order on the way; see `is_enabled`."""
        snapshot = self.source.snapshot
        return snapshot.explain(flag_id, self._request(snapshot, user_id, context))

    def _evaluate(self, flag_id: str, user_id: str | int | None, context: EvaluationContext | None) -> Evaluation:
        snapshot = (self._source or self._open()).snapshot
        flag = snapshot.flag(flag_id)
        if flag is None:
            from jarvis_flags.evaluate import unknown_flag  # noqa: PLC0415

            flag = unknown_flag(flag_id, snapshot.metadata)
        result = flag.constant
        if result is None:
            request = snapshot.request(context, user_id)
            if request.user is None:
                request.user = _ambient_user()
            result = flag.evaluate(request)
        span = record_evaluation(result.series, result.on, result.error_code)
        if span is not None:
            report_event(
                span,
                result.series,
                provider=PROVIDER_NAME,
                context_id=self._request(snapshot, user_id, context).user,
                metadata=result.metadata,
                error_code=result.error_code,
                error_message=result.error_message,
            )
        return result

    def _request(self, snapshot: Snapshot, user_id: str | int | None, context: EvaluationContext | None) -> Request:
        request = snapshot.request(context, user_id)
        if request.user is None:
            request.user = _ambient_user()
        return request

    def _by_client(
        self, flag_id: str, default: Any, user_id: str | int | None, context: EvaluationContext | None
    ) -> FlagEvaluationDetails[Any]:
        """Through OpenFeature's client, so that the application's own hooks run."""
        client = api.get_client(_DOMAIN)
        if client.provider is not self.provider:
            api.set_provider_and_wait(self.provider, _DOMAIN)
        snapshot = self.source.snapshot
        request = self._request(snapshot, user_id, context)
        attributes = {**request.attributes, "environment": request.environment}
        if request.request_id is not None:
            attributes["request_id"] = request.request_id
        if default is None:
            # any type will do: that of the flag
            definition = snapshot.definitions.get(flag_id)
            default = _DEFAULTS[definition.value_type if definition is not None else "boolean"]
        resolve: Any = {
            bool: client.get_boolean_details,
            str: client.get_string_details,
            int: client.get_integer_details,
            float: client.get_float_details,
        }.get(type(default), client.get_object_details)
        details: FlagEvaluationDetails[Any] = resolve(flag_id, default, OpenFeatureContext(request.user, attributes))
        return details

    def declared(self, service: str, user_id: str | None, ids: tuple[str, ...]) -> Mapping[str, tuple[str, bool]]:
        """What the flags that a service declares give, evaluated silently; remembered per snapshot, service and user.

        Args:
            service: The service.
            user_id: The user of the operation.
            ids: Further flags, declared for the operation.
        """
        snapshot = (self._source or self._open()).snapshot
        known, results = self._declared
        if known is not snapshot:
            results = {}
            self._declared = (snapshot, results)
        key = (service, user_id, ids)
        found = results.get(key)
        if found is None:
            if len(results) >= _DECLARED_MAX:
                results.clear()
            found = results[key] = self._evaluate_declared(snapshot, service, user_id, ids)
        return found

    def _evaluate_declared(
        self, snapshot: Snapshot, service: str, user_id: str | None, ids: tuple[str, ...]
    ) -> Mapping[str, tuple[str, bool]]:
        named = [flag_id for flag_id, flag in snapshot.definitions.items() if service in flag.services]
        declared = {}
        for flag_id in dict.fromkeys((*named, *self._service_flags.get(service, ()), *ids)):
            result = snapshot.evaluate(flag_id, Request(targeting_key(user_id), snapshot.environment))
            if result.error_code is None:
                declared[flag_id] = (result.variant or "off", result.on)
        return declared

    # --- looking ---

    def get_flag(self, flag_id: str) -> FlagDefinition | None:
        """The definition of a flag, or None."""
        return self.source.snapshot.definitions.get(flag_id)

    def list_flags(self, category: str | None = None, status: FlagStatus | str | None = None) -> list[FlagDefinition]:
        """All definitions, in the file's order.

        Args:
            category: Only those of this category.
            status: Only those of this status.
        """
        return [
            flag
            for flag in self.source.snapshot.definitions.values()
            if (category is None or flag.category == category) and (status is None or flag.status == status)
        ]

    def history(self, flag_id: str | None = None) -> list[AuditEntry]:
        """The changes at run time, refused ones too, oldest first."""
        return self.admin.history(flag_id)

    def on_change(self, flag_id: str, callback: Callable[[str, bool, bool], Any]) -> Callable[[], None]:
        """Has a function called when a change at run time or of a file turns a flag on or off; the clock's is not told.

        Args:
            flag_id: The flag.
            callback: Called with the flag's id and what `is_enabled` without a user gave before and gives now.

        Returns:
            What cancels it.
        """

        listener = (flag_id, callback)
        self._listeners = (*self._listeners, listener)
        self.source  # noqa: B018 - whoever waits for changes wants the flags to be followed

        def cancel() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return cancel

    def _tell(self, change: Change) -> None:
        """Calls who listens to the flags that turned on or off."""
        for flag_id, callback in self._listeners:
            if flag_id in change.flags:
                old, new = (_is_on(snapshot, flag_id) for snapshot in (change.old, change.new))
                if old != new:
                    try:
                        callback(flag_id, old, new)
                    except Exception:
                        # one listener of the application must not keep the others from hearing of it
                        _logger.exception("a listener to %s raised", flag_id)

    # --- changing ---

    def set_enabled(self, flag_id: str, enabled: bool, reason: str = "", admin_id: str | None = None) -> bool:
        """Turns a flag on or off at run time; a caller of this method counts as confirmed.

        Args:
            flag_id: The flag.
            enabled: On or off.
            reason: Why.
            admin_id: Who.

        Returns:
            Whether it was applied; why not is logged.
        """
        author = _author(admin_id, reason)
        if enabled:
            return self._applied(self.admin.enable(flag_id, author, confirmed=True))
        return self._applied(self.admin.disable(flag_id, author))

    def set_rollout(self, flag_id: str, percent: float, reason: str = "", admin_id: str | None = None) -> bool:
        """Sets the percentage of users that a flag is on for; the further arguments are those of `set_enabled`."""
        return self._applied(self.admin.rollout(flag_id, percent, _author(admin_id, reason), confirmed=True))

    def reset(self, flag_id: str, reason: str = "", admin_id: str | None = None) -> bool:
        """Removes what was set at run time; the arguments are those of `set_enabled`."""
        return self._applied(self.admin.reset(flag_id, _author(admin_id, reason), confirmed=True))

    def _applied(self, outcome: Outcome) -> bool:
        if not outcome.applied:
            _logger.warning("%s", outcome.message)
        return outcome.applied

    def create_flag(self, definition: FlagDefinition) -> bool:
        """Adds a flag: to the flag file, whose comments and order stay, or to a manager in memory.

        In memory it replaces the flag of its id; in a file it must be new.

        Returns:
            Whether it was added; why not is logged.
        """
        from jarvis_flags.source import MemorySource  # noqa: PLC0415

        source = self.source
        if not isinstance(source, MemorySource):
            return self._applied(self.admin.create(definition, _author(None, "")))
        try:
            source.put(definition)
        except ValueError as error:
            _logger.warning("%s was not created: %s", definition.id, error)
            return False
        return True

    def save_to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes the definitions into a flag file; what it says already keeps its text, comments and order.

        Raises:
            ValueError: The file cannot be used, or somebody changed it meanwhile.
            OSError: It cannot be written.
        """
        from jarvis_flags.edit import save_flags  # noqa: PLC0415

        snapshot = self.source.snapshot
        segments = {name: segment.source for name, segment in snapshot.segments.items()}
        save_flags(path, snapshot.definitions.values(), segments)

    def load_from_file(self, path: str | os.PathLike[str]) -> None:
        """Takes the flags of a file; a manager in memory copies them, another one follows the file from now on.

        Raises:
            ValueError: The file cannot be used at all; nothing changed.
            OSError: It cannot be read.
        """
        from pathlib import Path  # noqa: PLC0415

        from jarvis_flags.parse import parse_flags  # noqa: PLC0415
        from jarvis_flags.source import FileSource, MemorySource  # noqa: PLC0415
        from jarvis_flags.tree import load_tree  # noqa: PLC0415

        source = self.source
        if isinstance(source, FileSource):
            self._path = path
            self.use(
                replace(source.settings, flags_file=Path(path).absolute(), flags_file_named=True), service=self._service
            )
            return
        assert isinstance(source, MemorySource)
        flags = parse_flags(load_tree(Path(path).read_bytes()), str(path))
        for problem in flags.problems:
            _logger.warning("%s", problem)
        source.replace(flags)

    def reload(self) -> None:
        """Looks at the files at once, without waiting for the watcher."""
        self.source.reload()

    def close(self) -> None:
        """Ends watching; the last snapshot stays."""
        if self._source is not None:
            self._source.close()


def _author(admin_id: str | None, reason: str) -> Author:
    from jarvis_otel.admin.author import Author  # noqa: PLC0415

    return Author(admin_id or "api", "api", reason)


def _ambient_user() -> str | None:
    """Who is asked for where the caller names nobody: the operation's user, then OpenFeature's transaction's."""
    operation = current_operation()
    if operation is not None and operation.user_id is not None:
        return operation.user_id
    return targeting_key(get_transaction_context().targeting_key)


def announce(entry: AuditEntry) -> None:
    """Tells of a change in a log record `jarvis.flag.changed`, with the hash of its audit entry."""
    with importing():
        from jarvis_otel.admin.states import announcement  # noqa: PLC0415 - few processes see changes

    words, old, new = announcement(entry)
    because = f": {entry.reason}" if entry.reason else ""
    attributes = {
        "feature_flag.key": entry.flag,
        "jarvis.change.action": entry.action,
        "jarvis.change.old": old,
        "jarvis.change.new": new,
        "jarvis.change.revision": entry.revision,
        "jarvis.change.actor": entry.who,
        "jarvis.change.via": entry.via,
        "jarvis.change.reason": entry.reason,
        # what is off on one machine only has no entry in the audit yet
        "jarvis.change.outcome": "pending" if entry.outcome == "pending" else "",
        "jarvis.change.audit_hash": "" if entry.outcome == "pending" else entry.hash,
    }
    emit_event(
        "jarvis_flags",
        "jarvis.flag.changed",
        f"{entry.flag}: {words} by {entry.who}{because}",
        # not `jarvis.flag.*`, where each key is a flag's
        attributes={key: value for key, value in attributes.items() if value != ""},
    )


def _is_on(snapshot: Snapshot, flag_id: str) -> bool:
    return snapshot.evaluate(flag_id, Request(None, snapshot.environment)).value is True


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of the caller's default; None takes any, a whole number serves as a float."""
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, Mapping | list):
        return isinstance(value, Mapping | list)
    return isinstance(value, type(default))
