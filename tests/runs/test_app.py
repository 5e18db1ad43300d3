"""``unigrpo app`` without a browser: the line of jobs, stopping, sentences, and the colours of tokens by their steps."""

from __future__ import annotations

import re
import sys
import threading
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model

from unigrpo.rollout.generate import LoadedPolicy, load_policy
from unigrpo.runs.app import live
from unigrpo.runs.app.examples import examples
from unigrpo.runs.app.jobs import MOST_WAITING, Jobs, Stopped, Waiting, sentence
from unigrpo.runs.app.live import Column, Span
from unigrpo.runs.app.policy import Talker, opened, parsed, rewards_of
from unigrpo.runs.app.settings import SETTINGS
from unigrpo.runs.app.show import html, hue, split
from unigrpo.runs.cli import main
from unigrpo.toy import emoji, emoji_riddles, riddles

from ..support.tiny_decoders import tiny_decoder, tiny_gemma


pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def talker() -> Talker:
    return opened(None, None, ["seed=3"])


# ---- the line ----


def test_one_job_runs_at_a_time_and_the_others_know_their_place():
    jobs, running, started, go = Jobs(), [], threading.Event(), threading.Event()

    def held(job):
        running.append("held")
        started.set()
        go.wait()
        job.show("first")

    def quick(job):
        running.append("quick")
        job.show("second")

    first = jobs.run("a", held)
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(first))
    reader.start()
    started.wait()
    second = jobs.run("b", quick)
    assert next(second) == Waiting(1) and running == ["held"]
    go.set()
    assert list(second) == ["second"]
    reader.join()
    assert seen == ["first"] and running == ["held", "quick"]


def test_stop_ends_the_running_job_at_its_next_frame_and_takes_a_waiting_one_out_of_the_line():
    jobs, shown, go = Jobs(), [], threading.Event()

    def endless(job):
        while True:
            shown.append(1)
            job.show(len(shown))
            go.wait()

    running = jobs.run("a", endless)
    assert next(running) == 1
    waiting = jobs.run("b", lambda job: shown.append("never"))
    assert next(waiting) == Waiting(1)
    assert jobs.stop("b") and not jobs.stop("nobody")
    with pytest.raises(Stopped):
        list(waiting)
    assert jobs.stop("a")
    go.set()
    with pytest.raises(Stopped):
        list(running)
    assert len(shown) == 2 and "never" not in shown
    assert list(jobs.run("c", lambda job: job.show("free"))) == ["free"]


def test_a_page_that_is_closed_stops_its_job():
    jobs, ended = Jobs(), threading.Event()

    def endless(job):
        try:
            while True:
                job.show("frame")
        finally:
            ended.set()

    running = jobs.run("a", endless)
    next(running)
    running.close()
    assert ended.is_set() and list(jobs.run("b", lambda job: job.show(1))) == [1]


def test_a_slow_page_gets_the_last_frame_and_a_full_line_says_so():
    jobs, shown = Jobs(), threading.Event()

    def many(job):
        for number in range(100):
            job.show(number)
        shown.set()

    running = jobs.run("a", many)
    first = next(running)
    shown.wait()
    rest = list(running)
    assert rest[-1:] == [99] or first == 99
    assert len(rest) <= 1
    go = threading.Event()
    held = jobs.run("a", lambda job: (job.show(0), go.wait()))
    next(held)
    others = [jobs.run(str(n), lambda job: None) for n in range(MOST_WAITING)]
    assert [next(own) for own in others] == list(range(1, MOST_WAITING + 1))
    with pytest.raises(ValueError, match=f"{MOST_WAITING} jobs wait already"):
        next(jobs.run("late", lambda job: None))
    go.set()
    for own in others:
        own.close()
    held.close()


@pytest.mark.parametrize(
    "error,words",
    [
        (ValueError("steps=1 is less"), "steps=1 is less"),
        (RuntimeError("CUDA out of memory. Tried 3 GB"), "lower the length"),
        (KeyError("x"), "No answer could be given (KeyError: 'x')"),
    ],
)
def test_what_goes_wrong_is_a_sentence(error, words, capsys):
    def broken(job):
        job.show("so far")
        raise error

    seen = []
    with pytest.raises(type(error)) as raised:
        for frame in Jobs().run("a", broken):
            seen.append(frame)
    said = sentence(raised.value)
    assert seen == ["so far"] and words in said and "Traceback" not in said
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError)


# ---- what is written ----


def test_each_step_shows_what_it_wrote_and_the_last_is_the_answer(talker):
    frames = []
    talker.answer(
        "Tom has 127 cups and gets 4. Total?",
        frames.append,
        task="text",
        settings={"steps": 16, "max_completion_length": 16, "block_length": 4, "seed": 0},
        reward="math_correctness",
        gold="131",
    )
    spans = [frame[0].spans[0] for frame in frames]
    for before, after in pairwise(spans):
        written = [step for _, step in after.pieces if step >= 0]
        assert max(written) <= after.done - 1
        assert sum(step < 0 for _, step in after.pieces) <= sum(step < 0 for _, step in before.pieces)
    text = "".join(piece for piece, _ in spans[-1].pieces)
    (whole,) = talker.loaded.generate("Tom has 127 cups and gets 4. Total?", seed=0)
    assert text == whole and all(step >= 0 for _, step in spans[-1].pieces)
    assert re.fullmatch(r"math_correctness: [01]", frames[-1][0].note)


@pytest.mark.parametrize("task,kinds", [("t2i", ["t2i"]), ("r2i", ["thought", "picture"])])
def test_a_picture_is_seen_while_it_is_drawn(task, kinds, talker):
    frames = []
    settings = {"seed": 1, "max_completion_length": 8} if task == "r2i" else {"seed": 1, "steps": 8}
    talker.answer("a large red circle", frames.append, task=task, settings=settings, reward="jpeg_size")
    last = frames[-1][0]
    assert [span.task for span in last.spans] == kinds and "jpeg_size: " in last.note
    pictures = [frame[0].spans[-1].picture for frame in frames if frame[0].spans[-1].task != "thought"]
    grey = [{colour: n for n, colour in picture.getcolors(32 * 32)}.get(live.GREY, 0) for picture in pictures]
    assert grey[0] > 0 and grey == sorted(grey, reverse=True) and grey[-1] == 0
    drawn = talker.loaded.generate("a large red circle", task=task, **settings)[0]
    drawn = drawn.picture if task == "r2i" else drawn
    assert pictures[-1].tobytes() == drawn.tobytes()


def test_a_stopped_answer_keeps_what_was_written(talker):
    jobs, seen = Jobs(), []

    def ask(job):
        def show(frame):
            if frame[0].spans[0].done == 3:
                jobs.stop("a")
            job.show(frame)

        talker.answer("Tom has 127 cups and gets 4. Total?", show, task="text", settings={})

    with pytest.raises(Stopped):
        for frame in jobs.run("a", ask):
            seen.append(frame)
    (span,) = seen[-1][0].spans
    assert span.done == 3 and sum(step >= 0 for _, step in span.pieces) == 3


@pytest.mark.parametrize(
    "task,prompt,settings,words",
    [
        ("text", " ", {}, "There is no prompt"),
        ("mmu", "What is it?", {}, "There is no picture"),
        ("text", "Why?", {"steps": 1}, "steps=1 is less than the 4 blocks"),
    ],
)
def test_what_cannot_be_answered_is_said(task, prompt, settings, words, talker):
    with pytest.raises(ValueError, match=words):
        talker.answer(prompt, lambda frame: None, task=task, settings=settings)


def test_letters_of_several_tokens_are_joined_and_what_does_not_count_is_left_out():
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace")

    class Canvas:
        pass

    ids = torch.tensor([[*"aé".encode(), 0, ord("b"), ord("z")]])
    writer, policy = Canvas(), Canvas()
    writer.ids, writer.canvas = ids, Canvas()
    writer.canvas.fill_mask = torch.ones_like(ids, dtype=torch.bool)
    writer.hidden = torch.tensor([[False, False, False, True, False, False]])
    writer.counts = lambda: ~writer.hidden & (ids != ord("z"))
    writer.step_map = torch.tensor([[0, 4, 2, -1, 3, -1]])
    policy.processor = Bytes()
    assert live.pieces(writer, policy) == (("a", 0), ("é", 4), ("", -1), ("b", 3))


# ---- the page's text ----


def test_a_token_has_the_colour_of_its_step_and_markup_of_a_policy_is_text():
    assert [hue(0, 8), hue(7, 8), hue(0, 1)] == [220, 30, 220]
    assert sorted({hue(step, 8) for step in range(8)}, reverse=True) == [hue(step, 8) for step in range(8)]
    pieces = (("<b>", 0), ("x", 7), ("", -1))
    page = html((Column(spans=(Span(task="text", pieces=pieces, done=8, total=8),)),), fault="<i>")
    assert re.findall(r"--hue:(\d+)\" title=\"step (\d)\">([^<]*)<", page) == [
        ("220", "1", "&lt;b&gt;"),
        ("30", "8", "x"),
    ]
    assert page.count('class="hole"') == 1 and "<b>" not in page and "<i>" not in page.replace("<i></i>", "")


@pytest.mark.parametrize(
    "texts,thought,answer,closed",
    [
        (["<think>", "8", "9", "</think>", "131"], ["8", "9"], ["131"], True),
        (["<th", "ink>8", "", "</", "think>1", ""], ["8", ""], ["1", ""], True),
        (["<think>", "8", "</", "", "k>"], ["8", "</", "", "k>"], [], False),
        (["", "8", "</think>"], [], ["", "8", "</think>"], True),
        (["no", " thought"], [], ["no", " thought"], True),
    ],
)
def test_the_thought_is_told_from_the_answer(texts, thought, answer, closed):
    pieces = tuple((text, 0 if text else -1) for text in texts)
    found = split(pieces)
    assert [[text for text, _ in part] for part in found[:2]] == [thought, answer] and found[2] == closed
    page = html((Column(spans=(Span(task="text", pieces=pieces, done=1, total=1),)),))
    assert ("<details open>" in page) == (not closed) and ("<details" in page) == bool(thought)


# ---- what it starts from ----


def test_tasks_settings_and_rewards_are_those_that_the_policy_has(talker):
    assert talker.name == "builtin:shapes" and talker.tasks == ("text", "mmu", "t2i", "r2i")
    assert opened("builtin:arithmetic", None).tasks == ("text",)
    assert (talker.start("steps", "text"), talker.start("steps", "t2i"), talker.start("seed", "mmu")) == (16, 16, 3)
    assert (talker.start("max_completion_length", "r2i"), talker.start("temperature", "t2i")) == (16, 1)
    assert talker.settings("text") == tuple(SETTINGS)
    (masked, blocks), (random, canvases) = tiny_decoder("blocks"), tiny_gemma()
    of_blocks, of_canvases = (
        Talker(loaded=LoadedPolicy(model=model, policy=policy), name="", base="", tasks=("text",)).settings("text")
        for model, policy in ((masked, blocks), (random, canvases))
    )
    assert set(SETTINGS) - {*of_blocks} == {"block_length"}
    assert set(SETTINGS) - {*of_canvases} == {"block_length", "guidance_scale"}
    assert "colour" in rewards_of("t2i") and "colour" not in rewards_of("text")
    assert not {"judge", "remote", "vqa_score"} & {*rewards_of("t2i"), *rewards_of("text")}
    assert (talker.names, opened("builtin:arithmetic", None).names) == (
        ("builtin:shapes", "builtin:shapes_tokenizer"),
        ("builtin:arithmetic", ""),
    )


@pytest.mark.parametrize(
    "names, task, known",
    [
        (("builtin:riddles", "builtin:shapes_tokenizer"), "r2i", [own.prompt for own in riddles.RIDDLES]),
        (("builtin:emoji", "builtin:emoji_tokenizer"), "t2i", [emoji.caption(own) for own in emoji.SCENES]),
        *(
            (("runs/mine", "builtin:emoji_tokenizer"), task, [own.prompt for own in emoji_riddles.riddles("train")])
            for task in ("r2i", "text")
        ),
    ],
)
def test_examples_are_of_the_world_that_the_policy_or_its_image_tokenizer_names(names, task, known):
    shown = [prompt for (prompt,) in examples(names, task)]
    assert shown and set(shown) <= set(known)


@pytest.mark.parametrize(
    "word,words",
    [
        ("temperatur=1", "temperatur=1.*give KEY=VALUE with one of"),
        ("temperature=hot", "temperature='hot' must be a number from 0 to 2"),
        ("steps=0", "steps=0 must be a whole number from 1"),
        ("seed=1.5", "seed=1.5 must be a whole number"),
        ("guidance_scale=.nan", "guidance_scale=nan must be a number"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(word, words):
    with pytest.raises(ValueError, match=words):
        parsed([word])


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err.strip().endswith("unigrpo app needs Gradio: pip install 'unigrpo[app]'")


def test_base_and_adapter_answer_side_by_side_from_one_seed(tmp_path):
    folder = tmp_path / "adapter"
    model = get_peft_model(load_policy("builtin:arithmetic").model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    own, frames = opened("builtin:arithmetic", str(folder)), []
    prompt = "Tom has 127 cups and gets 4. Total?"
    own.answer(prompt, frames.append, task="text", settings={"seed": 5, "temperature": 1.0})
    base, adapter = frames[-1]
    said = ["".join(text for text, _ in column.spans[0].pieces) for column in (base, adapter)]
    assert own.base == "builtin:arithmetic"
    assert own.compared and (base.title, adapter.title) == ("base", "adapter") and said[0] != said[1]
    assert load_policy("builtin:arithmetic").generate(prompt, seed=5, temperature=1.0) == said[:1]
    with pytest.raises(ValueError, match=r"was trained on .* not on 'builtin:sudoku'"):
        opened("builtin:sudoku", str(folder))
    with pytest.raises(ValueError, match="is no adapter"):
        opened(None, "builtin:arithmetic")
    blocks, policy = tiny_decoder("blocks")
    blocks.save_pretrained(tmp_path / "blocks")
    policy.processor.save_pretrained(tmp_path / "blocks")
    with pytest.raises(ValueError, match=r"block_length=8: .*blocks is not asked for it on any tab; leave it out"):
        opened(str(tmp_path / "blocks"), None, ["block_length=8"])
