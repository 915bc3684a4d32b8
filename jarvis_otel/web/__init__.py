"""The web page over flags and logs, its JSON API, and OFREP (extra [web])."""
