"""Models of language that make vectors of texts, for who finds by meaning and not by words alone. An extra.

    port        what a model does                                                      Embedder
    endpoint    one behind an embeddings endpoint in the form of OpenAI's              Endpoint
    local       one in a process of its own, beside the daemon's                       Local
    child       what runs in that process                                              python -m meshd.embedding.child
    wordpiece   text in the pieces that it reads                                       WordPiece

Nothing of a model is ever loaded into the daemon: what it needs (onnxruntime, and what that brings: 180 MB) lives and
dies with the child.
"""
