"""What a tired reader sees of ``--help``: one screen, and an example to paste."""

from __future__ import annotations

import re

import pytest

from unigrpo.runs import cli

from ..support.command_checks import is_own
from ..support.readme_commands import units


ROWS, COLUMNS = 40, 80


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_is_one_screen_with_an_example(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: unigrpo {name or 'COMMAND'} ")
    assert ended.value.code == 0 and sum(max(1, -(-len(line) // COLUMNS)) for line in lines) <= ROWS
    (examples,) = [unit for unit in units() if unit[0].place.startswith(f"unigrpo {name}".strip() + " --help:")]
    first = [own.words for own in examples if own.words[1] == (name or "train")]
    assert first and not any(is_own(word) or "my_" in word for word in first[0])


def test_every_option_of_a_command_is_said(monkeypatch, capsys):
    """Shorter help leaves none out; the other spelling of one is not needed."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        said = capsys.readouterr().out
        parser = cli.build_parser()._subparsers._group_actions[0].choices[name]
        options: dict[str, list[str]] = {}
        for action in parser._actions:
            options.setdefault(action.dest, []).extend(action.option_strings)
        spelled = {dest: own for dest, own in options.items() if own}
        assert not [dest for dest, own in spelled.items() if not re.search(rf"(?<!\S)({'|'.join(own)})\b", said)]
