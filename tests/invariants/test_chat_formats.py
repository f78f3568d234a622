"""Whatever the chat format: windows and prompts fit and keep the format, each answer is learnt once, and what a model
writes ends where the format says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.data.comparisons import fit
from instructgpt.data.windows import Fitted, fit_prompt, windows
from instructgpt.generation.decoding import forbidden_tokens
from instructgpt.generation.engine import generate, generate_ids, prompt_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import Message, render_answer, render_conversation, render_prompt
from instructgpt.text.formats import FORMATS
from instructgpt.text.reading import read_folder
from instructgpt.text.tokenizer import Tokenizer
from tests.text.families import FAMILIES, saved


@pytest.fixture(scope="module", params=[*FAMILIES, "ours in a base"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("family")
    name = request.param if request.param in FAMILIES else "llama2"
    saved(name, folder)
    read = read_folder(folder)
    return read if name == request.param else read.with_chat()


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Every turn begins with its number, so that each can be told from all others."""
    count = 2 * draw(st.integers(1, 5))
    contents = draw(st.lists(st.text("the cat 猫 1\n", max_size=40), min_size=count, max_size=count))
    messages: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": f"<{i}> {content}"} for i, content in enumerate(contents)
    ]
    system = draw(st.sampled_from([None, "Be brief.", "a long system message " * 3]))
    return messages if system is None else [{"role": "system", "content": system}, *messages]


@given(conversations(), st.integers(60, 260))
def test_every_answer_is_learnt_exactly_once_in_windows_that_fit(tokenizer, messages, limit) -> None:
    fitted = Fitted()
    found = windows(messages, tokenizer, limit, fitted=fitted)
    answers = [render_answer(m["content"], tokenizer) for m in messages if m["role"] == "assistant"]
    assert all(len(window) <= limit for window in found)
    learnt = [i for window in found for i in window.ids[window.is_target].tolist()]
    if not fitted.cut_answers:
        assert learnt == [i for answer in answers for i in answer]
        whole = render_conversation(messages, tokenizer)
        if len(whole.ids) <= limit:
            (window,) = found
            assert window.ids.tolist() == whole.ids and window.is_target.tolist() == whole.is_answer
    else:
        assert not Counter(learnt) - Counter(i for answer in answers for i in answer)
    if not fitted.cut_prompts and len(messages) % 2:
        texts = [tokenizer.decode(window.ids.tolist()) for window in found]
        assert all(messages[0]["content"].strip() in text for text in texts), "in every window"


@given(conversations(), st.integers(1, 260))
def test_a_prompt_fits_and_ends_where_the_assistant_is_to_speak(tokenizer, messages, room) -> None:
    prompt = messages[:-1]
    fitted = fit_prompt(prompt, tokenizer, room)
    whole = render_prompt(prompt, tokenizer)
    assert len(fitted.ids) <= room and (fitted.ids == whole) == (not fitted.is_cut)
    end = [*tokenizer.layout.header, *tokenizer.layout.thought]
    if room > len(end):
        assert fitted.ids[len(fitted.ids) - len(end) :] == end
    if room >= 100:
        closing = tokenizer.layout.around("user")[1]
        asked = [*tokenizer.layout.encode(tokenizer.layout.said("user", prompt[-1]["content"])), *closing, *end]
        assert fitted.ids[-len(asked) :][-len(closing) - len(end) - 4 :] == asked[-len(closing) - len(end) - 4 :]


@given(conversations(), st.integers(120, 300))
def test_compared_answers_share_their_prompt_and_end_with_what_closes_them(tokenizer, messages, context) -> None:
    ranked, prompt, cut = fit(messages[:-1], ["good", "the cat " * 8], tokenizer, context)
    for tokens, answer in zip(ranked.answers, ("good", "the cat " * 8)):
        assert tokens.ids[: len(prompt.ids)].tolist() == prompt.ids and len(tokens) <= context
        assert cut or tokens.ids[tokens.is_target].tolist() == render_answer(answer, tokenizer)
        assert cut or tokens.ids[-1] == tokenizer.end


# ---- generation


def test_an_answer_ends_with_the_formats_closing_tokens_and_holds_no_other_control_token(tokenizer) -> None:
    """A model of random weights, whose every token is likely: none is written that is not allowed, and it stops."""
    config = ModelConfig(tokenizer.vocab_size + 5, context=128, layers=1, width=16, heads=2, tie_embeddings=False)
    model = Transformer(config).eval()
    model.reset(torch.Generator().manual_seed(0))
    prompt = render_prompt([{"role": "user", "content": "the cat"}], tokenizer)
    done = generate_ids(model, tokenizer, [prompt], SamplingConfig(max_new_tokens=12, temperature=9.0), n=400)
    ended = [one for one in done if one.finish == "end"]
    assert ended and all(one.ids[-1] in tokenizer.closing for one in ended)
    assert all(not set(one.ids[:-1]) & tokenizer.closing for one in done)
    nothing = {i for i in range(tokenizer.vocab_size) if not tokenizer.byte_lengths[i]} - tokenizer.closing
    assert not {i for one in done for i in one.ids} & (nothing | set(range(tokenizer.vocab_size, config.vocab_size)))
    assert all(one.text == tokenizer.decode(one.ids) for one in done)
    forbidden = forbidden_tokens(tokenizer, config.vocab_size)
    assert not forbidden[list(tokenizer.closing)].any() and forbidden[tokenizer.vocab_size :].all()
    assert generate(model, tokenizer, ["the cat"], max_new_tokens=2) and tokenizer.end in tokenizer.closing


def test_a_raw_prompt_begins_as_a_document_does(tokenizer) -> None:
    assert prompt_ids("the cat", tokenizer, raw=True) == [*tokenizer.document_start, *tokenizer.encode("the cat")]
    assert tokenizer.document_start in ([], [tokenizer.bos])


def test_every_format_names_what_closes_an_answer() -> None:
    for form in FORMATS.values():
        assert any(form.answer.partition("{}")[2].lstrip().startswith(name) for name in form.control)
        for text in (form.user, form.answer, form.system):
            assert text.count("{}") == 1
        assert np.isin(["{}"], [form.header, form.thought]).sum() == 0
