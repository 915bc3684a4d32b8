"""The few requests to etcd's JSON gateway (v3, from 3.4 on) that flags need.

https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/ and, for what each method takes, api_reference_v3 beside it.
"""

from __future__ import annotations

import base64
import os
import random
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import orjson
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from jarvis_flags.settings import EtcdSettings

if TYPE_CHECKING:
    import httpx

__all__ = ["EtcdClient", "EtcdError", "EtcdRefusedError", "EtcdUnavailableError", "WatchStream", "b64", "unb64"]

REQUEST_S = 2.0
"""So long may one member take; a new leader takes about as long to be found."""

CONNECT_S = 1.0
_PAUSE_S = (0.05, 0.25)
_UNAUTHENTICATED = 16
# unknown, cancelled, timed out, aborted, internal, unavailable: another member may answer, or the same one later
_PASSING = frozenset({1, 2, 4, 10, 13, 14})
_CURES = {
    "database space exceeded": "its disk quota is full: compact and defragment it, then disarm the alarm",
    "permission denied": "etcd_user must be given a role that may read and write the keys under etcd_prefix",
    "user name is empty": "it wants to know who asks: set etcd_user and etcd_password_file",
    "request is too large": "there are more overrides than one request of etcd can hold: reset those that are settled",
}


class EtcdError(Exception):
    """What etcd was asked for cannot be had now."""


class EtcdUnavailableError(EtcdError):
    """No member answered in time; what was asked may have been done all the same."""


class EtcdRefusedError(EtcdError):
    """etcd said no, and would say it again.

    Args:
        message: What it said, and the cure.
        code: gRPC's number of the error.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class EtcdClient:
    """Asks the members in turns: the one that answered last first.

    Threads may share it; a forked child makes connections of its own.

    Args:
        settings: Where they are, and who asks.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._endpoints = list(settings.endpoints)
        # many machines spread over the members
        random.shuffle(self._endpoints)
        self._token = ""
        self._ending = False
        self._pid = 0
        self._made: httpx.HTTPTransport | None = None

    @property
    def shown(self) -> str:
        """The members, for messages."""
        return ", ".join(self._settings.endpoints)

    def call(
        self, path: str, body: Mapping[str, Any], *, patience: float = 0.0, limit: float | None = None
    ) -> dict[str, Any]:
        """One request, to the first member that answers.

        A request that changes something must be one that may be made twice: a member that did not answer may have
        done it.

        Args:
            path: The method, such as `kv/range`.
            body: Its JSON.
            patience: Seconds for which to go on asking where no member answers; each is asked once in any case.
            limit: Seconds that it may take at most, also where not all have been asked by then.

        Raises:
            EtcdUnavailableError: None answered in time.
            EtcdRefusedError: One said no.
        """
        began = time.monotonic()
        while True:
            failures = []
            for endpoint in list(self._endpoints):
                left = REQUEST_S if limit is None else min(REQUEST_S, began + limit - time.monotonic())
                if left <= 0 or self._ending:
                    break
                try:
                    answer = self._ask(endpoint, path, body, left)
                except EtcdUnavailableError as error:
                    failures.append(str(error))
                    self._put_last(endpoint)
                else:
                    return answer
            if self._ending or time.monotonic() >= began + patience:
                raise EtcdUnavailableError("; ".join(dict.fromkeys(failures)))
            time.sleep(random.uniform(*_PAUSE_S))  # noqa: S311 - to come apart, not to be secret

    def ask_member(self, endpoint: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One request to one member.

        Args:
            endpoint: Its URL.
            path: The method.
            body: Its JSON.

        Raises:
            EtcdError: It did not answer, or said no.
        """
        return self._ask(endpoint, path, body)

    @contextmanager
    def watch(self, key: bytes, end: bytes, revision: int) -> Iterator[WatchStream]:
        """Follows the changes of a range of keys, by a request that does not end.

        Args:
            key: The first key.
            end: The key after the last.
            revision: The revision of the first change.

        Raises:
            EtcdError: No member takes the request.
        """
        create = {"key": b64(key), "range_end": b64(end), "start_revision": str(revision)}
        failures = []
        for endpoint in list(self._endpoints):
            try:
                response = self._send(endpoint, "watch", {"create_request": create}, endless=True)
            except EtcdUnavailableError as error:
                failures.append(str(error))
                self._put_last(endpoint)
                continue
            try:
                yield WatchStream(response, endpoint)
            finally:
                with suppress(Exception):  # it was shut down, or never ends by itself
                    response.close()
            return
        raise EtcdUnavailableError("; ".join(failures))

    def move_on(self, endpoint: str) -> None:
        """Asks another member first from now on, where there is one.

        Args:
            endpoint: The URL of the one that is not to be trusted.
        """
        self._put_last(endpoint)

    def end(self) -> None:
        """Has requests that are under way ask no further member."""
        self._ending = True

    def close(self) -> None:
        """Ends all connections; it may be used again."""
        self._ending = False
        if self._made is not None and self._pid == os.getpid():
            self._made.close()
            self._made = None

    @property
    def _transport(self) -> httpx.HTTPTransport:
        if self._made is None or self._pid != os.getpid():
            try:
                import httpx  # noqa: PLC0415 - the import takes longer than most commands
            except ImportError:
                raise EtcdRefusedError("httpx is missing: pip install 'jarvis-otel[etcd]'", 0) from None
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=4)
            made = httpx.HTTPTransport(verify=_tls(self._settings), trust_env=False, limits=limits)
            self._made, self._pid = made, os.getpid()
        return self._made

    def _put_last(self, endpoint: str) -> None:
        endpoints = self._endpoints
        if endpoints[0] == endpoint:
            self._endpoints = [*endpoints[1:], endpoint]

    def _ask(self, endpoint: str, path: str, body: Mapping[str, Any], seconds: float = REQUEST_S) -> dict[str, Any]:
        answer = self._read(self._send(endpoint, path, body, seconds), endpoint)
        outdated = answer.get("code") == _UNAUTHENTICATED or "auth store is old" in str(answer.get("error", ""))
        if outdated and path != "auth/authenticate":
            self._token = ""
            answer = self._read(self._send(endpoint, path, body, seconds), endpoint)
        if "error" not in answer:
            return answer
        message, code = str(answer["error"]), int(answer.get("code", 0))
        if code in _PASSING:
            raise EtcdUnavailableError(f"{endpoint}: {message}")
        cure = next((f"; {cure}" for part, cure in _CURES.items() if part in message), "")
        raise EtcdRefusedError(f"{endpoint}: {message}{cure}", code)

    def _read(self, response: httpx.Response, endpoint: str) -> dict[str, Any]:
        try:
            content = response.read()
        except Exception as error:
            # httpx's errors, those of the library under it, and the system's
            raise EtcdUnavailableError(f"{endpoint}: {_why(error)}") from None
        finally:
            response.close()
        try:
            answer = orjson.loads(content)
        except orjson.JSONDecodeError:
            answer = None
        if isinstance(answer, dict):
            return answer
        if response.status_code >= 500:
            raise EtcdUnavailableError(f"{endpoint}: answers {response.status_code}")
        said = content[:200].decode("utf-8", "replace").strip()
        raise EtcdRefusedError(f"{endpoint}: answers {response.status_code}: {said or 'nothing'}", 0)

    def _send(
        self,
        endpoint: str,
        path: str,
        body: Mapping[str, Any],
        seconds: float = REQUEST_S,
        *,
        endless: bool = False,
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        if self._settings.user and path != "auth/authenticate":
            headers["Authorization"] = self._token or self._sign_in(endpoint)
        if endless:
            # a member that lost its leader ends the watch
            headers["Grpc-Metadata-Hasleader"] = "true"
        transport = self._transport
        from httpx import Request  # noqa: PLC0415 - it is there by now

        limits: dict[str, float | None] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        limits["connect"] = min(CONNECT_S, seconds)
        request = Request(
            "POST", f"{endpoint}/v3/{path}", headers=headers, content=orjson.dumps(body), extensions={"timeout": limits}
        )
        # the transport alone: httpx's client would log each request at INFO; and a heartbeat is no span
        token = context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            response = transport.handle_request(request)
        except Exception as error:
            raise EtcdUnavailableError(f"{endpoint}: {_why(error)}") from None
        finally:
            context.detach(token)
        if endless:
            limits["read"] = None  # its body may be silent for as long as nothing changes
        return response

    def _sign_in(self, endpoint: str) -> str:
        who = {"name": self._settings.user, "password": self._settings.password}
        self._token = str(self._ask(endpoint, "auth/authenticate", who).get("token", ""))
        return self._token


class WatchStream:
    """The answers to a watch, one after the other.

    Args:
        response: The answer that does not end.
        endpoint: The URL of the member that gives it.
    """

    def __init__(self, response: httpx.Response, endpoint: str) -> None:
        self._response = response
        self.endpoint = endpoint

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The results.

        Raises:
            EtcdError: The stream broke.
        """
        rest = b""
        try:
            for block in self._response.iter_raw():
                *lines, rest = (rest + block).split(b"\n")
                for line in filter(None, lines):
                    yield self._result(line)
            if rest:
                yield self._result(rest)
        except EtcdError:
            raise
        except Exception as error:
            raise EtcdUnavailableError(f"{self.endpoint}: {_why(error)}") from None

    def _result(self, line: bytes) -> dict[str, Any]:
        answer = orjson.loads(line)
        if isinstance(answer, dict) and isinstance(answer.get("result"), dict):
            result: dict[str, Any] = answer["result"]
            return result
        raise EtcdUnavailableError(f"{self.endpoint}: {answer.get('error', answer)}")

    def stop(self) -> None:
        """Ends it; may be called by another thread than the one that reads."""
        stream = self._response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def b64(value: bytes | str) -> str:
    """Bytes as the gateway wants them."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def unb64(text: str) -> bytes:
    """The bytes that the gateway sent."""
    return base64.b64decode(text)


def _tls(settings: EtcdSettings) -> ssl.SSLContext | bool:
    if not any(endpoint.startswith("https://") for endpoint in settings.endpoints):
        return False
    try:
        tls = ssl.create_default_context(cafile=settings.ca)
        if settings.cert is not None:
            tls.load_cert_chain(settings.cert, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise EtcdRefusedError(f"etcd_ca, etcd_cert, etcd_key: cannot be used: {error}", 0) from None
    return tls


def _why(error: Exception) -> str:
    """What went wrong with a connection, in few words."""
    if "Timeout" in type(error).__name__:
        return "does not answer"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not to be trusted: {cause.verify_message}"
        if isinstance(cause, ConnectionRefusedError):
            return "refuses connections"
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
