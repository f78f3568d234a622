from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instructgpt.generation.blocks import Pool
from instructgpt.model.cache import Table


def grown(pool: Pool, tokens: int, table: Table | None = None) -> Table:
    table = table or Table()
    assert pool.grow(table, tokens)
    return table


def test_sequences_lie_in_cells_of_their_own() -> None:
    pool = Pool(12, block_size=4, cell=3)
    tables = [grown(pool, 4) for _ in range(3)]
    for table in tables:
        grown(pool, 9, table)
    assert [table.blocks for table in tables] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    pool.release(tables[1])
    assert grown(pool, 1).blocks == [3]  # the first that is empty


def test_what_a_cell_has_to_spare_is_taken_where_nothing_else_is_free() -> None:
    pool = Pool(6, block_size=4, cell=3)
    first, second = grown(pool, 4), grown(pool, 8)
    third = grown(pool, 12)
    assert sorted([*first.blocks, *second.blocks, *third.blocks]) == [0, 1, 2, 3, 4, 5]
    assert not pool.grow(first, 8) and first.blocks == [0] and pool.available == 0
    pool.release(third)
    assert grown(pool, 8, first) and pool.used == 4


def test_a_prefix_is_found_by_its_tokens_and_by_nothing_else() -> None:
    pool = Pool(8, block_size=2)
    table = grown(pool, 6)
    node = pool.root("")
    for at, block in zip((0, 2, 4), table.blocks):
        node = pool.keep(node, [at, at + 1], block)
    assert pool.find(pool.root(""), [0, 1, 2, 3, 4, 5, 6]) == (node, table.blocks)
    assert pool.find(pool.root(""), [0, 1, 2, 3, 4])[1] == table.blocks[:2]  # whole blocks alone
    assert pool.find(pool.root(""), [0, 1, 9, 3, 4, 5])[1] == table.blocks[:1]
    assert pool.find(pool.root(""), [2, 3])[1] == []  # the same tokens after others
    assert pool.find(pool.root("other"), [0, 1])[1] == []
    again = grown(pool, 2)
    assert pool.keep(pool.root(""), [0, 1], again.blocks[0]) == pool.find(pool.root(""), [0, 1])[0]
    assert pool.find(pool.root(""), [0, 1])[1] == table.blocks[:1]  # the first to have it


def test_a_prefix_that_nobody_uses_stays_until_its_block_is_needed() -> None:
    pool = Pool(4, block_size=1)
    for token in (7, 8, 9):
        table = grown(pool, 1)
        pool.keep(pool.root(""), [token], table.blocks[0])
        pool.release(table)
    assert pool.used == 0 and pool.available == 4
    (found,) = pool.find(pool.root(""), [8])[1]
    pool.share(found)  # in use again, so it is not forgotten
    assert pool.used == 1
    grown(pool, 2)
    assert pool.find(pool.root(""), [7])[1] == [] and pool.find(pool.root(""), [8])[1] == [found]
    assert pool.find(pool.root(""), [9])[1] != []  # left more recently than 7
    grown(pool, 1)
    assert pool.find(pool.root(""), [9])[1] == [] and pool.available == 0


def test_prefixes_are_not_kept_where_that_is_not_wanted() -> None:
    pool = Pool(2, block_size=1, keeps_prefixes=False)
    pool.keep(pool.root(""), [7], grown(pool, 1).blocks[0])
    assert pool.find(pool.root(""), [7])[1] == []


@given(
    blocks=st.integers(1, 12),
    cell=st.integers(1, 5),
    acts=st.lists(st.tuples(st.sampled_from(["new", "grow", "fork", "end"]), st.integers(0, 9)), max_size=40),
)
def test_no_block_is_lost_or_given_twice(blocks: int, cell: int, acts: list[tuple[str, int]]) -> None:
    """Each block's users are the tables it is in; what a table was promised it keeps; at the end all come back."""
    pool, tables = Pool(blocks, 1, cell), []
    names: dict[int, list[int]] = {}  # by table, its tokens: those kept as a prefix must be found as they are

    def kept(table: Table) -> None:
        node = pool.root("")
        for token, block in zip(names[id(table)], table.blocks):
            node = pool.keep(node, [token], block)

    for act, number in acts:
        if act == "new" or not tables:
            table = Table()
            if pool.grow(table, number % 4):
                tables.append(table)
                names[id(table)] = [number * 10 + i for i in range(len(table.blocks))]
                kept(table)
            continue
        table = tables[number % len(tables)]
        if act == "grow":
            had = list(table.blocks)
            if pool.grow(table, len(had) + 1):
                names[id(table)].append(number)
            assert table.blocks[: len(had)] == had
        elif act == "fork":
            found = pool.find(pool.root(""), names[id(table)])[1]
            for block in found:
                pool.share(block)
            tables.append(Table(found))
            names[id(tables[-1])] = names[id(table)][: len(found)]
        else:
            pool.release(table)
            tables.remove(table)
        in_use = [block for each in tables for block in each.blocks]
        assert pool.used == len(set(in_use)) and pool.available == blocks - len(set(in_use))
    for table in tables:
        pool.release(table)
    assert pool.used == 0 and pool.available == blocks
    assert grown(pool, blocks) and pool.available == 0
