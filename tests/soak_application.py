"""One of the applications of the soak: it logs at a steady rate until it is ended, however that happens.

What its calls gave stands on its board, a mapped file that outlives it: how many calls of the logger have returned, and
how it saw the switch the last time. `python -m tests.soak_application BOARD NAME RATE`
"""

import mmap
import sys
import time
from pathlib import Path

OPERATION = 10
"""So many records have an operation in common."""
RETURNED, SWITCH, OFF_AT, SKIPPED = range(4)
"""Places on the board: calls that returned; OFF or ON, 0 before; when it went off (monotonic clock, ns); calls that the
machine had no time for."""
OFF, ON = 1, 2
BOARD_BYTES = 4 * 8
FLAG_SWITCH, FLAG_GRADUAL = "SOAK_SWITCH", "SOAK_GRADUAL"
FLAGS = f"""
version: "1.0"
flags:
  {FLAG_SWITCH}: {{enabled: false, dangerous: true}}
  {FLAG_GRADUAL}: {{enabled: true, rules: [{{type: percentage, value: 25}}]}}
  SOAK_A: {{enabled: false}}
  SOAK_B: {{enabled: true}}
"""


def board(path: Path) -> memoryview:
    """The board in a file of its size, whatever process looks at it; its places are read and written at once."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), BOARD_BYTES)).cast("Q")


def main(path: str, name: str, rate: str) -> None:
    from jarvis_otel import configure, get_flags, get_logger

    mine = board(Path(path))
    configure("soak")
    logger, flags = get_logger("soak"), get_flags()
    period, due, number = 1 / float(rate), time.monotonic(), 0
    while True:
        user = f"user{number // OPERATION % 3000}"
        with logger.context(correlation_id=f"{name}-{number // OPERATION}", user_id=user):
            flags.is_enabled(FLAG_GRADUAL, user_id=user)
            for _ in range(OPERATION):
                number += 1
                if flags.is_enabled(FLAG_SWITCH):
                    mine[SWITCH] = ON
                elif mine[SWITCH] != OFF:
                    mine[OFF_AT] = time.monotonic_ns()
                    mine[SWITCH] = OFF
                log(logger, name, number)
                mine[RETURNED] = number
                due += period
                if (early := due - time.monotonic()) > 0:
                    time.sleep(early)
                elif early < -1:
                    mine[SKIPPED] += int(-early / period)
                    due = time.monotonic()


def log(logger, name, number):
    if number % 50:
        logger.info("Trade executed", soak=name, number=number, symbol="SOL", price=142.5 + number / 100)
        return
    try:
        raise LookupError(f"no balance for {number}")
    except LookupError:
        logger.exception("Trade failed", soak=name, number=number, symbol="SOL")


if __name__ == "__main__":
    main(*sys.argv[1:])
