"""The structured logging tests of the original design, word for word but for the import."""

import json

from jarvis_otel import get_logger


def test_json_format(caplog):
    """Logs are valid JSON."""
    logger = get_logger("test")
    logger.info("Test message", key="value")

    entry = json.loads(caplog.records[-1].getMessage())
    assert entry["level"] == "INFO"
    assert entry["message"] == "Test message"
    assert entry["context"]["key"] == "value"


def test_correlation_context(caplog):
    """Correlation ID propagates through context."""
    logger = get_logger("test")

    with logger.context(correlation_id="test-123"):
        logger.info("Step 1")
        logger.info("Step 2")

    entries = [json.loads(r.getMessage()) for r in caplog.records[-2:]]
    assert entries[0]["correlation_id"] == "test-123"
    assert entries[1]["correlation_id"] == "test-123"


def test_error_with_traceback(caplog):
    """Error logging includes stack trace."""
    logger = get_logger("test")

    try:
        raise ValueError("Test error")
    except:  # noqa: E722
        logger.error("Operation failed", exc_info=True)  # noqa: G201

    entry = json.loads(caplog.records[-1].getMessage())
    assert entry["error"]["type"] == "ValueError"
    assert "Traceback" in entry["error"]["stack_trace"]
