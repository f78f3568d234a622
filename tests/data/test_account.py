"""The printed account of what was read, kept and dropped."""

from __future__ import annotations

from instructgpt.data.account import Account


def test_report_names_reasons_by_frequency_with_the_first_place() -> None:
    account = Account("a.json")
    account.read, account.kept = 12_345, 12_342
    for line in (7, 9):
        account.drop("empty answer", "a.json", line)
    account.drop("no answer", "a.json", 3)
    account.note("exact duplicate, kept")
    assert account.report().splitlines() == [
        "a.json: 12,345 records read, 12,342 kept, 3 dropped",
        "  dropped 2: empty answer (first at a.json:7)",
        "  dropped 1: no answer (first at a.json:3)",
        "  noted 1: exact duplicate, kept",
    ]


def test_adding_accounts() -> None:
    first, second = Account("all"), Account("b.json")
    first.drop("empty answer", "a.json", 1)
    second.drop("empty answer", "b.json", 2)
    second.drop("no answer", "b.json", 3)
    first.read, second.read, second.kept = 1, 4, 2
    first.add(second)
    assert (first.read, first.kept, first.dropped.total()) == (5, 2, 3)
    assert "empty answer (first at a.json:1)" in first.report() and "no answer (first at b.json:3)" in first.report()
    assert Account().report() == "0 records read, 0 kept, 0 dropped"


def test_fields_that_were_not_used_are_listed_the_most_frequent_first() -> None:
    account, other = Account("all"), Account()
    account.not_used.update(["images"] * 6)
    other.not_used.update(["tools"] * 41)
    account.add(other)
    assert account.report().splitlines()[1:] == ["  not used: tools (41), images (6)"]
    account.not_used.update(f"{i:02}" for i in range(40))
    assert account.report().endswith("(1), 27 (1), 12 others")
