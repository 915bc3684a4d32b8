"""Asking the log files: LogQuery and what `jarvis logs` stands on."""
