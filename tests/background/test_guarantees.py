"""What the background path guarantees: each is a sentence in an essay, and a test with that name.

The list below is the queue's part of the contract, point by point. On the left stands the sentence, word for word as an
essay has it: the docstring of a file or of a class, or a lesson. On the right stands the test: its name is made of words
of the sentence, in their order. So a sentence that is changed or dropped fails here, and so does a test.

What a durable journal adds is not in the list: it has tests of its own.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

GUARANTEES: dict[str, dict[str, str]] = {
    "Adding": {
        "One per request; handlers and dependencies share it.": "test_one_per_request_handlers_and_dependencies_share_it",
        "A coroutine function is called on the loop, in an asyncio task of its own so that it can be cancelled and has its "
        "own context. Everything else is called in a thread": (
            "test_a_coroutine_function_is_called_on_the_loop_everything_else_in_a_thread"
        ),
        "if it returns an awaitable (a lambda around a coroutine function, a callable that hands its work to a client "
        "library), that is awaited on the loop afterwards": "test_an_awaitable_is_awaited_on_the_loop_afterwards",
        "What can never run is refused in the handler, while there is still a response to change": (
            "test_what_can_never_run_is_refused_in_the_handler"
        ),
        "mypy refuses a wrong argument, and knows that the first result's value is a string": (
            "test_mypy_refuses_a_wrong_argument_and_knows_the_results"
        ),
    },
    "Options": {
        "Options never share a namespace with the function's arguments.": (
            "test_options_never_share_a_namespace_with_the_functions_arguments"
        ),
        "options are set on the function or by ``using``, which gives a copy": (
            "test_options_are_set_on_the_function_or_by_using_which_gives_a_copy"
        ),
        "A decorated function is still called as a function.": "test_a_decorated_function_is_still_called_as_a_function",
    },
    "Bounded": {
        "The line is bounded by counting, not by its length: a run takes a place when it is added, long before it stands "
        "in line, and ``held + ready + waiting <= limit`` holds at every moment.": "test_the_limit_holds_at_every_moment",
        "`QueueFull` is raised in the handler, where it can be caught and answered": (
            "test_queue_full_is_raised_in_the_handler_where_it_can_be_caught_and_answered"
        ),
        "Unless it is caught, one response's tasks are all accepted or none.": (
            "test_unless_it_is_caught_one_responses_tasks_are_all_accepted_or_none"
        ),
        "A full queue that nobody catches is a 503 with Retry-After": (
            "test_a_full_queue_that_nobody_catches_is_a_503_with_retry_after"
        ),
        '``commit`` before the response head goes out: from here on the tasks are promised. With overflow "wait" this is '
        "where places are waited for.": "test_commit_with_overflow_wait_is_where_places_are_waited_for",
        '``"wait"``: the response waits for places for all its tasks, up to ``overflow_timeout`` seconds, and is refused '
        "then.": "test_wait_the_response_waits_for_places_up_to_overflow_timeout_seconds_and_is_refused_then",
        "A batch that can never fit is refused at once.": "test_a_batch_that_can_never_fit_is_refused_at_once",
        "A place, once reserved, is never taken back from its run.": (
            "test_a_place_once_reserved_is_never_taken_back_from_its_run"
        ),
    },
    "Order": {
        "Between batches the line is first in, first out by release.": "test_the_line_is_first_in_first_out_by_release",
        "the runs of one response, to be run strictly one after another": (
            "test_the_runs_of_one_response_run_strictly_one_after_another"
        ),
        "at most ``workers`` runs are in progress whatever the load": (
            "test_at_most_workers_runs_are_in_progress_whatever_the_load"
        ),
        "A run that is to be tried again frees its worker: the batch is parked with that run at its head, so its later "
        "siblings wait for it": "test_a_run_that_is_to_be_tried_again_frees_its_worker_its_later_siblings_wait_for_it",
        "A task with a delay leaves its batch": "test_a_task_with_a_delay_leaves_its_batch",
    },
    "Start": {
        "when the kernel had taken the last byte, so by now the response has left: the hold is *released*": (
            "test_when_the_kernel_had_taken_the_last_byte_the_hold_is_released"
        ),
        '"after the response": that the kernel has taken its last byte, whatever middleware is between': (
            "test_after_the_response_the_kernel_has_taken_its_last_byte_whatever_middleware_is_between"
        ),
        "while the generator dependencies are open; the application returns after they are closed, and only then the "
        "first task starts": "test_the_generator_dependencies_are_closed_and_only_then_the_first_task_starts",
    },
    "Client gone": {
        "the client went away, ``send`` said so by an OSError (ASGI http 2.4), and the application let that out. The "
        "handler had answered, and its tasks run": "test_the_client_went_away_the_handler_had_answered_and_its_tasks_run"
    },
    "Handler failed": {
        "If the application raises instead, the hold is *dropped*, but for tasks that run always.": (
            "test_if_the_application_raises_the_hold_is_dropped_but_for_tasks_that_run_always"
        ),
        "A returned error keeps the tasks": "test_a_returned_error_keeps_the_tasks",
        "A raised `HTTPException` too is answered and drops the tasks": (
            "test_a_raised_http_exception_is_answered_and_drops_the_tasks"
        ),
    },
    "Isolation": {
        "A failing run never stops its siblings, another batch, or the worker.": (
            "test_a_failing_run_never_stops_its_siblings_or_the_worker"
        ),
        "One task's failure is one task's.": "test_one_tasks_failure_is_one_tasks",
        "The errors of the attempts stay in the `TaskResult`; the log, on stderr, has their tracebacks": (
            "test_the_errors_of_the_attempts_stay_in_the_task_result_the_log_has_their_tracebacks"
        ),
    },
    "Threads": {
        "no number of blocked tasks delays a handler": "test_no_number_of_blocked_tasks_delays_a_handler",
        "at most as many as there are workers": "test_at_most_as_many_as_there_are_workers",
        "When a second signal gives up the drain, what still runs is cancelled, and a stuck task is named LOST.": (
            "test_a_second_signal_gives_up_the_drain_and_a_stuck_task_is_named_lost"
        ),
    },
    "Context": {
        "The contextvars of the moment of ``add_task`` or ``enqueue`` are those of the task": (
            "test_the_contextvars_of_the_moment_of_add_task_are_those_of_the_task"
        ),
        "a request id that middleware set is seen by the task and by nobody else": (
            "test_a_request_id_that_middleware_set_is_seen_by_the_task_and_by_nobody_else"
        ),
        "Workers run in an empty context": "test_workers_run_in_an_empty_context",
        "what a first attempt sets, a second does not see": "test_what_a_first_attempt_sets_a_second_does_not_see",
    },
    "Retry": {
        "A task without a `Retry` has one attempt.": "test_a_task_without_a_retry_has_one_attempt",
        "``attempts`` counts the first one": "test_attempts_counts_the_first_one",
        "the delay before attempt n+1 is uniform between zero and the ceiling": (
            "test_the_delay_is_uniform_between_zero_and_the_ceiling"
        ),
        "``raise RetryLater(after=30)`` sets the delay itself, as Dramatiq, arq and Celery allow. It spends an attempt": (
            "test_retry_later_sets_the_delay_itself_and_spends_an_attempt"
        ),
        "``give_up_on`` beats ``on``": "test_give_up_on_beats_on",
    },
    "Timeout": {
        "There is no timeout unless one is asked for.": "test_there_is_no_timeout_unless_one_is_asked_for",
        "A coroutine over its timeout is cancelled and awaited.": (
            "test_a_coroutine_over_its_timeout_is_cancelled_and_awaited"
        ),
        "If it swallows the cancellation the log names it, and its worker stays taken": (
            "test_if_it_swallows_the_cancellation_the_log_names_it_and_its_worker_stays_taken"
        ),
        "A thread cannot be cancelled. Over its timeout its run is FAILED at once, so whoever waits for it knows, and its "
        "worker stays taken until the thread returns.": (
            "test_a_thread_over_its_timeout_is_failed_at_once_and_its_worker_stays_taken_until_the_thread_returns"
        ),
        "Once a minute is over, a warning names what still runs.": (
            "test_once_a_minute_is_over_a_warning_names_what_still_runs"
        ),
    },
    "Cancel": {"In each status ``cancel`` has its honest answer.": "test_in_each_status_cancel_has_its_honest_answer"},
    "Status": {
        "Finished ones are kept by count and by age, whichever bites first, and forgotten in the order they ended.": (
            "test_finished_ones_are_kept_by_count_and_forgotten_in_the_order_they_ended"
        ),
        "Finished ones are kept by count and by age": "test_finished_ones_are_kept_by_age",
        "an unknown id is None": "test_an_unknown_id_is_none",
    },
    "Watchdog": {
        "logs a warning with its name and the stack it stands on at this moment. Once per hold, not once per look.": (
            "test_a_warning_with_its_name_and_the_stack_it_stands_on_once_per_hold"
        ),
        "It costs forty timer calls a second while tasks run, and nothing while none does.": (
            "test_it_costs_nothing_while_none_does"
        ),
    },
    "Drain": {
        "A signal ends a server around it in phases, after its tasks and with 0": (
            "test_a_signal_ends_it_in_phases_after_its_tasks_and_with_0"
        ),
        "a response in flight finishes and the application after it": (
            "test_a_response_in_flight_finishes_and_the_application_after_it"
        ),
        "What is there is worked off, up to ``drain_timeout``.": "test_what_is_there_is_worked_off_up_to_drain_timeout",
        "Nothing is waited for that is due after that.": "test_nothing_is_waited_for_that_is_due_after_that",
        "Coroutines that still run are cancelled *and awaited*": "test_coroutines_that_still_run_are_cancelled_and_awaited",
        "the pool is open during startup, works after it, and is drained before the shutdown": (
            "test_the_pool_is_open_during_startup_works_after_it_and_is_drained_before_the_shutdown"
        ),
        "One line per run that did not finish, and a summary.": "test_one_line_per_run_that_did_not_finish_and_a_summary",
        "in phases, each of which can be cut short by ``hurry``": "test_phases_each_of_which_can_be_cut_short_by_hurry",
        "A second signal gives up the phase that is waited for, and the third has its default effect.": (
            "test_a_second_signal_gives_up_the_phase_and_the_third_has_its_default_effect"
        ),
    },
    "Statistics": {
        "``pool.statistics()`` is a frozen count of everything at one moment.": (
            "test_statistics_count_everything_at_one_moment"
        ),
        "every run that was added is counted in exactly one status, at every moment": (
            "test_every_run_that_was_added_is_counted_in_exactly_one_status_at_every_moment"
        ),
    },
}

ROWS = [(sentence, test) for point in GUARANTEES.values() for sentence, test in point.items()]


def words(text: str) -> list[str]:
    """The words of a sentence or of a test's name: ``RetryLater`` is two, ``function's`` is one."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text.replace("'", ""))
    return re.findall(r"[a-z0-9]+", apart.lower())


@cache
def essays() -> str:
    """All of them, each in one line."""
    files = [*(ROOT / "minibg").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    found = [ast.get_docstring(node) for node in nodes if isinstance(node, ast.Module | ast.ClassDef)]
    return "\n".join(" ".join(essay.split()) for essay in found if essay)


@cache
def names() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize(("sentence", "test"), ROWS)
def test_each_guarantee_is_a_sentence_in_an_essay_and_a_test_with_that_name(sentence: str, test: str) -> None:
    assert sentence in essays()
    assert test in names()
    rest = iter(words(sentence))
    assert [word for word in words(test)[1:] if word not in rest] == []
