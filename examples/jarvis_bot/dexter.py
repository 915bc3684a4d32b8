"""Dexter, the agent that says what to buy, and the supervisor that asks him again and again."""

import os
import threading
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from http_json import Answer, serve, server_parser
from jarvis_otel import configure, flags, get_logger

logger = get_logger("dexter")

POLL_SECONDS = 0.25

Decision = Literal["BUY", "HOLD"]

SENTIMENT = {"WIF": 75.5, "SOL": 64.0}
"""What people feel about a symbol, 0 to 100."""


class DexterAgent:
    """Analyzes a symbol, if his flag lets him."""

    def analyze(self, symbol: str) -> Decision:
        """What to do with a symbol; HOLD while Dexter is off."""
        if not flags.is_enabled("DEXTER_ENABLED"):
            logger.info("Dexter disabled by feature flag", symbol=symbol)
            return "HOLD"
        sentiment = SENTIMENT.get(symbol, 0.0)
        decision: Decision = "BUY" if sentiment > 60 else "HOLD"
        logger.info("Dexter decided", symbol=symbol, sentiment=sentiment, decision=decision)
        return decision


class Supervisor(threading.Thread):
    """Asks Dexter for as long as the process lives, and tells when he changes his mind.

    Args:
        agent: Dexter.
        symbol: What he is asked about.
    """

    def __init__(self, agent: DexterAgent, symbol: str) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._agent = agent
        self._symbol = symbol
        self._stopping = threading.Event()
        self.decision: Decision = "HOLD"

    def run(self) -> None:
        """Polls; each poll is an operation of its own."""
        while not self._stopping.wait(POLL_SECONDS):
            with logger.context(correlation_id=f"dexter-{uuid.uuid4().hex[:8]}"):
                decision = self._agent.analyze(self._symbol)
                if decision != self.decision:
                    logger.info("Supervisor acts", was=self.decision, now=decision, symbol=self._symbol)
                    self.decision = decision

    def stop(self) -> None:
        """Ends the polling."""
        self._stopping.set()
        self.join()


def main() -> None:
    args = server_parser("Dexter and his supervisor.").parse_args()
    configure("dexter")
    agent = DexterAgent()
    supervisor = Supervisor(agent, "SOL")

    def analyze(body: Mapping[str, Any]) -> Answer:
        with logger.context(user_id=str(body.get("user_id"))):
            return 200, {"decision": agent.analyze(str(body.get("symbol")))}

    def status(_: Mapping[str, Any]) -> Answer:
        return 200, {"pid": os.getpid(), "decision": supervisor.decision}

    supervisor.start()
    serve("dexter", {"/analyze": analyze, "/status": status}, port=args.port, port_file=args.port_file)
    supervisor.stop()


if __name__ == "__main__":
    main()
