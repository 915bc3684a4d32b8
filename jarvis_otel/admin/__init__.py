"""Changing flags: one service, whatever the front end."""
