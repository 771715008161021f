"""Sentences routed to intents: BANKING77, and CLINC150 with what belongs nowhere."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from bench.discovery.baselines import Plain
from bench.discovery.data import drawn
from bench.discovery.rows import Row, at_least, fastest_ms, mean
from meshd.discovery.intents import Intent, Router, learned

if TYPE_CHECKING:
    from bench.discovery.data import Data
    from bench.discovery.rows import Model
    from meshd.discovery.intents import Routed

SEEDS: Final = (1, 2, 3, 4, 5)
_CLINC_SEEDS: Final = (1, 2, 3)
_CHOICE_SEEDS: Final = (11, 12, 13)
_CHOICE_SENTENCES: Final = 25
"""Of each intent: the smallest has 35 in all."""
_MODEL_SEEDS: Final = (1, 2)
"""Where a model embeds all of it."""


def _router(intents: list[Intent], model: Model | None) -> Router:
    return Router(intents, vectors=model.vectors(learned(intents)) if model else None)


def _routed(router: Router, texts: list[str], model: Model | None) -> list[Routed]:
    vectors: list[list[float] | None] = [*model.vectors(texts)] if model else [None] * len(texts)
    return [router.route(text, vector) for text, vector in zip(texts, vectors, strict=True)]


def banking(data: Data, model: Model | None) -> list[Row]:
    """Return how often the first intent is the right one."""
    train, test = data.banking("train"), data.banking("test")
    texts = [text for text, _ in test]
    seeds = _MODEL_SEEDS if model else SEEDS
    figures = []
    plain: dict[str, list[float]] = {"bm25": [], "tfidf": []}
    for seed in seeds:
        intents = drawn(train, seed)
        found = _routed(_router(intents, model), texts, model)
        figures.append(mean(one.ranked[0].intent == intent for one, (_, intent) in zip(found, test, strict=True)))
        for by, held in plain.items():
            # An intent is one text, of all its examples.
            index = Plain([" ".join(intent.examples) for intent in intents], by=by)
            best = (index.search(text, 1) for text in texts)
            names = [intent.name for intent in intents]
            held.append(
                mean(one[:1] != [] and names[one[0]] == intent for one, (_, intent) in zip(best, test, strict=True))
            )
    spread = f"{min(figures):.3f} to {max(figures):.3f} over {len(seeds)} draws"
    beside = f"({spread}; BM25 {mean(plain['bm25']):.3f}, TF-IDF {mean(plain['tfidf']):.3f}"
    beside += "; published, ten examples: BERT tuned 0.799, ConveRT 0.833, USE 0.842; MiniLM int8 0.86)"
    return [at_least("BANKING77, first is right", mean(figures), 0.88 if model else 0.80, beside)]


def validation(data: Data, _model: Model | None) -> list[Row]:
    """Return what settings are chosen on: draws and sentences of which no other row knows."""
    train, parts = data.banking("train"), data.clinc()
    right, known, false, nowhere = [], [], [], []
    for seed in _CHOICE_SEEDS:
        intents = drawn(train, seed)
        used = {text for intent in intents for text in intent.examples}
        others = drawn([one for one in train if one[0] not in used], seed, _CHOICE_SENTENCES)
        router = Router(intents)
        right.append(mean(_first(router, text) == intent.name for intent in others for text in intent.examples))
        router = Router(drawn(parts["train"], seed))
        well = [text for text, intent in parts["val"] if _first(router, text) == intent]
        known.append(len(well) / len(parts["val"]))
        false.append(mean(router.route(text).intent is None for text in well))
        nowhere.append(mean(router.route(text).intent is None for text, _ in parts["oos_val"]))
    return [
        Row("validation: BANKING77, first is right", f"{mean(right):.3f}"),
        Row("validation: CLINC150, first is right", f"{mean(known):.3f}"),
        Row("  out of scope not routed", f"{mean(nowhere):.3f}  at a false abstention of {mean(false):.3f}"),
    ]


def _first(router: Router, text: str) -> str:
    return router.route(text).ranked[0].intent


def clinc(data: Data, model: Model | None) -> list[Row]:
    """Return what becomes of sentences in scope and out of it."""
    parts = data.clinc()
    test, nowhere = parts["test"], [text for text, _ in parts["oos_test"]]
    right, missed, false, false_all, load_s, took_ms = [], [], [], [], [], []
    for seed in _MODEL_SEEDS if model else _CLINC_SEEDS:
        intents = drawn(parts["train"], seed)
        if model is not None:
            model.vectors(learned(intents))
        began = time.process_time()
        router = _router(intents, model)
        load_s.append(time.process_time() - began)
        found = _routed(router, [text for text, _ in test], model)
        well = [one for one, (_, intent) in zip(found, test, strict=True) if one.ranked[0].intent == intent]
        right.append(len(well) / len(test))
        false.append(mean(one.intent is None for one in well))
        false_all.append(mean(one.intent is None for one in found))
        missed.append(mean(one.intent is None for one in _routed(router, nowhere, model)))
        for text in nowhere[::5]:
            vector = model.vectors([text])[0] if model else None
            took_ms.append(fastest_ms(partial(router.route, text, vector)))
    took_ms.sort()
    late = took_ms[int(len(took_ms) * 0.99)]
    return [
        Row("CLINC150, first is right", f"{mean(right):.3f}  (150 intents, ten examples each)"),
        at_least("CLINC150, out of scope not routed", mean(missed), 0.80),
        Row("  false abstention", f"{mean(false):.3f}", "<= 0.04", mean(false) <= 0.04),
        Row("  not routed of all in scope", f"{mean(false_all):.3f}  (what would go wrong counted too)"),
        Row("150 intents learned at load", f"{mean(load_s):.2f} s of CPU", "< 2 s", mean(load_s) < 2),
        Row("one sentence routed among 150", f"p99 {late:.2f} ms", "< 2 ms p99", late < 2),
    ]
