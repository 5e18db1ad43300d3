"""Two policies measured on the same problems, and whether the second one is better. Every answer stays in its folder.

The same in a terminal:
    unigrpo evaluate builtin:arithmetic --tasks arithmetic --limit 64
    unigrpo evaluate builtin:arithmetic_trained --tasks arithmetic --limit 64
    unigrpo compare runs/evaluations/arithmetic runs/evaluations/arithmetic_trained
"""

from unigrpo.runs.evaluate.command import evaluate_tasks
from unigrpo.runs.evaluate.compare import compare


if __name__ == "__main__":
    folders = {"builtin:arithmetic": "runs/evaluations/before", "builtin:arithmetic_trained": "runs/evaluations/after"}
    for model, folder in folders.items():
        # A task is a name, or one of your own as pkg.mod:attr. Called again, this goes on with what is missing.
        evaluate_tasks(model, ["arithmetic"], limit=64, output_dir=folder)
    found = compare(*folders.values())["tasks"]["arithmetic"]
    low, high = found["difference"]["low"], found["difference"]["high"]
    print(f"accuracy before {found['a']:.2f}, after {found['b']:.2f}, the difference in [{low:+.2f}, {high:+.2f}]")
    print(f"{len(found['better'])} problems got better, {len(found['worse'])} worse, p = {found['p_value']:.2g}")
