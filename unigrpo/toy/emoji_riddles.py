"""Riddles of the emoji world: what to draw is said by clues, so that it has to be thought out first.

*draw something you light at a party, left of the animal that says moo* is a candle left of a cow. A thought is the plain caption; the
picture is one of ``emoji``. Riddles are of two emoji; held out are those of the pairs that the world holds out.
"""

from __future__ import annotations

from itertools import chain

from .emoji import EMOJI


CLUES = {name: clues for name, (_, *clues) in EMOJI.items()}
"""Each name, and the two clues that stand for it."""

PROMPT = "draw {first}, {relation} {second}"

PHRASES = ("draw", ", left of", ", above", *(f" {clue}" for clue in chain(*CLUES.values())))
"""A token each of a policy's tokenizer: every riddle is four tokens, so that a small policy soon finds its thought in it."""
