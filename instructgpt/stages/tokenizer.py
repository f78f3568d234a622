"""Stage 0: a SentencePiece tokenizer from raw text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instructgpt import world
from instructgpt.data.corpus import read_split
from instructgpt.errors import UserError
from instructgpt.figures import write_json
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, Settings, ShareBelow1
from instructgpt.stages.common import require
from instructgpt.text.sentence_piece import VocabularySizeError
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory

# How much of the endless world a tokenizer reads. Every word of the world occurs in it many times.
_WORLD_SAMPLE = 12_000
_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class TokenizerConfig(Settings):
    """Trains a tokenizer on the first part of each file and reports how well it packs the rest."""

    text: tuple[FilePath, ...] = ()
    """Text files (.txt, .json, .jsonl, .csv, .tsv, each also .gz), or `world` for the embedded world."""
    out: FilePath = ""
    """The directory to write."""
    preset: str = "tiny"
    """Defaults of all other flags, by size of model."""
    vocab_size: PositiveInt = 2048
    """Number of tokens. More make texts shorter and the model's embedding and head larger."""
    fit_vocab_size: bool = False
    """Where the text allows no vocabulary of that size, take one that it does allow, and say so."""
    kind: Literal["bpe", "unigram"] = "bpe"
    """`bpe` merges frequent pairs (Sennrich et al. 2016); `unigram` prunes a likelihood model (Kudo 2018)."""
    split_digits: bool = True
    """Every digit its own token, so that arithmetic has something to work on."""
    character_coverage: float = 0.9995
    """Share of the text's characters that get a token of their own; the rest is spelt in bytes."""
    holdout: ShareBelow1 = 0.1
    """Share at the end of each file that is not trained on: `pretrain` validates on the same part."""
    encoding: str = "utf-8"
    """How the files are encoded."""
    separator: str = ""
    """A string that ends a document in a .txt file, such as <|endoftext|>."""
    text_field: str = ""
    """The field of records that holds the text, such as content or body.text, or a template: '{title}\\n\\n{body?}'. By
    default their `text`, or their list of `paragraphs`."""
    seed: NonNegativeInt = 0
    """Decides which part of the embedded world is read."""
    overwrite: bool = False
    """Replace what --out holds."""


def run(config: TokenizerConfig) -> Tokenizer:
    """Trains, saves and measures a tokenizer."""
    require(config.text, "--text", "name the files to train on, or `world`")
    require(config.out, "--out", "name the directory to write")
    directory = RunDirectory.open(config.out, overwrite=config.overwrite)
    tokenizer = _trained(config, config.vocab_size)
    held_out = list(itertools.islice(texts(config, "val"), 2000)) if config.holdout else []
    bytes_per_token = tokenizer.bytes_per_token(held_out) if held_out else float("nan")
    directory.write_config("tokenizer", None, tokenizer, config)
    write_json(directory.path / "eval.json", {"vocab_size": tokenizer.vocab_size, "bytes_per_token": bytes_per_token})
    print(f"tokenizer: {tokenizer.vocab_size} tokens, {bytes_per_token:.2f} bytes a token on held-out text", flush=True)
    return tokenizer


def _trained(config: TokenizerConfig, vocab_size: int, tries: int = 3) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens, or of as many as the text allows if --fit-vocab-size. Errors: UserError."""
    try:
        return Tokenizer.train(
            texts(config, "train"),
            vocab_size,
            kind=config.kind,
            split_digits=config.split_digits,
            character_coverage=config.character_coverage,
            seed=config.seed,
        )
    except VocabularySizeError as error:
        if not config.fit_vocab_size or tries == 1:
            remedy = f"give --vocab-size {error.works}, or --fit-vocab-size for one that fits"
            raise UserError(f"{error}; {remedy}") from None
        # As many as the characters alone need leave no room for words: a quarter more, if the text has so many.
        size = error.works if error.works < vocab_size else error.works * 5 // 4
        print(f"tokenizer: {error}; taking {size}", flush=True)
        return _trained(config, size, tries - 1)


def texts(config: TokenizerConfig, split: Literal["train", "val"]) -> Iterator[str]:
    """The texts of a split, streamed."""
    for source in config.text:
        if source == "world":
            yield from _world_texts(config.seed if split == "train" else config.seed + _HELD_OUT_SEED)
        else:
            yield from read_split(
                Path(source), split, config.holdout, config.encoding, config.separator, config.text_field
            )


def _world_texts(seed: int) -> Iterator[str]:
    for index in range(_WORLD_SAMPLE):
        yield world.document(index, seed)
        yield "\n".join(message["content"] for message in world.example("train", index, seed).conversation)
