"""README.md shows what the committed results say."""

import pytest
from readme_tables import README, rewritten


def test_readme_is_what_the_results_make_of_it() -> None:
    text = README.read_text()
    assert rewritten(text) == text


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="has the tables"):
        rewritten("no table here")
