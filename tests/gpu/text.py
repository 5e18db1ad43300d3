"""A run of the command in plain sentences and short tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..benchmarks.report import table


SPEED_COLUMNS = ("what", "ours", "plain", "ratio", "ms a step", "peak GB", "of the limit", "steps measured")


def markdown(data: dict[str, Any]) -> str:
    """All of ``gpu.md``."""
    own, command = data["machine"], data["command"]
    lines = [
        "# The library on a GPU" if command["device"] == "cuda" else "# The path of the GPU command, walked on a CPU",
        "",
        f"{own['card']}, driver {own['driver']}; Python {own['python']}, torch {own['torch']}, transformers "
        f"{own['transformers']}, peft {own['peft']}, accelerate {own['accelerate']}.",
        f"{data['date']}, commit {data['commit']}. Size {command['size']}, {command['minutes']:g} minutes allowed, "
        f"{data['seconds']:.0f} s used. {state(data)}",
    ]
    if command["device"] != "cuda":
        lines.append("Times and memory below are a CPU's and say nothing of a GPU.")
    for name, write in SECTIONS.items():
        stage = data["stages"].get(name)
        lines += ["", f"## {name}", ""]
        if stage is None:
            lines.append("Not begun.")
            continue
        if stage["skipped"]:
            lines.append(f"Left out: {stage['skipped']}.")
            continue
        lines += [*write(stage["found"]), *misses(stage), "", took(stage)]
    return "\n".join(lines)


def took(stage: dict[str, Any]) -> str:
    """How long, once it is over."""
    return "It is not over." if stage["seconds"] is None else f"It took {stage['seconds']:.1f} s."


def state(data: dict[str, Any]) -> str:
    """Whether the run came to its end."""
    if data.get("cut"):
        return "Time was over inside a stage, which was cut off."
    return "It came to its end." if data["finished"] else "It has not come to its end."


def misses(stage: dict[str, Any]) -> list[str]:
    """What failed and what did not fit, a sentence each."""
    own = stage["found"]
    lines = [f"Left out, because no time was left: {', '.join(own['left_out'])}."] if own.get("left_out") else []
    lines += [f"**{line['name']} failed:**\n\n```\n{line['error']}\n```" for line in own.get("failed", [])]
    if stage["error"]:
        lines.append(f"**The stage failed:**\n\n```\n{stage['error']}\n```")
    return ["", *lines] if lines else []


def law_lines(found: dict[str, Any]) -> list[str]:
    """Which laws hold."""
    laws = found.get("laws", [])
    if not laws:
        return ["No law was looked at."]
    held = sum(law["passed"] for law in laws)
    rows = [
        [law["name"], "yes" if law["passed"] else "NO", figure(law["measured"]), figure(law["bound"])] for law in laws
    ]
    errors = [f"**{law['name']} raised:**\n\n```\n{law['error']}\n```" for law in laws if law["error"]]
    return [
        f"{held} of {len(laws)} laws hold.",
        "",
        table(("law", "holds", "measured", "at most"), rows),
        *(["", *errors] if errors else []),
    ]


def figure(value: float | None, digits: str = ".3g") -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or value != value else format(value, digits)


def rate(value: float) -> str:
    """Four digits, without powers of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def speed_rows(found: dict[str, Any]) -> list[Sequence[str]]:
    """The head and a row for each measurement; empty without any."""
    rows = [
        [
            line["name"],
            f"{rate(line['rate'])} {line['unit']}",
            f"{rate(line['plain']['rate'])} {line['unit']}" if "plain" in line else "",
            "" if line["ratio"] is None else f"x{line['ratio']:.2f}",
            f"{1000 * line['seconds_a_step']:.1f}",
            f"{line['peak_gb']:.1f}",
            "" if line.get("share") is None else f"{100 * line['share']:.1f} %",
            f"{line['steps_measured']} of {line['steps']}" if line["steps"] > 1 else f"{line['steps_measured']} times",
        ]
        for line in found.get("lines", [])
    ]
    return [SPEED_COLUMNS, *rows] if rows else []


def speed_lines(found: dict[str, Any]) -> list[str]:
    """Rates beside the plain implementation, then memory beside its arithmetic."""
    rows = speed_rows(found)
    if not rows:
        return ["Nothing was measured."]
    own = found["environment"]
    lines = [
        f"{own['model']} model, {own['parameters']:,} parameters, vocabulary {own['vocabulary']:,}, {own['dtype']}, random "
        f"weights. The limit is {found['peak_tflops']:g} TFLOP/s. Where fewer steps were measured than the schedule has, "
        "the rate is that of the whole schedule at the same time a step. The plain side makes every logit of every "
        "position, and always an old pass.",
        "",
        table(rows[0], rows[1:]),
    ]
    lines += ["", *(f"- {line['name']}: {line['note']}" for line in found["lines"] if line["note"])]
    lines += plain_words(found["lines"])
    return lines + memory_words(found.get("memory", []))


def plain_words(lines: list[dict[str, Any]]) -> list[str]:
    """How the plain side was measured."""
    return [
        f"- {line['name']}, plain: {1000 * line['plain']['seconds_a_step']:.1f} ms a step over "
        f"{line['plain']['steps_measured']}, peak {line['plain']['peak_gb']:.1f} GB"
        for line in lines
        if "plain" in line
    ]


def memory_words(lines: list[dict[str, Any]]) -> list[str]:
    """Peaks beside the arithmetic of the recipe's header."""
    measured = [line for line in lines if "peak_gb" in line]
    if not measured:
        return []
    rows = [
        [
            line["what"],
            f"{line['arithmetic_gb']:.3g}",
            f"{line['peak_gb']:.3g} ({line['peak_is']})",
            f"{line['seconds']:.3f}",
            ", ".join(f"{name} {gb:.2g}" for name, gb in line["parts_gb"].items()),
        ]
        for line in measured
    ]
    head = ("memory, GB of 10^9 bytes", "by arithmetic", "peak", "seconds", "parts of the arithmetic")
    left = [f"Left out: {line['what']}, {line['left_out']}." for line in lines if "left_out" in line]
    return ["", table(head, rows), *left]


def hot_lines(found: dict[str, Any]) -> list[str]:
    """The most expensive operations of each piece of work."""
    lines: list[str] = []
    for name, own in found.items():
        if name == "left_out":
            continue
        rows = [
            [row["name"][:60], f"{row['calls']:g}", f"{row['ms']:.2f}", f"{100 * row['share']:.1f} %"]
            for row in own["operations"]
        ]
        lines += [
            f"{name}: {1000 * own['seconds']:.1f} ms, and the operations themselves take {1000 * own['busy_seconds']:.1f} ms "
            f"({100 * own['busy_share']:.0f} %) on the device.",
            "",
            table(("operation", "calls", "ms", "share"), rows),
            "",
        ]
    return lines[:-1] or ["Nothing was looked at."]


def quickstart_lines(found: dict[str, Any]) -> list[str]:
    """What the policy has learned."""
    if "steps" not in found:
        return ["It did not train."]
    return [
        f"{found['steps']} of {found['of_steps']} optimizer steps on the device, {found['seconds_a_step']:.3f} s each (the "
        f"slowest {found['slowest_step']:.2f} s), {found['windows']} windows of {found['answers_a_window']} answers.",
        f"Mean reward {found['reward_first']:.3f} at first and {found['reward_last']:.3f} at last, over "
        f"{found['windows_at_each_end']} window(s) each; 1 is an answer whose integer is right.",
    ]


SECTIONS = {"laws": law_lines, "speed": speed_lines, "hot": hot_lines, "quickstart": quickstart_lines}
"""In the order of the stages."""
