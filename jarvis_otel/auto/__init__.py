"""`import jarvis_otel.auto` activates us in the process, for an application that knows nothing of us."""

from __future__ import annotations

from jarvis_otel.activation import activate_all

activate_all()
