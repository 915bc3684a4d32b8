"""Ports for servers that cannot be given a socket."""

import random
import socket


def free_port():
    """A port below those that the kernel gives to clients, which could take it before the server does."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
