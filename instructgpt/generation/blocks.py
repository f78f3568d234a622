"""Whose block is whose: reference counts, prefixes that are found again, and where in memory a sequence lies.

A full block of a sequence is known by the prefix that ends with it: a node of a trie, whose edges are a block's tokens.
Equal prefixes are equal nodes, compared token by token and not by hash alone. A block that no sequence uses stays while
there is room, for whoever begins alike; the one that was left longest ago goes first.

Memory is also cut into cells of equal size. A sequence begins in a cell of its own and grows into it block by block, so
that its keys lie in one run, and those of all sequences at equal distances (`model/runs.py`). A cell is no more than a
wish: where no block is free elsewhere, others take what it has to spare.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from instructgpt.model.cache import Table


class Pool:
    """The blocks of a cache."""

    def __init__(self, blocks: int, block_size: int, cell: int = 1, keeps_prefixes: bool = True):
        """cell: blocks that a sequence may grow to undisturbed."""
        self.blocks, self.block_size = blocks, block_size
        self.cell = max(1, min(cell, blocks))
        self.keeps_prefixes = keeps_prefixes
        self._users = [0] * blocks
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept for their prefix alone, the longest idle first
        self._free = dict.fromkeys(range(blocks))  # all others without a user; a dict, for its order is the same always
        cells = -(-blocks // self.cell)
        self._taken = [0] * cells  # blocks of each cell that are not free
        self._used = [0] * cells  # blocks of each cell that have a user
        self._empty = list(range(cells))  # a heap of cells, among them all that are free throughout
        self._children: dict[Hashable, int] = {}  # (node, tokens of the next block) -> node
        self._node_of: dict[int, tuple[int, Hashable]] = {}  # block -> its node, and the key above
        self._block_of: dict[int, int] = {}  # node -> block
        self._roots: dict[str | None, int] = {}
        self._nodes = 0

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        return self.blocks - self.available

    # ---- taking and giving back

    def share(self, block: int) -> None:
        """One user more."""
        self._users[block] += 1
        if self._users[block] == 1:
            self._idle.pop(block, None)
            if self._free.pop(block, 0) is None:
                self._taken[block // self.cell] += 1
            self._used[block // self.cell] += 1

    def grow(self, table: Table, tokens: int) -> bool:
        """Gives a sequence blocks for so many tokens; False, and none at all, where there are not enough."""
        missing = -(-tokens // self.block_size) - len(table.blocks)
        if missing > self.available:
            return False
        for _ in range(missing):
            first, count = table.runs[-1]
            block = first + count
            if count == 0 or not (block in self._free or block in self._idle):
                block = self._elsewhere()
            self._forget(block)
            self.share(block)
            table.append(block)
        return True

    def release(self, table: Table) -> None:
        """One user less for each of its blocks."""
        for block in reversed(table.blocks):  # a prefix's end is forgotten before its beginning
            self._users[block] -= 1
            if self._users[block] == 0:
                self._used[block // self.cell] -= 1
                if block in self._node_of:
                    self._idle[block] = None
                else:
                    self._set_free(block)

    def _set_free(self, block: int) -> None:
        self._free[block] = None
        cell = block // self.cell
        self._taken[cell] -= 1
        if self._taken[cell] == 0:
            heapq.heappush(self._empty, cell)

    def _elsewhere(self) -> int:
        """A free cell's first block; else that of the cell left longest ago; else where most are free in a row."""
        while self._empty:
            if self._taken[self._empty[0]] == 0:
                return self._empty[0] * self.cell
            heapq.heappop(self._empty)
        if self._idle:
            cell = next(iter(self._idle)) // self.cell
            if self._used[cell] == 0:
                return cell * self.cell
        if not self._free:
            return next(iter(self._idle))
        emptiest = min(range(len(self._taken)), key=lambda cell: self._taken[cell] - self._size(cell))
        return self._longest_stretch(emptiest)

    def _size(self, cell: int) -> int:
        """Its blocks; the last has what is left."""
        return min(self.cell, self.blocks - cell * self.cell)

    def _longest_stretch(self, cell: int) -> int:
        """Where the most free blocks of a cell begin that are neighbours."""
        first = cell * self.cell
        best, length, here = first, 0, 0
        for block in range(first, first + self._size(cell)):
            here = here + 1 if block in self._free else 0
            if here > length:
                best, length = block - here + 1, here
        return best

    # ---- prefixes

    def root(self, adapter: str | None) -> int:
        """The node of nothing; what adapters compute differs from the first token on."""
        return self._roots.setdefault(adapter, self._new_node())

    def keep(self, node: int, tokens: Sequence[int], block: int) -> int:
        """The node after `tokens`, a block's, of which `block` holds what is computed if it is the first to."""
        if not self.keeps_prefixes:
            return node
        key = (node, tuple(tokens))
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = self._new_node()
            self._node_of[block], self._block_of[found] = (found, key), block
        return found

    def find(self, node: int, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """The node of the longest kept prefix of `tokens` in whole blocks, and the blocks, not taken yet."""
        blocks: list[int] = []
        size = self.block_size
        for at in range(0, len(tokens) - size + 1, size):
            child = self._children.get((node, tuple(tokens[at : at + size])))
            if child is None:
                break
            node = child
            blocks.append(self._block_of[node])
        return node, blocks

    def _new_node(self) -> int:
        self._nodes += 1
        return self._nodes

    def _forget(self, block: int) -> None:
        """What follows a forgotten prefix is not found any more, and goes when its turn comes."""
        if block in self._node_of:
            node, key = self._node_of.pop(block)
            del self._children[key], self._block_of[node]
            del self._idle[block]
            self._set_free(block)
