"""A frame as HTML: each token in the colour of its step, hidden ones as gaps, thoughts folded once they are written."""

from __future__ import annotations

from html import escape

from ...training.contact_sheet import data_uri
from ...types import is_picture
from .live import Column, Frame, Span


OPEN, CLOSE = "<think>", "</think>"

HIDDEN = "\0"
"""What stands for a hidden token where tags are looked for."""

Pieces = tuple[tuple[str, int], ...]

CSS = """
.gradio-container { max-width: 56rem !important; width: 100%; margin: 0 auto !important; }
.tab-container button { padding: 0 .6rem !important; }
.answers { padding: 0 !important; }
.columns { display: flex; flex-wrap: wrap; gap: 1rem; }
.column { flex: 1 1 16rem; min-width: 0; }
.column h3 { margin: 0 0 .4rem; font-size: 1rem; }
.answer, .thought { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; margin: .3rem 0; }
.thought { opacity: .9; padding-left: .8rem; border-left: 3px solid var(--border-color-primary); }
.column summary { cursor: pointer; }
.column details { margin-bottom: .6rem; }
.token { border-radius: 3px; padding: .1em 0; background: hsl(var(--hue) 75% 50% / .42); }
.hole { display: inline-block; width: .8em; height: 1em; margin: 0 1px; vertical-align: -.15em; border-radius: 3px;
  background: var(--border-color-primary); }
.column img { display: block; width: min(100%, 20rem); border-radius: 6px; image-rendering: pixelated; }
.column .steps, .note, .legend, .said { color: var(--body-text-color); font-size: .9rem; margin: .4rem 0 0; }
.column .steps, .legend { opacity: .75; }
.legend i { display: inline-block; width: 6rem; height: .7em; border-radius: 3px; margin: 0 .4em;
  background: linear-gradient(90deg, hsl(220 75% 50% / .5), hsl(125 75% 50% / .5), hsl(30 75% 50% / .5)); }
.fault { color: var(--body-text-color); border-left: 4px solid #c33; padding: .2rem .8rem; margin: .4rem 0; }
"""


def html(frame: Frame, note: str = "", fault: str = "") -> str:
    """All columns of a frame, and under them a note or what went wrong."""
    shown = "".join(_column(column) for column in frame)
    texts = any(not is_picture(span.task) for column in frame for span in column.spans)
    legend = '<p class="legend">written early<i></i>late</p>' if texts else ""
    parts = [f'<div class="columns">{shown}</div>{legend}' if shown else ""]
    parts += [f'<p class="said" role="status">{escape(note)}</p>' if note else ""]
    parts += [f'<p class="fault" role="alert">{escape(fault)}</p>' if fault else ""]
    return "".join(parts)


def hue(step: int, total: int) -> int:
    """Degrees on the colour wheel: blue for the first step, through green, to orange for the last."""
    return round(220 - 190 * step / max(1, total - 1))


def split(pieces: Pieces) -> tuple[Pieces, Pieces, bool]:
    """The pieces of the thought, those of the answer, and whether the thought is closed; the tags themselves are left out.

    A text that does not begin with the opening tag has no thought.
    """
    text = "".join(piece or HIDDEN for piece, _ in pieces)
    start = len(text) - len(text.lstrip())
    if not text.startswith(OPEN, start):
        return (), pieces, True
    close = text.find(CLOSE)
    if close < 0:
        return _between(pieces, start + len(OPEN), len(text)), (), False
    return _between(pieces, start + len(OPEN), close), _between(pieces, close + len(CLOSE), len(text)), True


def _between(pieces: Pieces, start: int, stop: int) -> Pieces:
    """What of the pieces lies in ``[start, stop)`` of their text, where a hidden token is one letter."""
    found, begin = [], 0
    for piece, step in pieces:
        own = (piece or HIDDEN)[max(0, start - begin) : max(0, stop - begin)]
        if own:
            found.append((own if piece else "", step))
        begin += len(piece or HIDDEN)
    return tuple(found)


def _column(column: Column) -> str:
    title = f"<h3>{escape(column.title)}</h3>" if column.title else ""
    spans = "".join(_span(span) for span in column.spans)
    note = f'<p class="note">{escape(column.note)}</p>' if column.note else ""
    last = column.spans[-1] if column.spans else None
    steps = f'<p class="steps">step {last.done} of {last.total}</p>' if last else ""
    return f'<section class="column">{title}{spans}{steps}{note}</section>'


def _span(span: Span) -> str:
    if is_picture(span.task):
        shown = "" if span.picture is None else f'<img src="{data_uri(span.picture)}" alt="the picture so far">'
        return shown.replace(" so far", " that was drawn") if span.done == span.total else shown
    thought, answer, closed = split(span.pieces)
    if span.task == "thought":
        text = _tokens(thought + answer, span.total)
        return f'<details open><summary>Thought</summary><div class="thought">{text}</div></details>'
    folded = ""
    if thought:
        state = "" if closed else " open"
        text = _tokens(thought, span.total)
        folded = f'<details{state}><summary>Thought</summary><div class="thought">{text}</div></details>'
    return f'{folded}<div class="answer">{_tokens(answer, span.total)}</div>'


def _tokens(pieces: Pieces, total: int) -> str:
    def one(text: str, step: int) -> str:
        if step < 0:
            return '<span class="hole"></span>'
        return f'<span class="token" style="--hue:{hue(step, total)}" title="step {step + 1}">{escape(text)}</span>'

    return "".join(one(*piece) for piece in pieces)
