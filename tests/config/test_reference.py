from pathlib import Path

from airpfed.config.reference import reference_page

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_reference_page_is_the_one_the_code_generates():
    assert PAGE.read_text(encoding="utf-8") == reference_page(), "run `make docs`"
