"""Makes a model that answers questions about pictures of the shapes world: ``python -m unigrpo.toy.making.yes_no FOLDER``.

A real ``transformers.LlavaForConditionalGeneration`` of 0.5 M parameters, which ``vllm serve FOLDER`` serves. It says yes or no to
the question of ``vqa_score``, and a word to *What color is it?* and its like. Like the CLIP, it sees clean pictures and pictures that
went through the image tokenizer, of all specs: held out are the pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from ...models.builtin import model_path
from ...models.magvit import MagvitV2
from ...models.processing import name_for_transformers_4
from ...rewards.vqa import QUESTION
from ...terminal import say
from ..shapes import COLOURS, FORMS, POSITIONS, SHAPES, SIDE, SIZES, WORDS, Spec, caption
from .clip import build_image_processor, checkpoint, load, noisy
from .fitting import fit, private_construction
from .image_tokenizer import HELD_OUT_SEED, PICTURES_PER_SPEC, gallery, reconstruct


ASKED = {
    "colour": "What color is it?",
    "shape": "What shape is it?",
    "size": "What size is it?",
    "position": "Where is it?",
}
"""A field of ``Spec``: the question that its word answers."""

CHOICES = {"colour": tuple(COLOURS), "shape": SHAPES, "size": SIZES, "position": POSITIONS}

SAID = FORMS | {field: f"{{{field}}}" for field in CHOICES}
"""What may be in the figure: captions, and single words, from which a comparison is learned first."""

SPECIAL = {"pad": "<pad>", "unk": "<unk>", "eos": "<eos>"}
IMAGE = "<image>"
MORE_WORDS = ("does", "this", "figure", "show", '"', "please", "answer", "yes", "or", "no", "where", "size")
PATCH = 8

CHAT = """\
{%- for message in messages -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}{{ '<image>' if part.type == 'image' else part.text }}{%- endfor -%}
{%- endif -%}
{{ '<eos>' }}
{%- endfor -%}
"""
"""Pictures and texts in their order, ``<eos>`` behind each message; the answer follows."""

STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 96, 1e-3


def build_processor() -> LlavaProcessor:
    """One token a word, whatever its case, and 16 for a picture."""
    words = dict.fromkeys([*SPECIAL.values(), IMAGE, *(word.lower() for word in (*WORDS, *MORE_WORDS))])
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=SPECIAL["unk"]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated")]
    )
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in [*SPECIAL.values(), IMAGE]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{f"{name}_token": token for name, token in SPECIAL.items()},
        additional_special_tokens=[IMAGE],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    images = build_image_processor(SIDE)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="full", chat_template=CHAT
    )
    processor.num_additional_image_tokens = 1
    return processor


def build_model(
    tokenizer: PreTrainedTokenizerFast, clip: CLIPModel, *, generator: torch.Generator
) -> LlavaForConditionalGeneration:
    """It sees with the eyes of ``clip``; all else is random by ``generator``.

    The decoder's heads are 32 wide, which vLLM's kernels for CPUs take.
    """
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=Qwen2Config(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            tie_word_embeddings=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2 + 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with private_construction(generator):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    return model


class Lessons:
    """Questions about pictures with their answers, one word each, drawn by ``generator`` alone."""

    def __init__(self, magvit: MagvitV2, generator: torch.Generator, per_spec: int = PICTURES_PER_SPEC) -> None:
        seed = int(torch.randint(2**31, (), generator=generator))
        self.generator = generator
        self.members, real = gallery(per_spec, seed)
        self.pictures = torch.stack([real, reconstruct(magvit, real)])

    def draw(self, count: int) -> tuple[Tensor, list[str], list[str]]:
        """Pixels ``[n, 3, H, W]``, questions and answers. Of three questions two are that of ``vqa_score``."""
        rows = torch.randint(len(self.members), (count,), generator=self.generator)
        asked = [self._asked(self.members[row]) for row in rows]
        return self.pictures[torch.arange(count) % 2, rows], *map(list, zip(*asked, strict=True))

    def _asked(self, shown: Spec) -> tuple[str, str]:
        if self._below(3) == 0:
            field = list(ASKED)[self._below(len(ASKED))]
            return ASKED[field], getattr(shown, field)
        form = list(SAID)[self._below(len(SAID))] if self._below(2) == 0 else "full"
        if self._below(2):
            return QUESTION.format(prompt=SAID[form].format(**asdict(shown))), "yes"
        said, fields = shown, [field for field in CHOICES if f"{{{field}}}" in SAID[form]]
        # Mostly one word is wrong: what a policy that errs draws.
        for _ in range(1 + self._below(3) // 2):
            field = fields[self._below(len(fields))]
            others = [word for word in CHOICES[field] if word != getattr(shown, field)]
            said = replace(said, **{field: others[self._below(len(others))]})
        return QUESTION.format(prompt=SAID[form].format(**asdict(said))), "no"

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.generator))


def next_word(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, asked: list[str]
) -> Tensor:
    """Logits ``[n, V]`` of the word that follows each question about its picture."""
    tokenizer = processor.tokenizer
    pictures = IMAGE * model.config.image_seq_length
    batch = tokenizer([f"{pictures}{text}{SPECIAL['eos']}" for text in asked], padding=True, return_tensors="pt")
    last = batch["attention_mask"].sum(1) - 1
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=pixels).logits
    return logits[torch.arange(len(asked)), last]


def train(model, processor, lessons: Lessons, *, steps: int, generator: torch.Generator, state: Path | None) -> float:
    """Trains ``model`` in place, and returns the last loss; ``state`` as in ``fit``."""

    def loss(step: int) -> Tensor:
        pixels, asked, answers = lessons.draw(BATCH_SIZE)
        ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(answers))
        return F.cross_entropy(next_word(model, processor, noisy(pixels, generator=generator), asked), ids)

    adamw = {"lr": LEARNING_RATE, "betas": (0.9, 0.98), "weight_decay": 0.01}
    return fit(model, loss, steps=steps, title="yes or no", generator=generator, state=state, **adamw)


@torch.no_grad()
def figures(model: LlavaForConditionalGeneration, processor: LlavaProcessor, magvit: MagvitV2) -> dict[str, float]:
    """Shares of held-out restored pictures that get the right answer: yes to the own caption, no to one with one other word."""
    lessons = Lessons(magvit, torch.Generator().manual_seed(HELD_OUT_SEED), per_spec=2)
    pictures, members = lessons.pictures[1], lessons.members
    tokenizer = processor.tokenizer

    def right(asked: list[str], answers: list[str]) -> float:
        words = torch.cat(
            [
                next_word(model, processor, pictures[i : i + 240], asked[i : i + 240]).argmax(1)
                for i in range(0, len(asked), 240)
            ]
        )
        return (words == torch.tensor(tokenizer.convert_tokens_to_ids(answers))).float().mean().item()

    found = {
        "yes to the own caption": right(
            [QUESTION.format(prompt=caption(own)) for own in members], ["yes"] * len(members)
        )
    }
    for field, choices in CHOICES.items():
        others = [
            replace(own, **{field: choices[(choices.index(getattr(own, field)) + 1) % len(choices)]})
            for own in members
        ]
        asked = [QUESTION.format(prompt=caption(other)) for other in others]
        found[f"no where the {field} is another"] = right(asked, ["no"] * len(members))
        found[ASKED[field]] = right([ASKED[field]] * len(members), [asdict(own)[field] for own in members])
    return found


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Writes both so that vLLM reads them, and transformers 4 and 5: the vision tower has its older names."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    name_for_transformers_4(folder)
    file = folder / "model.safetensors"
    tower = "vision_tower."
    weights = {
        name.replace(tower, f"{tower}vision_model.", 1)
        if tower in name and "vision_model" not in name
        else name: value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})


def main() -> None:
    """Command line: trains, saves and measures the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the model, such as runs/yes_no")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--state", type=Path, help="a file from which an interrupted training goes on")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    magvit = MagvitV2.from_pretrained(model_path("builtin:shapes_tokenizer"))
    processor = build_processor()
    model = build_model(processor.tokenizer, load(checkpoint("shapes"))[0], generator=generator)
    train(model, processor, Lessons(magvit, generator), steps=args.steps, generator=generator, state=args.state)
    save(model, processor, args.output)
    for label, share in figures(model, processor, magvit).items():
        say(f"{label:32} {100 * share:5.1f} %")


if __name__ == "__main__":
    main()
