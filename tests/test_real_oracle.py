"""The fault oracle at full length, on the embedded collector and on the real one, whose losses are told side by side."""

import os

import pytest

from tests.oracle import TARGETS, NoTargetError, run, side_by_side

pytestmark = pytest.mark.real


def target(name):
    try:
        return TARGETS[name]()
    except NoTargetError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.mark.parametrize(("fault", "rounds"), [("kill", 200), ("term", 20), ("hang", 20)])
def test_the_embedded_collector_keeps_what_it_acknowledged_and_the_real_ones_losses_are_told(
    tmp_path, capsys, record_property, fault, rounds
):
    real = target("otelcol")
    results = []
    for each in (target("embedded"), real):
        home = tmp_path / each.name
        home.mkdir()
        results.append(run(each, home, fault=fault, rounds=rounds, seconds=0.4))
        record_property(f"{each.name}-{fault}", str(results[-1]))
    with capsys.disabled():
        print(f"\n{side_by_side(results)}")
    embedded, peer = results
    assert embedded.good, embedded
    assert embedded.acknowledged > 10 * rounds
    # what the real one promises is another matter; that it got as much to do is this one's
    assert peer.fresh
    assert peer.acknowledged > 10 * rounds
