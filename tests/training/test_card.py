"""The card of a saved model says what was made of what, and its code opens it; a file of the user's own stays; the hub gets both."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import LoraConfig

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, UniGRPOConfig, UniGRPOTrainer
from unigrpo.errors import NotReachableError, SourceError
from unigrpo.runs.cli import main
from unigrpo.training.card import is_ours

from ..support.given_runs import SMALL, TEXT
from ..support.servers import serving
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor
from ..support.tolerances import assert_rounding


IDS = torch.arange(24).remainder(150).reshape(2, 12)


@pytest.fixture(scope="module", name="base")
def base_model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-mmada"
    model = tiny_model()
    model.config.sampling_defaults = {"max_completion_length": 8}
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def trainer_of(kind: str, base: str, out, lora: bool, **changes):
    adapter = LoraConfig(r=2) if lora else None
    if kind == "sft":
        args = MaskedDenoisingConfig(str(out), **{**SMALL, "max_steps": 2, **changes})
        return MaskedDenoisingTrainer(base, args, {"chats": TEXT}, TEXT[:2], peft_config=adapter)
    args = UniGRPOConfig(str(out), reward_weights=[0.5], **{**TRAINING, "max_steps": 2, **changes})
    return UniGRPOTrainer(base, low_ids, args, prompts(16), prompts(2), peft_config=adapter)


SAID = {
    "sft": ["objective `mmada_cot`: MMaDA's Mixed Long-CoT", "loss of text x 0.5 (law linear", "`chats (12 rows)`", "| step | loss |"],
    "rl": ["algorithm `unigrpo`: MMaDA's UniGRPO", "rewards: `low_ids` x 0.5", "`train_dataset (16 rows)`", "| step | reward | kl |"],
}  # fmt: skip


def assert_opens(card: ModelCard, trained) -> None:
    """Each piece of a card's code opens a model that computes what ``trained`` does."""
    blocks = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        found: dict = {}
        exec(block, found)
        model = found.get("model") or found["policy"].model
        with torch.no_grad():
            assert_rounding(model.eval()(input_ids=IDS).logits, trained(input_ids=IDS).logits, relative=1e-4)


def test_a_merged_model_keeps_a_readme_of_its_users_and_needs_none_of_the_adapters(tmp_path, base):
    trainer_of("rl", base, tmp_path / "mine", True).save_model()
    (tmp_path / "mine" / "README.md").unlink()
    assert main(["merge", str(tmp_path / "mine"), str(tmp_path / "whole")]) == 0
    assert "## How to open it" in (tmp_path / "whole" / "README.md").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    assert main(["merge", str(tmp_path / "mine"), str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "README.md").read_text() == "mine"


@pytest.mark.smoke
@pytest.mark.parametrize(("kind", "lora"), [("sft", False), ("sft", True), ("rl", False), ("rl", True)])
def test_a_card_says_what_was_made_of_what_and_its_code_opens_it(tmp_path, base, monkeypatch, kind, lora):
    out = tmp_path / "mine"
    saving = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": True,
    }
    trainer = trainer_of(kind, base, out, lora, **saving)
    trainer.train()
    trainer.save_model()
    card = ModelCard.load(out / "README.md")
    for said in [
        *SAID[kind],
        "# mine",
        "`tiny-mmada`",
        "arXiv:2505.15809",
        "|  | step 0 | step 2 |",
        "@software{unigrpo",
    ]:
        assert said in card.content
    data = card.data.to_dict()
    assert data["base_model"] == "tiny-mmada" and data["unigrpo"] == trainer.run.identity
    assert data["library_name"] == ("peft" if lora else "transformers") and "unigrpo" in data["tags"]
    assert str(tmp_path) not in card.content and base not in card.content
    assert is_ours(out / "README.md") and is_ours(out / "checkpoint-1" / "README.md")

    monkeypatch.chdir(tmp_path)
    assert_opens(card, trainer.model.eval())
    if lora:
        assert main(["merge", "mine", "whole"]) == 0
        whole = ModelCard.load("whole/README.md")
        for said in [*SAID[kind], "# whole", "adapter `mine` on `tiny-mmada`, merged", "|  | step 0 | step 2 |"]:
            assert said in whole.content
        assert whole.data.to_dict() == {**data, "library_name": "transformers"} and is_ours(Path("whole/README.md"))
        assert whole.content.count("<!-- written by") == 1 and "reward_curve" not in whole.content
        assert_opens(whole, trainer.model)


@pytest.mark.parametrize("lora", [False, True])
def test_a_readme_that_a_user_wrote_or_changed_stays(tmp_path, base, lora):
    """Also one whose metadata cannot be read, which PEFT would fail on."""
    trainer, card = trainer_of("sft", base, tmp_path, lora), tmp_path / "README.md"
    trainer.train()
    trainer.save_model()
    first, trainer.about = card.read_bytes(), {"datasets": {"trained on": ["me/chats"]}}
    trainer.save_model()
    assert card.read_bytes() != first, "its own is replaced"
    for text in ("# notes\n", "---\nbase_model: [\n---\nbroken\n", card.read_text().replace("# ", "# My ", 1)):
        card.write_text(text)
        for save in (trainer.save_model, trainer.create_model_card):
            with pytest.warns(UserWarning, match="README.md is left as it is, somebody wrote or changed it"):
                save()
        assert card.read_text() == text


# ---- the hub ----


class Hub:
    """As much of the hub as a push asks for, in memory; ``refuses`` is the status of a repository that is not to be made."""

    def __init__(self, refuses: int | None = None) -> None:
        self.refuses, self.files, self.tokens = refuses, {}, set()

    def __call__(self, exchange) -> None:
        self.tokens.add(exchange.headers.get("Authorization"))
        body, path = exchange.body, exchange.path
        if path == "/api/repos/create":
            if self.refuses:
                return exchange.json({"error": "no"}, self.refuses)
            return exchange.json({"url": f"{self.url}/me/{body['name'].split('/')[-1]}"})
        if path == "/api/validate-yaml":
            return exchange.json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            names = [own["path"] for own in body["files"]]
            return exchange.json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        for own in body:
            if own["key"] == "file":
                self.files[own["value"]["path"]] = base64.b64decode(own["value"]["content"])
        return exchange.json(
            {"commitUrl": "https://huggingface.co/me/mine/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
        )


@pytest.fixture(name="online")
def hub_on_the_loopback(monkeypatch):
    """Sends what transformers asks of the hub to a server here."""
    from contextlib import contextmanager

    from transformers.utils import hub as of_transformers

    @contextmanager
    def started(own: Hub):
        with serving(own) as seen:
            own.url = seen.url
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(of_transformers.hf_api(), "endpoint", seen.url)
            yield own

    return started


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_push_sends_the_weights_and_the_card_of_the_run(tmp_path, base, online, kind):
    with online(Hub()) as hub:
        trainer = trainer_of(
            kind, base, tmp_path / "mine", True, push_to_hub=True, hub_model_id="me/mine", hub_token="hf_x"
        )
        trainer.train()
        trainer.push_to_hub(language="en", dataset="me/chats")
    assert {"README.md", "adapter_model.safetensors", "adapter_config.json"} <= hub.files.keys()
    assert hub.tokens == {"Bearer hf_x"}
    assert hub.files["README.md"] == (tmp_path / "mine" / "README.md").read_bytes()
    data = ModelCard(hub.files["README.md"].decode()).data.to_dict()
    assert (data["language"], data["datasets"], data["model_name"]) == ("en", "me/chats", "mine")
    assert "base_model" not in data, "the hub does not have it"
    assert not [name for name, own in hub.files.items() if b"hf_x" in own]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ("offline", NotReachableError, r"push_to_hub: 'me/mine' cannot be written: offline mode is set, unset HF_HUB_OFFLINE, or leave"),
        ("nobody", NotReachableError, r"'me/mine' cannot be written: the hub does not answer, check the network, or leave"),
        (401, SourceError, r"does not let this user write to 'me/mine': log in with `hf auth login`"),
    ],
)  # fmt: skip
def test_a_hub_that_takes_nothing_is_one_sentence_at_construction(
    tmp_path, base, online, monkeypatch, change, kind, said
):
    with online(Hub(change if change == 401 else None)):
        if change == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if change == "nobody":
            from transformers.utils import hub as of_transformers

            monkeypatch.setattr(of_transformers.hf_api(), "endpoint", "http://127.0.0.1:9")
        with pytest.raises(kind, match=said) as caught:
            trainer_of(kind, base, tmp_path, True, push_to_hub=True, hub_model_id="me/mine", hub_token="hf_x")
    assert "\n" not in str(caught.value) and "hf_x" not in str(caught.value)
