"""README.md and the pages show what the committed results say."""

import pytest
from docs_tables import ROOT, TABLES, rewritten


@pytest.mark.parametrize("page", TABLES)
def test_pages_are_what_the_results_make_of_them(page: str) -> None:
    text = (ROOT / page).read_text()
    assert rewritten(page, text) == text


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="has the tables"):
        rewritten("README.md", "no table here")
