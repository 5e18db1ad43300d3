"""The masked-denoising objective: its formula by enumeration, and the losses and gradients of MMaDA's public code."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unigrpo.algorithm.denoising import MaskedDenoising, denoising_sum
from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models import MMaDAForMaskedDiffusion, MMaDAPolicy
from unigrpo.models.mmada import layouts
from unigrpo.types import Canvas, TokenSpace, keyed_generator

from ..support.tiny import GOLDENS, SPECIALS, golden, tiny_model, tiny_processor


PICTURE = MaskedDenoising(law="cosine", mask_ratio_min=0.0, weight="mean", denominator="tokens", train_marks=True)
ANSWER = MaskedDenoising()
ROW = MaskedDenoising(denominator="row")


def loss(model, policy, objective, clean, noisy, trained, ratios, attention=None, marks=None):
    """The objective of given rows ``[b, L]`` that were noised by somebody else."""
    hidden = (noisy == policy.mask_token_id) & trained
    rows = [
        objective.weigh(hidden[b], trained[b], float(ratios[b]), None if marks is None else marks[b])
        for b in range(len(clean))
    ]
    target, weight = torch.stack([own.target for own in rows]), torch.stack([own.weight for own in rows])
    canvas = Canvas(
        ids=clean,
        fill_mask=trained,
        attention_mask=torch.ones_like(trained) if attention is None else attention.bool(),
        task="text",
        token_space=TokenSpace(start=0, stop=model.config.vocab_size),
    )
    logps = score_tokens(model, policy, canvas, hidden, target).logps
    return objective.coefficient * denoising_sum(logps, weight).sum() / sum(own.share for own in rows)


def picture_rows(ids, labels, mask_id, length, codes):
    """Clean rows, trained codes and marks of the public t2i rows, whose labels hold what is hidden."""
    clean = torch.where(ids == mask_id, labels, ids)
    place = torch.arange(ids.shape[1]).expand_as(ids)
    trained = (place > length) & (place <= length + codes)
    return clean, trained, (place == length) | (place == length + codes + 1)


# ---- g4: forward_process on MMaDA's tiny model ----

G4, ABOUT4 = golden("g4_likelihood_losses")


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model()
    return model, MMaDAPolicy(model.config, tiny_processor())


def g4_text(case, rows):
    ids, labels = G4[f"{case}.input_ids"][rows], G4[f"{case}.labels"][rows]
    return torch.where(labels == -100, ids, labels), ids


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "objective", "place"),
    [("uni_text", ANSWER, 1), ("uni_text", ROW, 1), ("uni_chat", ANSWER, 1), ("uni_chat", ROW, 4)],
)
def test_text_losses_of_the_public_code(tiny, case, objective, place):
    clean, noisy = g4_text(case, slice(2, 4))
    lengths = G4[f"{case}.answer_lengths_lm"][:, 0]
    trained = torch.arange(clean.shape[1]) >= clean.shape[1] - lengths[:, None]
    value = loss(*tiny, objective, clean, noisy, trained, G4[f"{case}.p_mask_lm"][:, 0])
    assert value.item() == pytest.approx(ABOUT4[case]["losses"][place], abs=1e-5)


@pytest.mark.golden
def test_mmu_loss_of_the_public_code(tiny):
    clean, noisy = g4_text("uni_text", slice(4, 6))
    value = loss(*tiny, ANSWER, clean, noisy, G4["uni.mmu_prompt_mask"] == 0, G4["uni_text.p_mask_mmu"][:, 0])
    assert value.item() == pytest.approx(ABOUT4["uni_text"]["losses"][2], abs=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize(("marked", "place"), [(True, 6), (False, 7)])
def test_picture_loss_of_the_public_code_under_a_true_mask(tiny, marked, place):
    ids, labels = G4["uni_text.input_ids"][:2], G4["uni_text.labels"][:2]
    clean, trained, marks = picture_rows(ids, labels, ABOUT4["ids"]["mask"], 13, 64)
    objective = MaskedDenoising(
        law="cosine", mask_ratio_min=0.0, weight="mean", denominator="tokens", train_marks=marked
    )
    attention = G4["uni_text.t2i_masks"]
    value = loss(*tiny, objective, clean, ids, trained, [1, 1], attention, marks)
    assert value.item() == pytest.approx(ABOUT4["uni_text"]["losses"][place], abs=1e-5)


@pytest.mark.golden
def test_hidden_codes_are_as_many_as_in_the_public_code():
    """round(N cos(pi/2 u)), at least one, of its recorded u; the numbers are drawn by another generator."""
    counts = [max(round(64 * float(p)), 1) for p in G4["maskfn.mask_prob"]]
    assert counts == ABOUT4["maskfn"]["n_masked"]
    trained = torch.ones(64, dtype=torch.bool)
    for seed in range(20):
        u = float(torch.rand((), dtype=torch.float64, generator=keyed_generator(seed)))
        drawn = PICTURE.hide(trained, generator=keyed_generator(seed))
        assert int(drawn.hidden.sum()) == max(round(64 * math.cos(math.pi / 2 * u)), 1)
    assert int(PICTURE.hide(trained[:1], generator=keyed_generator(0)).hidden.sum()) == 1


# ---- mmada_sft: the four branches with think-then-draw, and the gradient of their sum ----

SFT, ABOUT = golden("mmada_sft")


@pytest.fixture(scope="module")
def small():
    ids = ABOUT["ids"]
    table = {key: ids[key] for key in SPECIALS} | {
        "start_header": ids["start"],
        "end_header": ids["end"],
        "eot": ids["eot"],
    }
    model = MMaDAForMaskedDiffusion.from_pretrained(
        GOLDENS / "mmada_sft",
        image_token_offset=ABOUT["n_tok"],
        special_token_ids=table,
        bos_token_id=ids["bos"],
        dtype=torch.float32,
    ).eval()
    policy = MMaDAPolicy.__new__(MMaDAPolicy)  # Its tokenizer is not recorded, and no text is read.
    policy.config, policy.mask_token_id, policy.logit_shift = model.config, ids["mask"], 0
    return model, policy


def four_losses(small, attention):
    """t2i, lm, mmu, r2i with MMaDA's coefficients of stage 4, and r2i's own."""
    coefficients = ABOUT["coefficients"]
    ids = SFT["t2i.input_ids"]
    clean, trained, marks = picture_rows(ids, SFT["t2i.labels"], ABOUT["ids"]["mask"], ABOUT["T"] + 1, ABOUT["N"])
    found = {"t2i": loss(*small, PICTURE, clean, ids, trained, [1, 1], attention, marks)}
    for task in ("lm", "mmu", "r2i"):
        arrays = [SFT[f"{task}.{name}"] for name in ("clean", "noisy")]
        found[task] = loss(*small, ANSWER, *arrays, SFT[f"{task}.prompt_mask"] == 0, SFT[f"{task}.p_mask"][:, 0])
    return found, sum(coefficients[task] * value for task, value in found.items())


@pytest.mark.golden
@pytest.mark.smoke
@pytest.mark.parametrize("mode", ["bool", "none"])
def test_four_branches_and_their_gradient_are_the_public_codes(small, mode):
    """Its own float mask hides nothing; a true one, and none at all, are recorded beside it."""
    model, _ = small
    model.zero_grad()
    found, total = four_losses(small, SFT["t2i.attention_mask"] if mode == "bool" else None)
    values = [*(own.item() for own in found.values()), total.item()]
    assert values == pytest.approx(SFT[f"loss.{mode}"].tolist(), abs=1e-5)
    total.backward()
    gradient = dict(model.named_parameters())["model.transformer.blocks.0.q_proj.weight"].grad
    assert (gradient - SFT[f"grad_q0.{mode}"]).abs().max() < 1e-5


@pytest.mark.golden
def test_think_then_draw_rows_are_the_public_codes():
    ids = ABOUT["ids"]
    clean, length = SFT["r2i.clean"], ABOUT["T"]
    texts = [row[2 : 2 + int((row[2 : length + 1] != ids["eos"]).sum())].tolist() for row in clean]
    marks = {"r2i": ids["r2i"], "soi": ids["soi"], "eoi": ids["eoi"], "bos": ids["bos"], "eos": ids["eos"]}
    codes = clean[:, -ABOUT["N"] - 1 : -1]
    built, prompt = layouts.r2i(texts, codes, **marks, end_header=ids["end"], max_length=length)
    assert torch.equal(built, clean)
    assert torch.equal(prompt, SFT["r2i.prompt_mask"].long())
    cut, prompt = layouts.r2i([[1] * 50], codes[:1], **marks, end_header=ids["end"], max_length=length)
    assert cut.shape == (1, length + ABOUT["N"] + 3) and cut[0, length] == ids["eos"]
    assert bool(prompt[0, : length + 2].all())


# ---- laws ----


@pytest.mark.parametrize("denominator", ["answer", "row", "masked", "tokens"])
@pytest.mark.parametrize("weight", ["1/p", "mean"])
def test_weights_are_the_formula_for_every_mask(weight, denominator):
    """All 2^4 masks of four trained tokens in a row of seven, with a mark."""
    objective = MaskedDenoising(weight=weight, denominator=denominator, train_marks=True)
    trained = torch.tensor([0, 0, 1, 1, 1, 1, 0], dtype=torch.bool)
    marks = torch.tensor([0, 1, 0, 0, 0, 0, 0], dtype=torch.bool)
    costs = torch.tensor([9.0, 0.5, 1.0, 2.0, 3.0, 4.0, 9.0])
    for chosen in itertools.product([0, 1], repeat=4):
        hidden = torch.tensor([0, 0, *chosen, 0], dtype=torch.bool)
        drawn = objective.weigh(hidden, trained, 0.25, marks)
        masked = sum(cost for cost, own in zip([1.0, 2.0, 3.0, 4.0], chosen, strict=True) if own)
        scored = sum(chosen) + 1
        value = (masked * 4 if weight == "1/p" else masked) + 0.5
        divisor = {"answer": 4, "row": 7, "masked": scored, "tokens": scored}[denominator]
        assert float(denoising_sum(-costs[None], drawn.weight[None])) / drawn.share == pytest.approx(value / divisor)


def test_inverse_chances_make_every_token_count_as_once():
    """The expected weight of a token, over all masks at one p, is 1 / n: enumeration with the law's own chances."""
    trained, p = torch.ones(5, dtype=torch.bool), 0.3
    total = torch.zeros(5)
    for chosen in itertools.product([False, True], repeat=5):
        chance = math.prod(p if own else 1 - p for own in chosen)
        total += chance * ANSWER.weigh(torch.tensor(chosen), trained, p).weight
    assert total.tolist() == pytest.approx([1 / 5] * 5)


@pytest.mark.parametrize(("law", "mean"), [("linear", 0.5005), ("cosine", 2 / math.pi), ("cosine_twice", 0.47200)])
def test_the_share_of_hidden_tokens_is_the_laws(law, mean):
    """E[p] = (1 + 0.001) / 2, 2 / pi for cos(pi/2 u), and the Bessel function J0(pi/2) for its cosine; four standard errors of 600 draws."""
    objective = MaskedDenoising(law=law, mask_ratio_min=1e-3 if law == "linear" else 0.0)
    trained = torch.ones(256, dtype=torch.bool)
    shares = torch.tensor(
        [float(objective.hide(trained, generator=keyed_generator(i)).hidden.double().mean()) for i in range(600)]
    )
    assert abs(float(shares.mean()) - mean) < 4 * float(shares.std()) / math.sqrt(600)
    assert shares.min() < 0.05 and shares.max() > 0.95


@pytest.mark.parametrize("law", ["linear", "cosine", "cosine_twice"])
def test_the_weight_of_u_is_found_again_from_p(law):
    objective = MaskedDenoising(law=law, mask_ratio_min=0.1, mask_ratio_max=0.9, weight="1/u", denominator="none")
    trained = torch.ones(3, dtype=torch.bool)
    for u in (0.05, 0.3, 0.5317, 0.95):
        assert objective.weigh(trained, trained, objective.ratio(u)).weight.tolist() == pytest.approx([1 / u] * 3)
    edge = 0.1 if law != "cosine" else 0.9
    assert objective.weigh(trained, trained, edge).weight.tolist() == pytest.approx([1000] * 3), (
        "no weight without a bound"
    )


def test_a_weight_without_a_bound_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio_min=0\.0 with law='linear'"):
        MaskedDenoising(mask_ratio_min=0.0)
    with pytest.raises(ValueError, match="denominator='rows' is not valid"):
        MaskedDenoising(denominator="rows")


def test_p_and_mask_are_drawn_again_while_nothing_is_hidden():
    """With p below 0.3, of one token: 15 % of single draws hide it, of ten 1 - 0.85^10."""
    trained = torch.ones(1, dtype=torch.bool)
    shares = []
    for tries in (1, 10):
        objective = MaskedDenoising(mask_ratio_max=0.3, tries=tries)
        drawn = [objective.hide(trained, generator=keyed_generator(i)) for i in range(400)]
        shares.append(sum(bool(own.hidden.any()) for own in drawn) / len(drawn))
        # The weight is of the p that hid it; small ones do so seldom: their mean is 2/3 of the largest.
        assert all(float(own.weight[0]) == pytest.approx(1 / own.ratio) for own in drawn if bool(own.hidden.any()))
    assert shares == pytest.approx([0.15, 1 - 0.85**10], abs=0.07)
