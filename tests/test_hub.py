"""Names of models that cannot be had: one line, at once, and no minutes of retries."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg.encoders import hub
from hardneg.errors import UsageError
from hardneg.mining.cross_encoder import load_cross_encoder


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    hub._unreached.cache_clear()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every name fails to resolve, and is counted."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def failing(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return asked


def test_a_hub_without_a_network_is_asked_once(no_network: list[Any]) -> None:
    for name in ("no/such-model", "another/one"):
        with pytest.raises(
            UsageError, match=rf"st:{name}: the model cannot be loaded \(.*the hub: .*not known.*\)\. Give the folder"
        ):
            hardneg.make_encoder(f"st:{name}", device="cpu")
    assert len(no_network) <= 2  # the library may ask for something else itself, and does not repeat it


def test_a_cross_encoder_likewise(no_network: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"cross-encoder:no/such-model: the model cannot be loaded .*the hub: "):
        load_cross_encoder("no/such-model", device="cpu")
    assert len(no_network) == 1


def test_folders_and_other_endpoints_are_not_asked_about(tmp_path: Path, no_network: list[Any]) -> None:
    assert hub.loading_options(str(tmp_path)) == {}
    assert hub.why_not(str(tmp_path), "it is damaged") == "(it is damaged)"
    assert no_network == []


def test_offline_by_choice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.unreached("no/such-model") == "HF_HUB_OFFLINE is set"


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers, also that there is no such page."""
    import http.server
    import threading

    from huggingface_hub import constants

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert hub.loading_options("some/model") == {}
    finally:
        server.shutdown()
