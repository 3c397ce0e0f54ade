from __future__ import annotations

from recfuse.learning.context import Memory


def test_what_was_computed_is_kept_until_a_network_that_it_came_from_is_trained():
    memory, calls = Memory(), []

    def value(name: str, *networks: str) -> int:
        return memory.once(name, networks, lambda: calls.append(name) or len(calls))

    assert [value("advantages", "critics"), value("advantages", "critics"), value("weights", "critics", "policy")] == [
        1, 1, 2]
    memory.forget(("auxiliaries",))
    assert value("advantages", "critics") == 1
    memory.forget(("policy",))
    assert [value("advantages", "critics"), value("weights", "critics", "policy")] == [1, 3]
    memory.clear()
    assert value("advantages", "critics") == 4
