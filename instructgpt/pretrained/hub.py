"""Models from the public hub of models: found by name, fetched file by file, resumed, and checked.

Of a model's files only those that a model is made of are taken, by their names; nothing in them is executed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from instructgpt.data.download import Opener, download, https_opener
from instructgpt.errors import UserError
from instructgpt.sizes import size_text

HUB = "https://huggingface.co"
TOKEN = "HF_TOKEN"
"""The environment variable that holds a token, for models that are not open to all; it is never printed."""

_NAME = re.compile(r"(?P<model>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_SETTINGS = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|tokenizer\.model|vocab\.json"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
)
# By preference: the first of these that there are any of.
_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
    re.compile(r"[\w.+-]+\.gguf"),
)


class _File(NamedTuple):
    name: str
    size: int
    digest: str
    """sha256 of large files, git's sha1 of small ones."""


def is_name(text: str) -> bool:
    """Whether a text can be the name of a model on the hub: `OWNER/MODEL`, `gpt2`, each also with `@REVISION`."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def cache_folder() -> Path:
    """Where downloads are kept: `~/.cache/instructgpt/models`, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instructgpt" / "models"


def fetch(
    name: str, cache: Path, report: Callable[[str], None] = print, opener: Opener | None = None, hub: str = ""
) -> Path:
    """Downloads a model and returns its folder, below `cache`; for a model that is one GGUF file, that file.

    What is there already is not fetched again, what broke off is gone on with, and every file is checked by its digest.
    hub: the server's address; HF_ENDPOINT or the public hub where it is not given. HF_TOKEN is shown to it alone.
    Raises UserError for a model that is not there or not open, a server that cannot be reached, and as `download` does.
    """
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        raise UserError(f"{name!r} is neither a path that exists nor a model's name on the hub, such as OWNER/MODEL")
    hub = (hub or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = os.environ.get(TOKEN, "").strip()
    opener = opener or https_opener(token)
    model, revision = found["model"], found["revision"] or "main"
    commit, files = _listing(hub, model, revision, opener, bool(token))
    chosen = _chosen(model, files)
    folder = cache / model.replace("/", "--") / commit
    report(f"{name}: {len(chosen)} files, {size_text(sum(file.size for file in chosen))}, from {hub} into {folder}")
    for file in chosen:
        url = f"{hub}/{model}/resolve/{commit}/{quote(file.name)}"
        download(url, folder / file.name, file.digest, file.size, opener, progress=_told(file, report))
        report(f"{file.name}: {size_text(file.size)}, verified")
    ggufs = [file for file in chosen if file.name.endswith(".gguf")]
    return folder / ggufs[0].name if ggufs else folder


def _listing(hub: str, model: str, revision: str, opener: Opener, has_token: bool) -> tuple[str, list[_File]]:
    """The commit that a revision stands for, and its files."""
    url = f"{hub}/api/models/{model}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        with opener(urllib.request.Request(url, headers={"User-Agent": "instructgpt"})) as response:
            told: Any = json.loads(response.read())
        commit = str(told["sha"])
        files = [
            _File(
                str(entry["rfilename"]),
                int(entry["size"]),
                str((entry.get("lfs") or {}).get("sha256") or entry["blobId"]),
            )
            for entry in told["siblings"]
        ]
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(hub, model, revision, error.code, has_token)) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{hub} cannot be reached ({reason}): fetch the files of {model} elsewhere, and name the folder with --from"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{url} does not answer as the hub does") from None
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise UserError(f"{url} does not answer as the hub does: the commit {commit!r}")
    return commit, files


def _refusal(hub: str, model: str, revision: str, code: int, has_token: bool) -> str:
    if code in (401, 403, 404):
        # The hub says the same of what is not there and of what one may not see.
        token = f"the token in {TOKEN} may not see it" if has_token else f"it asks for a token, in {TOKEN}"
        version = "" if revision == "main" else f" of revision {revision}"
        return f"there is no model {model}{version} on {hub}, or {token} (answer {code})"
    return f"{hub} answers {code} for {model}; try again later"


def _chosen(model: str, files: list[_File]) -> list[_File]:
    """What a model is made of: settings, tokenizer, and weights in the best of the forms that there are."""
    for pattern in _WEIGHTS:
        weights = [file for file in files if pattern.fullmatch(file.name)]
        if weights:
            break
    else:
        raise UserError(f"{model} has no weights in a form that is read here: safetensors, pytorch_model.bin or GGUF")
    if weights[0].name.endswith(".gguf"):
        if len(weights) > 1:
            names = ", ".join(file.name for file in weights)
            raise UserError(f"{model} has several GGUF files; fetch one and name it with --from: {names}")
        return weights
    return [file for file in files if _SETTINGS.fullmatch(file.name)] + weights


def _told(file: _File, report: Callable[[str], None], least: int = 50_000_000) -> Callable[[int], None]:
    """Tells how far a large file has come, at each tenth."""
    tenth = 0

    def progress(have: int) -> None:
        nonlocal tenth
        if file.size >= least and have * 10 // file.size > tenth:
            tenth = have * 10 // file.size
            report(f"{file.name}: {tenth * 10}% of {size_text(file.size)}")

    return progress
