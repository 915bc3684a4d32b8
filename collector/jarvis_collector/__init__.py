"""OTLP in, JSON lines out: the local collector, and the definition of the log line.

PYTEST_DONT_REWRITE: there are no tests in here.
"""
