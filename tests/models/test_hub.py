"""What is not there is one sentence that says which: no folder, no id, no access, no way to the hub."""

from __future__ import annotations

import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from unigrpo import UniGRPOTrainer, load_policy
from unigrpo.data.image_codes import load_tokenizer
from unigrpo.errors import NotReachableError, SourceError
from unigrpo.models.builtin import model_path
from unigrpo.models.hub import asking_once, finding, hub_answers
from unigrpo.models.loading import load_classifier, load_config
from unigrpo.rollout.rewards import resolve_reward
from unigrpo.runs.dataset_spec import DatasetSpec, load_rows

from ..support.configs import config


class Hub(BaseHTTPRequestHandler):
    """A hub of which one model is gated, one forbidden, one has no such revision, and all others are not there."""

    CODES = {"gated": (401, "GatedRepo"), "forbidden": (403, ""), "old": (404, "RevisionNotFound")}

    def do_HEAD(self) -> None:
        status, code = next((own for name, own in self.CODES.items() if name in self.path), (404, "RepoNotFound"))
        self.send_response(200 if self.path == "/" else status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

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
        lambda path: load_rows(DatasetSpec(path=path)),
    ],
    ids=["policy", "classifier", "tokenizer", "reward", "trainer", "dataset"],
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
