"""Published recipes of masked-denoising training as plain data: for each task the keys of ``MaskedDenoising`` that differ.

A preset says what a loss is. What rows a run sees, and how often, is said by its datasets and their sampling weights; the
optimizer is the user's. Each docstring has the source, the numbers that the authors trained with, and where their code does
something else. Every key can be set over a preset. One of your own is a function named ``pkg.mod:attr``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..algorithm.denoising import MaskedDenoising
from ..errors import check_choice
from ..parts import import_part, keys_of
from ..types import SPANS, TASKS


OBJECTIVE_TASKS = (*TASKS, *SPANS["r2i"])
"""Tasks that have a loss. Rows of ``r2i`` have one for thought and picture together, or one for each."""

READERS = {
    "train_padding": ("text", "mmu", "r2i", "thought"),
    "train_marks": ("t2i",),
    "caption_dropout": ("t2i", "picture", "r2i", "i2i"),
    "spans": ("r2i",),
    "swap_prompt": SPANS["r2i"],
}
"""Keys that the rows of some tasks alone read, and these tasks."""

Objectives = dict[str, dict[str, Any]]


def _mmada(t2i: float, text: float, mmu: float, row: str = "answer") -> Objectives:
    """MMaDA's losses under the coefficients of one stage; ``row`` divides those of its text."""
    picture = {
        "law": "cosine",
        "mask_ratio_min": 0.0,
        "weight": "mean",
        "denominator": "tokens",
        "train_marks": True,
        "caption_dropout": 0.1,
        "coefficient": t2i,
    }
    return {
        "t2i": picture,
        "text": {"denominator": row, "coefficient": text},
        "mmu": {"coefficient": mmu},
        "r2i": {"coefficient": t2i},
    }


def mmada_stage1() -> Objectives:
    """MMaDA, arXiv 2505.15809, stage 1 (code: configs of ``train_mmada.py``): ImageNet, captions, RefinedWeb.

    Pictures: the plain mean over hidden codes, cos(pi/2 u) of them, coefficient 1. Captions to write: sum -log p / (p n), mean
    over rows, coefficient 1. Text: sum -log p / (p L), coefficient 0.1. Every empty place behind a text is trained as eos.
    Authors: learning rate 1e-4, 5000 warm-up steps, rows of t2i/text/mmu 7/2/6 a GPU and 2 accumulated, 128 text places,
    256 pixels.

    Where the code differs: it feeds the mask of t2i's padding as numbers 0 and 1 that are added to the scores, so that padding is
    read almost like text; here it is masked (0.03 and 0.35 nats on two recorded batches). Its mean over codes also has the two marks around the
    picture, which are visible: ``train_marks``, kept. Its means are of a micro-batch, here of an optimizer step; the two are one
    where nothing is accumulated. The weight decay that it means to keep from norms and embeddings hits them.
    """
    return _mmada(1.0, 0.1, 1.0, "row")


def mmada_stage2() -> Objectives:
    """MMaDA, arXiv 2505.15809, stage 2 (``train_mmada_stage2.py``): SA-1B, CC12M, LAION in place of ImageNet; otherwise ``mmada_stage1``.

    Coefficients of t2i/text/mmu 1/0.1/0.5, rows 7/2/3 a GPU. Authors: learning rate 5e-5, 256 text places, 256 pixels. The
    paper counts this as the second half of its stage 1.
    """
    return _mmada(1.0, 0.1, 0.5, "row")


def mmada_stage3() -> Objectives:
    """MMaDA, arXiv 2505.15809, stage 3 (``train_mmada_stage3.py``): 512 pixels and instructions in place of plain text.

    Coefficients 1/0.4/0.5, rows 4/1/1 a GPU and 4 accumulated, 512 text places. Text is divided by the row's length still, its
    prompt included. The authors' YAML names 256 codes for 512 pixels, which are 1024.
    """
    return _mmada(1.0, 0.4, 0.5, "row")


def mmada_cot() -> Objectives:
    """MMaDA's Mixed Long-CoT fine-tuning, arXiv 2505.15809 (``train_mmada_cot_sft.py``; the README calls it ``stage_cot_sft``).

    Chats: everything through the last header is context, the rest and its padding are trained, sum -log p / (p n), mean over
    rows. Coefficients 1/0.5/0.5, rows 1/2/1 a GPU and 4 accumulated. Authors: learning rate 5e-5, 512 text places, of chats
    1536, 1024 codes.

    Where the code differs: the newline after the assistant's header is trained there, and is prompt here, as in sampling. With
    LLaDA's stored template, whose header ends in two newlines, it trains padding alone on questions about pictures; here the
    library's template is used, and an answer that is cut away is an error. Chat rows of 1536 tokens and more are skipped there,
    here refused. 4 of 1004 shard draws of its picture questions have thoughts; here ``sampling_weights`` says. Think-then-draw
    (r2i) is in its files and in no script: law and coefficient (the pictures') are a reading of them.
    """
    return _mmada(1.0, 0.5, 0.5)


def mmada_stage4() -> Objectives:
    """MMaDA, arXiv 2505.15809, stage 4 (``train_mmada_stage4.py``), from the Mixed-CoT checkpoint: coefficients 0.05/0.6/0.4, else ``mmada_cot``.

    Authors: rows 1/2/1 a GPU and 4 accumulated. The "coefficients" inside a task are sampling weights there: text 0.02 plain,
    0.98 instructions; questions about pictures 3.5 thoughts, 5.5 VQA, 0.5 CLEVR, 0.5 Geo170K: ``sampling_weights``.
    """
    return _mmada(0.05, 0.6, 0.4)


def llada() -> Objectives:
    """LLaDA's fine-tuning, arXiv 2502.09992, Algorithm 2 and GUIDELINES.md: sum -log p / (p n), mean over rows.

    p = 0.999 u + 0.001, n = the answer with its padding of eos. Pre-training divides by L, all tokens trained: rows with a
    ``text`` alone, ``denominator: row``. There one row in a hundred is cut to a random length, here none. Authors: learning
    rate 2.5e-5, 3 epochs, batch 256.
    """
    return {"text": {}, "mmu": {}}


def dllm() -> Objectives:
    """The fine-tuning of dLLM-RL (``sft_mmada.py``, arXiv 2509.06949), method random_masking.

    p ~ U(0.1, 0.9), the mean over a row's hidden tokens, mean over rows, no 1/p: not a bound of the likelihood. Padding is never
    trained. Its code hides padding together with the answer and noises a row twice a step (``mask_times_per_sample``); here it is
    no part of the row, and a row is noised once. Authors: learning rate 1e-5, no weight decay.
    """
    keys = {"mask_ratio_min": 0.1, "mask_ratio_max": 0.9, "weight": "mean", "denominator": "masked"}
    return {"text": {**keys, "train_padding": "none"}, "mmu": {**keys, "train_padding": "none"}}


def dream() -> Objectives:
    """The fine-tuning of Dream and Dream-Coder (arXiv 2508.15487, 2509.01142; ``fsdp_sft_trainer.py``), time reweighting "original".

    p ~ U(0, 1), weight 1/p, the sum of all rows over their hidden tokens. The loss is of shifted logits, which the policy says.
    Authors: learning rate 5e-6, 4000 tokens, 7 epochs. Their p has no smallest value and their weight no bound; here p is 0.001
    at least. Their mean is of a process's batch, here of an optimizer step.
    """
    return {"text": {"denominator": "tokens"}}


def dream_linear() -> Objectives:
    """``dream`` with the time reweighting "linear": weight 1 - p."""
    return {"text": {"denominator": "tokens", "weight": "1-p", "mask_ratio_min": 0.0}}


def dream_cart() -> Objectives:
    """``dream`` with CART, the context-adaptive weight that Dream-Coder's ``run_sft.sh`` trains with: cart_p 0.1.

    A visible token at distance d adds cart_p (1 - cart_p)^(d - 1) / 2 to a hidden one's weight, the prompt's tokens too. dllm's
    trainer of Dream has cart_p 0.3 and divides by all tokens of the answers (``denominator: answers``).
    """
    return {"text": {"denominator": "tokens", "weight": "cart", "mask_ratio_min": 0.0}}


def mdlm() -> Objectives:
    """The MDLM trainer of dllm (ZHZisZZ/dllm), with which A2D turns autoregressive checkpoints into diffusion models.

    p = 0.999 u + 0.001, weight 1/p, the sum of all rows over the tokens of their answers (its ``loss_norm_type`` "token"; "sequence"
    is ``denominator: answer``, "batch" ``denominator: none``). Its weight is 1/(p + 1e-6). With ``right_shift_logits`` it puts a bos
    before a row; here ``logit_shift`` of the model says so, and the prompt's last token predicts the first of the answer.
    """
    return {"text": {"denominator": "answers"}}


def lumina() -> Objectives:
    """Lumina-DiMOO, arXiv 2510.06308 (``train.py`` of Alpha-VLLM/Lumina-DiMOO): cos(pi/2 u) of the tokens hidden, the mean of -log p over
    them all.

    A caption is dropped once in ten rows. Where the code differs: it hides an answer in text and the padding behind it each with
    a ratio of its own, 1 where there are five tokens or fewer, and rounds down; here both have one. Its mean is of a process's batch
    and over pictures and text together; here each task has its own, of an optimizer step. It pads rows on the right and reads
    the padding (``attn_mask_mode: none``), which goes with ``caption_dropout: 0`` here. Its answers have 1024 places.
    """
    keys = {"law": "cosine", "mask_ratio_min": 0.0, "weight": "mean", "denominator": "tokens"}
    return {"t2i": {**keys, "caption_dropout": 0.1}, "mmu": keys, "i2i": {**keys, "caption_dropout": 0.1}}


def mmada_parallel_a() -> Objectives:
    """MMaDA-Parallel-A, arXiv 2511.09611 (``train.py`` of tyfeld/MMaDA-Parallel): ``lumina``'s law for an edit and the text behind it, each
    under a ratio of its own; a span of five tokens or fewer is hidden whole.

    The mean of -log p over all that is hidden, and one instruction in ten is dropped. Where the code differs: it rounds down, its
    mean is of a process's batch, it reads padding, and it cuts a text at 512 tokens, where ``max_length`` refuses a row here.
    """
    keys = {"law": "cosine", "mask_ratio_min": 0.0, "weight": "mean", "denominator": "tokens"}
    return {"r2i": {**keys, "spans": "apart", "hide_whole": 5, "train_padding": "none", "caption_dropout": 0.1}}


def bd3lm() -> Objectives:
    """``mdlm`` as dllm's BD3LM trainer applies it to models whose attention is in blocks (arXiv 2503.09573): every block is scored
    behind the clean ones before it, which the policy says.

    One p a row; the paper draws one for each block. Padding fills the last block and is trained. Its grid begins with the row, also
    where its sampler's begins with the answer; here both are ``block_anchor``'s.
    """
    return {"text": {"denominator": "answers", "train_padding": "block"}}


def sdar() -> Objectives:
    """The fine-tuning of SDAR (arXiv 2510.06303; its models' own training forward), blocks as in ``bd3lm``.

    p = 0.999 u + 0.001, weight 1/p, the sum of all rows over the tokens of their answers. p and mask are drawn again, ten times at
    most, until something is hidden. The code packs rows and draws again for a packed row as a whole; here a row is one sample.
    dLLM-RL's fine-tuning of SDAR and TraDo has p ~ U(0.1, 0.9) and no 1/p: ``mask_ratio_min``, ``mask_ratio_max``, ``weight: mean``.
    """
    return {"text": {"denominator": "answers", "train_padding": "none", "tries": 10}}


def dfactory() -> Objectives:
    """The fine-tuning of LLaDA2 in dFactory (``train_llada2_bd.py``), blocks as in ``bd3lm``.

    p ~ U(0.3, 0.8), the mean over the hidden tokens of all rows, padding included, no 1/p: not a bound of the likelihood. Authors:
    learning rate 1e-5, weight decay 0.1, blocks of 32.
    """
    return {"text": {"mask_ratio_min": 0.3, "mask_ratio_max": 0.8, "weight": "mean", "denominator": "tokens"}}


def diffusion_gemma() -> Objectives:
    """The fine-tuning of DiffusionGemma as NeMo Automodel's guide describes it, its canvases as blocks in ``bd3lm``.

    p = 0.999 u + 0.001 of a canvas's tokens are replaced by uniformly random ones, and every token of it is scored: the mean -log p of all
    of them, without 1/p. The guide adds the encoder's own next-token loss and reads its own logits again in half of the steps; this
    does neither.
    """
    return {
        "text": {"weight": "mean", "denominator": "answers", "train_padding": "block", "train_visible": True},
    }


def think_then_draw() -> Objectives:
    """``mmada_cot``, but of a thought and its picture (r2i) one is learned at a time, as they are sampled: the thought before there
    is a picture, the codes after the whole thought.

    Under one mask ratio for both, the law that ``mmada_cot`` reads out of MMaDA's files, a small model draws from the prompt and ignores
    the thought. Here 30 % of the pictures are taught under another row's prompt, after which the thought decides.
    """
    found = mmada_cot()
    picture = {**found["t2i"], "train_marks": False, "swap_prompt": 0.3}
    del found["r2i"]
    return {**found, "thought": {"denominator": "answer", "coefficient": 1.0}, "picture": picture}


def mmada_parallel_m() -> Objectives:
    """MMaDA-Parallel-M's fine-tuning, arXiv 2511.09611 (``train_interleave.py``), for a thought and its picture (r2i).

    t ~ U(0.001, 1), hidden is cos(pi/2 cos(pi/2 t)) of either. Thought: sum -log p / (t n); picture: the plain mean over its codes.

    Where the code differs: one t serves both in one row, and exactly so many codes are hidden as it says; here a row trains one of them, as
    in ``think_then_draw``, and every code is hidden by chance. The sum over a thought is divided by one place more, its bos, and not by
    the rows of a batch; the mean over codes also has the two marks, which cost nothing. Padding of prompts is cast to numbers 0 and 1 that
    are added to the scores. Prompts and pictures to edit are dropped, each by a chance of its own.
    """
    keys = {"law": "cosine_twice", "mask_ratio_min": 0.0, "denominator": "answer"}
    return {"thought": {**keys, "weight": "1/u"}, "picture": {**keys, "weight": "mean"}}


OBJECTIVES: dict[str, Callable[[], Objectives]] = {
    "mmada_stage1": mmada_stage1,
    "mmada_stage2": mmada_stage2,
    "mmada_stage3": mmada_stage3,
    "mmada_cot": mmada_cot,
    "mmada_stage4": mmada_stage4,
    "think_then_draw": think_then_draw,
    "mmada_parallel_m": mmada_parallel_m,
    "llada": llada,
    "lumina": lumina,
    "mmada_parallel_a": mmada_parallel_a,
    "dllm": dllm,
    "dream": dream,
    "dream_linear": dream_linear,
    "dream_cart": dream_cart,
    "mdlm": mdlm,
    "bd3lm": bd3lm,
    "sdar": sdar,
    "dfactory": dfactory,
    "diffusion_gemma": diffusion_gemma,
}


def objectives_of(
    name: str, given: Mapping[str, Any] | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, MaskedDenoising]:
    """The objective of each task that preset ``name`` has one for.

    Args:
        given: keys for every task, over the preset's.
        overrides: keys for one task, over both; they may add a task.

    Raises:
        ValueError: an unknown preset, task or key, or a value out of range; the message names it.
    """
    found = _preset(name)
    for where, tasks in ((f"objective={name!r} task", found), ("task_overrides key", overrides or {})):
        for task in tasks:
            check_choice(where, task, OBJECTIVE_TASKS)
    result = {}
    for task in OBJECTIVE_TASKS:
        own = dict((overrides or {}).get(task, {}))
        if task not in found and not own:
            continue
        keys = {**found.get(task, {}), **(given or {}), **own}
        result[task] = MaskedDenoising(
            **_read(keys, "" if task not in (overrides or {}) else f"task_overrides.{task}.")
        )
    spans = [span for span in SPANS["r2i"] if span in result]
    if spans and ("r2i" in result or len(spans) == 1):
        raise ValueError(
            f"objective={name!r} with tasks {list(result)}: give a thought and its picture one law together ('r2i'), or each its own "
            "('thought' and 'picture')"
        )
    return result


def unread(name: str, given: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was set and no row reads, ``KEY=VALUE (its readers)``; the arguments are those of ``objectives_of``, which took them.

    A value that is the default needs no reader.
    """
    tasks = set(objectives_of(name, given, overrides))
    places = [("", tasks, given), *((f"task_overrides.{task}.", {task}, own) for task, own in overrides.items())]
    return [
        f"{where}{key}={value!r} (read by {' and '.join(repr(task) for task in READERS[key])})"
        for where, own, values in places
        for key, value in values.items()
        if key in READERS and not own & set(READERS[key]) and value != keys_of(MaskedDenoising)[key].default
    ]


def _preset(name: str) -> Objectives:
    if ":" not in name:
        check_choice("objective", name, tuple(OBJECTIVES))
        return OBJECTIVES[name]()
    try:
        return import_part(name)()
    except (ImportError, ValueError) as error:
        raise ValueError(f"objective={name!r} cannot be imported: {error}") from error


def _read(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = keys_of(MaskedDenoising)
    for key in keys:
        check_choice(f"{where}key", key, tuple(known))
    return {key: known[key].read(value, where) for key, value in keys.items()}
