"""The configuration, and one clear sentence for each wrong field."""

from __future__ import annotations

import sys

import pytest

from pilotfish.errors import ConfigError, InputError, MissingExtraError
from pilotfish.gateway import load_config
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.local import make_models


def test_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={})
    assert (config.server.host, config.server.port, config.server.workers) == ("127.0.0.1", 8777, 1)
    assert config.upstream.base_url == "https://api.openai.com/v1"
    assert config.upstream.api_key is None
    assert config.log.durability == "durable"
    assert config.log.refuses
    assert not load_config(environ={"PILOTFISH_LOG_DURABILITY": "fast"}).log.refuses


def test_sources_in_their_order(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[server]\nport = 1000\nworkers = 2\n[prices."gpt-x"]\ninput = 1.5\noutput = 3\n')
    environ = {
        "OPENAI_BASE_URL": "http://large:1/v1/",
        "OPENAI_API_KEY": "sk-1",
        "PILOTFISH_SERVER_PORT": "2000",
        "PILOTFISH_LOG_MASK": "true",
        "PILOTFISH_CONFIG": str(path),
    }
    config = load_config(environ=environ, overrides={"server": {"host": "0.0.0.0"}})
    assert (config.server.port, config.server.workers, config.server.host) == (2000, 2, "0.0.0.0")
    assert config.upstream.base_url == "http://large:1/v1"
    assert config.upstream.api_key.get_secret_value() == "sk-1"
    assert config.log.mask
    assert config.prices["gpt-x"].output == 3
    assert "sk-1" not in repr(config)


@pytest.mark.parametrize(
    ("environ", "overrides"),
    [
        ({"PILOTFISH_SERVER_PORT": "abc"}, {}),
        ({}, {"server": {"port": "abc"}}),
        ({"OPENAI_BASE_URL": "large"}, {}),
        ({"OPENAI_API_KEY": " "}, {}),
    ],
)
def test_what_no_file_says_is_not_looked_for_in_one(tmp_path, monkeypatch, environ, overrides):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="in the environment or the command line is "):
        load_config(environ=environ, overrides=overrides)


def test_a_key_is_not_sent_to_another_endpoint(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[upstream]\nbase_url = "http://other:1/v1"\n')
    config = load_config(path, environ={"OPENAI_API_KEY": "sk-openai", "OPENAI_BASE_URL": "http://x/v1"})
    assert config.upstream.base_url == "http://other:1/v1"
    assert config.upstream.api_key is None


@pytest.mark.parametrize(
    ("base_url", "environ", "overrides", "sent"),
    [
        ("https://api.openai.com/v1/", {}, {}, True),
        ("http://mine/v1", {"OPENAI_BASE_URL": "http://mine/v1/"}, {}, True),
        (None, {}, {"upstream": {"base_url": "http://other/v1"}}, False),
        (None, {"PILOTFISH_UPSTREAM_BASE_URL": "http://other/v1"}, {}, False),
        (None, {"OPENAI_BASE_URL": "http://mine/v1"}, {"upstream": {"base_url": "https://api.openai.com/v1"}}, False),
        (None, {"OPENAI_BASE_URL": "http://mine/v1"}, {"upstream": {"base_url": "http://mine/v1"}}, True),
    ],
)
def test_a_key_of_the_environment_is_sent_to_its_own_endpoint_alone(tmp_path, base_url, environ, overrides, sent):
    path = tmp_path / "p.toml"
    path.write_text(f"[upstream]\nbase_url = '{base_url}'\n" if base_url else "")
    config = load_config(path, overrides=overrides, environ={"OPENAI_API_KEY": "sk-1", **environ})
    assert (config.upstream.api_key is not None) == sent


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("[server]\nport = 'abc'\n", ["Field 'server.port' in {path} is 'abc': ", "valid integer"]),
        (
            "[server]\nport = 99999\nhosst = 'x'\n",
            ["Field 'server.port' in {path} is 99999", "'server.hosst' in {path} is unknown"],
        ),
        ("[upstream]\nbase_url = 'large'\n", ["'upstream.base_url' in {path} is 'large': give an address"]),
        ("[upstream]\napi_key = 7\n", ["'upstream.api_key' in {path} is wrong"]),
        ("[upstream]\nread_timeout_s = -1\n", ["greater than 0"]),
        ("[upstream]\nread_timeout_s = nan\n", ["not a finite number"]),
        ("[upstream]\nbase_url = 'http://localhost:8777/v1'\n", ["gateway's own address"]),
        ("[log]\ndurability = 'slow'\n", ["'log.durability' in {path} is 'slow'"]),
        ("[keys.a]\nhash = 'pf-plain-key'\n", ["'keys.a.hash' in {path} is wrong"]),
        (f"[keys.a]\nhash = 'sha256${'0' * 32}${'0' * 64}'\nbudget_usd_per_day = 1\n", ["needs prices"]),
        (
            f"[keys.a]\nhash = 'sha256${'0' * 32}${'0' * 64}'\nbudget_usd_per_day = 1\n"
            "[prices.x]\ninput = 1\noutput = 1\n[fallback]\nmodel = 'y'\n",
            ["fallback.model is 'y', whose calls would cost keys.a nothing: give [prices.y]"],
        ),
        ("[prices.x]\ninput = 1\n", ["'prices.x.output' in {path} is missing"]),
        ("[fallback]\nmodel = ''\n", ["'fallback.model' in {path} is ''"]),
        (
            "[fallback]\nmodel = 'x'\nbase_url = 'large'\n",
            ["'fallback.base_url' in {path} is 'large': give an address"],
        ),
        ("[upstream]\nbase_url = 'http://large:99999/v1'\n", ["'http://large:99999/v1': give an address"]),
        ("[upstream]\napi_key = 'pf-plain-key\u00e9'\n", ["'upstream.api_key' in {path} is wrong: give the key"]),
        ('[upstream]\napi_key = "pf-plain-key\\nx: y"\n', ["'upstream.api_key' in {path} is wrong: give the key"]),
        ("[upstream]\nbase_url = 'http://me:pf-plain-key@large/v1'\n", ["wrong: give an address", "key as api_key"]),
        ("[upstream]\napi_key = ''\n", ["'upstream.api_key' in {path} is wrong: give the key"]),
        ("[models]\nsmall = 'x'\n", ["'models.small' in {path} is 'x': give a section with fields"]),
        ("[models.a]\nsource = 'x'\ndraft = 'lookup'\n", ["'models.a.draft' in {path} is 'lookup': give a list"]),
        ("[server]\nhost = ''\n", ["'server.host' in {path} is ''"]),
        ("[models.a]\nsource = 'x'\n[routes.a]\nsaved = 'x'\n", ["models.a and routes.a have one name"]),
        ("server = 3\n", ["Field 'server' in {path}"]),
        ("[server\n", ["not valid TOML"]),
    ],
)
def test_wrong_fields(tmp_path, text, sentences):
    path = tmp_path / "p.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    message = str(caught.value)
    for sentence in sentences:
        assert sentence.format(path=path) in message
    assert all(line.endswith(".") for line in message.splitlines())
    assert "pf-plain-key" not in message


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml", environ={})


def test_a_key_that_was_read_from_a_file_ends_without_its_line_break(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={"OPENAI_API_KEY": "sk-1\n"})
    assert config.upstream.api_key is not None
    assert config.upstream.api_key.get_secret_value() == "sk-1"


@pytest.mark.parametrize(("budget", "read"), [("1", "1"), ("0.002", "0.002"), ("'2usd/1k'", "2usd/1k")])
def test_a_budget_may_be_a_number(tmp_path, budget, read):
    path = tmp_path / "p.toml"
    path.write_text(f"[routes.r]\npolicy = 'forc'\ntable = 't.jsonl'\nbudget = {budget}\n")
    assert load_config(path, environ={}).routes["r"].budget == read


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"source": "smollm2-135m-instrukt"}, "In models.m: source is 'smollm2-135m-instrukt', neither a file"),
        ({"source": "./away.gguf", "draft": ["lookup"]}, "neither a file"),
        ({"source": "all-minilm-l6-v2"}, "whose kind is embedder"),
        ({"source": "all-minilm-l6-v2", "draft": ["lookup"]}, "whose kind is embedder"),
        ({"source": "smollm2-135m-instruct", "draft": ["exit:x"]}, "In models.m: draft is 'exit:x'"),
    ],
)
def test_a_model_that_cannot_be_read_is_told_of_at_the_start(section, told):
    with pytest.raises(InputError, match=told):
        make_models(GatewayConfig.model_validate({"models": {"m": section}}))
    pytest.importorskip("transformers")
    for source in ("gpt2", "Qwen/Qwen2.5-0.5B"):
        make_models(GatewayConfig.model_validate({"models": {"m": {"source": source, "draft": ["lookup"]}}}))


@pytest.mark.parametrize(
    ("package", "more", "extra"), [("xllamacpp", {}, "gguf"), ("torch", {"draft": ["lookup"]}, "torch")]
)
def test_what_a_model_needs_installed_is_told_of_at_the_start(monkeypatch, package, more, extra):
    monkeypatch.setitem(sys.modules, package, None)
    section = {"source": "smollm2-135m-instruct", **more}
    with pytest.raises(MissingExtraError, match=rf"pilotfish\[{extra}\]"):
        make_models(GatewayConfig.model_validate({"models": {"m": section}}))
