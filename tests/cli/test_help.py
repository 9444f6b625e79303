"""Help pages are written for people."""

from __future__ import annotations

import click
import pytest

from qpass.cli.front import COMMANDS, app, main


def page(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([name, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_page_has_two_examples_or_more(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shows how the command is used, at least twice, on lines of their own."""
    lines = page(name, capsys).splitlines()
    assert sum(line.strip().startswith(f"qpass {name} ") for line in lines) >= 2


@pytest.mark.parametrize("name", COMMANDS)
def test_each_page_says_what_exit_codes_mean(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ends with the exit codes."""
    text = page(name, capsys)
    assert "Exit codes:" in text
    assert "130  interrupted" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every example on the page is a command line the parser takes: no option in it is unknown."""
    examples = [s for line in page(name, capsys).splitlines() if (s := line.strip()).startswith(f"qpass {name} ")]
    command = app.get_command(click.Context(app), name)
    assert command is not None
    for example in examples:
        words = example.split("  ")[0].split(" | ")[0].split(" > ")[0].split()[2:]
        known = {opt for param in command.params for opt in param.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_explained(name: str) -> None:
    """No option goes without help."""
    command = app.get_command(click.Context(app), name)
    assert command is not None
    unexplained = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert unexplained == []


def test_a_sentence_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The front page names every command with a whole sentence."""
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.split("Commands:")[1].splitlines()
    listed = {words[0]: words[1] for line in lines if len(words := line.split(maxsplit=1)) == 2}
    assert all(listed[name].endswith(".") for name in COMMANDS)


def test_nothing_asked_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`qpass` alone shows the front page and succeeds."""
    assert main([]) == 0
    assert "Usage: qpass" in capsys.readouterr().out
