"""``README.md`` of a saved model: what it was made of, how, with what result, and how it is opened."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..algorithm.denoising import MaskedDenoising
from ..config.denoising_presets import OBJECTIVES
from ..config.presets import METHODS
from ..models.builtin import model_name
from ..models.hub import looks_local


CARD = "README.md"

VERSION = sys.modules[__name__.partition(".")[0]].__version__
"""Of the package, which stands above this room."""

SEAL = re.compile(r"\n<!-- written by unigrpo, ([0-9a-f]{16}); an edited file is left alone -->\n\Z")

CURVE = "![the run's curve](reward_curve.png)\n\n"

FEW_ROWS = 8
"""Steps that the table of a run shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a card says.

    Attributes:
        name: of the model, its id on the hub or its folder's name.
        base: what was trained, as it was named: an id, ``builtin:NAME`` or a folder.
        kind: the class of the whole model.
        policy: "pkg.mod:attr" of a family that is not the library's, which its files do not name; None for ours.
        adapter: its kind; None = the whole model was trained.
        base_has_adapter: the base is an adapter's folder, merged into its own base.
        method: lines on what was trained, Markdown.
        paper: arXiv id of the method; None = none is known.
        data: names of the datasets by what they were used for.
        columns: metrics that the table of the run shows, where they were logged.
        history: the run's logs.
        picture: ``reward_curve.png`` lies beside the card.
        held_out: by "before" and "after", numbers by name.
        identity: of the run.
    """

    name: str
    base: str
    kind: type
    policy: str | None = None
    adapter: str | None = None
    base_has_adapter: bool = False
    method: Sequence[str] = ()
    paper: str | None = None
    data: dict[str, list[str]] = field(default_factory=dict)
    columns: Sequence[str] = ()
    history: Sequence[dict[str, Any]] = ()
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    picture: bool = False
    identity: dict[str, str] = field(default_factory=dict)


# ---- whose a file is ----


def sealed(text: str) -> str:
    """``text`` with a last line by which it is known again, unless somebody has changed it."""
    return f"{text}\n<!-- written by unigrpo, {_digest(text)}; an edited file is left alone -->\n"


def is_ours(path: Path) -> bool:
    """Whether a file is a card as it was written."""
    text = path.read_text(encoding="utf-8", errors="replace")
    seal = SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- the text ----


def shown_base(path: str) -> str:
    """A model's path without folders of this machine: an id or ``builtin:NAME`` as it is, of an absolute path its last part."""
    path = model_name(path)
    return Path(path).name if Path(path).is_absolute() or path.startswith("~") else path


def is_hub_id(path: str) -> bool:
    """Whether a name may be an id of the hub: no shipped name, file or folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not looks_local(path) and not Path(path).exists()


def card_of(facts: Facts, hub_only: bool = False, **metadata: Any) -> str:
    """The card's text.

    Args:
        hub_only: its metadata name no base and no dataset that the hub does not have, which would refuse it.
        metadata: further entries (``license``, ``language``, ``tags`` ...).
    """
    base, named = shown_base(facts.base), [name for names in facts.data.values() for name in names]
    entries = {
        "library_name": "transformers" if facts.adapter is None else "peft",
        "base_model": base if is_hub_id(base) or (base and not hub_only) else None,
        "datasets": [name for name in dict.fromkeys(named) if is_hub_id(name)] or None,
        "unigrpo": facts.identity or None,
        **{key: value for key, value in metadata.items() if value is not None},
    }
    parts = [
        f"# {facts.name}",
        _what(facts, base),
        "## How it was trained\n\n" + "\n".join(f"* {line}" for line in [*facts.method, *_data_lines(facts)]),
        _run_table(facts),
        _held_out_table(facts),
        _opening(facts),
        _citation(facts),
    ]
    data = ModelCardData(**{key: value for key, value in entries.items() if value is not None})
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _what(facts: Facts, base: str) -> str:
    of = f" of `{base}`" if base else ""
    if facts.adapter is None:
        return f"All weights{of} ({facts.kind.__name__}), trained with unigrpo {VERSION}."
    under = ", an adapter itself that is merged into its own base first" if facts.base_has_adapter else ""
    on = f" on `{base}`{under}" if base else ""
    return f"An adapter ({facts.adapter}){on}, trained with unigrpo {VERSION}."


def _data_lines(facts: Facts) -> list[str]:
    return [
        f"{use}: {', '.join(f'`{shown_base(name)}`' for name in names)}" for use, names in facts.data.items() if names
    ]


def _run_table(facts: Facts) -> str:
    logs = [log for log in facts.history if "loss" in log and "step" in log]
    columns = [name for name in facts.columns if any(name in log for log in logs)]
    if not logs or not columns:
        return ""
    last = len(logs) - 1
    places = sorted({round(place * last / (FEW_ROWS - 1)) for place in range(FEW_ROWS)}) if last else [0]
    rows = [[str(logs[place]["step"]), *(_number(logs[place].get(name)) for name in columns)] for place in places]
    picture = CURVE if facts.picture else ""
    return f"## The run\n\n{picture}" + _table(["step", *columns], rows)


def _held_out_table(facts: Facts) -> str:
    found = dict(facts.held_out)
    if not found:
        logs = [log for log in facts.history if any(name.startswith("eval_") for name in log)]
        found = {f"step {log['step']}": log for log in ([logs[0], logs[-1]] if logs else [])}
        found = {when: {name: value for name, value in log.items() if _is_result(name)} for when, log in found.items()}
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    if not names:
        return ""
    rows = [[name, *(_number(numbers.get(name)) for numbers in found.values())] for name in names]
    return "## Held-out rows\n\n" + _table(["", *found], rows)


def _is_result(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def snippets(facts: Facts) -> list[str]:
    """How the model is opened, as Markdown with code that runs where ``facts.name`` is its folder or id."""
    family = "" if facts.policy is None else f', policy="{facts.policy}"'
    with_unigrpo = f"""from unigrpo import load_policy

policy = load_policy("{facts.name}"{family})
print(policy.generate("What is 2 + 2?")[0])"""
    if facts.adapter is None:
        other = f"""from {facts.kind.__module__} import {facts.kind.__name__}

model = {facts.kind.__name__}.from_pretrained("{facts.name}")"""
        return [f"With unigrpo:\n\n```python\n{with_unigrpo}\n```", f"With transformers:\n\n```python\n{other}\n```"]
    merged = ".merge_and_unload()" if facts.base_has_adapter else ""
    other = f"""from peft import PeftConfig, PeftModel
from unigrpo import load_policy

folder = "{facts.name}"
base = load_policy(PeftConfig.from_pretrained(folder).base_model_name_or_path{family}).model{merged}
model = PeftModel.from_pretrained(base, folder)"""
    whole = f"`unigrpo merge {facts.name} FOLDER` makes a whole model of it, which transformers opens."
    return [f"With unigrpo:\n\n```python\n{with_unigrpo}\n```", f"With PEFT:\n\n```python\n{other}\n```", whole]


def _opening(facts: Facts) -> str:
    where = f"`{facts.name}` is this folder, or its id on the hub."
    return "## How to open it\n\n" + "\n\n".join([where, *snippets(facts)])


def merged_card(facts: Facts, adapter: str, card: str = "") -> str:
    """The card of the whole model that an adapter was merged into.

    Args:
        facts: of the whole model: its name, class and base.
        adapter: the adapter, as it was named.
        card: its own card, whose metadata and sections on training, results and citation are taken over.
    """
    read = ModelCard(SEAL.sub("\n", card), ignore_metadata_errors=True)
    entries = {**read.data.to_dict(), "library_name": "transformers"}
    sections = {part.partition("\n")[0]: part.strip() for part in re.split(r"^## ", read.text, flags=re.MULTILINE)[1:]}
    taken = [f"## {sections[name]}" for name in ("How it was trained", "The run", "Held-out rows") if name in sections]
    base = f" on `{shown_base(facts.base)}`" if facts.base else ""
    parts = [
        f"# {facts.name}",
        f"The adapter `{shown_base(adapter)}`{base}, merged into all weights ({facts.kind.__name__}) by unigrpo {VERSION}.",
        *(part.replace(CURVE, "") for part in taken),
        _opening(facts),
        f"## {sections['To cite']}" if "To cite" in sections else _citation(facts),
    ]
    return f"---\n{ModelCardData(**entries).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _citation(facts: Facts) -> str:
    paper = f"The method is of [arXiv:{facts.paper}](https://arxiv.org/abs/{facts.paper}).\n\n" if facts.paper else ""
    software = f"@software{{unigrpo,\n  title = {{unigrpo}},\n  version = {{{VERSION}}}\n}}"
    return f"## To cite\n\n{paper}```bibtex\n{software}\n```"


# ---- what was trained ----


def described_method(kind: str, name: str, known: dict[str, Callable]) -> tuple[str, str | None]:
    """A line on a published method, and the id of its paper, from the docstring where it is defined."""
    said = (known[name].__doc__ or "").strip() if name in known else ""
    line = said.partition("\n")[0].rstrip(".").replace("``", "`")
    paper = re.search(r"arXiv (\d{4}\.\d{5})", said)
    return f"{kind} `{name}`" + (f": {line}" if line else ""), paper and paper[1]


def algorithm_lines(name: str, rewards: Iterable[tuple[str, float]]) -> tuple[list[str], str | None]:
    """Of reinforcement learning: its algorithm and its rewards with their weights; and the paper."""
    line, paper = described_method("algorithm", name, {method.__name__: method for method in METHODS})
    parts = [f"`{reward}` x {weight:g}" for reward, weight in rewards]
    return [line, f"rewards: {', '.join(parts)}"], paper


def objective_lines(
    name: str, objectives: dict[str, MaskedDenoising], tasks: Iterable[str]
) -> tuple[list[str], str | None]:
    """Of fine-tuning: its objective and that of each task with its coefficient; and the paper."""
    line, paper = described_method("objective", name, dict(OBJECTIVES))
    lines = [line]
    for task in sorted(tasks):
        keys = asdict(objectives[task])
        rest = ", ".join(f"{key} {value}" for key, value in keys.items() if key != "coefficient")
        lines.append(f"loss of {task} x {keys['coefficient']:g} ({rest})")
    return lines, paper


def dataset_name(dataset: Any, name: str) -> str:
    """What a dataset calls itself, or ``name``, with its number of rows."""
    own = getattr(getattr(dataset, "info", None), "dataset_name", None) or name
    return f"{own} ({len(dataset)} rows)"
