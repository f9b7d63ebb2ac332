"""The command's options, and where they come from."""

import pytest

from minibg.__main__ import parser


def test_what_is_not_given_is_not_passed_on() -> None:
    assert vars(parser().parse_args(["a:b"])).keys() == {"app", "factory", "app_dir", "loop", "log_level", "log_format"}


def test_the_environment_gives_options_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIBG_QUEUE_LIMIT", "50")
    assert parser().parse_args(["a:b"]).queue_limit == 50
    assert parser().parse_args(["a:b", "--queue-limit", "7"]).queue_limit == 7


@pytest.mark.parametrize(("value", "expected"), [("0", False), ("false", False), ("1", True)])
def test_the_environment_turns_an_option_off(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("MINIBG_ACCESS_LOG", value)
    assert bool(parser().parse_args(["a:b"]).access_log) is expected


@pytest.mark.parametrize("wrong", [["--queue-limit", "many"], ["--overflow", "burst"], ["--nothing"]])
def test_a_wrong_option_ends_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["a:b", *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
