"""The trading engine: executes trades from the treasury's wallets, each as far as the flags of its user allow.

As a server, and once without one:

    python trading.py --port 8001
    python trading.py --trade '{"id": "1", "user_id": "123456789", "symbol": "WIF", "amount_sol": 1.0}'
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from http_json import Answer, serve, server_parser
from jarvis_otel import configure, flags, get_logger

logger = get_logger("trading")

WALLETS_SOL = {"123456789": 0.5, "135792468": 0.5, "987654321": 20.0}
"""Paper money."""


class InsufficientBalanceError(Exception):
    """A wallet holds less than a trade needs."""

    def __init__(self, available: float, needed: float) -> None:
        super().__init__(f"Wallet has {available:g} SOL, need {needed:g} SOL")
        self.available = available


@dataclass(frozen=True)
class Signal:
    """What a user, or Dexter, wants bought."""

    id: str
    user_id: str
    symbol: str
    amount_sol: float
    trailing_stop: bool = False

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """A signal from its JSON form.

        Raises:
            ValueError: A field is missing or no number.
        """
        try:
            return cls(str(body["id"]), str(body["user_id"]), str(body["symbol"]), amount_sol=float(body["amount_sol"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"want id, user_id, symbol and amount_sol: {error}") from None


class TreasuryTrader:
    """Trades from the wallets that it is given.

    Args:
        wallets: SOL by user.
    """

    def __init__(self, wallets: Mapping[str, float]) -> None:
        self._wallets = dict(wallets)

    def execute_trade(self, signal: Signal) -> dict[str, Any]:
        """Executes a trade, or only simulates it while live trading is off.

        Raises:
            InsufficientBalanceError: The user's wallet does not hold what is due.
        """
        with logger.context(correlation_id=f"trade-{signal.id}", user_id=signal.user_id):
            if not flags.is_enabled("LIVE_TRADING_ENABLED"):
                logger.info("Live trading disabled, dry-run only", symbol=signal.symbol, amount_sol=signal.amount_sol)
                return {"result": "dry run", "paid_sol": 0.0}
            if flags.is_enabled("ADVANCED_TRADING_ENABLED"):
                signal = self._apply_trailing_stop(signal)
            try:
                return self._execute_real_trade(signal)
            except InsufficientBalanceError as error:
                logger.exception(
                    "Trade execution failed: insufficient balance",
                    symbol=signal.symbol,
                    amount_sol=signal.amount_sol,
                    available_sol=error.available,
                )
                raise

    def _apply_trailing_stop(self, signal: Signal) -> Signal:
        """Buys in quarters as the stop trails the price: only the first is due now."""
        return replace(signal, amount_sol=signal.amount_sol / 4, trailing_stop=True)

    def _execute_real_trade(self, signal: Signal) -> dict[str, Any]:
        available = self._wallets.get(signal.user_id, 0.0)
        if available < signal.amount_sol:
            raise InsufficientBalanceError(available, signal.amount_sol)
        self._wallets[signal.user_id] = available - signal.amount_sol
        logger.trade_event("executed", signal.symbol, amount_sol=signal.amount_sol, trailing_stop=signal.trailing_stop)
        return {"result": "executed", "paid_sol": signal.amount_sol}


def main() -> int:
    parser = server_parser("The trading engine of Jarvis.")
    parser.add_argument("--trade", metavar="JSON", help="execute this one trade and end")
    args = parser.parse_args()
    configure("trading")
    trader = TreasuryTrader(WALLETS_SOL)
    if args.trade is None:
        serve("trading", {"/trades": lambda body: answer(trader, body)}, port=args.port, port_file=args.port_file)
        return 0
    try:
        print(json.dumps(trader.execute_trade(Signal.of(json.loads(args.trade)))))
    except (InsufficientBalanceError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def answer(trader: TreasuryTrader, body: Mapping[str, Any]) -> Answer:
    try:
        return 200, trader.execute_trade(Signal.of(body))
    except InsufficientBalanceError as error:
        return 409, {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
