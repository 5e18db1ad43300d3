"""Text from elsewhere is data: what a terminal or rich would obey is shown, everywhere, and secrets are not."""

from __future__ import annotations

import ast
import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.table import Table

import unigrpo
from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.runs.cli import main
from unigrpo.runs.held_out import HeldOut, show_before_after
from unigrpo.terminal import console, masked, say, visible, without_secrets
from unigrpo.training.completions import show_completions
from unigrpo.training.setup import load_trainable

from .support.escapes import ESCAPES, MARKUP, TEXTS, obeyed, unstyled


pytestmark = pytest.mark.smoke

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("name", ESCAPES)
def test_what_a_terminal_obeys_becomes_visible(name):
    shown = visible(f"before {ESCAPES[name]} after")
    assert obeyed(shown) == [] and shown.startswith("before ") and shown.endswith(" after") and "\\" in shown
    shown.encode()


@pytest.mark.parametrize(
    "text", ["plain", "two\nlines\tand a tab", "数学 πολύ", "👩\u200d🔬", "می\u200cخواهم", *MARKUP.values()]
)
def test_what_is_only_text_stays_as_it_is(text):
    assert visible(text) == text


@pytest.mark.parametrize("name", TEXTS)
def test_a_table_and_a_line_take_text_as_data(name, capsys):
    table = Table(title=TEXTS[name], caption=TEXTS[name])
    table.add_column(TEXTS[name])
    table.add_row(TEXTS[name])
    console(width=200, force_terminal=True).print(table, TEXTS[name])
    say(TEXTS[name])
    shown = capsys.readouterr().out
    assert obeyed(shown) == []
    if name in MARKUP:
        # In the title, the caption, a head, a cell, and twice below the table.
        assert unstyled(shown).count(MARKUP[name]) == 6


def test_completions_and_the_answers_before_and_after_are_shown_as_they_are(capsys):
    everything = " ".join(TEXTS.values())
    picture = Image.new("RGB", (2, 2))
    show_completions(
        {"prompt": [everything, "p"], "completion": [everything, picture], "reward": [0.5, None]}, 3, None
    )
    shown = [{"prompt": everything, "completion": everything}]
    measured = HeldOut(accuracy=None, tasks={}, rewards={"reward": 1.0}, shown=shown)
    show_before_after(measured, measured)
    shown = capsys.readouterr().out
    assert obeyed(shown) == [] and "\\x1b]52;c;" in shown.replace("\n", "")


def test_sampled_answers_errors_and_paths_of_the_command_are_shown_as_they_are(capsys, monkeypatch, tmp_path):
    hostile = tmp_path / "x[" / "y]\x1b]0;owned\x07"
    assert main(["train", f"{hostile}.yaml"]) == 2
    assert obeyed(capsys.readouterr().err) == []
    answers = list(TEXTS.values())
    loaded = SimpleNamespace(generate=lambda prompts, **_: answers[: len(prompts)])
    monkeypatch.setattr("unigrpo.rollout.generate.load_policy", lambda *_, **__: loaded)
    assert main(["sample", "anything", *answers]) == 0
    shown = capsys.readouterr()
    assert obeyed(shown.out) == []
    assert all(shown.out.count(text) == 2 for text in MARKUP.values())
    pictures = SimpleNamespace(generate=lambda prompts, **_: [Image.new("RGB", (8, 8))])
    monkeypatch.setattr("unigrpo.rollout.generate.load_policy", lambda *_, **__: pictures)
    assert main(["sample", "anything", "a", "--task", "t2i", "--output", str(hostile)]) == 0

    def raising(*_, **__):
        say(warnings.formatwarning(f"from a model: {ESCAPES['title']}", UserWarning, "file.py", 1), error=True)
        raise ValueError(f"from a model: {ESCAPES['clipboard']} [/y]")

    monkeypatch.setattr("unigrpo.rollout.generate.load_policy", raising)
    assert main(["sample", "anything", "a"]) == 2
    shown = capsys.readouterr()
    assert obeyed(shown.out + shown.err) == [] and "[/y]" in shown.err
    assert "unigrpo: UserWarning: from a model: \\x1b]0;owned\\x07\n" in shown.err


@pytest.mark.parametrize("first", ["line", "table"])
def test_what_nobody_reads_any_more_ends_nothing(first, monkeypatch):
    """``unigrpo keys | head``: the reader goes first, and the command, or the run, goes on to its end."""
    table = Table("a column")
    table.add_row("a cell")
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        os.close(reader)
        say("a line") if first == "line" else console().print(table)
        say("another line")
        console().print(table)


def test_nothing_is_printed_in_another_way():
    """Every print, console and text of rich is that of ``unigrpo/terminal.py``."""
    found = []
    for path in sorted(Path(unigrpo.__file__).parent.rglob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            imported = getattr(node, "module", "") if isinstance(node, ast.ImportFrom) else ""
            names = {own.name for own in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            called = node.func if isinstance(node, ast.Call) else None
            of_rich = {"rich.console": "Console", "rich.progress": "track"}
            own_way = imported in ("rich.text", "rich.markup") or of_rich.get(imported) in names
            own_way |= isinstance(called, ast.Name) and called.id in ("print", "Console")
            own_way |= isinstance(called, ast.Attribute) and ast.unparse(called) in (
                "sys.stdout.write",
                "sys.stderr.write",
            )
            if own_way:
                found.append(f"{path}:{node.lineno}")
    assert found == [], f"use say, console or tracked of unigrpo.terminal: {found}"


# ---- secrets ----


def test_a_secret_of_the_environment_is_not_printed(monkeypatch, capsys):
    monkeypatch.setenv("MY_SERVICE_KEY", "value-of-the-key")
    monkeypatch.setenv("MY_SERVICE_NAME", "something-else")
    say(f"sent value-of-the-key and something-else and {SECRET}")
    assert capsys.readouterr().out == "sent *** and something-else and ***\n"


@pytest.mark.parametrize("name", ["token", "api_key", "HF_TOKEN", "client_secret", "password", "aws_access_key_id"])
def test_an_argument_named_like_a_secret_is_masked_at_any_depth(name):
    given = {"a": [{name: "abc"}], "max_tokens": 3, "tokenizer": "t", "api_key_env": "VARIABLE", "url": SECRET}
    shown = {"a": [{name: "***"}], "max_tokens": 3, "tokenizer": "t", "api_key_env": "VARIABLE", "url": "***"}
    assert masked(given) == shown


@pytest.mark.parametrize("options", [{"token": "my-own-token", "bogus": 1}, '{"token": "my-own-token"'])
def test_an_error_of_the_models_options_has_no_token(options, tmp_path):
    args = UniGRPOConfig(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="model_init_kwargs") as caught:
        load_trainable("builtin:arithmetic", None, options, args, False)
    assert "my-own-token" not in str(caught.value)


def test_a_header_that_cannot_be_sent_is_not_quoted():
    from unigrpo.errors import SourceError
    from unigrpo.models.hub import finding

    with pytest.raises(SourceError) as caught, finding("somebody/model", "model 'somebody/model'"):
        raise ConnectionError(f"Illegal header value b'Bearer {SECRET}\\n'")
    logging.getLogger(__name__).info("%s", caught.value)
    assert caught.value.__cause__ is None and SECRET not in str(caught.value)
    assert without_secrets(f"Authorization: Bearer {'x' * 9}") == "Authorization: Bearer ***"
