"""`instructgpt serve`: a model as a service that clients of OpenAI's interface understand, and a page to chat on."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from instructgpt.commands.common import ModelChoice, write
from instructgpt.errors import UserError
from instructgpt.generation.request import EngineConfig
from instructgpt.model.adapters import adapters_of
from instructgpt.model.transformer import Transformer
from instructgpt.serving.access import Keys, new_key
from instructgpt.serving.options import Options
from instructgpt.serving.safety import Guard, Judge, load_hook
from instructgpt.serving.sockets import address_of, is_loopback, listening_socket
from instructgpt.settings import FilePath, NonNegativeInt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, add_adapters, load

if TYPE_CHECKING:
    from instructgpt.serving.service import Service

_LOOKED_AT_EVERY, _JUDGED_EVERY = 16, 256
"""Characters of an answer after which it is looked at again; a judge is a model and takes its time."""


@dataclass(frozen=True)
class ServeConfig(ModelChoice):
    """Answers over HTTP, as OpenAI's /v1/chat/completions and /v1/completions do, and shows a page to chat on at /."""

    name: str = ""
    """What clients call the model; without it the name of the run's folder."""
    adapters: tuple[FilePath, ...] = ()
    """Run directories with adapters of the model (or folders as PEFT writes them), to be served beside it: clients ask
    for them as MODEL:FOLDER, the name of the folder."""
    host: str = "127.0.0.1"
    """The address to listen at. Any but this machine's own needs --keys; 0.0.0.0 is all."""
    port: NonNegativeInt = 8000
    """The port to listen at; 0 takes one that is free."""
    keys: FilePath = ""
    """A file of who may use the service, a line each: NAME sha256:HASH, and limits such as requests=60 tokens=20000
    parallel=4, the first two a minute's. It is read again when it changes."""
    new_key: str = ""
    """Make a key of this name and end: its hash goes into the file in --keys, the key itself is printed, once."""
    safety: tuple[str, ...] = ()
    """Functions that look at prompts and answers, as package.module:function or path/file.py:function, such as
    instructgpt.serving.refusals:world."""
    judge: FilePath = ""
    """The run directory of a reward model: answers that it scores below --judge-least are refused."""
    judge_least: float = 0.0
    """The lowest score of an answer that is given."""
    draft_model: FilePath = ""
    """The run directory of a smaller model of the same tokenizer, which guesses tokens ahead with --draft model."""
    options: Options = field(default_factory=Options)
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(max_rows=64))


def serve(config: ServeConfig) -> int:
    """Serves until a signal stops it; SIGTERM and Ctrl-C let it finish what it has begun."""
    if config.new_key:
        if not config.keys:
            raise UserError("--new-key needs --keys: name the file that it is added to")
        write(f"{new_key(Path(config.keys), config.new_key)}\n")
        return 0
    if not config.keys and not is_loopback(config.host):
        raise UserError(
            f"--host {config.host} can be reached by others: name a file of keys with --keys, or stay at 127.0.0.1"
        )
    try:
        from instructgpt.serving.app import LOOPBACK, make_app
        from instructgpt.serving.server import make_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("instructgpt"):
            raise
        raise UserError(f"serving needs the package {error.name}: pip install 'instructgpt[serve]'") from None
    keys = Keys(Path(config.keys)) if config.keys else None
    hosts = () if keys else LOOPBACK  # a name that somebody else has point to this machine is no way in
    with listening_socket(config.host, config.port) as listener:
        service = _service(config, keys)
        server = make_server(make_app(service, hosts), config.options.body_seconds, config.options.drain_seconds)
        name = next(iter(service.models))
        write(f"{name} at {address_of(listener)} (interface below /v1, page at /); Ctrl-C stops it\n")
        # uvicorn sends itself the signal once more when it is done; what it had begun is finished then, and that is 0.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        server.run(sockets=[listener])
    return 0


def _service(config: ServeConfig, keys: Keys | None) -> Service:
    """The model, behind an engine that is not started yet, and all that stands around it."""
    from instructgpt.serving.service import Service

    model, tokenizer, precision = config.load()
    models = _add_adapters(config, model)
    hooks = [load_hook(name) for name in config.safety]
    if config.judge:
        hooks.append(Judge.load(config.judge, config.judge_least))
    guard = Guard(hooks, _JUDGED_EVERY if config.judge else _LOOKED_AT_EVERY)
    draft = _draft(config, model, tokenizer)
    return Service.of(model, tokenizer, models, config.engine, lambda: precision, config.options, keys, guard, draft)


def _draft(config: ServeConfig, model: Transformer, tokenizer: Tokenizer) -> Transformer | None:
    """The smaller model, where one is to guess."""
    if bool(config.draft_model) != (config.engine.draft == "model"):
        raise UserError("--draft model and --draft-model DIR go together")
    if not config.draft_model:
        return None
    draft, its = load(config.draft_model, model.device, config.backend)
    if its != tokenizer:
        raise UserError(
            "has another tokenizer than the model in --model; their tokens must be the same", config.draft_model
        )
    return draft


def _add_adapters(config: ServeConfig, model: Transformer) -> dict[str, str | None]:
    """Puts them beside the model; what computes each model that clients may ask for, by its name."""
    name = config.name or Path(config.model).resolve().name
    if adapters_of(model):
        if config.adapters:
            raise UserError("--adapters needs a model that has none itself: name their base as --model")
        record = RunDirectory(config.model).read_adapter()
        own = Path(config.adapter).resolve().name if config.adapter or record is None else name
        base = name if config.adapter or record is None else Path(record.base).name
        return {f"{base}:{own}": "", base: None}
    folders = {Path(folder).resolve().name: folder for folder in config.adapters}
    if len(folders) < len(config.adapters):
        raise UserError("--adapters names two folders of one name; clients could not tell them apart")
    inside = {folder: f"adapter_{i}" for i, folder in enumerate(folders)}
    add_adapters(model, {inside[folder]: path for folder, path in folders.items()}, config.model)
    return {name: "", **{f"{name}:{folder}": inside[folder] for folder in folders}}
