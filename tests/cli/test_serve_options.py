"""TorchServe's command line and environment, as `torchport serve` takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.test_serve import addresses, ended, serve
from torchport.cli.serve_options import NO_EFFECT, configuration, with_models_joined
from torchport.errors import ServerError

HANDLER = "def handle(data, context):\n    return data and [context.model_name for _ in data]\n"


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["--models", "a=a.mar", "b=b.mar", "--ncs"], ["--models", "a=a.mar,b=b.mar", "--ncs"]),
        (["--ncs", "--models", "a", "b,c", "d"], ["--ncs", "--models", "a,b,c,d"]),
        (["--models", "a", "--port", "0"], ["--models", "a", "--port", "0"]),
        # What follows belongs to no list: the command refuses it.
        (["--models=a", "b"], ["--models=a", "b"]),
        (["--models", "--ncs", "b"], ["--models", "--ncs", "b"]),
        (["--models"], ["--models"]),
        ([], []),
    ],
)
def test_a_list_of_models_in_several_words(given: list[str], joined: list[str]) -> None:
    assert with_models_joined(given) == joined


def test_which_configuration_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    notes: list[str] = []
    assert configuration(None, notes) is None
    given, other = tmp_path / "given.properties", tmp_path / "other.properties"
    for path in (given, other):
        path.touch()
    assert configuration(given, notes) == given
    monkeypatch.setenv("TS_CONFIG_FILE", str(given))
    assert configuration(None, notes) == configuration(given, notes) == given
    assert notes == []
    assert configuration(other, notes) == given
    assert "TS_CONFIG_FILE wins" in notes.pop()
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "missing"))
    with pytest.raises(ServerError, match="TS_CONFIG_FILE names"):
        configuration(given, notes)
    monkeypatch.setenv("TS_CONFIG_FILE", "")
    with pytest.raises(ServerError, match="--ts-config names"):
        configuration(tmp_path / "missing", notes)
    (tmp_path / "config.properties").touch()
    assert configuration(given, notes) == given
    assert notes == []
    assert configuration(None, notes) == Path("config.properties")
    assert str(tmp_path / "config.properties") in notes.pop()


@pytest.mark.server
def test_a_command_line_of_torchserve(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_archive(tmp_path / "store", name, HANDLER)
    (tmp_path / "config.properties").write_text(
        "enable_envvars_config=true\ndefault_response_timeout=11\ndefault_startup_timeout=55\n"
    )
    files = ["--log-config", "log4j2.xml", "--cpp-log-config", "cpp.yaml", "--ppath", "plugins"]
    process = serve(
        *("--start", "--foreground", "--ncs", "--dt", "--model-store", "store", "--workflow-store", "flows"),
        *("--enable-model-api", *files, "--models", "first=one-1.0.mar", "two-1.0.mar"),
        cwd=tmp_path,
        environment={
            "TS_CONFIG_FILE": "",
            "TS_DEFAULT_RESPONSE_TIMEOUT": "77",
            "TS_ENABLE_MODEL_API": "false",
        },
    )
    try:
        urls = addresses(process, tmp_path)
        listed = requests.get(f"{urls['management']}/models", timeout=30).json()["models"]
        assert [model["modelName"] for model in listed] == ["first", "two"]
        (described,) = requests.get(f"{urls['management']}/models/first", timeout=30).json()
        assert (described["responseTimeout"], described["startupTimeout"]) == (77, 55)
        # The variable wins over what the command line says.
        assert requests.post(f"{urls['management']}/models?url=three-1.0.mar", timeout=30).status_code == 405
    finally:
        code, output = ended(process)
    assert code == 0, output
    for name in NO_EFFECT:
        assert f"{name} has no effect" in output
    assert "enable_model_api is its TS_* variable's" in output
    assert f"the settings are those of {tmp_path / 'config.properties'}" in output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model-store", "missing", "--models", "none"], 1, "there is no model store missing"),
        (["--ts-config", "its.properties"], 1, "there is no model store missing"),
        ([], 1, "there is no model store model_store"),
        (["--stop"], 2, "SIGTERM"),
        (["--models", "a", "b", "--", "c"], 2, "unexpected extra argument"),
    ],
)
def test_a_start_that_is_refused(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "its.properties").write_text("model_store=missing\n")
    variables = {k: v for k, v in os.environ.items() if k not in ("TS_CONFIG_FILE", "TORCHPORT_STORE")}
    done = subprocess.run(
        [sys.executable, "-m", "torchport", "serve", "--no-grpc", "--port", "0", *arguments],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in " ".join(done.stderr.split())
