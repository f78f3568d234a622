from __future__ import annotations

import pytest
import torch

from kernels import (
    attention_reference,
    decode_attention,
    decode_attention_reference,
    paged_decode_attention,
    paged_decode_attention_reference,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_reference_is_attention_over_the_slots_in_use() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    o = decode_attention_reference(q, k, v, torch.tensor([0, 2]), torch.tensor([5, 3]))
    for row, used in enumerate((slice(0, 5), slice(2, 3))):
        alone = attention_reference(q[row, None, :, None], k[row, None, :, used], v[row, None, :, used])
        torch.testing.assert_close(o[row], alone[0, :, 0])


def test_paged_reference_finds_its_pages() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 2, 2, 6, 8)  # (B, K, tokens, D) each
    q, lengths = torch.randn(2, 4, 8), torch.tensor([5, 6])
    table = torch.tensor([[3, 0, 5], [1, 4, 2]])
    k_pages, v_pages = torch.zeros(2, 6, 2, 2, 8)  # (pages, K, page, D) each
    for row in range(2):
        for number, page in enumerate(table[row]):
            k_pages[page], v_pages[page] = (x[row, :, 2 * number : 2 * number + 2] for x in (k, v))
    expected = decode_attention_reference(q, k, v, ends=lengths)
    torch.testing.assert_close(paged_decode_attention_reference(q, k_pages, v_pages, table, lengths), expected)


def test_slots_outside_are_never_loaded() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(*shape, device=DEVICE) for shape in ((1, 2, 16), (1, 1, 100, 16), (1, 1, 100, 16)))
    k[:, :, :7], v[:, :, 90:] = torch.nan, torch.nan
    starts, ends = torch.tensor([7], device=DEVICE), torch.tensor([90], device=DEVICE)
    o = decode_attention(q, k, v, starts, ends)
    torch.testing.assert_close(o, decode_attention_reference(q, k[:, :, 7:90], v[:, :, 7:90]))


def test_wrong_input_is_told_with_its_numbers() -> None:
    q, k, v = (torch.randn(*shape, device=DEVICE) for shape in ((2, 3, 16), (2, 2, 5, 16), (2, 2, 5, 16)))
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2"):
        decode_attention(q, k, v)
    q = q[:, :2]
    with pytest.raises(ValueError, match="no gradient"):
        decode_attention(q.requires_grad_(), k, v)
    with torch.no_grad(), pytest.raises(ValueError, match="2 queries for a cache of 1"):
        decode_attention(q, k[:1], v[:1])
    with torch.no_grad(), pytest.raises(ValueError, match=r"table \(1, 2\) and lengths \(2,\)"):
        paged_decode_attention(q, k, v, torch.zeros(1, 2, device=DEVICE).int(), torch.ones(2, device=DEVICE).int())
