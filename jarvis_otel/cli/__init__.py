"""The command line, `jarvis`."""
