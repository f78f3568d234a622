from __future__ import annotations

import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

import instructgpt as ig
from instructgpt import world
from instructgpt.cli import run_command
from instructgpt.config import ModelConfig
from instructgpt.flags import run_main
from instructgpt.generation.engine import completions, generate
from instructgpt.model.quantize import QuantizedLinear
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory
from instructgpt.world.composition import HELD_OUT_PAIRS

ROOT = Path(__file__).parents[1]
CONTEXT = 128


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run directory with a small random model."""
    torch.set_num_threads(1)
    texts = [world.document(i) for i in range(200)]
    texts += [message["content"] for i in range(400) for message in world.example("train", i).conversation]
    tokenizer = Tokenizer.train(texts, 900)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=CONTEXT, layers=1, width=32, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8  # as they are drawn, all answers would be much the same
    directory = RunDirectory.open(tmp_path_factory.mktemp("run") / "sft")
    directory.write_config("sft", model.config, tokenizer, {})
    directory.save_model(model)
    return str(directory.path)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command as the console script does: exit code, standard output, standard error."""

    def call(*argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = run_main(lambda: run_command(argv))
        return code, *capsys.readouterr()

    return call


def answer(run: str, prompt: str | list, **options: int | float | bool) -> list[str]:
    model, tokenizer = ig.load(run, "cpu")
    return generate(model, tokenizer, [prompt], **options)  # pyright: ignore[reportArgumentType]


F32 = ("--dtype", "float32", "--device", "cpu")


def test_generate_streams_what_the_engine_generates(run: str, call: Call):
    code, out, err = call("generate", "--model", run, "--prompt", "Hello!", "--max-new-tokens", "6", *F32)
    assert (code, out, err) == (0, answer(run, "Hello!", max_new_tokens=6)[0] + "\n", "")


def test_generate_with_quantized_weights(run: str, call: Call):
    flags = ("--max-new-tokens", "6", "--quantize", "int8")
    code, out, err = call("generate", "--model", run, "--prompt", "Hello!", *flags, *F32)
    model, tokenizer = ig.load(run, "cpu", quantized="int8")
    assert isinstance(model.blocks[0].mlp.down, QuantizedLinear)
    assert (code, out, err) == (0, generate(model, tokenizer, ["Hello!"], max_new_tokens=6)[0] + "\n", "")


def test_generate_reads_standard_input(run: str, call: Call):
    given = call("generate", "--model", run, "--prompt", "2 + 3 =\n?", "--max-new-tokens", "6", *F32)
    piped = call("generate", "--model", run, "--max-new-tokens", "6", *F32, stdin=b"2 + 3 =\n?\n")
    assert given == piped


@pytest.mark.parametrize("prompt", ["Hello!\r", " Hello! \n", "\tHello!\r\n", "\u3000Hello!\n\n"])
def test_a_prompt_given_as_a_line_is_a_line(prompt: str, run: str, call: Call):
    argv = ("generate", "--model", run, "--max-new-tokens", "6", *F32)
    assert call(*argv, "--prompt", prompt) == call(*argv, "--prompt", "Hello!")
    assert call(*argv, stdin=prompt.encode()) == call(*argv, stdin=b"\xef\xbb\xbfHello!")  # a byte order mark
    assert call(*argv, "--raw", "--prompt", prompt)[1] == answer(run, prompt, max_new_tokens=6, raw=True)[0] + "\n"


def test_a_stop_string_may_be_a_line_end(run: str, call: Call):
    argv = ("generate", "--model", run, "--prompt", "Hello!", "--raw", "--max-new-tokens", "40", *F32)
    whole, first = call(*argv)[1], call(*argv, "--stop", r"\n")[1]
    assert first == answer(run, "Hello!", max_new_tokens=40, raw=True, stop=("\n",))[0] + "\n"
    assert whole.startswith(first.removesuffix("\n"))


def test_generate_prints_n_samples(run: str, call: Call):
    argv = ("--temperature", "1.5", "--seed", "3", "--max-new-tokens", "5", "--n", "3", *F32)
    code, out, _ = call("generate", "--model", run, "--prompt", "Hello!", *argv)
    texts = answer(run, "Hello!", temperature=1.5, seed=3, max_new_tokens=5, n=3)
    assert (code, out) == (0, "".join(f"[{i + 1}] {text}\n" for i, text in enumerate(texts)))


def test_generate_with_a_system_message_and_raw(run: str, call: Call):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    argv = ("generate", "--model", run, "--prompt", "Hello!", "--max-new-tokens", "4", *F32)
    assert call(*argv, "--system", "Be brief.")[1] == answer(run, messages, max_new_tokens=4)[0] + "\n"
    assert call(*argv, "--raw")[1] == answer(run, "Hello!", max_new_tokens=4, raw=True)[0] + "\n"


def test_chat_keeps_the_history(run: str, call: Call):
    argv = ("chat", "--model", run, "--max-new-tokens", "5", *F32)
    code, out, err = call(*argv, stdin="Hello!\nnoch \\\neinmal 你好\n/quit\nnever".encode())
    first = answer(run, "Hello!", max_new_tokens=5)[0]
    turns = [("user", "Hello!"), ("assistant", first), ("user", "noch \neinmal 你好")]
    second = answer(run, [{"role": role, "content": content} for role, content in turns], max_new_tokens=5)[0]
    assert (code, out, err) == (0, f"{first}\n{second}\n", "")


def test_chat_goes_on_when_the_context_is_full(run: str, call: Call):
    code, out, err = call("chat", "--model", run, "--max-new-tokens", "30", *F32, stdin=b"the red cat\n" * 6)
    assert (code, err) == (0, "")
    assert "are forgotten" in out


def test_chat_tells_of_a_message_longer_than_the_context(run: str, call: Call):
    code, out, _ = call("chat", "--model", run, "--max-new-tokens", "3", *F32, stdin=b"xyz " * 200 + b"\nHello!\n")
    assert code == 0
    assert out.startswith("error: ") and f"context holds {CONTEXT}" in out
    assert out.endswith(answer(run, "Hello!", max_new_tokens=3)[0] + "\n")


def test_chat_refuses_only_the_message_that_is_too_long(run: str, call: Call):
    argv = ("chat", "--model", run, "--max-new-tokens", "3", *F32)
    code, out, _ = call(*argv, stdin=b"Hello!\n" + b"xyz " * 200 + b"\r\n Hello again! \r\n")
    first = answer(run, "Hello!", max_new_tokens=3)[0]
    turns = [("user", "Hello!"), ("assistant", first), ("user", "Hello again!")]
    second = answer(run, [{"role": role, "content": content} for role, content in turns], max_new_tokens=3)[0]
    assert code == 0
    assert out.startswith(f"{first}\nerror: ") and out.endswith(f"\n{second}\n") and out.count("\n") == 3


def test_eval_on_the_world(run: str, call: Call, tmp_path: Path):
    scores, samples = tmp_path / "eval.json", tmp_path / "samples.md"
    argv = ("--n", "1", "--families", *world.FAMILIES[:3], "--json", str(scores), "--samples", str(samples), *F32)
    code, out, err = call("eval", "--model", run, "--data", "world", "--split", "val", *argv)
    assert (code, err) == (0, "")
    (result,) = json.loads(scores.read_text(encoding="utf-8"))["results"].values()
    assert list(result["families"]) == sorted(world.FAMILIES[:3])
    assert result["examples"] == 3
    assert result["loss"]["bits_per_byte"] > 0
    assert all(family in out for family in world.FAMILIES[:3]) and "bits/byte" in out
    assert samples.read_text(encoding="utf-8").startswith("# world, val")


def test_eval_asks_n_examples_of_every_family_and_composition(run: str, call: Call, tmp_path: Path):
    scores = tmp_path / "eval.json"
    for split, names in (("test", world.FAMILIES), ("test_composition", HELD_OUT_PAIRS)):
        argv = ("--split", split, "--n", "1", "--max-new-tokens", "2", "--json", str(scores), *F32)
        assert call("eval", "--model", run, *argv)[0] == 0
        (result,) = json.loads(scores.read_text(encoding="utf-8"))["results"].values()
        assert result["examples"] == len(names)


def test_eval_on_files(run: str, call: Call, tmp_path: Path):
    table, records, text = tmp_path / "t.csv", tmp_path / "r.json", tmp_path / "t.txt"
    table.write_text("text,label\n" + "shares fall,negative\nshares rise,positive\n" * 6, encoding="utf-8")
    records.write_text(json.dumps([{"instruction": "Say hello.", "output": "hello"}] * 3), encoding="utf-8")
    text.write_text("The cat is red. " * 100, encoding="utf-8")
    scores = tmp_path / "eval.json"
    argv = ("--prompt", "Good or bad? {text}", "--answer", "{label}", "--max-new-tokens", "3", *F32)
    code, out, err = call("eval", "--model", run, "--data", str(table), "--json", str(scores), *argv)
    assert (code, err) == (0, "")
    metrics = json.loads(scores.read_text(encoding="utf-8"))["results"][str(table)]["metrics"]
    assert metrics["majority_accuracy"] == 0.5
    assert "12 records read, 12 kept" in out and "majority_label: negative" in out

    argv = ("--max-new-tokens", "3", "--limit", "2", "--metric", "exact", *F32)
    code, out, err = call("eval", "--model", run, "--data", str(records), "--text", str(text), *argv)
    assert (code, err) == (0, "")
    assert "exact match" in out and f"{text}: loss on the text" in out


def test_eval_on_text_counts_every_byte_once(run: str, call: Call, tmp_path: Path):
    text, scores = tmp_path / "t.txt", tmp_path / "eval.json"
    text.write_text("Die Katze ist rot. " * 200, encoding="utf-8")
    assert call("eval", "--model", run, "--text", str(text), "--json", str(scores), *F32)[0] == 0
    loss = json.loads(scores.read_text(encoding="utf-8"))["results"][str(text)]["loss"]
    tokenizer = Tokenizer.load(run)
    assert loss["bytes"] == text.stat().st_size
    assert loss["tokens"] == len(tokenizer.encode(text.read_text(encoding="utf-8")))


def eval_set(tmp_path: Path, count: int = 4) -> Path:
    records = tmp_path / "r.jsonl"
    lines = [json.dumps({"instruction": f"What is {i} + {i}?", "output": f"#### {2 * i}"}) for i in range(count)]
    records.write_text("\n".join(lines), encoding="utf-8")
    return records


def test_eval_writes_every_answer_in_the_order_of_the_data(run: str, call: Call, tmp_path: Path):
    records, file, scores = eval_set(tmp_path), tmp_path / "new" / "answers.jsonl", tmp_path / "eval.json"
    flags = ("--metric", "number", "--max-new-tokens", "3", "--predictions", str(file), "--json", str(scores), *F32)
    assert call("eval", "--model", run, "--data", str(records), *flags)[0] == 0
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(line["data"], line["index"], line["reference"]) for line in lines] == [
        (str(records), i, f"#### {2 * i}") for i in range(4)
    ]
    prompts = [line["messages"] for line in lines]
    model, tokenizer = ig.load(run, "cpu")
    assert [line["answer"] for line in lines] == generate(model, tokenizer, prompts, max_new_tokens=3)
    assert all(line["score"] in (0.0, 1.0) and line["finish"] in ("end", "length") for line in lines)
    (result,) = json.loads(scores.read_text(encoding="utf-8"))["results"].values()
    assert result["score"] == "last number right" and "unanswered" not in result


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("it broke"), 1)])
def test_eval_keeps_what_was_answered_before_it_was_stopped(
    run: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
):
    from instructgpt.evaluation import instructions

    def stopped(*arguments, **options):
        yield from islice(completions(*arguments, **options), 3)
        raise error

    monkeypatch.setattr(instructions, "completions", stopped)
    file, scores, samples = (tmp_path / name for name in ("answers.jsonl", "eval.json", "samples.md"))
    outputs = ("--predictions", str(file), "--json", str(scores), "--samples", str(samples))
    argv = ("--data", str(eval_set(tmp_path)), "--metric", "exact", "--max-new-tokens", "3", *outputs, *F32)
    ended, out, _ = call("eval", "--model", run, *argv)
    assert ended == code and "stopped after 3 of 4" in out
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3
    (result,) = json.loads(scores.read_text(encoding="utf-8"))["results"].values()
    assert (result["examples"], result["unanswered"]) == (3, 1) and result["loss"]["loss"] > 0
    assert "stopped after 3 of 4" in samples.read_text(encoding="utf-8")


def test_eval_says_what_does_not_fit_before_it_generates_and_scores_all_the_same(
    run: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records = tmp_path / "r.json"
    records.write_text(json.dumps([{"instruction": "the cat " * 300, "output": "a " * 300}]), encoding="utf-8")
    argv = ("eval", "--model", run, "--data", str(records), "--metric", "exact", *F32)
    code, out, err = call(*argv, "--max-new-tokens", "3")
    assert (code, err) == (0, "")
    told = (
        "1 of 1 prompts are too long for 128 tokens",
        "1 of 1 right answers are longer",
        "1 lost their tail",
        "loss on",
    )
    assert all(each in out for each in told)
    assert out.index("too long for 128") < out.index("exact match")


def test_eval_finds_out_that_it_cannot_write_before_it_generates(run: str, call: Call, tmp_path: Path, monkeypatch):
    from instructgpt.evaluation import instructions

    monkeypatch.setattr(instructions, "completions", lambda *arguments, **options: pytest.fail("it generated"))
    (tmp_path / "file").write_text("")
    kept = tmp_path / "eval.json"
    kept.write_text("{}")
    for flag in ("--json", "--samples", "--predictions"):
        code, _, err = call(
            "eval", "--model", run, "--data", str(eval_set(tmp_path)), flag, str(tmp_path / "file" / "x"), *F32
        )
        assert code == 2 and "cannot be written" in err and err.count("\n") == 1
    argv = ("--json", str(kept), "--metric", "number", "--labels", "a=b")
    code, _, err = call("eval", "--model", run, "--data", str(eval_set(tmp_path)), *argv, *F32)
    assert code == 2 and "--metric number has no use for them" in err and kept.read_text() == "{}"


def test_eval_answers_prompts_that_have_no_right_answer(run: str, call: Call, tmp_path: Path):
    records, file = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    records.write_text(json.dumps({"id": 1, "turns": ["Say hello.", "And in French?"]}) + "\n", encoding="utf-8")
    argv = ("--data", str(records), "--prompt", "{turns[0]}", "--max-new-tokens", "3", "--predictions", str(file))
    code, out, err = call("eval", "--model", run, *argv, *F32)
    assert (code, err) == (0, "") and "1 of 1 prompts have no right answer: they are answered, not scored" in out
    (line,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert (line["score"], line["reference"]) == (None, None)
    assert line["answer"] == answer(run, "Say hello.", max_new_tokens=3)[0]


@pytest.mark.parametrize(
    ("record", "asked", "reference"),
    [
        ({"prompt": "Say hi"}, "Say hi", None),
        ({"messages": [{"role": "user", "content": "Say hi"}]}, "Say hi", None),
        ({"instruction": "Say hi", "output": "hi"}, "Say hi", "hi"),
        (
            {"messages": [{"role": role, "content": role} for role in ("user", "assistant", "user")]},
            "user",
            "assistant",
        ),
    ],
)
def test_eval_scores_what_has_an_answer_and_answers_what_has_none(
    run: str, call: Call, tmp_path: Path, record: dict, asked: str, reference: str | None
):
    records, file = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    records.write_text(json.dumps(record) + "\n", encoding="utf-8")
    argv = ("--data", str(records), "--metric", "exact", "--max-new-tokens", "2", "--predictions", str(file), *F32)
    assert call("eval", "--model", run, *argv)[0] == 0
    (line,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert (line["messages"], line["reference"]) == ([{"role": "user", "content": asked}], reference)
    assert (line["score"] is None) == (reference is None)


def test_data_lists_sets_with_their_licences(call: Call):
    code, out, err = call("data", "list")
    assert (code, err) == (0, "")
    assert "licence" in out and len(out.splitlines()) >= 3


def test_the_list_of_commands(call: Call):
    for argv in ((), ("--help",)):
        code, out, _ = call(*argv)
        assert code == 0
        assert all(name in out for name in ("train", "generate", "chat", "eval", "data"))


def test_train_is_a_command(call: Call):
    code, out, _ = call("train")
    assert code == 0
    assert out.startswith("usage: instructgpt train STAGE [flags]") and "pipeline" in out


MISTAKES = [
    ("generat", "there is no command 'generat'; did you mean 'generate'?"),
    ("generate --model RUN --promt hello", "instructgpt generate has no flag --promt; did you mean '--prompt'?"),
    ("generate --prompt hello", "--model is missing: name a run directory, such as runs/tiny/sft"),
    ("generate --model RUN/nothing --prompt hello", "RUN/nothing: no such run directory"),
    ("generate --model RUN --prompt=", "the prompt is empty; give --prompt TEXT, or a text on standard input"),
    ("generate --model RUN --prompt hello --top-p 2", "top_p is 2.0; it must be above 0 and at most 1"),
    ("generate --model RUN --prompt hello --n 0", "n is 0"),
    ("generate --model RUN --prompt hello --raw --system x", "--system belongs to a conversation"),
    ("generate --model RUN --prompt hello --device cudda", "--device cudda is unknown; did you mean 'cuda'?"),
    ("generate --model RUN --prompt hello --backend naiv", "did you mean 'naive'?"),
    ("generate --model RUN --prompt LONG", f"context holds {CONTEXT}"),
    ("eval --model RUN --split tests", "--split tests is unknown; did you mean 'test'?"),
    ("eval --model RUN --data RUN/none.json", "none.json"),
    ("eval --model RUN --n 0", "n is 0; it must be at least 1"),
    ("eval --model RUN --labels positive", "--labels says something of files in --data, and there is none here"),
    ("eval --model RUN --data world --metric exact", "--metric says something of files in --data"),
    ("eval --model RUN --data world --map world:prompt={x}", "a flag on how files are read says something of files"),
    ("eval --model RUN --text T --split val", "--split says something of the embedded world, and there is none here"),
    ("eval --model RUN --text T --predictions P", "--predictions says something of --data"),
    ("eval --model RUN --data D.jsonl --n 5", "--n says something of the embedded world"),
    ("train sftt", "there is no stage 'sftt'; did you mean 'sft'?"),
    ("train sft --dta x", "instructgpt train sft has no flag --dta; did you mean '--data'?"),
    ("train pretrain --text world --out RUN/x", "name a directory that `instructgpt train tokenizer` wrote"),
    ("eval --model RUN --families addd", "there is no family 'addd'"),
    ("data gte x", "instructgpt data knows list, get, show, not 'gte'; did you mean 'get'?"),
    ("data get", "instructgpt data get needs the name of a set; choose one of:"),
    ("data get nosuchset", "there is no data set 'nosuchset'"),
]


@pytest.mark.parametrize(("line", "told"), MISTAKES)
def test_a_mistake_is_one_line_and_code_2(line: str, told: str, run: str, call: Call):
    words = [" ".join(["cat"] * 400) if word == "LONG" else word.replace("RUN", run) for word in line.split()]
    code, _, err = call(*words)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert told.replace("RUN", run) in err


def test_standard_input_that_is_no_text(run: str, call: Call):
    code, _, err = call("generate", "--model", run, stdin=b"abc\xff")
    assert (code, err) == (2, "error: standard input: byte 3 is no UTF-8; convert the text to UTF-8\n")


def test_a_prompt_is_asked_for_where_somebody_types(run: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    assert run_main(lambda: run_command(["generate", "--model", run])) == 2
    assert capsys.readouterr().err.startswith("error: --prompt is missing: give --prompt TEXT")


def test_the_module_runs_as_a_program():
    ran = subprocess.run([sys.executable, "-m", "instructgpt", "evl"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: there is no command 'evl'; did you mean 'eval'?\n"


def test_train_runs_as_a_program():
    ran = subprocess.run([sys.executable, "train.py", "sftt"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: there is no stage 'sftt'; did you mean 'sft'?\n"


def test_every_public_name_is_there():
    for name in ig.__all__:
        assert getattr(ig, name) is not None
        assert name in dir(ig)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ig.nothing_of_the_kind
