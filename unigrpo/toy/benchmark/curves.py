"""The training curves of all cells as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...runs.plots import figure_for


POINTS = 60
WIDTH = 5.0
"""Inches of a panel."""


def draw_curves(results: dict[str, Any], picture: Path) -> bool:
    """A panel a task: training reward over row-passes, a line an algorithm, the mean of its seeds.

    Without matplotlib, a line that says how to get it. Returns whether the picture was made.
    """
    tasks = list(results["tasks"])
    figure = figure_for(picture, figsize=(WIDTH * len(tasks), 4))
    if figure is None:
        return False
    axes = figure.subplots(1, len(tasks), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for number, algorithm in enumerate(results["algorithms"]):
            names = [f"{task}-{algorithm}-{seed}" for seed in results["seeds"]]
            curves = [results["curves"][name] for name in names if results["curves"].get(name)]
            if curves:
                style = "-" if number < 10 else "--"
                axis.plot(*mean_curve(curves), style, color=f"C{number % 10}", label=algorithm)
        axis.set_title(task)
        axis.set_xlabel("row-passes of the policy")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("running mean of the training reward")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.lines}
    if lines:
        figure.legend(lines.values(), lines, loc="outside right center")
    figure.savefig(picture, dpi=120)
    return True


def mean_curve(curves: list[list[dict[str, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Row-passes and the seeds' mean of the smoothed reward, as far as every seed goes."""
    end = min(curve[-1]["passes"] for curve in curves)
    grid = np.linspace(0.0, end, POINTS)
    return grid, np.mean([_smoothed(curve, grid) for curve in curves], axis=0)


def _smoothed(curve: list[dict[str, float]], grid: np.ndarray) -> np.ndarray:
    rewards = [point["reward"] for point in curve]
    window = max(len(rewards) // 8, 1)
    parts = [rewards[max(0, place - window) : place + 1] for place in range(len(rewards))]
    return np.interp(grid, [point["passes"] for point in curve], [sum(part) / len(part) for part in parts])
