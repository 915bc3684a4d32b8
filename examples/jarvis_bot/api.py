"""The API server: takes a user's order, asks Dexter what he thinks, and hands it to the trading engine."""

import time
import uuid
from typing import Any

from http_json import Answer, call, serve, server_parser
from jarvis_otel import configure, get_logger

logger = get_logger("api")


class Api:
    """What users reach.

    Args:
        trading: Base URL of the trading engine.
        dexter: Base URL of Dexter.
    """

    def __init__(self, trading: str, dexter: str) -> None:
        self._trading = trading
        self._dexter = dexter

    def order(self, body: dict[str, Any]) -> Answer:
        """Has an order executed; its correlation id goes along to every process that has a part in it."""
        order = {"id": uuid.uuid4().hex[:8], **body}
        with logger.context(correlation_id=f"trade-{order['id']}", user_id=str(order.get("user_id"))):
            logger.info("Order received", symbol=order.get("symbol"), amount_sol=order.get("amount_sol"))
            _, advice = call(f"{self._dexter}/analyze", order)
            started = time.perf_counter()
            status, result = call(f"{self._trading}/trades", order)
            duration_ms = (time.perf_counter() - started) * 1000
            logger.api_call("POST", "/trades", status, round(duration_ms, 3), dexter=advice.get("decision"))
            return status, {"dexter": advice.get("decision"), **result}


def main() -> None:
    parser = server_parser("The API server of Jarvis.")
    parser.add_argument("--trading", metavar="URL", required=True, help="the trading engine")
    parser.add_argument("--dexter", metavar="URL", required=True, help="Dexter")
    args = parser.parse_args()
    configure("api")
    api = Api(args.trading, args.dexter)
    serve("api", {"/orders": api.order}, port=args.port, port_file=args.port_file)


if __name__ == "__main__":
    main()
