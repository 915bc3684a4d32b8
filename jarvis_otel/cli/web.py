"""`jarvis web`: the web page, until it is told to stop."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace

from jarvis_collector.config import is_loopback
from jarvis_otel.admin.author import Role
from jarvis_otel.cli.command import load_settings, missing_package, tcp_port
from jarvis_otel.terminal import DONE, WRONG

__all__ = ["add_parser"]

_EPILOG = """\
example:
  jarvis web --port 8080

It prints one line: the URL that logs in whoever opens it, as the user who runs it. SIGTERM and Ctrl-C end it.
Programs show a bearer token for its JSON API (/api/openapi.json) and for OFREP (/ofrep/v1); --new-token makes one.
"""
_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "jinja2": "jinja2", "httptools": "httptools"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "web",
        help="look at flags and logs, and change flags, in a browser; serve OFREP",
        description="Serves the web page over flags and logs, its JSON API, and OFREP for other languages.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", help="address to listen on (default: web_host, 127.0.0.1); others than loopback need a token"
    )
    parser.add_argument("--port", type=tcp_port, help="TCP port, 0 takes a free one (default: web_port, 8080)")
    parser.add_argument("--insecure-no-auth", action="store_true", help="let others ask OFREP without a token")
    parser.add_argument(
        "--new-token",
        nargs=2,
        metavar=("NAME", "ROLE"),
        help="print a bearer token and its line for the settings, and end; ROLE is viewer, editor or admin",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the web page; 0 when it was told to stop, 2 when it could not start."""
    if args.new_token:
        return _print_token(*args.new_token)
    settings = load_settings()
    if settings is None:
        return WRONG
    web = replace(
        settings.web,
        host=args.host or settings.web.host,
        port=settings.web.port if args.port is None else args.port,
        insecure_no_auth=args.insecure_no_auth or settings.web.insecure_no_auth,
    )
    settings = replace(settings, web=web)
    if not (is_loopback(web.host) or web.tokens or web.insecure_no_auth):
        return _wrong(
            f"host: got {web.host!r}, want a loopback address such as 127.0.0.1: for one that others can reach, make a "
            "token with `jarvis web --new-token NAME ROLE`, or say --insecure-no-auth"
        )
    try:
        from jarvis_otel.web.running import run_web  # noqa: PLC0415
    except ModuleNotFoundError as error:
        return _wrong(missing_package(error, _PACKAGES, "web"))
    with ExitStack() as ends:
        try:
            listener = ends.enter_context(_bind(web.host, web.port))
        except OSError as error:
            return _wrong(
                f"cannot listen at {web.host} port {web.port}: {error.strerror}; name another by --port, or web_port"
            )
        run_web(settings, listener, ends)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # one still searches the log files for somebody who is gone; the interpreter would wait for it
        sys.stdout.flush()
        os._exit(DONE)
    return DONE


def _bind(host: str, port: int) -> socket.socket:
    # with its protocol: a socket that knows none keeps Nagle's algorithm under asyncio, which delays answers by 40 ms
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _print_token(name: str, role: str) -> int:
    from jarvis_collector.access import new_token, token_digest  # noqa: PLC0415

    if role not in tuple(Role) or not name.isprintable() or not name.strip():
        return _wrong(f"--new-token: got {name!r} {role!r}, want a name and one of {', '.join(Role)}")
    token = new_token()
    print(token)
    print(f'web_tokens: {{{json.dumps(name)}: "sha256:{token_digest(token)} {role}"}}')
    print(
        "The first line is the token, shown only this once: programs send it as `Authorization: Bearer <token>`. "
        "The second line belongs into config/jarvis.yaml, which jarvis web reads when it starts.",
        file=sys.stderr,
    )
    return DONE


def _wrong(message: str) -> int:
    print(f"jarvis web: {message}", file=sys.stderr)
    return WRONG
