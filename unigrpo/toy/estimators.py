"""Table of the likelihood estimators against the exact lower bound: ``python -m unigrpo.toy.estimators``.

The shipped arithmetic policy answers a few word problems; the last tokens of each answer are scored, so few that all masks
can be enumerated. Every estimate is made of the library's own noise, weights and mixing, read from those tables.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..algorithm.likelihood import score_tokens
from ..algorithm.mixing import linear
from ..algorithm.noising import Noising
from ..config.arguments import UniGRPOConfig
from ..rollout.generate import LoadedPolicy, load_policy
from ..samplers import SemiAutoregressive
from ..terminal import say
from ..types import Rollout, keyed_generator
from .arithmetic import problems
from .exact import ExactLikelihood, mask_numbers


SAMPLING = {"max_completion_length": 16, "steps": 16, "block_length": 4}

SCHEMES = {
    "independent": ({"noising": "random", "draw_coupling": "independent"}, (1, 4, 8)),
    "stratified": ({"noising": "random", "draw_coupling": "stratified"}, (4, 8)),
    "antithetic pairs (ESPO)": ({"noising": "random", "draw_coupling": "antithetic"}, (2, 4, 8)),
    "quadrature (GDPO)": ({"noising": "quadrature"}, (2, 4, 8)),
    "coupled (coupled-GRPO)": ({"noising": "coupled"}, (1, 3)),
    "block (SPG)": ({"noising": "block"}, (2, 4, 8)),
    "one step (diffu-GRPO, wd1)": ({"noising": "full"}, (1,)),
    "one timestep, masked mean x n (UniGRPO)": ({"noising": "structured", "timesteps": "random"}, (1, 4)),
    "left to right (JustGRPO)": ({"noising": "autoregressive"}, (0,)),
}
"""Settings and numbers of draws. The masked mean times n is the sum weighted with n / l, l hidden tokens."""


def short_answers(loaded: LoadedPolicy, count: int, longest: int) -> list[Rollout]:
    """``count`` sampled answers (B = 1); all but their last ``longest`` tokens belong to the prompt."""
    sampler = SemiAutoregressive(steps=SAMPLING["steps"], block_length=SAMPLING["block_length"])
    found = []
    for number, row in enumerate(problems("test", 4 * count)):
        canvas = loaded.policy.encode([row], max_completion_length=SAMPLING["max_completion_length"])
        rollout = sampler(loaded.model, loaded.policy, canvas, generators=[keyed_generator("estimators", number)])
        done = rollout.completion_mask
        scored = done & (done.sum() - done.cumsum(1) < longest)
        if int(scored.sum()) == longest and len(found) < count:
            # Without a tail, schemes that hide it and schemes that show it score the same thing.
            attended = canvas.attention_mask & (done | ~canvas.fill_mask)
            own = replace(rollout.canvas, fill_mask=scored, attention_mask=attended)
            found.append(replace(rollout, canvas=own, completion_mask=scored))
    return found


@torch.no_grad()
def enumerate_masks(loaded: LoadedPolicy, rollout: Rollout) -> ExactLikelihood:
    """The exact table of one answer."""

    def logps(hidden: Tensor) -> Tensor:
        canvas = rollout.canvas.take(torch.zeros(len(hidden), dtype=torch.int64))
        return score_tokens(loaded.model, loaded.policy, canvas, hidden, hidden).logps

    return ExactLikelihood.of(logps, rollout.completion_mask[0])


def estimate(noising: Noising, samples: int, count: int, seed: int, rollout: Rollout, own: ExactLikelihood) -> tuple:
    """``count`` estimates of one answer's log-likelihood ``[count]``, and the forwards that each one takes."""
    copies = rollout.take(torch.zeros(count, dtype=torch.int64))
    noise = noising(copies, num_iterations=1, num_samples=samples, key=(seed, 0), rows=list(range(count)))
    places = rollout.completion_mask[0]
    hidden, target, weight = (value[:, 0][..., places] for value in (noise.hidden, noise.target, noise.weight))
    return linear(own.table[mask_numbers(hidden)], target, weight.double()).sum(dim=1), hidden.shape[1]


def table(answers: int = 4, longest: int = 7, count: int = 1000) -> list[str]:
    """The lines of a Markdown table."""
    loaded = load_policy("builtin:arithmetic", device="cpu")
    rollouts = short_answers(loaded, answers, longest)
    exact = [enumerate_masks(loaded, rollout) for rollout in rollouts]
    bounds = torch.tensor([own.elbo() for own in exact])
    likelihood = sum(own.log_likelihood() for own in exact) / len(exact)
    lines = [
        f"{len(exact)} answers of {longest} tokens: lower bound {bounds.mean():.3f} nats, random-order log p "
        f"{likelihood:.3f}. {count} estimates of each.\n",
        "| estimator | forwards | bias ± SE | standard deviation | variance × forwards |\n|---|---|---|---|---|",
    ]
    for name, (options, numbers) in SCHEMES.items():
        for samples in numbers:
            values = {**SAMPLING, **options, "num_noise_samples": samples, "weighting": "inverse_probability"}
            args = UniGRPOConfig("unused", use_cpu=True, report_to="none", **values)
            noising = args.for_task("text").choice("noising").build(args.for_task("text").shared(), mixed=True)
            # A seed for each answer: the standard error takes their errors to be independent.
            drawn = [estimate(noising, samples, count, i, rollouts[i], own) for i, own in enumerate(exact)]
            values, forwards = torch.stack([one for one, _ in drawn]), drawn[0][1]
            bias, variance = float(values.mean() - bounds.mean()), float(values.var(dim=1).mean())
            figures = f"{bias:+.3f} ± {math.sqrt(variance / values.numel()):.3f} | {math.sqrt(variance):.3f}"
            lines.append(f"| {name} | {forwards} | {figures} | {variance * forwards:.2f} |")
    return lines


def main() -> None:
    """Command line: prints the table."""
    parser = argparse.ArgumentParser(description="Bias and variance of the likelihood estimators.")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    output = parser.parse_args().output
    text = "\n".join(table())
    say(text)
    if output:
        output.write_text(text + "\n")


if __name__ == "__main__":
    main()
