"""Texts on their way to people, terminals, spreadsheets, shells and other processes."""

from __future__ import annotations

import csv
import json
import logging
import re
import shlex
from collections.abc import Mapping
from typing import Any

from opentelemetry import baggage

from jarvis_collector.metrics import Metric, render
from jarvis_collector.record import format_timestamp
from jarvis_otel.context import received_correlation
from jarvis_otel.encode import encode_value
from jarvis_otel.formatters import HumanFormatter, JSONFormatter
from jarvis_otel.log_rows_placeholder import nothing
from jarvis_otel.propagation import inject_headers, received_context
from jarvis_otel.query.log_query import Trace
from jarvis_otel.query.render import csv_rows, human_record, json_text
from jarvis_otel.query.reproduce import reproduce
from jarvis_otel.query.timeline import timeline
from jarvis_otel.redaction import Redactor
from jarvis_otel.secrets import find_secrets, kind_of_secret
from jarvis_otel.terminal import Paint, printable, table
from tests.fuzz.properties import Family, as_json, as_text

FAMILY = Family("text")
