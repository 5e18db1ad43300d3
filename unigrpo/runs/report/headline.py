"""What a folder came to: its state, and the held-out numbers before and after with their intervals."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .markup import escaped, section, table
from .read import RunFolder, is_number


def headline(folder: RunFolder) -> str:
    """The state in a sentence, the change in large figures, and tables by task and by reward."""
    parts = [f'<p class="state">{escaped(state(folder))}</p>']
    if folder.kind == "evaluation":
        return section("Result", *parts, _results(folder.results))
    before, after = (accuracy(folder, label) for label in ("before", "after"))
    note = ""
    if before or after:
        parts.append(change(before, after))
    if folder.kind == "train" and not (before or after or folder.measured):
        note = "No held-out rows were measured: the recipe has no <code>eval_datasets</code>, or the run ended before it measured."
    elif (before or folder.measured) and not after and "after" not in folder.measured and not folder.summary:
        note = "There is no measurement after training, because the run did not come to its end."
    return section("Result", *parts, _tasks(folder.summary.get("tasks")), _rewards(folder), _losses(folder), note=note)


def state(folder: RunFolder) -> str:
    """Finished, running or stopped, in a sentence."""
    at = f"step {folder.step}" + (f" of {folder.total}" if folder.total else "")
    when = stamp(folder.written)
    if folder.kind == "evaluation":
        if folder.finished:
            return f"An evaluation, written {when}."
        return "Not finished: the same `unigrpo evaluate` goes on with it. What follows is of no task yet."
    if folder.finished:
        seconds = folder.summary.get("train_seconds")
        took = f" in {duration(seconds)} of training" if is_number(seconds) else ""
        return f"Finished after {folder.summary.get('optimizer_steps', folder.step)} optimizer steps{took}, {when}."
    if not folder.metrics:
        return (
            "Nothing was logged yet: there is no step to show."
            if folder.running
            else "Nothing was logged before the run ended."
        )
    if folder.running:
        return f"Running: {at} was logged {when}."
    return f"Not finished: the last log is of {at}, written {when}. It goes on with resume_from_checkpoint=true, where it saved."


def stamp(when: datetime | None) -> str:
    """A time in UTC."""
    return "at an unknown time" if when is None else when.strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """``3 h 07 min``, ``4 min 05 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def accuracy(folder: RunFolder, label: str) -> dict[str, Any] | None:
    """The held-out accuracy before or after training, with ``mean``, ``low``, ``high`` and ``count``."""
    own = folder.summary.get(f"held_out_accuracy_{label}") or folder.measured.get(label, {}).get("accuracy")
    return own if isinstance(own, dict) and is_number(own.get("mean")) else None


def percent(own: dict[str, Any] | None) -> str:
    """``58.0 % [53.7, 62.3]``."""
    if not own:
        return "not measured"
    low, high = own.get("low"), own.get("high")
    around = f" <small>[{100 * low:.1f}, {100 * high:.1f}]</small>" if is_number(low) and is_number(high) else ""
    return f"{100 * own['mean']:.1f} %{around}"


def change(before: dict[str, Any] | None, after: dict[str, Any] | None, what: str = "Held-out accuracy") -> str:
    """Two accuracies in large figures, and as points with their intervals on a line from 0 to 100 %."""
    gain = (
        f'<span class="gain">{100 * (after["mean"] - before["mean"]):+.1f} points</span>' if before and after else ""
    )
    count = (after or before or {}).get("count")
    rows = f" on {count:,} rows" if is_number(count) else ""
    lines = "".join(
        f'<span class="k{number}"><i style="left:{100 * own["low"]:.2f}%;width:{100 * (own["high"] - own["low"]):.2f}%"></i>'
        f'<b style="left:{100 * own["mean"]:.2f}%"></b></span>'
        for number, own in enumerate((before, after))
        if own and is_number(own.get("low")) and is_number(own.get("high"))
    )
    figures = f"{percent(before)} <span class=arrow>→</span> {percent(after)}" if after else percent(before)
    return (
        f'<div class="headline"><p class="what">{escaped(what)}{rows}, with 95 % bootstrap intervals</p><p class="figures">{figures} '
        f'{gain}</p><div class="intervals" aria-hidden="true">{lines}</div>'
        f'<p class="ends" aria-hidden="true"><span>0 %</span><span>100 %</span></p></div>'
    )


def _tasks(tasks: Any) -> str:
    if not isinstance(tasks, dict):
        return ""
    rows = [
        (
            escaped(task),
            percent(own.get("before")),
            percent(own.get("after")),
            str((own.get("after") or {}).get("count", "")),
        )
        for task, own in tasks.items()
        if isinstance(own, dict)
    ]
    return table(("task", "before", "after", "rows"), rows, "numbers")


def _rewards(folder: RunFolder) -> str:
    """The run's rewards on held-out rows."""
    found = {
        label: folder.summary.get(f"held_out_rewards_{label}") or folder.measured.get(label, {}).get("rewards") or {}
        for label in ("before", "after")
    }
    names = list(dict.fromkeys([*found["before"], *found["after"]]))
    cells = [[_value(found[label].get(name)) for label in ("before", "after")] for name in names]
    shown = [name.removeprefix("rewards/").removesuffix("/mean") for name in names]
    rows = [(escaped(name), *own) for name, own in zip(shown, cells, strict=True)]
    return table(("held-out reward", "before", "after"), rows, "numbers") if rows else ""


def _losses(folder: RunFolder) -> str:
    """Held-out losses of a run on given answers."""
    found = []
    for label in ("before", "after"):
        own = folder.summary.get(f"held_out_{label}") or (
            folder.measured.get(label, {}) if folder.kind == "sft" else {}
        )
        found.append({name: value for name, value in own.items() if is_number(value)})
    names = list(dict.fromkeys([*found[0], *found[1]]))
    rows = [(escaped(name), _value(found[0].get(name)), _value(found[1].get(name))) for name in names]
    return table(("held-out", "before", "after"), rows, "numbers") if rows else ""


def _value(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else "–"


def _results(results: dict[str, Any]) -> str:
    """An evaluation's tasks, a line each: the metric with its interval, then what else was measured, such as ``pass@4``."""
    tasks = results.get("tasks")
    entries = (
        {str(name): own for name, own in tasks.items() if isinstance(own, dict)} if isinstance(tasks, dict) else {}
    )
    if not entries:
        return "<p>It holds no task.</p>"
    more = {name: _more(own) for name, own in entries.items()}
    columns = list(dict.fromkeys(key for own in more.values() for key in own))
    rows = [
        (
            escaped(name),
            escaped(own.get("metric") or "not judged"),
            _measured(own),
            escaped(own.get("count", "–")),
            *(more[name].get(key, "–") for key in columns),
        )
        for name, own in entries.items()
    ]
    return table(("task", "metric", "mean [95 %]", "rows", *columns), rows, "numbers")


def _more(task: dict[str, Any]) -> dict[str, str]:
    """What else a task's results hold, by a name: numbers, and measurements by k or by name."""
    found = {}
    for key, value in task.items():
        if isinstance(value, dict) and is_number(value.get("mean")):
            found[key] = _measured(value)
        elif isinstance(value, dict) and key != "dataset":
            base = key.removesuffix("@k")
            join = "@" if base != key else " "
            found |= {
                f"{base}{join}{name}": _measured(own if isinstance(own, dict) else {"mean": own})
                for name, own in value.items()
                if is_number(own) or (isinstance(own, dict) and is_number(own.get("mean")))
            }
        elif is_number(value) and key not in ("mean", "low", "high", "count"):
            found[key] = _value(value)
    return found


def _measured(own: dict[str, Any]) -> str:
    """A mean with its interval: shares in percent, others as they are."""
    ends = [own.get(name) for name in ("mean", "low", "high") if own.get(name) is not None]
    if is_number(own.get("mean")) and all(is_number(end) and 0 <= end <= 1 for end in ends):
        return percent(own)
    around = f" <small>[{own['low']:.4g}, {own['high']:.4g}]</small>" if len(ends) == 3 else ""
    return _value(own.get("mean")) + around
