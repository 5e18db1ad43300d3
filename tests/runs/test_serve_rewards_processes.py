"""Runs whose rewards live in another process: it is killed and comes back, two runs share it, and nothing is lost or doubled."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from unigrpo.rollout.rewards import RewardSet

from ..support.answers import sample
from ..support.processes import free_port
from ..support.reward_servers import ServerProcess
from ..support.runs import history
from ..support.servers import no_proxy, remote  # noqa: F401
from ..support.tiny import low_ids, prompts


pytestmark = pytest.mark.processes

REWARDS = '''
import os, time


def low_ids(completion_ids, **_):
    """As in the tests, from a service that takes its time and leaves a line for each call."""
    with open("calls.txt", "a") as file:
        file.write(f"{os.getpid()} {len(completion_ids)}\\n")
    time.sleep(0.3)
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def weighed(completions, weight, **_):
    time.sleep(0.02)
    return [None if own is None else len(text) * own for text, own in zip(completions, weight)]
'''


@pytest.fixture
def server(tmp_path):
    (tmp_path / "my_served.py").write_text(REWARDS)
    (tmp_path / "served.yaml").write_text('rewards: [{name: "my_served:low_ids"}, {name: "my_served:weighed"}]\n')
    own = ServerProcess(tmp_path, free_port(), "--queue", "2")
    own.start()
    yield own
    own.kill()


RUN = {"num_generations": 4, "max_steps": 4, "steps_per_generation": 1, "gradient_accumulation_steps": 1}


def test_a_server_that_dies_in_the_middle_changes_nothing(make_trainer, server, tmp_path):
    options = {**RUN, "num_iterations": 1, "logging_steps": 1, "rollout_batch_size": 4}
    here = make_trainer(rewards=low_ids, rows=prompts(8), output_dir=str(tmp_path / "here"), **options)
    here.train()
    server.wait_until_up()

    def kill_in_a_call():
        calls = tmp_path / "calls.txt"
        while not calls.exists() or calls.read_text().count("\n") < 3:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        server.start()

    killer = threading.Thread(target=kill_in_a_call, daemon=True)
    killer.start()
    asked = remote(
        f"{server.url}/score/low_ids", columns=["completion_ids"], retries=200, backoff=0.3, label="low_ids"
    )
    there = make_trainer(rewards=asked, rows=prompts(8), output_dir=str(tmp_path / "there"), **options)
    there.train()
    killer.join(60)
    assert history(there) == history(here)
    pids = {line.split()[0] for line in (tmp_path / "calls.txt").read_text().splitlines()}
    assert len(pids) == 2, "a call was answered before and after"
    retries = sum(log.get("low_ids/retries", 0) for log in there.state.log_history)
    assert retries >= 1


def test_two_runs_on_one_server_get_their_own(server):
    server.wait_until_up()
    asked = remote(f"{server.url}/score/weighed", retries=0, batch_size=3, columns=["weight"])

    def run(factor):
        rows = [{"prompt": f"p{place}", "weight": factor * place if place % 4 else None} for place in range(12)]
        given = [sample(row, "x" * (place + 1), index=place) for place, row in enumerate(rows)]
        return [RewardSet([asked]).score(given).values[:, 0].nan_to_num(-1).tolist() for _ in range(8)]

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(run, (1, 1000)))
    for factor, own in zip((1, 1000), found, strict=True):
        expected = [float((place + 1) * factor * place) if place % 4 else -1.0 for place in range(12)]
        assert own == [expected] * 8


def test_sigterm_ends_it_after_what_it_has_begun(server):
    server.wait_until_up()
    asked = remote(f"{server.url}/score/low_ids", columns=["completion_ids"])
    with ThreadPoolExecutor(1) as one:
        scores = one.submit(asked, ["p"], ["c"], completion_ids=[[2, 3]])
        calls = server.folder / "calls.txt"
        while not calls.exists():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert scores.result(30) == [0.5]
    assert server.process.wait(30) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in (server.folder / "server.log").read_text()
