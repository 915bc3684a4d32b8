"""The structured logger, and who gets its records: the pipeline, standard handlers, the application's processors."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber, get_logger_provider
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value

from jarvis_otel.adoption import has_others
from jarvis_otel.compose import (
    bare_record,
    compose,
    compose_standard,
    error_of,
    extra_of,
    message_of,
    next_number,
    process_service,
    resource_attributes,
)
from jarvis_otel.context import LogContext, current_operation, note_evaluation, scope_of
from jarvis_otel.encode import (
    ErrorInfo,
    Record,
    Source,
    clean,
    clean_text,
    log_entry,
    otlp_record,
    otlp_scope,
    sdk_attributes,
)
from jarvis_otel.runtime import RUNTIME, Policy
from jarvis_otel.sites import site_of, site_of_record

if TYPE_CHECKING:
    from jarvis_otel.limits import Limit
    from jarvis_otel.uncaught import ExcInfo

__all__ = [
    "OwnLogRecord",
    "StructuredLogger",
    "admitted",
    "emit_event",
    "get_logger",
    "report_uncaught",
    "report_warning",
    "ship",
    "ship_standard",
]

# The level numbers of the logging module: a look-up less in a call that is disabled.
_DEBUG, _INFO, _WARNING, _ERROR, _CRITICAL = 10, 20, 30, 40, 50
_UNSET: Any = object()
_URGENT = SeverityNumber.WARN.value

_state = threading.local()


class OwnLogRecord(LogRecord):
    """A record that goes to the application's own OpenTelemetry processors, and is in our pipeline already."""


class StructuredLogger:
    """Logs messages with keywords, correlated by operation, span and flags; never raises into the application.

    Args:
        service: The component that logs; also the name of the standard logger that its records pass through.
        level: The lowest level written; INFO where neither this nor the settings say otherwise.
    """

    def __init__(self, service: str, level: int | None = None) -> None:
        self.service = clean_text(service)
        self._policy = RUNTIME.policy(self.service) if level is None else Policy(self.service, level)
        self._limits: tuple[Limit, ...] = ()
        self._bound: Mapping[str, Any] = {}
        self._scope = otlp_scope(self.service)
        self._standard = logging.getLogger(self.service)
        RUNTIME.services.add(self.service)

    @property
    def level(self) -> int:
        """The lowest level that is written now, as a number of the logging module."""
        return self._policy.level

    def debug(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes a DEBUG record.

        Args:
            message: What happened, for people.
            exc_info: True for the exception being handled, or an exception, or the triple of sys.exc_info().
            context: Keywords that join the record; correlation_id, user_id, request_id, session_id and duration_ms
                go to the keys of these names.
        """
        if self._policy.level <= _DEBUG:
            self._log(_DEBUG, message, exc_info, context)

    def info(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes an INFO record; the arguments are those of `debug`."""
        if self._policy.level <= _INFO:
            self._log(_INFO, message, exc_info, context)

    def warning(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes a WARNING record; the arguments are those of `debug`."""
        if self._policy.level <= _WARNING:
            self._log(_WARNING, message, exc_info, context)

    def error(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes an ERROR record; the arguments are those of `debug`."""
        if self._policy.level <= _ERROR:
            self._log(_ERROR, message, exc_info, context)

    def critical(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes a CRITICAL record; the arguments are those of `debug`."""
        if self._policy.level <= _CRITICAL:
            self._log(_CRITICAL, message, exc_info, context)

    def exception(self, message: object = _UNSET, /, exc_info: object = True, **context: Any) -> None:
        """Writes an ERROR record with the exception being handled; the arguments are those of `debug`."""
        if self._policy.level <= _ERROR:
            self._log(_ERROR, message, exc_info, context)

    def context(
        self,
        correlation_id: str | None = None,
        user_id: str | None = None,
        flags: list[str] | tuple[str, ...] | None = None,
        **more: Any,
    ) -> LogContext:
        """Opens an operation, for `with` and `async with`; records within carry what it is given.

        Args:
            correlation_id: Links the records of the operation, in other processes too.
            user_id: The user on whose behalf it runs; flags are evaluated for that user.
            flags: Ids of flags that its records list even where they are not evaluated.
            more: `request_id` and `session_id`; anything else joins the `context` of its records.
        """
        return LogContext(self.service, correlation_id, user_id, flags, **more)

    def bind(self, **context: Any) -> StructuredLogger:
        """A logger of the same service whose records all carry these keywords."""
        bound = copy.copy(self)
        bound._bound = {**self._bound, **context}  # noqa: SLF001 - our own
        return bound

    def limited(
        self,
        *,
        sample: float | None = None,
        rate: float | str | None = None,
        dedupe: float | None = None,
        once: bool = False,
        below: str = "warning",
    ) -> StructuredLogger:
        """A logger of the same service that leaves out some of many like records: same level, same message.

        A record that is let through says in `left_out` how many like it were not; where none follows, a summary does.

        Args:
            sample: The share that is kept, from 0 to 1; of a trace all records or none.
            rate: So many per second, or text such as `10/min`.
            dedupe: Seconds in which a repetition is left out.
            once: Only the first one is kept.
            below: Records of this level and above are never left out.

        Raises:
            ValueError: A value cannot be used.
        """
        from jarvis_otel.limits import Limit  # noqa: PLC0415 - few loggers have limits

        limit = Limit.parse(
            {"sample": sample, "rate": rate, "dedupe": dedupe, "once": once, "below": below}, "limited()"
        )
        limited = copy.copy(self)
        limited._limits = (*self._limits, limit)  # noqa: SLF001 - our own
        return limited

    def trade_event(self, event_type: str, symbol: str, **details: Any) -> None:
        """Writes an INFO record with the event `trade.<event_type>`.

        Args:
            event_type: What became of the trade: executed, rejected, …
            symbol: What is traded.
            details: Further keywords.
        """
        if self._policy.level <= _INFO:
            kind = clean_text(event_type)
            message = f"Trade {kind}: {clean_text(symbol)}"
            self._log(_INFO, message, False, {"symbol": symbol, **details}, event=f"trade.{kind}")

    def api_call(self, method: str, endpoint: str, status_code: int, duration_ms: float, **details: Any) -> None:
        """Writes a record of an HTTP call that was made or served: ERROR from status 500 up, else INFO.

        Args:
            method: The HTTP method.
            endpoint: Path or URL.
            status_code: The status that was answered.
            duration_ms: Milliseconds that it took.
            details: Further keywords.
        """
        level = _ERROR if isinstance(status_code, int) and status_code >= 500 else _INFO
        if self._policy.level <= level:
            message = f"{clean_text(method)} {clean_text(endpoint)} → {clean_text(status_code)}"
            context = {"method": method, "endpoint": endpoint, "status_code": status_code, **details}
            self._log(level, message, False, {**context, "duration_ms": duration_ms})

    def feature_flag_evaluated(self, flag_id: str, result: Any, context: Mapping[str, Any] | None = None) -> None:
        """Writes an INFO record of an evaluation that happened elsewhere, and notes it for the current operation.

        Args:
            flag_id: The flag.
            result: What it gave: a boolean, or the name of a variant.
            context: What it was evaluated with.
        """
        flag = clean_text(flag_id)
        variant = ("on" if result else "off") if isinstance(result, bool) else clean_text(result)
        note_evaluation(flag, variant, on=variant != "off")
        if self._policy.level <= _INFO:
            keywords = {"feature_flag.key": flag, "feature_flag.result.variant": variant}
            if context:
                keywords["evaluation_context"] = clean(context)
            self._log(_INFO, f"Flag {flag}: {variant}", False, keywords, event="feature_flag.evaluation")

    def _log(
        self,
        level: int,
        message: object,
        exc_info: object,
        context: dict[str, Any],
        *,
        event: str | None = None,
    ) -> None:
        """Composes and hands out one record; every public method calls it directly, so the caller is two frames up."""
        exception: Any = None
        try:
            site = site_of(sys._getframe(2))  # noqa: SLF001
            if message is _UNSET:
                message = context.pop("message", "")
            if self._bound:
                context = {**self._bound, **context}
            if self._limits or self._policy.limits:
                left_out = admitted((*self._policy.limits, *self._limits), self.service, level, message)
                if left_out < 0:
                    return
                if left_out:
                    context = {**context, "left_out": left_out}
            written = None
            lines = RUNTIME.lines
            if lines is not None and not exc_info and type(message) is str:
                written = lines.write(self._policy, level, message, context, site, event)
                if written is not None and not self._is_heard(level):
                    return
            number, now = written or (next_number(), time.time_ns())
            error = None
            if exc_info:
                error, exception = error_of(exc_info)
            operation = current_operation()
            record = compose(
                number=number,
                time_ns=now - now % 1000,
                level=level,
                message=message if type(message) is str else clean_text(message),
                service=self.service,
                logger=self.service,
                keywords={**operation.fields, **context} if operation is not None else context,
                operation=operation,
                error=error,
                source=site.source,
                event=event,
            )
            if written is None:
                ship(record, self._scope, number)
        except Exception as problem:  # telemetry never raises into the application, and loses no message either
            exception = None
            record = bare_record(level, message, self.service, problem)
            self._ship_bare(record)
        if _handlers_of(self._standard, level):
            _hand_to_standard(self._standard, record, level, exception)
        _hand_to_processors(record)

    def _is_heard(self, level: int) -> bool:
        """Whether anybody but the pipeline takes our records: a standard handler, or a processor of the application."""
        # both written out: two calls less for each record
        logger: logging.Logger | None = self._standard
        while logger is not None:
            if logger.handlers:
                return True
            logger = logger.parent if logger.propagate else None
        if level >= _WARNING and logging.lastResort is not None and level >= logging.lastResort.level:
            return True
        return has_others(get_logger_provider())

    def _ship_bare(self, record: Record) -> None:
        try:
            ship(record, self._scope)
        except Exception:  # the pipeline itself fails: all that is left is to count
            if RUNTIME.pipeline is not None:
                RUNTIME.pipeline.count_failed()


@functools.cache
def get_logger(service: str) -> StructuredLogger:
    """The logger of a service; the same one for the same name.

    Args:
        service: The component that logs: "trading", "telegram", "api", …
    """
    return StructuredLogger(service)


def emit_event(
    logger: str,
    name: str,
    message: str,
    *,
    level: str = "INFO",
    attributes: Mapping[str, Any],
    shown: bool = True,
    service: str | None = None,
) -> None:
    """Writes an OpenTelemetry event whose attributes already have their OTLP names; never raises.

    Args:
        logger: The name of the logger, which is the scope.
        name: The event name.
        message: What happened, for people.
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        attributes: Written as they are.
        shown: Whether the standard handlers, such as a console, get it too.
        service: Whose record it is; the operation's service, else the process's, if None.
    """
    number = logging.getLevelName(level)
    _emit_apart(logger, number, message, event=name, attributes=attributes, shown=shown, service=service)


def admitted(limits: tuple[Limit, ...], logger: str, level: int, message: object) -> int:
    """Whether limits let a record through: -1 where not, else how many like it were left out before.

    Args:
        limits: All of them count.
        logger: Whose record it is.
        level: A number of the logging module.
        message: What makes it like others.
    """
    limiter = RUNTIME.limiters.of(logger, *limits)
    if limiter is None:
        return 0
    trace_id = trace.get_current_span().get_span_context().trace_id if limiter.samples else 0
    return limiter.admit(level, message if type(message) is str else clean_text(message), trace_id)


def report_uncaught(level: int, message: str, exc_info: ExcInfo) -> None:
    """Writes a record of an exception that nobody caught; Python prints it anyway.

    Args:
        level: A number of the logging module.
        message: What happened.
        exc_info: The triple of sys.exc_info().
    """
    _, error, frames = exc_info
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    source = None
    if frames is not None:
        code = frames.tb_frame.f_code
        source = (code.co_filename, frames.tb_lineno or 0, code.co_qualname)
    # an exception that has left its operation is still about that
    with scope_of(error) or contextlib.nullcontext():
        _emit_apart("uncaught", level, message, error=error_of(exc_info)[0], source=source)


def report_warning(warning: warnings.WarningMessage) -> None:
    """Writes a record of a warning that Python shows."""
    message: object = warning.message
    with contextlib.suppress(Exception):  # its text is the application's code
        message = str(message)
    _emit_apart(
        "py.warnings",
        _WARNING,
        clean_text(message),
        source=(warning.filename, warning.lineno, ""),
        keywords={"category": warning.category.__name__},
    )


def _emit_apart(
    logger: str,
    level: int,
    message: str,
    *,
    event: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    keywords: dict[str, Any] | None = None,
    error: ErrorInfo | None = None,
    source: Source | None = None,
    shown: bool = False,
    service: str | None = None,
) -> None:
    """Writes a record that no call of a logger stands behind; its service is the operation's, else the process's."""
    if RUNTIME.policy(logger).level > level:
        return
    try:
        operation = current_operation()
        now = time.time_ns()
        record = compose(
            number=next_number(),
            time_ns=now - now % 1000,
            level=level,
            message=clean_text(message),
            service=service or (operation.service if operation is not None else None) or process_service() or logger,
            logger=logger,
            keywords=keywords or {},
            operation=operation,
            error=error,
            source=source,
            event=event,
            attributes=attributes,
        )
        ship(record, otlp_scope(logger))
        if shown:
            _hand_to_standard(logging.getLogger(logger), record, level, None)
        _hand_to_processors(record)
    except Exception:  # telemetry never raises into the application; the loss is counted
        if RUNTIME.pipeline is not None:
            RUNTIME.pipeline.count_failed()


def ship_standard(log_record: logging.LogRecord, policy: Policy, *, others: bool = True) -> None:
    """Ships a record of standard logging, unless a limit leaves it out.

    Args:
        log_record: A record that is not ours.
        policy: That of its logger.
        others: Whether the application's own processors get it too.
    """
    left_out = 0
    if policy.limits:
        left_out = admitted(policy.limits, log_record.name, log_record.levelno, log_record.msg)
        if left_out < 0:
            return
    lines, written = RUNTIME.lines, None
    if lines is not None and not log_record.exc_info and log_record.pathname:
        now = int(log_record.created * 1e6) * 1000
        message, keywords, site = message_of(log_record), extra_of(log_record), site_of_record(log_record)
        if left_out:
            keywords["left_out"] = left_out
        written = lines.write(policy, log_record.levelno, message, keywords, site, None, now)
    others = others and has_others(get_logger_provider())
    if others or (written is None and RUNTIME.pipeline is not None):
        record = compose_standard(log_record, number=written[0] if written else None)
        if left_out:
            record.keywords = {**record.keywords, "left_out": left_out}
        if written is None:
            ship(record, otlp_scope(log_record.name))
        if others:
            _hand_to_processors(record)


def ship(record: Record, scope: bytes, number: int | None = None) -> None:
    """Gives a record to the pipeline, if there is one.

    Args:
        record: What was composed.
        scope: The scope as `encode.otlp_scope` writes it.
        number: The record's number in the pipeline, if it has one.
    """
    pipeline = RUNTIME.pipeline
    if pipeline is not None:
        data = otlp_record(record, pipeline.resource.get("service.name"))
        pipeline.emit(scope, data, urgent=record.severity.number >= _URGENT, number=number)


def _handlers_of(standard: logging.Logger, level: int) -> bool:
    """Whether standard logging has a handler that would take a record of ours."""
    logger: logging.Logger | None = standard
    while logger is not None:
        if logger.handlers:
            return True
        if not logger.propagate:
            break
        logger = logger.parent
    return logging.lastResort is not None and level >= logging.lastResort.level


def _hand_to_standard(standard: logging.Logger, record: Record, level: int, exception: Any) -> None:
    """Gives our record to the standard handlers that would take it, whatever level the loggers above have."""
    if getattr(_state, "handing_over", False):  # a handler that logs: the pipeline has it, and that is enough
        return
    _state.handing_over = True
    try:
        file, line, function = record.source or ("", 0, "")
        entry: Any = log_entry(record, resource_attributes())
        standard.handle(standard.makeRecord(record.logger, level, file, line, entry, (), exception, function))
    except Exception:  # a handler that raises instead of calling handleError
        pass
    finally:
        _state.handing_over = False


def _hand_to_processors(record: Record) -> None:
    """Gives our record to the application's own OpenTelemetry processors, if it has any."""
    # a processor that logs would hear of it for ever; what exporters log while they export is theirs to lose
    if getattr(_state, "emitting", False) or get_value(_SUPPRESS_INSTRUMENTATION_KEY):
        return
    _state.emitting = True
    try:
        provider = get_logger_provider()
        if has_others(provider):
            _emit(provider, record)
    except Exception:  # a processor that raises is not the application's fault
        pass
    finally:
        _state.emitting = False


def _emit(provider: LoggerProvider, record: Record) -> None:
    provider.get_logger(record.logger).emit(
        OwnLogRecord(
            timestamp=record.time_ns,
            severity_number=SeverityNumber(record.severity.number),
            severity_text=record.severity.text,
            body=clean_text(record.message),
            attributes=sdk_attributes(record),
            event_name=record.event,
        )
    )
