"""The OpenFeature provider over YAML flags (OpenFeature specification 0.9, section 2)."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagResolutionDetails, FlagValueType, Reason
from openfeature.hook import Hook
from openfeature.provider import AbstractProvider, Metadata

from jarvis_flags.evaluate import Evaluation
from jarvis_flags.request import CALLERS_DEFAULT, PROVIDER_NAME, Request, targeting_key
from jarvis_flags.settings import FlagSettings
from jarvis_flags.snapshot import Snapshot, changed_flags
from jarvis_flags.source import Change, FileSource, FlagSource

__all__ = ["YamlFlagProvider", "request_of"]

_Value = TypeVar("_Value")


class _Metadata(Metadata):
    """OpenFeature's metadata, made immutable (requirement 1.4.14.1 asks it of all that hooks are given)."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"provider metadata is immutable: {name}")


_METADATA = object.__new__(_Metadata)
object.__setattr__(_METADATA, "name", PROVIDER_NAME)


class YamlFlagProvider(AbstractProvider):
    """Evaluates flags out of a YAML file for OpenFeature; it follows the file, the overrides and the pins.

    The flags are there once it is made. It obeys FF_ pins, run-time overrides and JARVIS_ENVIRONMENT by itself.

    Args:
        path: The flag file; None takes JARVIS_FLAGS_FILE or the project's config/flags.yaml.
        settings: Where the rest is found; read from the environment if None.
        source: Flags from elsewhere, instead of a file; it stays its owner's to close.
        hooks: Hooks that belong to the provider.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        settings: FlagSettings | None = None,
        source: FlagSource | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        super().__init__()
        self._path = path
        self._settings = settings
        self._hooks = list(hooks)
        self._owned = source is None
        self._shut = False
        self._cancel: Callable[[], None] | None = None
        self._source: FlagSource = source if source is not None else self._open()

    def _settings_in_force(self) -> FlagSettings:
        settings = self._settings or FlagSettings.load()
        if self._path is None:
            return settings
        return replace(settings, flags_file=Path(self._path).absolute(), flags_file_named=True)

    def _open(self) -> FileSource:
        settings = self._settings_in_force()
        return FileSource(settings, watch=True, service=settings.service)

    @property
    def source(self) -> FlagSource:
        """Where the flags come from."""
        return self._source

    @property
    def snapshot(self) -> Snapshot:
        """All flags at this moment."""
        return self._source.snapshot

    def use_source(self, source: FlagSource) -> None:
        """Takes its flags from elsewhere from now on, and tells of what that changes.

        Args:
            source: The new source; it stays its owner's to close.
        """
        before, told = self._source.snapshot, self._cancel is not None
        if self._cancel is not None:
            self._cancel()
        self._source, self._owned = source, False
        self._cancel = source.subscribe(self._tell) if told else None
        if told:
            self._tell(Change(before, source.snapshot, tuple(changed_flags(before, source.snapshot))))

    def get_metadata(self) -> Metadata:
        """The provider's name."""
        return _METADATA

    def get_provider_hooks(self) -> list[Hook]:
        """The hooks that belong to the provider."""
        return self._hooks

    def initialize(self, evaluation_context: EvaluationContext) -> None:  # noqa: ARG002
        """Begins to tell of changes; after a shutdown it opens its file again."""
        if self._shut and self._owned:
            self._source = self._open()
        self._shut = False
        if self._cancel is None:
            self._cancel = self._source.subscribe(self._tell)

    def shutdown(self) -> None:
        """Ends watching; may be called twice. The last flags go on to be evaluated."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._owned:
            self._source.close()
        self._shut = True

    def _tell(self, change: Change) -> None:
        metadata: dict[str, bool | str | int | float] = {
            "version": change.new.version,
            "revision": change.new.overrides.revision,
        }
        with contextlib.suppress(RuntimeError):  # the SDK's thread pool is gone at exit
            if change.flags:
                self.emit_provider_configuration_changed(
                    ProviderEventDetails(flags_changed=list(change.flags), metadata=metadata)
                )
            was, now = _trouble(change.old), _trouble(change.new)
            if now == was:
                return
            if not now:
                self.emit_provider_ready(ProviderEventDetails(message="the flags are whole again", metadata=metadata))
            elif change.new.source_lost or change.new.store == "stale":
                self.emit_provider_stale(ProviderEventDetails(message=now, metadata=metadata))
            else:
                code = ErrorCode.PARSE_ERROR if change.new.store == "ready" else ErrorCode.GENERAL
                self.emit_provider_error(ProviderEventDetails(message=now, error_code=code, metadata=metadata))

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Evaluates a boolean flag."""
        return self._resolve(flag_key, default_value, evaluation_context, _boolean)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Evaluates a string flag."""
        return self._resolve(flag_key, default_value, evaluation_context, _string)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Evaluates an integer flag; true is no integer, 10.0 is 10."""
        return self._resolve(flag_key, default_value, evaluation_context, _integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Evaluates a float flag; an integer is widened."""
        return self._resolve(flag_key, default_value, evaluation_context, _float)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Evaluates a flag whose values are mappings or lists."""
        return self._resolve(flag_key, default_value, evaluation_context, _object)

    def _resolve(
        self,
        flag_key: str,
        default: _Value,
        context: EvaluationContext | None,
        convert: Callable[[Any], Any],
    ) -> FlagResolutionDetails[_Value]:
        snapshot = self._source.snapshot
        try:
            request = request_of(snapshot, context)
            result = snapshot.evaluate(flag_key, request)
        except Exception as error:  # evaluation never raises to the application, whatever a context holds
            return FlagResolutionDetails(default, ErrorCode.GENERAL, f"{type(error).__name__}: {error}", Reason.ERROR)
        metadata = _metadata(result, request)
        if result.error_code is not None and convert is not _boolean:
            return FlagResolutionDetails(
                default, result.error_code, result.error_message, result.reason, flag_metadata=metadata
            )
        if result.error_code is not None and result.value is False:
            return _OffResolution(
                False, result.error_code, result.error_message, result.reason, result.variant, metadata
            )  # type: ignore[return-value]
        value: Any = default
        if result.value is not CALLERS_DEFAULT:
            value = convert(result.value)
            if value is None:
                message = f"{flag_key} is {_type_name(result.value)}, want {convert.__name__.removeprefix('_')}"
                return FlagResolutionDetails(
                    default, ErrorCode.TYPE_MISMATCH, message, Reason.ERROR, flag_metadata=metadata
                )
        return FlagResolutionDetails(
            value, result.error_code, result.error_message, result.reason, result.variant, metadata
        )


class _OffEvaluation(FlagEvaluationDetails[bool]):
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, False if name == "value" else value)


class _OffResolution(FlagResolutionDetails[bool]):
    """A dangerous flag that is broken: an error, and yet off.

    The SDK puts the caller's default in the place of the value wherever there is an error code, and so would turn
    the flag on for a caller whose default is True.
    """

    def to_flag_evaluation_details(self, flag_key: str) -> FlagEvaluationDetails[bool]:
        """What the client gives to the application."""
        return _OffEvaluation(
            flag_key, False, self.variant, self.flag_metadata, self.reason, self.error_code, self.error_message
        )


def request_of(snapshot: Snapshot, context: EvaluationContext | None) -> Request:
    """The question that an OpenFeature context asks.

    The targeting key is the user (else the attribute `user_id`); the attributes `environment` and `request_id` are
    taken for theirs.
    """
    if context is None:
        return Request(None, snapshot.environment)
    attributes = context.attributes
    environment = attributes.get("environment")
    return Request(
        targeting_key(context.targeting_key) or targeting_key(attributes.get("user_id")),
        environment if isinstance(environment, str) and environment else snapshot.environment,
        targeting_key(attributes.get("request_id")),
        attributes,
    )


def _metadata(result: Evaluation, request: Request) -> Mapping[str, bool | int | float | str]:
    if request.user is None:
        return result.metadata
    return MappingProxyType({**result.metadata, "contextId": request.user})


def _trouble(snapshot: Snapshot) -> str:
    """What keeps flags from being used, in one line; empty where nothing does."""
    serious = [str(problem) for problem in snapshot.problems if problem.flag is not None or not problem.path]
    return "; ".join(serious)


def _type_name(value: Any) -> str:
    names = {bool: "boolean", str: "string", int: "integer", float: "float"}
    return names.get(type(value), "object")


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _object(value: Any) -> Any:
    # a copy: what the application does with it must not change the flag
    return copy.deepcopy(value) if isinstance(value, Mapping | list) else None
