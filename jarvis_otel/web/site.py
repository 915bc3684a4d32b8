"""What the pages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.store import FlagStore
from jarvis_otel.query.log_query import LogQuery
from jarvis_otel.settings import Settings
from jarvis_otel.web.events import Events
from jarvis_otel.web.flags_counts import EvaluationCounts
from jarvis_otel.web.flags_rows import FlagRows
from jarvis_otel.web.scans import Scans
from jarvis_otel.web.sessions import Sessions

__all__ = ["Site"]


@dataclass(frozen=True)
class Site:
    """What the pages share.

    Attributes:
        settings: The settings.
        admin: The service that changes flags; its `source` has them.
        store: Where the audit is; `lines` gives it as it stands in the file, to check the chain.
        sessions: Who is logged in.
        events: Changes of flags, for pages that stay open.
        port: Where it listens; part of the cookie's name, for browsers keep one host's cookies of all ports together.
        login_digest: The digest of the token in the login URL that was printed.
        scans: Runs what reads the log files for a page, few at once.
    """

    settings: Settings
    admin: FlagAdmin
    store: FlagStore
    sessions: Sessions
    events: Events
    port: int
    login_digest: str
    scans: Scans = field(default_factory=Scans)

    @property
    def is_https(self) -> bool:
        """Whether people reach it over TLS, by a proxy before it."""
        return self.settings.web.url.startswith("https://")

    @property
    def logs(self) -> LogQuery:
        """Questions to the log files: a new one each time, whose tally is that of one question."""
        return LogQuery(self.settings.log_dir)

    @cached_property
    def evaluations(self) -> EvaluationCounts:
        """How often each flag was evaluated."""
        return EvaluationCounts(self.settings.log_dir)

    @cached_property
    def flag_rows(self) -> FlagRows:
        """The rows of the flag list."""
        return FlagRows(self.admin)
