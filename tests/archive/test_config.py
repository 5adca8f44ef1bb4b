"""A config is read within bounds, whatever its few lines would stand for."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.server.models.hostile_archives.writing import bomb
from torchport.archive.config import MAX_VALUES, parse_config

PLAIN = """
minWorkers: 2
handler: &defaults {lr: 1.5e-3, on: yes, at: 2026-01-02, time: 1:30, hex: 0x1F, none: ~}
other: {<<: *defaults, lr: 2}
both: {<<: [*defaults, {more: [1, 2]}]}
"""


def test_what_configs_have_is_read_as_yaml_reads_it() -> None:
    assert parse_config(PLAIN) == yaml.safe_load(PLAIN)
    assert parse_config("") is None
    assert parse_config("{}") == {}
    # Deep, long and broad, as nobody's config is.
    broad = f"labels: [{', '.join(f'class {number}' for number in range(1000))}]\ntext: {'x' * 100_000}"
    assert parse_config(broad) == yaml.safe_load(broad)


def merges(levels: int) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


def chain(levels: int) -> str:
    return "\n".join(
        ["a0: &a0 {k: v}", *(f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: v}}" for n in range(1, levels))]
    )


TOO_MUCH = {
    "aliases": (bomb(), f"more than {MAX_VALUES} values"),
    "merge keys": (merges(9), f"more than {MAX_VALUES} values"),
    "a chain of merge keys": (chain(1000), f"more than {MAX_VALUES} values"),
    "itself": ("a: &a [*a]", "contains itself"),
    "itself, merged": ("a: &a {<<: *a}", "contains itself"),
    "deep": ("[" * 5_000, "more than 100 lists"),
    "deep braces": ("{" * 5_000, "more than 100 lists"),
    "deep blocks": ("- " * 5_000, "more than 100 lists"),
    "base 60": (f"x: 1{':1' * 200_000}", "a number of over 64"),
    "base 60, broken": (f"x: 1{':1' * 100_000}.5", "a number of over 64"),
    "huge": (f"x: {'9' * 5_000}", "a number of over 64"),
    "huge, in hex": (f"x: 0x{'f' * 900_000}", "a number of over 64"),
    "huge, in bits": (f"x: 0b{'1' * 900_000}", "a number of over 64"),
    "a huge key": (f"{'9' * 100}: x", "a number of over 64"),
    "a huge fraction": (f"x: 1.{'9' * 100_000}", "a number of over 64"),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_stands_for_too_much_is_refused_before_it_is_made(case: str) -> None:
    text, reason = TOO_MUCH[case]
    with pytest.raises(ValueError, match=reason):
        parse_config(text)


def test_many_values_are_not_read_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchport.archive.config.MAX_VALUES", 1000)
    parse_config(f"[{'x,' * 999}]")
    with pytest.raises(ValueError, match="more than 1000 values"):
        parse_config(f"[{'x,' * 400_000}]")


@pytest.mark.parametrize(
    "text",
    [
        "!!timestamp soon",
        "!!bool 3",
        '!!int ""',
        '!!float ""',
        "!!int [1]",
        "!!int x",
        "!!binary é",
        "!!omap 3",
        "!!set [a]",
        "!!python/name:os.system",
        "2026-99-99",
        "{[a]: b}",
        "{{a: b}: c}",
        "<<: 3",
        "a: 1\n---\nb: 2",
        "\0",
    ],
)
def test_what_is_no_value_of_its_kind_is_refused(text: str) -> None:
    with pytest.raises((ValueError, yaml.YAMLError)):
        parse_config(text)


@given(st.text(alphabet="&*a b:<[]{},-!|>#%'\"1\n~?", max_size=60))
def test_whatever_it_is_it_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError, yaml.YAMLError):
        parse_config(text)
