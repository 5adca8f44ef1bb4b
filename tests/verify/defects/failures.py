"""What parity says of a defect."""


def says(failures: list[str], *words: str) -> None:
    for word in words:
        assert any(word in failure for failure in failures), (word, failures)
