"""Seeds dashboards: the trading engine of the example, with a regression planted behind one flag.

    python seed.py ORDERS

Who has ADVANCED_TRADING_ENABLED waits four times as long for a trade, and every fourth trade of theirs fails; for the
others every twentieth does.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "jarvis_bot"))

from jarvis_otel import configure, flags, get_flags, get_logger
from trading import InsufficientBalanceError, Signal, TreasuryTrader

REGRESSED = "ADVANCED_TRADING_ENABLED"
MS, MS_REGRESSED = 40.0, 160.0
EVERY, EVERY_REGRESSED = 20, 4

logger = get_logger("trading")
api = get_logger("api")


def main(orders: int) -> None:
    configure("trading")
    admin = get_flags()
    admin.set_enabled("LIVE_TRADING_ENABLED", True, reason="paper money", admin_id="ana")
    admin.set_rollout(REGRESSED, 50, reason="half of the users", admin_id="ben")
    chance = random.Random(7)
    for order in range(orders):
        user = f"user{order}"
        with logger.context(correlation_id=f"trade-{order}", user_id=user):
            regressed = flags.is_enabled(REGRESSED)
            flags.is_enabled("DEXTER_ENABLED")
            if order % 10 == 0:
                flags.is_enabled("NO_SUCH_FLAG")
            fails = order % (EVERY_REGRESSED if regressed else EVERY) == 0
            trader = TreasuryTrader({user: 0.0 if fails else 100.0})
            try:
                trader.execute_trade(Signal(f"{order}", user, "SOL", 1.0))
                status = 200
            except InsufficientBalanceError:
                status = 409
            duration = (MS_REGRESSED if regressed else MS) * chance.uniform(0.8, 1.2)
            api.api_call("POST", "/trades", status, round(duration, 3))


if __name__ == "__main__":
    main(int(sys.argv[1]))
