"""One contract, every database: acts hold only where the seal is as they saw it, whoever races."""

from __future__ import annotations

import pytest
from registry.seals import apply, bring_to, seal

from appliance.lifecycle import State
from appliance.registry import Registry


@pytest.mark.parametrize("state", State)
def test_a_seal_in_every_state(registry: Registry, state: State) -> None:
    one = bring_to(registry, apply(registry, seal()), state)
    assert registry.seals.seal(one.id) == one
    assert [line.target for line in registry.seals.events(one.id)][-1] is state
    if one.code:
        assert registry.seals.seal_by_code(one.code) == one
