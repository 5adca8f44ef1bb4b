"""Every option of TorchServe's does here what the table in `docs/torchserve.md` says of it."""

from __future__ import annotations

import importlib.util
import runpy
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from docs.make_torchserve_options import (
    ARCHIVE,
    COMMAND_LINE,
    CONFIGURATION,
    DIFFERS,
    ENVIRONMENT,
    NONE,
    PAGE,
    REFUSED,
    SAME,
    TABLES,
    Option,
    page_with,
    tables,
)
from tests.conftest import ROOT
from torchport.cli.app import app
from torchport.cli.serve_options import NO_EFFECT
from torchport.errors import ServerError
from torchport.properties import parse_properties
from torchport.server.errors import ArchiveRefused
from torchport.server.models.settings import model_settings
from torchport.server.settings.reading import _VARIABLES, settings_from
from torchport.server.settings.settings import ServerSettings

WORDS = {SAME, DIFFERS, NONE, REFUSED}
OF_READING = {"enable_envvars_config", "use_env_allowed_urls"}
"""Keys that say how the others are read."""


def named(option: Option) -> str:
    return option.name


def test_the_page_has_the_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page_with(text, tables()), "python docs/make_torchserve_options.py writes the page anew"


@pytest.mark.parametrize("title", TABLES)
def test_each_option_is_there_once_and_its_difference_is_told(title: str) -> None:
    options = TABLES[title]
    assert len({each.name for each in options}) == len(options)
    assert {each.verdict for each in options} <= WORDS
    assert [each.name for each in options if each.verdict != SAME and not each.note] == []


@pytest.mark.parametrize("option", ARCHIVE, ids=named)
def test_a_key_of_an_archive(option: Option, caplog: pytest.LogCaptureFixture) -> None:
    config = {option.name: yaml.safe_load(option.example)}
    server = ServerSettings(max_workers_of_archive=4)
    if option.verdict == REFUSED:
        with pytest.raises(ArchiveRefused, match=option.name):
            model_settings(config, server)
        return
    found, default = model_settings(config, server), model_settings({}, server)
    if option.verdict == NONE:
        assert found == default
        assert f"{option.name}: not supported, ignored" in caplog.text
    else:
        changed = [value for value in vars(found).values() if value not in vars(default).values()]
        wanted = config[option.name]
        assert (tuple(wanted) if isinstance(wanted, list) else wanted) in changed
        assert caplog.text == ""


@pytest.mark.parametrize("option", CONFIGURATION, ids=named)
def test_a_key_of_the_configuration(option: Option) -> None:
    """Also as a variable, which is a key's other way in."""
    properties, default = parse_properties(f"{option.name}={option.example}"), ServerSettings()
    by_file = settings_from(properties, {})
    environ = {_VARIABLES.get(option.name, f"TS_{option.name.upper()}"): option.example}
    on = {"enable_envvars_config": "true", "use_env_allowed_urls": "true"}
    by_variable = settings_from(on, environ)
    known = {each.name for each in fields(ServerSettings)}
    if option.verdict == NONE:
        assert option.name not in known
        assert (*vars(by_file).values(),)[:-1] == (*vars(default).values(),)[:-1]
        assert by_file.ignored in ((), (option.name,))
        assert by_variable == default
    elif option.name in OF_READING:
        assert by_file == default
    else:
        assert by_file != default
        assert by_file.ignored == ()
        assert by_variable == by_file


def serve_options() -> set[str]:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("option", COMMAND_LINE, ids=named)
def test_an_option_of_the_command_line(
    option: Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server does with it is in `tests/cli/test_serve_options.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.mar").touch()
    (tmp_path / "x.properties").touch()
    served: list[dict[str, Any]] = []
    monkeypatch.setattr("torchport.server.main.run", lambda settings, **given: served.append(given) or 0)
    arguments = [option.name, *([option.example] if option.example else [])]
    if option.name == "--version":
        assert CliRunner().invoke(app, ["--version"]).output.startswith("torchport ")
        return
    assert option.name in serve_options()
    found = CliRunner().invoke(app, ["serve", "--store", "store", *arguments])
    if option.verdict == REFUSED:
        assert isinstance(found.exception, ServerError)
        return
    assert found.exit_code == 0, found.output
    name = "--plugins-path" if option.name == "--ppath" else option.name
    notes = [note for note in served[0]["notes"] if note.startswith(f"{name} has no effect: ")]
    assert bool(notes) == (option.verdict == NONE) == (name in NO_EFFECT)


@pytest.mark.parametrize("option", [each for each in ENVIRONMENT if each.verdict == NONE], ids=named)
def test_a_variable_without_effect_is_read_nowhere(option: Option) -> None:
    sources = [
        *(ROOT / "torchport" / "server").rglob("*.py"),
        *(ROOT / "torchport" / "cli").glob("serve*.py"),
    ]
    quoted = f'"{option.name}"'
    assert [path.name for path in sources if quoted in path.read_text(encoding="utf-8")] == []


# All that TorchServe has: as it is installed.


def installed() -> Path:
    """The folder of TorchServe's package, which leaves a file open when it is imported."""
    spec = importlib.util.find_spec("ts")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def constants(member: str) -> Iterator[str]:
    """The texts in the constant pool of a class of TorchServe's, by the format of class files (JVMS 4.4)."""
    with zipfile.ZipFile(installed() / "frontend" / "model-server.jar") as archive:
        content = archive.read(member)
    sizes = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2}
    (count,), place, index = struct.unpack_from(">H", content, 8), 10, 1
    while index < count:
        tag = content[place]
        if tag == 1:
            (length,) = struct.unpack_from(">H", content, place + 1)
            yield content[place + 3 : place + 3 + length].decode("utf-8", "replace")
            place += 3 + length
        else:
            place += 1 + sizes[tag]
        index += 2 if tag in (5, 6) else 1


@pytest.mark.serving
def test_every_key_of_torchserve_s_configuration_is_in_the_table() -> None:
    found = set(constants("org/pytorch/serve/util/ConfigManager.class"))
    listed = {option.name for option in CONFIGURATION}
    variables = {f"TS_{name.removeprefix('ts_').upper()}" for name in listed} | set(_VARIABLES.values())
    # The first two are no keys: the prefix itself, and a log's name.
    others = {"TS_", "TS_METRICS", *(option.name for option in ENVIRONMENT)}
    assert {name for name in found if name.startswith("TS_")} - variables - others == set()
    assert set(_VARIABLES.values()) <= found
    of_its_start_script = {"vmargs", "plugins_path"}
    assert listed - of_its_start_script - found == set()


@pytest.mark.serving
def test_every_key_of_torchserve_s_archives_is_in_the_table() -> None:
    found = set(constants("org/pytorch/serve/archive/model/ModelConfig.class"))
    setters = {name.removeprefix("set") for name in found if name.startswith("set") and name[3:4].isupper()}
    keys = {name[0].lower() + name[1:] for name in setters}
    otherwise = {"parallelMode": "parallelType", "torchRun": "torchrun"}
    listed = {option.name for option in ARCHIVE}
    assert {otherwise.get(key, key) for key in keys} - listed == set()
    assert listed - found == set()


@pytest.mark.serving
def test_every_option_of_torchserve_s_command_line_is_in_the_table() -> None:
    parser = runpy.run_path(str(installed() / "arg_parser.py"))["ArgParser"]
    actions = parser.ts_parser()._actions
    found = {name for action in actions for name in action.option_strings if name.startswith("--")}
    assert found - {"--help"} == {option.name for option in COMMAND_LINE}
