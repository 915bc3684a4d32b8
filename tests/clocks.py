"""A clock that a test moves by hand."""


class Clock:
    """Gives the same time until somebody sets another.

    Attributes:
        now: The time; whether that is Unix seconds, nanoseconds or monotonic is for who asks.
    """

    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        return self.now
