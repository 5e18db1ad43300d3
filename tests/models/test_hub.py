"""What is not there is one sentence that says which: no folder, no id, no access, no way to the hub."""

from __future__ import annotations

import hashlib
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from peft import LoraConfig, get_peft_model

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, UniGRPOTrainer, load_policy
from unigrpo.data.image_codes import load_tokenizer
from unigrpo.errors import NotReachableError, SourceError
from unigrpo.models import MMaDAProcessor
from unigrpo.models.builtin import model_path
from unigrpo.models.hub import asking_once, finding, hub_answers
from unigrpo.models.loading import load_classifier, load_config
from unigrpo.rollout.rewards import resolve_reward
from unigrpo.runs.dataset_spec import DatasetSpec, load_rows

from ..support.configs import config
from ..support.tiny import golden_tokenizer, tiny_model, tiny_processor
from ..support.tolerances import FP32


class Hub(BaseHTTPRequestHandler):
    """A hub of which one model is gated, one forbidden, one has no such revision, those in ``folders`` are what lies
    there, and all others are not there.
    """

    CODES = {"gated": (401, "GatedRepo"), "forbidden": (403, ""), "old": (404, "RevisionNotFound")}
    folders: ClassVar[dict[str, Path]] = {}

    def do_HEAD(self) -> None:
        name, _, file = self.path[1:].partition("/resolve/")
        if name in self.folders:
            return self.send(self.folders[name] / file.partition("/")[2])
        status, code = next((own for name, own in self.CODES.items() if name in self.path), (404, "RepoNotFound"))
        self.send_response(200 if self.path == "/" else status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def send(self, file: Path) -> None:
        body = file.read_bytes() if file.is_file() else b""
        self.send_response(200 if body else 404)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        if not body:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def online(monkeypatch, tmp_path):
    """No offline mode, and an empty cache."""
    import datasets

    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(online, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield address
        server.shutdown()


@pytest.fixture
def asked(online, monkeypatch):
    """No network; the hosts that were looked for."""
    hosts = []

    def lookup(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return hosts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope", "model 'nope' is not there: no folder 'nope' here, and no public one of this name on the hub"),
        ("no/such", "or log in with `hf auth login` if it is private"),
        ("some/gated", "model 'some/gated' gives no access: ask for it at http://127.0.0.1:"),
        ("some/forbidden", "gives no access"),
        ("some/old", "has no such revision"),
        ("we ird", "no id of the hub is written so"),
        ("", "model '' is not there"),
        ("./nope", "model './nope' is not there: no folder './nope'; check the path"),
        ("./recipse", "did you mean 'recipes'?"),
        ("~no-such-user/x", "no folder"),
    ],
)
def test_the_reason_and_the_cure_are_named(name, words, hub, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        load_config(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError) and not isinstance(caught.value, NotReachableError)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "load",
    [
        load_policy,
        load_classifier,
        load_tokenizer,
        resolve_reward,
        lambda path: UniGRPOTrainer(path, lambda **_: 0, config(), train_dataset=[]),
        lambda path: MaskedDenoisingTrainer(path, MaskedDenoisingConfig("out", use_cpu=True), []),
        lambda path: load_rows(DatasetSpec(path=path)),
    ],
    ids=["policy", "classifier", "tokenizer", "reward", "trainer", "fine-tuning", "dataset"],
)
def test_every_way_in_says_it(load, tmp_path):
    """With offline mode set, as it is in tests."""
    for name in ("nobody/none", str(tmp_path / "none" / "x")):
        with pytest.raises(SourceError, match="none") as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_and_other_errors_of_the_disk():
    with pytest.raises(SourceError, match="permission is denied"), finding("some/model", "model"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(OSError, match="No space") as caught, finding("some/model", "model"):
        raise OSError(28, "No space left on device")
    assert not isinstance(caught.value, SourceError)
    with pytest.raises(KeyError), finding("some/model", "model"):
        raise KeyError("layers")


def test_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert model_path("~/runs/math") == "/home/me/runs/math"
    assert model_path("~no-such-user/runs") == "~no-such-user/runs"


def test_a_hub_that_is_there_is_asked_once(hub, monkeypatch):
    asked = []
    monkeypatch.setattr(Hub, "do_HEAD", lambda self, own=Hub.do_HEAD: (asked.append(self.path), own(self)))
    with asking_once():
        assert hub_answers() and hub_answers()
    assert asked == ["/"]
    with asking_once(offline=True):
        assert not hub_answers()
    assert asked == ["/"] and not constants.HF_HUB_OFFLINE


def test_a_hub_that_is_not_there_is_asked_once_and_then_the_cache(asked):
    with asking_once():
        for name in ("some/model", "some/other"):
            with asking_once():
                hub_answers()
            with pytest.raises(NotReachableError, match="the hub does not answer; check the network"):
                load_config(name)
        assert len(asked) == 1 and sys.modules["datasets.config"].HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE and not sys.modules["datasets.config"].HF_HUB_OFFLINE
    with pytest.raises(Exception, match=r"known|Name"):
        get_session().head(constants.ENDPOINT)


@torch.no_grad()
@pytest.mark.parametrize("above", [False, True], ids=["adapter", "adapter on an adapter"])
def test_an_adapters_id_brings_its_base_and_then_the_cache_is_enough(above, hub, monkeypatch, tmp_path):
    folders = {f"me/{name}": tmp_path / name for name in ("base", "first", "second")}
    model, ids = tiny_model(), torch.arange(12)[None]
    model.save_pretrained(folders["me/base"])
    tiny_processor().save_pretrained(folders["me/base"])
    wanted = "me/first"
    for name, base in [("me/first", "me/base"), ("me/second", "me/first")][: 1 + above]:
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
        adapted.peft_config["default"].base_model_name_or_path = base
        adapted.save_pretrained(folders[name], save_embedding_layers=False)
        expected, wanted = adapted.eval()(ids).logits, name
        model = adapted.merge_and_unload()
    MMaDAProcessor(golden_tokenizer(), think_prompt=True).save_pretrained(folders[wanted])
    monkeypatch.setattr(Hub, "folders", folders)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(Hub, "folders", {} if offline else folders)
        opened = load_policy(wanted, device="cpu")
        torch.testing.assert_close(
            opened.model(ids).logits, expected, rtol=FP32, atol=FP32 * float(expected.abs().max())
        )
        assert opened.policy.processor.think_prompt is True, "what was saved beside the adapter"
