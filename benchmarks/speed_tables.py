"""The documents' tables of speed and memory: kernels, training steps, generation, the service."""

from __future__ import annotations

from benchmarks.cells import Found, Rows, short

_PEERS = {"attention": "this kernel", "sdpa flash": "FlashAttention-2", "sdpa cudnn": "cuDNN",
          "flex": "FlexAttention", "eager": "eager"}  # fmt: skip


def attention(found: Found) -> Rows:
    """Milliseconds of causal attention, forward and both ways; the fastest in bold."""
    rows: Rows = [("causal attention", *_PEERS.values(), "TFLOP/s, forward")]
    cases = [case for case in found["cases"] if case["op"] == "attention"]
    for case in sorted(cases, key=lambda case: (case["case"]["head_dim"], case["case"]["queries"])):
        shape, done = case["case"], case["implementations"]
        best = min(_PEERS, key=lambda name: done[name]["ms"]["forward"])
        times = {name: f"{short(done[name]['ms']['forward'])} / {short(done[name]['ms']['both'])}" for name in _PEERS}
        times[best] = f"**{times[best]}**"
        label = f"{shape['batch']} × {shape['queries']:,}, {shape['kv_heads'] * shape['group']} × {shape['head_dim']}"
        peak = found["ceilings"]["flops_per_second"] / 1e12
        rate = done["attention"]["roofline_percent"]["forward"] / 100 * peak
        rows.append((label, *times.values(), f"{rate:.0f}"))
    return rows


def fused(found: Found) -> Rows:
    """Head and loss in one, and SwiGLU: milliseconds and memory beside eager and compiled PyTorch."""
    rows: Rows = [("kernel", "by", "forward / backward / both, ms", "memory, GiB", "of the roofline")]
    for op in ("linear_cross_entropy", "swiglu"):
        case = next(case for case in found["cases"] if case["op"] == op)
        shape = " × ".join(f"{size:,}" for name, size in case["case"].items() if name != "halves")
        for by, label in ((op, "this kernel"), ("eager", "eager"), ("compile", "`torch.compile`")):
            one = case["implementations"][by]
            ways = ("forward", "backward", "both")
            rows.append((
                f"`{op}`, {shape}",
                label,
                " / ".join(short(one["ms"][way]) for way in ways),
                f"{one['peak_bytes'] / 2**30:.1f}",
                " / ".join(f"{one['roofline_percent'][way]:.0f}%" for way in ways),
            ))  # fmt: skip
    return rows


_BY = {"sdpa": "ours, `sdpa`", "triton": "ours, `triton`", "plain": "plain PyTorch", "transformers": "`transformers`"}
_COMPILED = {"off": "not compiled", "eager": "not compiled", "compiled": "compiled",
             "blocks": "blocks compiled", "step": "step compiled"}  # fmt: skip


def steps(found: Found) -> Rows:
    """Training steps, the fastest first."""
    rows: Rows = [("by", "compiled", "tokens/s", "ms a step", "memory, GB", "of the matrix rate")]
    results = found["results"]
    for name in sorted(results, key=lambda name: -results[name].get("tokens_per_second", 0)):
        one = results[name]
        mode, _, note = name.partition(":")
        by, compiled = mode.split(", ")
        how = _COMPILED[compiled] + (f",{note}" if note else "")
        if "failed" in one:
            rows.append((_BY[by], how, one["failed"], "", "", ""))
            continue
        seconds, memory = one["seconds"], one["peak_megabytes"] / 1e3
        speed = f"{one['tokens_per_second']:,.0f}"
        rows.append((_BY[by], how, speed, f"{seconds * 1e3:,.0f}", f"{memory:.1f}", f"{one['mfu']:.0%}"))
    return rows


def decode(found: Found) -> Rows:
    """Tokens a second by number format."""
    rows: Rows = [("weights", "one row, tokens/s", "times transformers", "sixteen rows", "times transformers")]
    results = found["results"]
    for form in (name.removeprefix("1  ") for name in results if name.startswith("1  ")):
        cells = []
        for count in ("1", "16"):
            one = results[f"{count}  {form}"]
            ratio = one["times_transformers"]
            cells += [f"{one['tokens_per_second']:,.0f}", short(ratio) if ratio else ""]
        rows.append((form, *cells))
    return rows


def throughput(found: Found) -> Rows:
    """Requests of unequal length, continuously and in batches."""
    found = found["throughput"]
    rows: Rows = [(f"{found['requests']} requests, {found['rows']} rows at most", "tokens/s", "times static")]
    for name, one in found["results"].items():
        rows.append((name, f"{one['tokens_per_second']:,.0f}", short(one["times_static"])))
    return rows


def latency(found: Found) -> Rows:
    """Waiting, by rows on their way."""
    rows: Rows = [("rows", "first token, ms", "99%", "between tokens, ms", "99%", "of the memory's rate")]
    for count, one in found["latency"].items():
        times = [short(1e3 * one[name]) for name in ("first_p50", "first_p99", "between_p50", "between_p99")]
        rows.append((count, *times, f"{one['share_of_limit']:.0%}"))
    return rows


def service(found: Found) -> Rows:
    """A service at rising rates."""
    rows: Rows = [("requests/s", "answered", "refused (429)", "lost", "first token, ms", "99%", "tokens/s")]
    for one in found["rates"]:
        counts = [f"{one[kind]:,}" for kind in ("answered", "refused", "lost")]
        waits = [short(1e3 * one[name]) for name in ("first_p50", "first_p99")]
        rows.append((f"{one['rate']:g}", *counts, *waits, f"{one['tokens_per_second']:,.0f}"))
    return rows


def head_memory(found: Found) -> Rows:
    """Head and loss in chunks, as shares of what they take with all logits held."""
    return [
        ("tokens × width × words", "memory, of holding the logits", "time, of holding the logits"),
        *(
            (f"{one['rows']:,} × {one['width']:,} × {one['vocabulary']:,}", f"{one['memory_ratio']:.0%}",
             f"{one['time_ratio']:.0%}")
            for one in found["cases"]
        ),
    ]  # fmt: skip


def memory(found: Found) -> Rows:
    """What saves memory in training, and what it costs."""
    rows: Rows = [("step", "tokens/s", "time", "tensors held, MB", "memory", "the plan was off by")]
    for one in found["rows"]:
        rows.append((
            one["name"],
            f"{one['tokens_per_second']:,.0f}",
            f"{one['time_ratio']:.0%}",
            f"{one['held'] / 1e6:,.0f}",
            f"{one['memory_ratio']:.0%}",
            f"{one['planned_off_by']:.1%}",
        ))  # fmt: skip
    return rows


def agreement(found: Found) -> Rows:
    """Greedy answers that llama.cpp gives alike."""
    rows: Rows = [("llama.cpp on", "equal answers")]
    return rows + [(one["what"], f"{one['equal']} of {one['of']}") for one in found["comparisons"]]
