"""The page of ``unigrpo app``: a tab for each thing that the policy can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .examples import examples
from .jobs import Job, Jobs, Stopped, Waiting, sentence
from .live import Frame
from .policy import Talker, rewards_of
from .settings import SETTINGS
from .show import CSS, html


TABS = {
    "text": ("Chat", "Prompt", "Send"),
    "t2i": ("Draw", "Caption", "Draw"),
    "r2i": ("Think + draw", "Caption or riddle", "Draw"),
    "mmu": ("Ask", "Question", "Ask"),
}
"""Task -> the names of its tab, of what is typed and of its button."""

NO_REWARD = "none"


def page(talker: Talker) -> gr.Blocks:
    """The page, nothing served yet."""
    jobs = Jobs()
    with gr.Blocks(title=f"{talker.name} | unigrpo", analytics_enabled=False) as blocks:
        gr.Markdown(f"### {talker.name}\nEach token has the colour of the denoising step that wrote it.")
        with gr.Tabs():
            for task in TABS:
                if task in talker.tasks:
                    with gr.Tab(TABS[task][0]):
                        _tab(talker, jobs, task)

        def left(request: gr.Request) -> None:
            jobs.stop(request.session_hash)

        blocks.unload(left)
    return blocks


def _tab(talker: Talker, jobs: Jobs, task: str) -> None:
    """What is asked, the buttons, the answer, settings and examples."""
    _, asked, button = TABS[task]
    own = f"{task}-"
    image = (
        gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"], height=240) if task == "mmu" else None
    )
    prompt = gr.Textbox(label=asked, lines=1, max_lines=8, elem_id=own + "prompt", autofocus=task == "text")
    with gr.Row():
        send = gr.Button(button, variant="primary", elem_id=own + "send", min_width=120)
        stop = gr.Button("Stop", elem_id=own + "stop", min_width=120)
    shown = gr.HTML(elem_id=own + "answer", elem_classes="answers", padding=False)
    given = [prompt] if image is None else [prompt, image]
    gr.Examples(examples(talker.names, task), inputs=given, label="Examples")
    with gr.Accordion("Settings and reward", open=False):
        knobs = {}
        offered = talker.settings(task)
        for line in (offered[:3], offered[3:]):
            with gr.Row():
                knobs |= {key: _knob(talker, key, task) for key in line}
        with gr.Row():
            reward = gr.Dropdown([NO_REWARD, *rewards_of(task)], value=NO_REWARD, label="Reward of the answer")
            gold = gr.Textbox(label="Gold answer, where it needs one")

    def answered(values: dict[Any, Any], request: gr.Request) -> Iterator[str]:
        def ask(job: Job) -> None:
            talker.answer(
                values[prompt],
                job.show,
                task=task,
                image=None if image is None else values[image],
                settings={key: SETTINGS[key].checked(values[knob]) for key, knob in knobs.items()},
                reward=None if values[reward] == NO_REWARD else values[reward],
                gold=values[gold] or "",
            )

        yield from frames(jobs, request.session_hash, ask)

    inputs = {*given, reward, gold, *knobs.values()}
    gr.on(
        [send.click, prompt.submit],
        answered,
        inputs=inputs,
        outputs=shown,
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )

    def stopped(request: gr.Request) -> None:
        jobs.stop(request.session_hash)

    stop.click(stopped, queue=False, show_progress="hidden", api_visibility="private")


def frames(jobs: Jobs, owner: str | None, ask: Any) -> Iterator[str]:
    """What the page shows while a job waits, runs and ends."""
    frame: Frame = ()
    try:
        for found in jobs.run(owner, ask):
            if isinstance(found, Waiting):
                before = "1 answer is" if found == 1 else f"{int(found)} answers are"
                yield html((), note=f"{before} before this one.")
                continue
            frame = found
            yield html(frame)
    except Stopped:
        yield html(frame, note="Stopped.")
    except Exception as error:
        yield html(frame, fault=sentence(error))


def _knob(talker: Talker, key: str, task: str) -> gr.Number:
    own = SETTINGS[key]
    step = 1 if own.whole else 0.1
    start = talker.start(key, task)
    return gr.Number(start, label=own.label, precision=0 if own.whole else None, step=step, min_width=110)


def serve(talker: Talker, host: str, port: int) -> gr.Blocks:
    """The page, served in threads of its own; ``local_url`` says where.

    Raises:
        ValueError: the port is taken, or the host is none of this machine's.
    """
    blocks = page(talker).queue(default_concurrency_limit=None)
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size="20mb",
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: nothing can listen there ({error}); give another --port"
        ) from None
    return blocks
