"""OTLP in, JSON lines out: the local collector, and the definition of the log line."""
