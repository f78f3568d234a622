"""A survey as one HTML file that needs nothing else: no model, no server, no address.

All that a click shows is computed beforehand and stands in the page as JSON; `page.html` beside this draws it.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructgpt.html import read_page, script_data, script_policy
from instructgpt.inside.survey import MOST_TOKENS, Found, Pair, Survey
from instructgpt.inside.trace import blocks
from instructgpt.text.tokenizer import Tokenizer

MOST_MAP_BYTES = 3_000_000
"""Of all attention maps, a byte for each query and key; in the page they take a third more."""
_TEMPLATE = Path(__file__).with_name("page.html")
_DIGITS = 4
_WRITES = 6
"""Tokens that a neuron is described by."""


def page(survey: Survey, name: str, prompt: str, pair: str | None = None) -> str:
    """The page. name: what the model is called there."""
    html = read_page(_TEMPLATE)
    data = script_data(page_data(survey, name, prompt, pair))
    policy = f"default-src 'none'; {script_policy(html)}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    return html.replace("<!--data-->", data).replace("<!--policy-->", policy, 1)


def page_data(survey: Survey, name: str, prompt: str, pair: str | None = None) -> dict[str, Any]:
    """What the page is drawn from; figures have four digits."""
    config, ids = survey.model.config, survey.trace.ids
    shown = _with_maps(survey)
    texts = _Texts(survey.tokenizer)
    return {
        "name": name,
        "prompt": prompt,
        "answer": survey.answer,
        "layers": config.layers,
        "heads": config.heads,
        "kvHeads": config.kv_heads,
        "tokens": [texts.token(i) for i in ids.tolist()],
        "first": survey.prompt,
        "logprobs": _figures(survey.logprobs),
        "gradient": _figures(survey.by_gradient),
        "erased": _figures(survey.by_leaving_out),
        "head": [
            _found(each, survey, texts)
            | {
                "induction": _figures(survey.scores.induction.flatten()[n]),
                "copying": _figures(survey.scores.copying.flatten()[n]),
                "map": _packed(survey.trace.attention[n // config.heads][n % config.heads]) if n in shown else None,
            }
            for n, each in enumerate(survey.heads)
        ],
        "attention": [_found(each, survey, texts) for each in survey.attentions],
        "mlp": [_found(each, survey, texts) for each in survey.mlps],
        "neurons": [_neuron(each, survey, texts) for each in survey.neurons],
        "lens": {
            "guesses": [[[texts(i) for i in place] for place in layer] for layer in survey.lens.tokens.tolist()],
            "p": _figures(survey.lens.probabilities),
            "target": _figures(survey.lens.target),
            "rank": survey.lens.rank.tolist(),
        },
        "pair": None if survey.pair is None else _pair(survey.pair, pair or "", texts),
        "leftOut": _left_out(survey, len(shown)),
    }


class _Texts:
    """Tokens as they are shown."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._control = tokenizer, set(tokenizer.control_ids.values())

    def __call__(self, i: int) -> str:
        return self._tokenizer.spelt(i)

    def token(self, i: int) -> dict[str, Any]:
        return {"text": self(i), "control": i in self._control}


def _figures(values: Tensor) -> Any:
    """Nested lists of numbers with four digits; one number of a tensor without dimensions."""
    return _rounded(values.double().tolist())


def _rounded(value: Any) -> Any:
    return [_rounded(each) for each in value] if isinstance(value, list) else float(f"{value:.{_DIGITS}g}")


def _found(found: Found, survey: Survey, texts: _Texts) -> dict[str, Any]:
    """Effects are what the answer's tokens gain by the part: log p with it, less log p without."""
    return {
        "layer": found.without.part.layer,
        "effect": _figures(survey.logprobs - found.without.logprobs),
        "greedy": [texts(i) for i in found.without.greedy.tolist()],
        "answer": found.answer,
    }


@torch.no_grad()
def _neuron(found: Found, survey: Survey, texts: _Texts) -> dict[str, Any]:
    """With the tokens that the neuron's value makes likeliest (Geva et al. 2021, section 4)."""
    part, model = found.without.part, survey.model
    value = blocks(model)[part.layer].mlp.down.weight[:, part.first]  # (C,)
    activation = survey.trace.neurons[part.layer][:, part.first]  # (T,)
    strongest = int(activation.abs().argmax())
    sign = 1 if activation[strongest] >= 0 else -1
    likeliest = model.head(sign * value * model.final_norm.weight).topk(min(_WRITES, model.config.vocab_size)).indices
    return _found(found, survey, texts) | {
        "number": part.first,
        "activation": _figures(activation),
        "strongest": strongest,
        "writes": [texts(i) for i in likeliest.tolist()],
    }


def _pair(pair: Pair, prompt: str, texts: _Texts) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answer": pair.answer,
        "tokens": [texts.token(i) for i in pair.ids],
        "own": texts(pair.own_token),
        "other": texts(pair.other_token),
        "stream": _figures(pair.stream),
        "heads": _figures(pair.heads),
        "directions": [
            {"layer": each.layer, "logprob": _figures(torch.tensor(each.logprob)), "greedy": texts(each.greedy)}
            for each in pair.directions
        ],
    }


def _with_maps(survey: Survey) -> set[int]:
    """The heads whose maps there is room for: those that matter most to a token of the answer, or look for repetition
    most."""
    T, count = len(survey.trace.ids), len(survey.heads)
    room = max(1, MOST_MAP_BYTES // (T * (T + 1) // 2))
    if room >= count:
        return set(range(count))
    effect = torch.stack([(survey.logprobs - each.without.logprobs).abs().amax() for each in survey.heads])
    by_effect, by_score = effect.argsort(descending=True), survey.scores.induction.flatten().argsort(descending=True)
    chosen = dict.fromkeys(torch.stack([by_effect, by_score.to(by_effect.device)], 1).flatten().tolist())
    return set(list(chosen)[:room])


def _packed(attention: Tensor) -> str:
    """A map (T, T), which is 0 above its diagonal, row by row in base64, 255 being 1."""
    T = attention.size(0)
    rows, columns = torch.tril_indices(T, T, device=attention.device)
    return base64.b64encode(bytes((attention[rows, columns] * 255).round().byte().tolist())).decode()


def _left_out(survey: Survey, shown: int) -> list[str]:
    """What the page does not show, in sentences."""
    config, found = survey.model.config, []
    if shown < len(survey.heads):
        found.append(
            f"Attention maps of {len(survey.heads) - shown} of {len(survey.heads)} heads: those that are here matter "
            "most to the answer, or look for repetition most."
        )
    found.append(
        f"Neurons other than the {len(survey.neurons)} of {config.layers * config.mlp_width:,} that the answer owes "
        "most to by the gradient."
    )
    parts = [*survey.heads, *survey.attentions, *survey.mlps, *survey.neurons]
    if missing := sum(each.answer is None for each in parts):
        found.append(f"The answers without {missing} of the parts, which change too and were not generated.")
    found.append(f"Whatever comes after {MOST_TOKENS} tokens; and what parts do together: each was left out alone.")
    return found
