"""Token layouts of MMaDA's tasks, as pure functions on ids (``training/prompting_utils.py`` of the public code)."""

from __future__ import annotations

import torch
from torch import Tensor


def lm(texts: list[list[int]], *, bos: int, eos: int, max_length: int) -> Tensor:
    """``bos text eos`` padded on the right with eos to ``max_length``; ids int64 ``[B, max_length]``.

    A text that already starts with bos is not given a second one. A text that is too long is cut and gets no eos.
    Padding is attended in this layout: its attention mask is all ones.
    """
    rows = []
    for tokens in texts:
        row = list(tokens) if tokens[:1] == [bos] else [bos, *tokens]
        row.append(eos)
        rows.append(row[:max_length] + [eos] * (max_length - len(row)))
    return torch.tensor(rows, dtype=torch.int64)


def lm_chat(texts: list[list[int]], *, bos: int, eos: int, end_header: int, max_length: int) -> tuple[Tensor, Tensor]:
    """``lm``'s ids and the prompt mask ``[B, max_length]`` int64: 1 up to and including the last ``end_header``.

    The newline after the header belongs to the answer. A text without a header has no prompt: its mask is all zeros.
    """
    ids = lm(texts, bos=bos, eos=eos, max_length=max_length)
    is_header = ids == end_header
    after_or_at = is_header.flip(1).cumsum(1).flip(1)
    return ids, (after_or_at > 0).long()


def mmu(
    texts: list[list[int]],
    image_ids: Tensor,
    *,
    mmu: int,
    soi: int,
    eoi: int,
    bos: int,
    eos: int,
    end_header: int,
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """``mmu soi image eoi`` and then ``lm_chat`` of ``max_length``, whose last id is eos also where a text is cut.

    Args:
        image_ids: ``[B, N]`` int64 vocabulary ids.

    Returns:
        ids and prompt mask ``[B, N + 3 + max_length]`` int64; the image belongs to the prompt.
    """
    cut = [tokens[: max_length - 1 - (tokens[:1] != [bos])] for tokens in texts]
    ids, prompt = lm_chat(cut, bos=bos, eos=eos, end_header=end_header, max_length=max_length)
    ids = torch.cat([around(image_ids, [mmu, soi], [eoi]), ids], dim=1)
    return ids, torch.cat([torch.ones(len(ids), ids.shape[1] - prompt.shape[1], dtype=torch.int64), prompt], dim=1)


def t2i(
    captions: list[list[int]],
    image_ids: Tensor,
    *,
    t2i: int,
    bos: int,
    eos: int,
    soi: int,
    eoi: int,
    ipad: int,
    text_slots: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``[iPAD]* t2i bos caption eos soi image eoi``, the text padded on the left; ids and bool mask ``[B, L]``.

    A caption that already starts with bos is not given a second one.

    Args:
        captions: token ids; an empty caption is the unconditional prompt.
        image_ids: ``[B, N]`` int64 vocabulary ids, or the mask id.
        text_slots: the text takes exactly ``text_slots + 1`` positions, as in the public code; None = as many as the
            longest text needs.

    Raises:
        ValueError: a caption that does not fit.
    """
    rows = [[t2i, *([] if tokens[:1] == [bos] else [bos]), *tokens, eos] for tokens in captions]
    longest = max(len(row) for row in rows)
    length = longest if text_slots is None else text_slots + 1
    if longest > length:
        raise ValueError(f"a caption of {longest - 3} tokens does not fit {text_slots} text slots")
    text = torch.tensor([[ipad] * (length - len(row)) + row for row in rows], dtype=torch.int64)
    ids = torch.cat([text, around(image_ids, [soi], [eoi])], dim=1)
    real = torch.arange(ids.shape[1]) >= length - torch.tensor([len(row) for row in rows])[:, None]
    return ids, real


def around(ids: Tensor, before: list[int], after: list[int]) -> Tensor:
    """``ids [B, N]`` between the same tokens in every row."""
    rows = len(ids)
    first, last = (torch.tensor(tokens, dtype=ids.dtype).expand(rows, -1) for tokens in (before, after))
    return torch.cat([first, ids, last], dim=1)


def r2i(
    texts: list[list[int]],
    image_ids: Tensor,
    *,
    r2i: int,
    soi: int,
    eoi: int,
    bos: int,
    eos: int,
    end_header: int,
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """Think, then draw: ``r2i``, ``lm_chat`` of ``max_length``, ``soi image eoi``; a text that is cut still ends in eos.

    Args:
        texts: token ids of the chat, the thought its last answer.
        image_ids: ``[B, N]`` int64 vocabulary ids.

    Returns:
        ids and prompt mask ``[B, max_length + N + 3]`` int64. The thought, its padding and the codes are the answer. A text
        without a header is all prompt.
    """
    cut = [tokens[: max_length - 1 - (tokens[:1] != [bos])] for tokens in texts]
    ids, prompt = lm_chat(cut, bos=bos, eos=eos, end_header=end_header, max_length=max_length)
    prompt[prompt.sum(dim=1) == 0] = 1
    prompt = around(prompt, [1], [1])
    picture = torch.zeros_like(image_ids)
    ids = torch.cat([around(ids, [r2i], [soi]), image_ids, torch.full((len(ids), 1), eoi)], dim=1)
    return ids, torch.cat([prompt, picture, torch.ones(len(ids), 1, dtype=torch.int64)], dim=1)
