"""Answers on the page: sheets of pictures, the denoising step by step, and the worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...training.contact_sheet import Drawn, data_uri, grouped_sheet
from .markup import escaped, said, section, table
from .read import ANSWERS, RunFolder, completions_of, is_number, read_lines


SHEETS = {
    "images.png": "Held-out prompts before and after training",
    "images_evaluated.png": "Held-out prompts, as evaluated last",
    "images_thoughts.png": "Held-out prompts under own, empty and other thoughts",
}
WORST, WINDOWS, SHEET = 8, 3, (8, 5)
"""Answers that are shown, files of completions that are searched for them, and prompts and pictures a prompt on a sheet."""


def sheets(folder: RunFolder) -> str:
    """The pictures that the folder has sheets of, and those of an evaluation on a new one."""
    path = folder.path
    found = {file: title for file, title in SHEETS.items() if (path / file).is_file()}
    if "images.png" not in found:
        found |= {f"images_{own}.png": f"Held-out prompts {own} training" for own in ("before", "after")}
    drawn = [(title, _opened(path / file)) for file, title in found.items()]
    newest = sorted((path / "completions").glob("images_*.png"))[-1:]
    drawn += [(f"Rollouts of step {int(own.stem.rpartition('_')[2])}", _opened(own)) for own in newest]
    answers = read_lines(path / ANSWERS) if folder.kind == "evaluation" else []
    pictures = [
        Drawn(str(own.get("prompt", "")), picture, shown=_picture(own.get("shown"), path))
        for own in answers
        if (picture := _picture(own.get("completion"), path)) is not None
    ]
    if pictures:
        drawn.append(("Answers", grouped_sheet(pictures, rows=SHEET[0], columns=SHEET[1])))
    shown = [
        f'<figure><figcaption>{escaped(title)}</figcaption><div class="wide" tabindex="0"><img class="sheet" alt="{escaped(title)}" '
        f'width="{picture.width}" height="{picture.height}" src="{data_uri(picture)}"></div></figure>'
        for title, picture in drawn
        if picture is not None
    ]
    return section("Pictures", *shown)


def _opened(path: Path) -> Image.Image | None:
    """A picture of the folder; None for one that is missing or being written."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError):
        return None


def _picture(name: Any, path: Path) -> Image.Image | None:
    """The picture that an evaluation's answer names, beside it and nowhere else."""
    if not isinstance(name, str) or not name.endswith(".png") or len(name) > 200:
        return None
    file = (path / name).resolve()
    return _opened(file) if file.is_relative_to(path.resolve()) else None


# ---- step by step ----


def denoised(recorded: dict[str, list[dict[str, Any]]]) -> str:
    """Recorded answers by label, each with a slider over its steps; the page's script moves it."""
    entries = [(number, entry, label) for label, own in recorded.items() for number, entry in enumerate(own)]
    # What was asked before and after stands side by side.
    entries.sort(key=lambda own: own[0])
    shown = "".join(_denoised(entry, label) for _, entry, label in entries if _is_recorded(entry))
    note = (
        "Each piece has the colour of the denoising step that wrote it. Move the slider with the arrow keys, or press Play."
        if shown
        else "No answer was recorded step by step: runs record some where they measure held-out rows, and "
        "<code>--denoise 4</code> makes some from the weights in the folder."
    )
    return section("How answers are written", f'<div class="answers">{shown}</div>' if shown else "", note=note)


def _is_recorded(entry: dict[str, Any]) -> bool:
    spans = entry.get("spans")
    return isinstance(spans, list) and any(isinstance(own, dict) and own.get("steps") for own in spans)


def _denoised(entry: dict[str, Any], label: str) -> str:
    spans = [own for own in entry["spans"] if isinstance(own, dict) and own.get("steps")]
    total, parts = 0, []
    for span in spans:
        steps = [int(own) for own in span["steps"]]
        # Steps in which nothing was left to write are passed over.
        order = {step: total + number for number, step in enumerate(sorted(set(steps)))}
        parts.append((span, [order[own] for own in steps]))
        total += len(order)
    drawn = "".join(_picture_span(*own, total) if "picture" in own[0] else _text_span(*own, total) for own in parts)
    name = {"before": "before training", "after": "after training"}.get(label, label)
    gold = f'<p class="gold">gold: {said(entry["gold"])}</p>' if "gold" in entry else ""
    last = total - 1
    return (
        f'<article class="denoised"><p class="prompt">{said(entry.get("prompt", ""))} <small>{escaped(name)}</small></p>{drawn}{gold}'
        f'<p class="control"><button type="button">Play</button><input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="denoising step"><output>step {total} of {total}</output></p></article>'
    )


def _hue(step: int, total: int) -> str:
    """From blue, the first step, to red."""
    return f"--h:{round(250 - 250 * step / max(total - 1, 1))}"


def _text_span(span: dict[str, Any], steps: list[int], total: int) -> str:
    pieces = zip(span.get("tokens", ()), steps, strict=False)
    tokens = "".join(
        f'<span data-step="{step}" style="{_hue(step, total)}" title="step {step + 1}">{_token(token)}</span>'
        for token, step in pieces
    )
    return f'<p class="tokens"><bdi>{tokens}</bdi></p>'


def _token(token: Any) -> str:
    """A token's text; line breaks are seen as what they are."""
    return escaped(str(token)).replace("\n", "⏎<wbr>").replace("\t", "⇥") or "∅"


def _picture_span(span: dict[str, Any], steps: list[int], total: int) -> str:
    source = str(span["picture"])
    if not source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")):
        return ""
    columns = max(int(span.get("columns", 1)), 1)
    cells = "".join(f'<i data-step="{step}" style="{_hue(step, total)}"></i>' for step in steps)
    return (
        f'<div class="drawn"><img alt="the finished picture" src="{escaped(source)}"><div class="cells" '
        f'style="grid-template-columns:repeat({columns},1fr)">{cells}</div></div>'
    )


# ---- the worst ----


def worst(folder: RunFolder) -> str:
    """The answers with the least reward or score, with what was asked and what was right."""
    rows, source = graded(folder)
    if not rows:
        note = (
            "No answers were kept with their rewards: <code>log_completions=true</code> keeps those of rollouts, and a run with "
            "<code>eval_datasets</code> those of held-out rows when it ends."
        )
        return section("Worst answers", note=note if folder.kind != "sft" else "")
    rows = sorted(rows, key=lambda own: own["reward"])[:WORST]
    cells = [
        (
            f"{own['reward']:.3g}",
            _cell(own.get("prompt"), folder.path),
            _cell(own.get("completion"), folder.path),
            said("–" if own.get("gold") is None else own["gold"]),
        )
        for own in rows
    ]
    return section(
        "Worst answers", table(("reward", "prompt", "answer", "gold"), cells, "texts"), note=escaped(source)
    )


def _cell(value: Any, path: Path) -> str:
    picture = _picture(value, path)
    return said(value) if picture is None else f'<img class="small" alt="the picture" src="{data_uri(picture)}">'


def graded(folder: RunFolder) -> tuple[list[dict[str, Any]], str]:
    """Answers with ``reward``, ``prompt``, ``completion`` and ``gold``, and where they are from."""
    if folder.kind == "evaluation":
        rows = [{**own, "reward": own.get("score")} for own in read_lines(folder.path / ANSWERS)]
        return [own for own in rows if is_number(own["reward"])], f"The lowest scores in {ANSWERS}."
    for label in ("after", "before"):
        kept = folder.measured.get(label, {}).get("shown")
        rows = [own for own in kept or () if isinstance(own, dict) and is_number(own.get("reward"))]
        if rows:
            return rows, f"The lowest weighted rewards among {len(rows)} held-out answers {label} training."
    weights = {
        str(own.get("name", "")): own.get("weight", 1.0)
        for own in (folder.record.kept.get("rewards", ()) if folder.record else ())
    }
    weights |= {name.rpartition(" of ")[0]: weight for name, weight in weights.items() if " of " in name}
    rows = []
    for own in completions_of(folder.path, WINDOWS):
        scores = [weight * own[name] for name, weight in weights.items() if is_number(own.get(name))]
        if scores:
            rows.append({**own, "gold": own.get("solution", "–"), "reward": sum(scores)})
    return (
        rows,
        f"The lowest weighted rewards among {len(rows)} answers of the last {WINDOWS} windows that were logged.",
    )
