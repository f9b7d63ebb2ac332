"""The guarantees of the background path: each is one sentence of the essays, and shown by a test.

A sentence that states a guarantee carries its key in brackets, as in "The runs of one response run
strictly one after another [order.2]." It is in a docstring of `minibg` or of `examples`, or in the
README. The table below leads from the key to the tests that show it. Their names are sentences too,
so the table can be read alone.

The rules, each of them a test:

1. Each key of the table occurs exactly once. A guarantee is written once, where the reader looks
   for it.
2. Each key that occurs is in the table. A guarantee without a test cannot be written.
3. Each test of the table exists in the file that is named.

The wording of a sentence is free, and so is its file. Comments do not count: a guarantee is part of
an essay.

Rejected: the sentence itself as the key, word for word. A better sentence then fails a test, so no
sentence becomes better.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = re.compile(r"\[([a-z_]+\.[0-9]+)\]")

#: Key -> the tests, as ``file::function`` below `tests/`.
GUARANTEES: dict[str, tuple[str, ...]] = {
    "adding.1": ("test_path.py::test_one_per_request_handlers_and_dependencies_share_it",),
    "adding.2": (
        "background/test_attempt.py::test_a_coroutine_function_is_called_on_the_event_loop_every_other_callable_in_a_thread",
    ),
    "adding.3": ("background/test_attempt.py::test_an_awaitable_that_is_returned_is_awaited_on_the_event_loop",),
    "adding.4": ("background/test_task.py::test_a_callable_that_can_never_run_is_refused_in_the_handler",),
    "adding.5": ("background/test_typing.py::test_mypy_refuses_a_wrong_argument_and_knows_the_results",),
    "options.1": ("background/test_pool.py::test_options_never_share_a_namespace_with_the_functions_arguments",),
    "options.2": ("background/test_task.py::test_options_are_set_on_the_function_or_by_using_which_returns_a_copy",),
    "options.3": ("background/test_task.py::test_a_decorated_function_is_still_called_as_a_function",),
    "bounded.1": ("background/test_slots.py::test_the_limit_holds_at_every_moment",),
    "bounded.2": (
        "background/test_hold.py::test_queue_full_is_raised_in_the_handler_where_it_can_be_caught_and_answered",
    ),
    "bounded.3": ("test_path.py::test_unless_it_is_caught_one_responses_tasks_are_all_accepted_or_none",),
    "bounded.4": ("test_after_response.py::test_a_full_queue_that_nobody_catches_is_a_503_with_retry_after",),
    "bounded.5": (
        "background/test_hold.py::test_reserve_waits_first_come_first_served_until_all_slots_are_free",
        "background/test_hold.py::test_the_commit_frees_the_reserved_slots_that_were_not_used",
    ),
    "bounded.6": (
        "background/test_hold.py::test_reserve_raises_queue_full_after_its_timeout_and_the_hold_is_as_before",
    ),
    "bounded.7": ("background/test_hold.py::test_reserve_of_more_than_the_limit_is_refused_at_once",),
    "bounded.8": ("background/test_slots.py::test_a_slot_once_taken_is_never_taken_back_from_its_run",),
    "bounded.9": ("background/test_hold.py::test_aenqueue_waits_for_a_slot_in_turn_with_reserve",),
    "order.1": ("background/test_worker.py::test_batches_leave_the_queue_in_the_order_of_their_release",),
    "order.2": ("background/test_worker.py::test_the_runs_of_one_response_run_strictly_one_after_another",),
    "order.3": ("background/test_worker.py::test_at_most_workers_runs_are_in_progress_whatever_the_load",),
    "order.4": (
        "background/test_worker.py::test_a_run_that_waits_for_its_retry_frees_its_worker_its_later_siblings_wait_for_it",
    ),
    "order.5": ("background/test_worker.py::test_a_task_with_a_delay_leaves_its_batch",),
    "start.1": ("test_path.py::test_when_the_kernel_had_taken_the_last_byte_the_hold_is_released",),
    "start.2": (
        "test_path.py::test_after_the_response_the_kernel_has_taken_its_last_byte_whatever_middleware_is_between",
    ),
    "start.3": ("test_path.py::test_the_generator_dependencies_are_closed_and_only_then_the_first_task_starts",),
    "gone.1": ("test_path.py::test_the_client_went_away_the_handler_had_answered_and_its_tasks_run",),
    "promise.1": ("test_path.py::test_if_the_application_raises_the_hold_is_dropped_but_for_tasks_that_run_always",),
    "promise.2": ("web/test_app.py::test_a_returned_error_keeps_the_tasks",),
    "promise.3": ("web/test_app.py::test_a_raised_http_exception_is_answered_and_drops_the_tasks",),
    "promise.4": (
        "test_after_response.py::test_an_exception_drops_the_tasks_unless_the_head_has_left",
        "test_after_response.py::test_a_response_that_is_cancelled_after_its_head_keeps_its_tasks",
    ),
    "isolation.1": ("background/test_attempt.py::test_a_failing_run_never_stops_its_siblings_or_the_worker",),
    "isolation.2": ("test_path.py::test_one_tasks_failure_is_one_tasks",),
    "isolation.3": (
        "background/test_worker.py::test_the_errors_of_the_attempts_stay_in_the_task_result_the_log_has_their_tracebacks",
    ),
    "threads.1": ("test_path.py::test_no_number_of_blocked_tasks_delays_a_handler",),
    "threads.2": ("test_threads.py::test_there_are_never_more_threads_than_the_limit_nor_more_than_needed",),
    "threads.3": ("test_command.py::test_a_second_signal_gives_up_the_drain_and_a_stuck_task_is_named_lost",),
    "context.1": ("background/test_attempt.py::test_the_contextvars_of_the_moment_of_add_task_are_those_of_the_task",),
    "context.2": ("test_path.py::test_a_request_id_that_middleware_set_is_seen_by_the_task_and_by_nobody_else",),
    "context.3": ("background/test_attempt.py::test_workers_run_in_an_empty_context",),
    "context.4": (
        "background/test_attempt.py::test_a_second_attempt_does_not_see_the_contextvars_that_the_first_one_set",
    ),
    "retry.1": ("background/test_worker.py::test_a_task_without_a_retry_has_one_attempt",),
    "retry.2": ("background/test_retry.py::test_attempts_counts_the_first_one",),
    "retry.3": ("background/test_retry.py::test_the_delay_is_uniform_between_zero_and_the_ceiling",),
    "retry.4": ("background/test_retry.py::test_retry_later_chooses_the_delay_and_spends_an_attempt",),
    "retry.5": ("background/test_retry.py::test_give_up_on_beats_on",),
    "timeout.1": ("background/test_worker.py::test_there_is_no_timeout_unless_one_is_set",),
    "timeout.2": ("background/test_worker.py::test_a_coroutine_over_its_timeout_is_cancelled_and_awaited",),
    "timeout.3": (
        "background/test_worker.py::test_a_coroutine_that_swallows_its_cancellation_is_named_and_keeps_its_worker",
    ),
    "timeout.4": (
        "background/test_worker.py::test_a_thread_over_its_timeout_is_failed_at_once_and_keeps_its_worker_until_it_returns",
    ),
    "timeout.5": ("background/test_worker.py::test_a_warning_names_a_run_that_still_runs_after_a_minute",),
    "cancel.1": ("background/test_pool.py::test_in_each_status_cancel_does_what_it_answers",),
    "status.1": (
        "background/test_ledger.py::test_finished_ones_are_kept_by_count_and_forgotten_in_the_order_they_ended",
    ),
    "status.2": ("background/test_ledger.py::test_finished_ones_are_kept_by_age",),
    "status.3": ("background/test_ledger.py::test_an_unknown_id_is_none",),
    "isolation.4": (
        "background/test_faults.py::test_a_step_that_raises_where_none_should_fails_the_run_and_ends_no_worker",
        "background/test_faults.py::test_an_exception_with_faulty_methods_ends_its_run_and_no_worker",
        "background/test_faults.py::test_logging_that_raises_ends_no_worker_and_no_stop",
    ),
    "cancel.2": (
        "background/test_faults.py::test_the_first_reason_is_the_last_word_and_the_clean_up_is_interrupted_once",
    ),
    "status.4": ("test_tree.py::test_the_ledger_is_the_only_writer_of_a_status",),
    "watchdog.1": ("background/test_watchdog.py::test_a_task_that_blocks_the_event_loop_is_named_with_its_stack_once",),
    "watchdog.2": ("background/test_watchdog.py::test_there_is_no_timer_while_no_task_runs",),
    "drain.1": ("test_command.py::test_a_signal_ends_it_in_phases_after_its_tasks_and_with_0",),
    "drain.2": ("server/test_server.py::test_a_response_in_flight_finishes_and_the_application_after_it",),
    "drain.3": ("background/test_drain.py::test_accepted_runs_are_finished_up_to_drain_timeout",),
    "drain.4": ("background/test_drain.py::test_a_run_that_is_due_after_the_deadline_is_not_waited_for",),
    "drain.5": ("background/test_drain.py::test_coroutines_that_still_run_are_cancelled_and_awaited",),
    "drain.6": (
        "test_after_response.py::test_the_pool_is_open_during_startup_works_after_it_and_is_drained_before_the_shutdown",
    ),
    "drain.7": (
        "background/test_drain.py::test_the_report_has_one_line_for_each_run_that_did_not_finish_and_a_summary",
    ),
    "drain.8": ("background/test_drain.py::test_each_phase_can_be_ended_early_by_hurry",),
    "drain.9": ("test_serving.py::test_a_second_signal_gives_up_the_phase_and_the_third_has_its_default_effect",),
    "drain.10": ("test_explain.py::test_the_sum_of_the_stop_is_the_sum_of_its_deadlines",),
    "drain.11": (
        "background/test_drain.py::test_a_thread_that_does_not_return_is_named_and_left_behind",
        "background/test_drain.py::test_a_coroutine_that_swallows_its_cancellation_is_named_and_left_behind",
    ),
    "statistics.1": ("background/test_pool.py::test_statistics_count_everything_at_one_moment",),
    "statistics.2": (
        "background/test_properties.py::test_every_run_that_was_added_is_counted_in_exactly_one_status_at_every_moment",
    ),
}


def essays() -> Iterator[str]:
    """Yield the README and all docstrings."""
    yield (ROOT / "README.md").read_text()
    for file in [*(ROOT / "minibg").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def existing_tests() -> set[str]:
    """Return all tests, written as in the table."""
    folder = ROOT / "tests"
    return {
        f"{file.relative_to(folder).as_posix()}::{node.name}"
        for file in folder.rglob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_key_occurs_once_in_the_essays_and_each_key_of_an_essay_is_in_the_table() -> None:
    found = Counter(key for essay in essays() for key in KEY.findall(essay))
    wrong = [f"{key}: {found[key]} times in the essays" for key in GUARANTEES if found[key] != 1]
    wrong += [f"{key}: not in the table" for key in found if key not in GUARANTEES]
    assert not wrong, "\n".join(wrong)


def test_each_guarantee_is_shown_by_a_test_that_exists() -> None:
    shown_by = [(key, test) for key, tests in GUARANTEES.items() for test in tests]
    existing = existing_tests()
    assert [f"{key}: {test}" for key, test in shown_by if test not in existing] == []
    assert [key for key, tests in GUARANTEES.items() if not tests] == []
