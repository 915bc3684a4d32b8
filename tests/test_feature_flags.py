"""The tests of the original design's "Testing Strategy", word for word, imports and fixture aside."""

import pytest

from jarvis_otel import EvaluationContext, FeatureFlagManager, FlagDefinition, RolloutRule


@pytest.fixture
def flag_manager():
    return FeatureFlagManager()


def test_basic_boolean_flag(flag_manager):
    """Simple on/off flag."""
    flag_manager.create_flag(FlagDefinition(id="TEST_FLAG", enabled=True))
    assert flag_manager.is_enabled("TEST_FLAG") == True  # noqa: E712
    flag_manager.set_enabled("TEST_FLAG", False)
    assert flag_manager.is_enabled("TEST_FLAG") == False  # noqa: E712


def test_percentage_rollout(flag_manager):
    """Percentage-based rollout is consistent."""
    flag_manager.create_flag(
        FlagDefinition(id="TEST_PCT", enabled=True, rules=[RolloutRule(type="percentage", value=50)])
    )

    # Same user should get same result
    result1 = flag_manager.is_enabled("TEST_PCT", user_id="user123")
    result2 = flag_manager.is_enabled("TEST_PCT", user_id="user123")
    assert result1 == result2

    # ~50% should be enabled across many users
    enabled = sum(1 for i in range(1000) if flag_manager.is_enabled("TEST_PCT", user_id=f"user{i}"))
    assert 400 < enabled < 600
    assert enabled == 476  # what jv1 gives, and always will


def test_environment_default(flag_manager):
    """Environment-specific defaults."""
    flag_manager.create_flag(
        FlagDefinition(id="TEST_ENV", enabled=False, environment_defaults={"dev": True, "prod": False})
    )

    dev_ctx = EvaluationContext(environment="dev")
    prod_ctx = EvaluationContext(environment="prod")

    assert flag_manager.is_enabled("TEST_ENV", context=dev_ctx) == True  # noqa: E712
    assert flag_manager.is_enabled("TEST_ENV", context=prod_ctx) == False  # noqa: E712
