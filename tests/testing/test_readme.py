"""The room's README can be pasted."""

from __future__ import annotations

import re

import pytest

from ..support import ROOT


@pytest.mark.smoke
def test_the_snippet_runs():
    text = (ROOT / "unigrpo" / "testing" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {}
    exec(snippet, names)
    tests = [own for name, own in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for own in tests:
        own()


def test_the_quoted_sentence_is_what_is_said():
    from unigrpo.testing import check_reward

    def brevity(completions, **_):
        return [-len(own) / 100 if isinstance(own, str) else 0.0 for own in completions]

    rows = [{"prompt": "p", "completion": own} for own in ("hi", "hello")]
    with pytest.raises(AssertionError) as error:
        check_reward(brevity, rows, none_for=[{"prompt": "p", "completion": object()}])
    text = (ROOT / "unigrpo" / "testing" / "README.md").read_text()
    assert str(error.value) in " ".join(text.split())
