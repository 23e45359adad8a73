"""The figures of the README, of its picture and of the printed table are those of one run."""

from __future__ import annotations

import pytest

from tests.bench import readme, record
from tests.bench.measure import Spread
from tests.bench.targets import Figure, as_row, figures


@pytest.fixture(scope="module")
def stored():
    return record.read(readme.STORED)


def test_the_readme_shows_the_stored_run(stored):
    text = readme.README.read_text()
    assert text.count(readme.BEGIN) == text.count(readme.END) == 1
    assert readme.replaced(text, stored) == text


def test_the_picture_shows_the_stored_run(stored):
    assert record.digest(stored).encode() in readme.PICTURE.read_bytes()


def test_the_readme_shows_a_table_of_requests_and_one_of_the_rest(stored):
    text = readme.written(stored)
    assert "| pwexpire, a poll a second |" in text and "| wanted | met |" in text
    for key in readme.SHOWN:
        assert any(record.rows(stored, key, name) for name in record.DATABASES), key


def test_every_figure_with_a_limit_says_whether_it_is_met(stored):
    for row in stored["figures"]:
        assert (row["met"] is None) == (row["limit"] is None and row["value"] is not None), row


def test_a_name_a_value_a_limit_and_its_kind_are_enough():
    row = as_row(Figure("statements", 3, 4, True), "sqlite")
    assert (row["key"], row["met"], record.wanted(row)) == ("statements", "yes", "at most 4")
    assert as_row(Figure("rows a second", 3, 4, False), "sqlite")["met"] == "no"


def test_an_interval_around_the_limit_decides_nothing():
    row = as_row(Figure("ratio", Spread(1.0, 0.9, 1.1, 9), 1.05), "sqlite")
    assert row["met"] == "too noisy to say"
    assert record.shown(row) == "1.000 (0.900 to 1.100)"


def test_a_section_that_failed_is_not_measured():
    (row,) = figures({"database": "sqlite", "failed": {"users": "OperationalError: gone"}})
    assert (row["key"], row["value"], row["met"]) == ("users", None, "not measured")
    assert "| users: OperationalError: gone | SQLite |  |  | not measured |" in (
        record.measured_wanted_met([row])
    )
