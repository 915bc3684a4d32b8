"""Secrets for tests to plant: the same in every run, and none that a scanner of this repository takes for a real one."""

import hashlib
import random
import re
import string
import sys
from collections.abc import Callable
from types import FrameType

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
ALNUM = string.ascii_letters + string.digits
URL_SAFE = ALNUM + "_-"


def piece(kind: str, length: int, alphabet: str = ALNUM) -> str:
    """Characters that look as if they were drawn by lot; other ones for each kind."""
    return "".join(random.Random(kind).choices(alphabet, k=length))


BOT_TOKEN = f"123456789:{piece('telegram', 35)}"
KEY58 = "".join(random.Random(1).choices(BASE58, k=88))
HEX64 = "0x" + hashlib.sha256(b"evm").hexdigest()


def looked_at(call: Callable[[], object]) -> tuple[list[str], list[re.Pattern[str]]]:
    """The names of the functions that a call comes by, and the patterns that it asks."""
    functions: list[str] = []
    patterns: list[re.Pattern[str]] = []

    def note(frame: FrameType, event: str, function: object) -> None:
        if event == "call":
            functions.append(frame.f_code.co_name)
        elif event == "c_call" and isinstance(owner := getattr(function, "__self__", None), re.Pattern):
            patterns.append(owner)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return functions, patterns
