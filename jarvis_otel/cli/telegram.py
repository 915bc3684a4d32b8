"""`jarvis telegram`: flags in Telegram, until it is told to stop."""

from __future__ import annotations

import argparse
import sys

from jarvis_otel.cli.command import missing_package
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import WRONG, printable, tell

__all__ = ["add_parser", "run"]

_EPILOG = """\
example:
  JARVIS_TELEGRAM_TOKEN_FILE=~/bot-token JARVIS_TELEGRAM_ADMINS=123456789 jarvis telegram

The token comes from @BotFather, your numeric id from @userinfobot. The settings say who may do what: telegram_admins,
and roles as `tg:<id>: viewer|editor|admin`; changes of the settings file hold at once. SIGTERM and Ctrl-C end it.
A bot that you have already takes the same commands: jarvis_otel.telegram.add_flag_handlers(application).
"""
_PACKAGES = dict.fromkeys(("telegram", "httpx"), "python-telegram-bot")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "telegram",
        help="look at flags and change them in Telegram",
        description="A Telegram bot that shows flags, errors and traces to those whom the settings name.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run)


def run(_: argparse.Namespace) -> int:
    """Runs the bot; 0 when it was told to stop, 2 when it cannot run."""
    settings = Settings.load()
    problems = list(settings.problems)
    if not problems and not settings.telegram.token:
        problems.append(
            "there is no token: set JARVIS_TELEGRAM_TOKEN_FILE to the file with the one that @BotFather gave"
        )
    if not problems and not settings.telegram.admins and not any(name.startswith("tg:") for name in settings.roles):
        problems.append(
            "nobody may use the bot: set JARVIS_TELEGRAM_ADMINS to your numeric id, which @userinfobot tells"
        )
    for problem in problems:
        print(f"jarvis telegram: {printable(problem)}", file=sys.stderr)
    if problems:
        return WRONG
    try:
        from jarvis_otel.telegram.polling import run_bot  # noqa: PLC0415 - heavy, and an extra
    except ModuleNotFoundError as error:
        print(f"jarvis telegram: {missing_package(error, _PACKAGES, 'telegram')}", file=sys.stderr)
        return WRONG
    return run_bot(settings, tell)
