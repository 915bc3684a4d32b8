"""Flags in Telegram: `add_flag_handlers` gives the commands to a bot that there is, `polling` is a bot by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from telegram.ext import Application

    from jarvis_otel.admin.service import FlagAdmin
    from jarvis_otel.settings import Settings
    from jarvis_otel.telegram.handlers import FlagHandlers

__all__ = ["GROUP", "add_flag_handlers"]

GROUP = 7_300
"""The group of handlers that is ours: those of the application, in other groups, see every update as before."""


def add_flag_handlers(
    application: Application[Any, Any, Any, Any, Any, Any],
    *,
    admin: FlagAdmin | None = None,
    settings: Settings | None = None,
    group: int = GROUP,
    alone: bool = False,
) -> FlagHandlers:
    """Adds the flag commands to a bot, before it runs; its other handlers and its error handlers stay as they are.

    What runs beside them (menus, requests for approval) begins and ends with `run_polling` and `run_webhook`; who runs
    the application otherwise calls `start()` and `stop()` of what this returns.

    python-telegram-bot confirms updates to Telegram before they are handled, so a kill at the wrong moment can lose a
    command, an off too; a bot by itself (`polling`) confirms them afterwards.

    Args:
        application: The bot's Application of python-telegram-bot.
        admin: The service that changes flags; that of `get_flags()` if None.
        settings: Who may use it; read from config/jarvis.yaml and the environment if None.
        group: The group of the handlers.
        alone: Whether the bot has no other commands, so that all that there may be, such as /help, are for us.
    """
    from jarvis_otel.telegram.desk import Desk  # noqa: PLC0415 - heavy, and only where there is a bot
    from jarvis_otel.telegram.handlers import FlagHandlers  # noqa: PLC0415
    from jarvis_otel.telegram.people import People  # noqa: PLC0415

    if settings is None:
        from jarvis_otel.settings import Settings  # noqa: PLC0415

        settings = Settings.load()
    if admin is None:
        from jarvis_otel.bootstrap import get_flags  # noqa: PLC0415

        admin = get_flags().admin
    people = People(settings)
    ours = FlagHandlers(application, admin, people, Desk(admin, people))
    application.add_handlers(ours.handlers(alone=alone), group)
    begun, ended = application.post_init, application.post_stop

    async def start(running: Any) -> None:
        if begun is not None:
            await begun(running)
        await ours.start()

    async def stop(running: Any) -> None:
        await ours.stop()
        if ended is not None:
            await ended(running)

    application.post_init, application.post_stop = start, stop
    return ours
