"""A folder in the layout of `transformers`: config.json beside weights in one file, or in several with an index."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.tensors import SafetensorsFile, Spec, Tensors

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. UserError otherwise."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", path) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"is not JSON: {error}", path) from None
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", path, error.lineno) from None
    if not isinstance(values, dict):
        raise UserError(f"holds a JSON {type(values).__name__} where an object should be", path)
    return values


def open_folder(folder: Path) -> Tensors:
    """The weights in a folder, read as they are asked for. Raises UserError when there are none, or not all."""
    for name in (SAFETENSORS, PICKLED):
        read = SafetensorsFile if name == SAFETENSORS else PickledFile
        if (folder / name).is_file():
            return read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return Sharded(folder / f"{name}.index.json", read)
    raise UserError(f"holds no weights: neither {SAFETENSORS} nor {PICKLED}, whole or with an index.json", folder)


class PickledFile:
    """A file of `torch.save`, of which nothing is executed: `weights_only` builds tensors alone, and refuses the rest.

    The file is mapped into memory: what was read can be let go of at any time. One of before 2020, which is no zip
    archive, is read whole.
    """

    def __init__(self, path: Path):
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        except FileNotFoundError:
            raise UserError("no such file", path) from None
        except pickle.UnpicklingError:
            raise UserError(
                "holds more than tensors, or is damaged; nothing else is unpickled: save it as safetensors", path
            ) from None
        except (RuntimeError, OSError, ValueError, EOFError, KeyError, AttributeError, IndexError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"is damaged, or no file of torch.save ({reason})", path) from None
        if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
            raise UserError("holds no dictionary of tensors, as weights are saved", path)
        self._tensors: Mapping[str, Tensor] = tensors
        self.specs = {str(name): Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach().contiguous()


class Sharded:
    """Tensors in several files, of which an index says which holds what. One file is open at a time."""

    def __init__(self, index: Path, read: type[SafetensorsFile] | type[PickledFile]):
        self._read, self._folder = read, index.parent
        self._files: dict[str, str] = self._names(index)
        self._opened: tuple[str, Tensors] | None = None
        self.specs: dict[str, Spec] = {}
        files = sorted(set(self._files.values()))
        if missing := [file for file in files if not (self._folder / file).is_file()]:
            raise UserError(f"{missing[0]} is missing; the index names it", index)
        for file in files:
            specs = self._open(file).specs
            for name in (name for name, place in self._files.items() if place == file):
                if name not in specs:
                    raise UserError(f"{name} is not in {file}, where the index has it", index)
                self.specs[name] = specs[name]
            if extra := next((name for name in specs if self._files.get(name) != file), None):
                raise UserError(f"{extra} is in {file}, where the index does not have it", index)

    @staticmethod
    def _names(index: Path) -> dict[str, str]:
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError("has no weight_map, which says which file holds which tensor", index)
        for file in names.values():
            if not isinstance(file, str) or file != Path(file).name or file.startswith("."):
                raise UserError(f"names {file!r}; a shard is a file beside the index", index)
        return names

    def _open(self, file: str) -> Tensors:
        if self._opened is None or self._opened[0] != file:
            self._opened = None  # first: two mappings at once would be twice the memory
            self._opened = (file, self._read(self._folder / file))
        return self._opened[1]

    def read(self, name: str) -> Tensor:
        return self._open(self._files[name]).read(name)
