"""A GGUF file as llama.cpp reads it, in a confined process: a stranger's file may crash it, or keep it for ever."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import numpy as np

from gradience.data import template_digest
from gradience.verbs.receipt.ggml import IMATRIX, types_of

_CONTEXT: Final = 256  # tokens that llama.cpp makes room for: a sequence has 64


class GgufFile:
    """A file that is loaded.

    Args:
        path: the file.

    Raises:
        Exception: anything that llama-cpp-python raises.
    """

    def __init__(self, path: str) -> None:
        import llama_cpp  # in this process alone

        self._path = path
        # logits_all: by default llama.cpp keeps those of the last token alone.
        self._model: Any = llama_cpp.Llama(path, logits_all=True, n_ctx=_CONTEXT, n_batch=_CONTEXT, verbose=False)

    def facts(self, probe: str) -> dict[str, Any]:
        """The number of its file type, -1 if it states none; its tokens; and the types of its tensors, if they tell."""
        metadata, kind = self._model.metadata, -1
        with suppress(ValueError, TypeError):
            kind = int(metadata.get("general.file_type", -1))
        return {
            "file_type": kind,
            "vocabulary": int(self._model.n_vocab()),
            "ids": list(self._model.tokenize(probe.encode(), add_bos=True, special=False)),
            "template": template_digest(metadata.get("tokenizer.chat_template")),
            "types": None if IMATRIX in metadata else types_of(self._path),
        }

    def read(self, ids: list[int], first: int, count: int) -> list[float]:
        """The log-probabilities of the tokens after `first`."""
        self._model.reset()
        self._model.eval(ids)
        logits = self._model.scores[: len(ids)].astype(np.float64)
        places = np.arange(first, first + count)
        own = logits[places] - np.logaddexp.reduce(logits[places], axis=1, keepdims=True)
        values: list[float] = own[np.arange(count), np.array(ids)[places + 1]].tolist()
        return values
