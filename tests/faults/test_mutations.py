"""Each safety mechanism is removed in turn; the row of the fault matrix that covers it must fail and say why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import (
    test_clock,
    test_crashes,
    test_expensive,
    test_keyed,
    test_later,
    test_limits,
    test_missing,
    test_network,
    test_operators,
    test_overload,
    test_pauses,
    test_server,
    test_takeover,
)
from tests.support.faults.checkers import Broken
from tests.support.faults.matrix import ROWS
from tests.support.faults.mutations import MUTATIONS

#: mutation -> the row that must fail, and a pattern of its message
BREAKS = {
    "lease-check": (test_pauses.test_row_06_a_write_that_arrives_late_is_refused, "a former holder has written"),
    "user-deletion": (test_pauses.test_row_06_a_sleeper_is_shut_out, "still connected"),
    "renewal-thread": (test_pauses.test_row_35_a_blocked_loop_costs_no_lease, "leases changed hands"),
    "pending-ownership": (test_pauses.test_row_07_a_commit_that_arrives_late_is_refused, "took effect 2 times"),
    "deadline": (test_overload.test_row_23_nothing_expired_is_begun, "begun after its deadline"),
    "full-memory": (test_server.test_row_20_a_full_server_stores_nothing_and_answers_all, "would exceed maxmemory got"),
    "memory-of-a-batch": (test_server.test_row_20_no_commit_exceeds_maxmemory, "a commit beyond maxmemory got 200"),
    "expected-value": (test_network.test_row_14_a_slow_and_crumbling_wire, "lies in databases|no order explains"),
    "expected-answer": (
        test_overload.test_row_45_a_hot_key_is_changed_by_everybody_in_time,
        "200 were answered, and have",
    ),
    "guarded-reads": (
        test_overload.test_row_45_a_hot_key_is_changed_by_everybody_in_time,
        "200 were answered, and .* counted",
    ),
    "own-pending-read": (test_network.test_row_13_a_delivery_that_was_lost_is_looked_for, "never looked for: 504"),
    "checks-before-writes": (
        test_crashes.test_row_35_a_handlers_mistake_fails_its_own_request,
        "a request that failed has an effect",
    ),
    "turns": (
        test_overload.test_row_45_a_hot_key_is_changed_by_everybody_in_time,
        "of 400 were not answered|400 requests ran [0-9]+ times",
    ),
    "any-exception": (test_crashes.test_row_35_a_handlers_mistake_fails_its_own_request, "the client got"),
    "batch-number": (
        test_network.test_row_13_a_submission_that_was_answered_in_vain_is_one,
        "took effect 2 times",
    ),
    "missing-databases": (
        test_missing.test_row_52_a_class_that_is_away_for_a_while_is_missing_and_not_unknown,
        "lack values and do not say so|answers name what they lack",
    ),
    "mesh-clock": (test_clock.test_row_41_a_step_of_the_clock_ends_no_value_early, "is not shown"),
    "filter-bits": (test_clock.test_row_41_a_step_of_the_clock_ends_no_value_early, "is not shown"),
    "drop-message": (test_pauses.test_row_05_a_short_sleep_costs_nobody_a_lease, "lies in databases"),
    "finished-jobs": (test_expensive.test_row_32_finished_jobs_hold_up_no_other, "finished jobs take places"),
    "reserved-address": (
        test_takeover.test_row_46_no_stranger_becomes_administrator,
        "a stranger has the address of the administrator",
    ),
    "replayed-letter": (
        test_operators.test_row_54_a_replay_that_ends_half_way_happens_once,
        "a replayed letter took effect [2-9] times",
    ),
    "idempotency-key": (
        test_keyed.test_row_57_calls_with_one_key_have_one_effect_and_one_answer,
        "a payment took effect ([2-9]|[1-9][0-9]+) times",
    ),
    "kept-answer": (
        test_keyed.test_row_57_calls_with_one_key_have_one_effect_and_one_answer,
        "a payment took effect ([2-9]|[1-9][0-9]+) times",
    ),
    "woken-removal": (test_later.test_row_70_what_is_due_is_woken_once, "took effect [0-9]+ times|do not balance"),
    "tick-check": (test_later.test_row_71_a_tick_runs_once, "a tick took effect [0-9]+ times"),
    "deferred-removal": (
        test_later.test_row_72_a_try_that_failed_is_made_again_once,
        "took effect [0-9]+ times|do not balance",
    ),
    "cancel-attempt": (test_later.test_row_73_what_is_cancelled_never_runs, "of 6 requests that were removed"),
    "schedule-kept": (
        test_later.test_row_74_a_schedule_is_recorded_without_losing_ticks,
        "a tick took effect [0-9]+ times|were counted as missed",
    ),
    "keyed-sends": (
        test_limits.test_row_77_limits_outlive_their_replicas,
        "a mark took effect [0-9]+ times|do not balance",
    ),
    "lane-places": (test_limits.test_row_76_limits_outlive_a_restart_of_the_server, "steps are out of order"),
    "begun-rate": (
        test_limits.test_row_77_limits_outlive_their_replicas,
        "requests of a rate began less than 100 ms after another one",
    ),
    "overdelivered": (
        test_crashes.test_row_22_a_poison_request_becomes_a_dead_letter,
        "[4-9] deliveries|the poison is answered",
    ),
}


@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutation", sorted(BREAKS))
async def test_a_row_fails_without_its_mechanism(mutation: str, tmp_path: Path) -> None:
    """The row that covers a mechanism fails without the mechanism."""
    test, says = BREAKS[mutation]
    with pytest.raises(Broken, match=says):
        await ROWS[test.__name__].run(tmp_path, mutation)


@pytest.mark.parametrize("mutation", sorted(BREAKS))
def test_every_mechanism_is_where_its_mutation_looks_for_it(mutation: str) -> None:
    """Each mutation finds the text that it replaces."""
    command = f"from tests.support.faults import mutations; mutations.apply({mutation!r})"
    subprocess.run([sys.executable, "-c", command], check=True, timeout=60)


def test_every_mechanism_has_its_row() -> None:
    """Each mutation has a row that it breaks."""
    assert BREAKS.keys() == MUTATIONS.keys()
