"""Java's properties files: what java.util.Properties reads, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchport.errors import ServerError
from torchport.properties import parse_properties, read_properties

# Of the format's description: https://docs.oracle.com/javase/8/docs/api/java/util/Properties.html


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a=b", {"a": "b"}),
        ("a:b", {"a": "b"}),
        ("a b", {"a": "b"}),
        ("a  =  b ", {"a": "b "}),
        ("  a=b", {"a": "b"}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("a==b", {"a": "=b"}),
        ("a=b=c:d e", {"a": "b=c:d e"}),
        ("a=http://127.0.0.1:8080", {"a": "http://127.0.0.1:8080"}),
        ("# a=b\n! c=d\n\n   \n", {}),
        ("a=# no comment", {"a": "# no comment"}),
        ("a=b\na=c", {"a": "c"}),
        ("a=b\\\n   c", {"a": "bc"}),
        ("a=b\\\n# c", {"a": "b# c"}),
        ("a=b\\\\\nc=d", {"a": "b\\", "c": "d"}),
        ("# comment \\\na=b", {"a": "b"}),
        ("a=b\\", {"a": "b"}),
        ("a=b\r\nc=d\re=f", {"a": "b", "c": "d", "e": "f"}),
        ("a=b\u2028c\x0bd\x85e\x1cf", {"a": "b\u2028c\x0bd\x85e\x1cf"}),
        (r"a\ b\:c=d", {"a b:c": "d"}),
        (r"a=\u00e9\t\n\\\:\=", {"a": "é\t\n\\:="}),
        (r"a=\q", {"a": "q"}),
        (r"a=C:\\models", {"a": "C:\\models"}),
        ('models={\\\n  "noop": {\\\n    "1.0": {"minWorkers": 1}\\\n  }\\\n}', None),
    ],
)
def test_lines(text: str, found: dict[str, str] | None) -> None:
    if found is None:
        found = {"models": '{"noop": {"1.0": {"minWorkers": 1}}}'}
    assert parse_properties(text) == found


def test_variables_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text("\ufeffa=$$HOME_OF_MODELS$$/store\nb=$$\nc=$5 $$\n", encoding="utf-8")
    assert read_properties(path, {"HOME_OF_MODELS": "/models"}) == {
        "a": "/models/store",
        "b": "$$",
        "c": "$5 $$",
    }
    assert read_properties(path)["a"] == "$$HOME_OF_MODELS$$/store"
    with pytest.raises(
        ServerError, match=r"\$\$HOME_OF_MODELS\$\$ names an environment variable that is not"
    ):
        read_properties(path, {})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot read .*missing: No such file"):
        read_properties(tmp_path / "missing")
    with pytest.raises(ServerError, match="cannot read .*Is a directory"):
        read_properties(tmp_path)
    (tmp_path / "latin").write_bytes(b"a=\xe9")
    with pytest.raises(ServerError, match="cannot read .*latin: 'utf-8' codec"):
        read_properties(tmp_path / "latin")


def test_a_line_of_a_megabyte_is_read_as_fast_as_it_is_long() -> None:
    """No expression here may go back and forth over what somebody else has written."""
    for piece in (" ", "\\", "=", "a", "\\u00e9", "$$", " =", "\\ "):
        text = piece * (1_000_000 // len(piece))
        assert isinstance(parse_properties(f"a=b\n{text}"), dict)
        assert isinstance(parse_properties(f"a={text}"), dict)
