"""Every kind of adapter that PEFT has, small, and what becomes of it here. Kinds that a version lacks are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from unigrpo.models.quantization import quantization_config


VIRTUAL = "virtual tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration.

    Attributes:
        kind: the class of its configuration in ``peft``.
        options: its arguments.
        refused: words of the sentence with which it is refused; None = it trains.
        merges: whether PEFT can merge it into the tiny model.
        needs: the package without which it cannot be tried.
        prepare: makes a ``PeftModel`` of a model and the configuration, for what no configuration says.
        quantised: the base is in 4 bits.
        common: tried in the ordinary suite.
    """

    kind: str = "LoraConfig"
    options: Any = None
    refused: str | None = None
    merges: bool = True
    needs: str | None = None
    prepare: Callable[[Any, Any], PeftModel] | None = None
    quantised: bool = False
    common: bool = False

    @property
    def exists(self) -> bool:
        """Whether this version of PEFT has it."""
        return hasattr(peft, self.kind)

    @property
    def missing(self) -> str | None:
        """The line that installs what it needs and is not there."""
        lacks = self.needs is not None and find_spec(self.needs) is None
        return f"pip install {INSTALL.get(self.needs, self.needs)}" if lacks else None

    def config(self) -> Any:
        """A fresh configuration."""
        options = self.options() if callable(self.options) else dict(self.options or {})
        return getattr(peft, self.kind)(**options)


INSTALL = {"sklearn": "scikit-learn", "bitsandbytes": '"unigrpo[quantization]"'}

ON = {"target_modules": ["q_proj", "v_proj"]}
ON_R = {**ON, "r": 4}


def two_adapters(model: Any, config: LoraConfig) -> PeftModel:
    """A first adapter that changes the answers, and a second one, of another rank, that is trained."""
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"))
    adapted.add_adapter("second", config)
    adapted.set_adapter("second")
    return adapted


def filled_by_eva(model: Any, config: LoraConfig) -> PeftModel:
    """EVA looks at activations of some data before it is trained."""
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 150, (4, 12), generator=generator)} for _ in range(4)]
    adapted = get_peft_model(model, config)
    peft.initialize_lora_eva_weights(
        adapted, batches, prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False
    )
    return adapted


def lora(**options: Any) -> dict[str, Any]:
    """Arguments of a ``Case`` of LoRA."""
    return {"options": {"r": 4, **options}}


def virtual(kind: str, **options: Any) -> Case:
    """A case of prompt learning."""
    return Case(kind=kind, options=options, refused=VIRTUAL)


CASES: dict[str, Case] = {
    "LoRA": Case(**lora(), common=True),
    "rsLoRA": Case(**lora(use_rslora=True)),
    "DoRA": Case(**lora(use_dora=True)),
    "LoRA, dropout": Case(**lora(lora_dropout=0.1)),
    "LoRA, gaussian": Case(**lora(init_lora_weights="gaussian")),
    "LoRA, random": Case(**lora(init_lora_weights=False)),
    "LoRA, orthogonal": Case(**lora(init_lora_weights="orthogonal")),
    "PiSSA": Case(**lora(init_lora_weights="pissa"), common=True),
    "PiSSA, iterations": Case(**lora(init_lora_weights="pissa_niter_4"), refused="'pissa'"),
    "OLoRA": Case(**lora(init_lora_weights="olora")),
    "MiCA": Case(**lora(init_lora_weights="mica")),
    "EVA": Case(**lora(init_lora_weights="eva", **ON), prepare=filled_by_eva),
    "EVA, without data": Case(**lora(init_lora_weights="eva"), refused="initialize_lora_eva_weights"),
    "CorDA": Case(**lora(init_lora_weights="corda"), refused="'pissa'"),
    "LoRA-GA": Case(
        options=lambda: {"r": 4, "init_lora_weights": "lora_ga", "lora_ga_config": peft.LoraGAConfig()},
        refused="'pissa'",
    ),
    "LoftQ": Case(
        options=lambda: {"r": 4, "init_lora_weights": "loftq", "loftq_config": peft.LoftQConfig()},
        refused="load_in_4bit",
        needs="scipy",
    ),
    "LoRA, ranks by pattern": Case(**lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3})),
    "LoRA, embeddings": Case(**lora(target_modules=["wte", "q_proj"])),
    "LoRA, trainable tokens": Case(
        **lora(target_modules=["q_proj"], trainable_token_indices={"wte": [1, 2, 184]}), common=True
    ),
    "LoRA, modules_to_save": Case(**lora(target_modules=["q_proj"], modules_to_save=["ln_f"])),
    "LoRA, embeddings saved": Case(**lora(target_modules=["q_proj"], modules_to_save=["wte"])),
    "LoRA, target_parameters": Case(**lora(target_modules=[], target_parameters=["q_proj.weight"])),
    "LoRA, bias": Case(**lora(bias="all")),
    "LoRA, lora_bias": Case(**lora(lora_bias=True), merges=False),
    "LoRA, two adapters": Case(**lora(**ON), prepare=two_adapters, common=True),
    "LoRA, 4 bits": Case(**lora(), quantised=True, needs="bitsandbytes"),
    "aLoRA": Case(**lora(alora_invocation_tokens=[1]), refused="alora_invocation_tokens"),
    "Arrow": Case(options=lambda: {"r": 4, "arrow_config": peft.ArrowConfig()}, refused="arrow_config"),
    "LoRA, layers repeated": Case(**lora(layer_replication=[[0, 2], [1, 3]]), refused="layer_replication"),
    "AdaLoRA": Case(kind="AdaLoraConfig", options={**ON, "total_step": 10}, refused="schedule"),
    "AdaMSS": Case(kind="AdamssConfig", options={**ON, "r": 8}, needs="sklearn"),
    "Adaption prompt": Case(
        kind="AdaptionPromptConfig", options={"adapter_len": 2, "adapter_layers": 1}, refused="causal attention"
    ),
    "BEFT": Case(kind="BeftConfig", options=ON, merges=False),
    "BOFT": Case(kind="BOFTConfig", options={**ON, "boft_block_size": 4}),
    "C3A": Case(kind="C3AConfig", options={**ON, "block_size": 4}),
    "CARTRIDGE": virtual("CartridgeConfig", num_virtual_tokens=2),
    "CPT": virtual(
        "CPTConfig", task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]
    ),
    "DEFT": Case(kind="DeftConfig", options=ON_R),
    "DeLoRA": Case(kind="DeloraConfig", options=ON_R),
    "FourierFT": Case(kind="FourierFTConfig", options={**ON, "n_frequency": 16}),
    "FRoD": Case(kind="FrodConfig", options=ON),
    "GLoRA": Case(kind="GloraConfig", options=ON_R),
    "GraLoRA": Case(kind="GraloraConfig", options=ON_R),
    "HiRA": Case(kind="HiraConfig", options=ON_R),
    "HRA": Case(kind="HRAConfig", options=ON_R),
    "IA3": Case(
        kind="IA3Config",
        options={"target_modules": ["k_proj", "v_proj", "ff_proj"], "feedforward_modules": ["ff_proj"]},
    ),
    "Lily": Case(kind="LilyConfig", options=ON_R, merges=False),
    "LN tuning": Case(kind="LNTuningConfig", options={"target_modules": ["ln_f", "attn_norm"]}),
    "LoHa": Case(kind="LoHaConfig", options=ON_R, common=True),
    "LoKr": Case(kind="LoKrConfig", options=ON_R),
    "MiSS": Case(kind="MissConfig", options=ON_R),
    "OFT": Case(kind="OFTConfig", options={**ON, "oft_block_size": 4}),
    "OSF": Case(kind="OSFConfig", options=ON),
    "P-tuning": virtual("PromptEncoderConfig", num_virtual_tokens=2),
    "PEANuT": Case(kind="PeanutConfig", options=ON),
    "Poly": Case(kind="PolyConfig", options=ON_R, refused="task"),
    "Prefix tuning": virtual("PrefixTuningConfig", num_virtual_tokens=2),
    "Prompt tuning": virtual("PromptTuningConfig", num_virtual_tokens=2),
    "Prompt tuning, many tasks": virtual("MultitaskPromptTuningConfig", num_virtual_tokens=2, num_tasks=2),
    "PSOFT": Case(kind="PsoftConfig", options=ON_R),
    "PVeRA": Case(kind="PveraConfig", options=ON_R, refused="noise"),
    "RandLoRA": Case(kind="RandLoraConfig", options=ON_R),
    "RoAd": Case(kind="RoadConfig", options=ON),
    "Shadow": Case(kind="ShadowConfig", refused="second, causal model"),
    "SHiRA": Case(kind="ShiraConfig", options=ON_R),
    "Supertuning": Case(kind="SupertuningConfig", options=ON),
    "TinyLoRA": Case(kind="TinyLoraConfig", options=ON),
    "Trainable tokens": Case(
        kind="TrainableTokensConfig", options={"target_modules": ["wte"], "token_indices": [1, 2, 184]}
    ),
    "UniLoRA": Case(kind="UniLoraConfig", options=ON_R),
    "VB-LoRA": Case(kind="VBLoRAConfig", options={**ON_R, "num_vectors": 8, "vector_length": 4, "topk": 2}),
    "VeRA": Case(kind="VeraConfig", options=ON_R),
    "WaveFT": Case(kind="WaveFTConfig", options={**ON, "n_frequency": 16}),
    "X-LoRA": Case(kind="XLoraConfig", options={"hidden_size": 32, "adapters": {}}, refused="trained already"),
}


def table() -> str:
    """The table of the room's README: what becomes of each configuration."""
    trained = {name: case for name, case in CASES.items() if case.refused is None}
    rows = {
        "trains, reopens, merges": [name for name, case in trained.items() if case.merges and not case.quantised],
        "trains and reopens; merging it changes the answers": [
            name for name, case in trained.items() if case.quantised
        ],
        "trains and reopens; PEFT cannot merge it where layers have no bias": [
            name for name, case in trained.items() if not case.merges
        ],
        "refused, with the reason and the cure": [name for name, case in CASES.items() if case.refused is not None],
    }
    lines = [f"| {what} | {len(names)} | {'; '.join(names)} |" for what, names in rows.items()]
    return "\n".join(["| | | |", "|---|---|---|", *lines])


def options_of(case: Case) -> dict[str, Any]:
    """How the base of a case is loaded."""
    return {"quantization_config": quantization_config(load_in_4bit=True)} if case.quantised else {}
