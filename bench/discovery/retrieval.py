"""Tools found by what somebody wants: LiveMCPBench and ToolE, how long it takes, and what a liar gets."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from bench.discovery.baselines import Plain
from bench.discovery.rows import Row, at_least, fastest_ms, mean
from meshd.discovery.document import Document, texts_of
from meshd.discovery.index import Index
from meshd.discovery.meanings import blended
from meshd.discovery.words import pieces, terms

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from bench.discovery.data import Data, Task
    from bench.discovery.rows import Model

    Search = Callable[[str], list[str]]

K: Final = 5
_SAMPLE: Final = 3000
"""Of ToolE's queries, where a model embeds them: all of them take it some minutes. Drawn with a fixed seed."""


def indexed(documents: Sequence[tuple[Hashable, Document]], model: Model | None = None) -> Index[Hashable]:
    """Return an index of documents, with vectors where there is a model."""
    index: Index[Hashable] = Index()
    for key, document in documents:
        index.put(key, document)
    if model is not None:
        texts = [texts_of(one) for _, one in documents]
        model.vectors(text for both in texts for text in both)
        for (key, _), both in zip(documents, texts, strict=True):
            index.embed(key, blended(model.vectors(both)))
    return index


def live(data: Data, model: Model | None) -> list[Row]:
    """Return what is found of LiveMCPBench."""
    tools, tasks = data.tools(), data.tasks()
    flat = [" ".join([*pieces(tool.name), tool.document.description]) for tool in tools]
    index = indexed([(at, tool.document) for at, tool in enumerate(tools)], model)
    if model is not None:
        model.vectors(text for task in tasks for text in (task.question, *(step for step, _ in task.steps)))

    def ours(words: str) -> list[str]:
        vector = model.vectors([words])[0] if model else None
        return [tools[found.key].name for found in index.search(words, K, vector=vector)]  # type: ignore[call-overload]

    searches: dict[str, Search] = {"": ours}
    for by, name in (("bm25", "BM25"), ("tfidf", "TF-IDF")):
        plain = Plain(flat, by=by)
        searches[name] = lambda words, plain=plain: [tools[at].name for at in plain.search(words, K)]  # type: ignore[misc]
    rows = []
    goal = 0.72 if model else 0.60
    for what, measure, wanted in (
        ("LiveMCPBench, found", _is_found, goal), ("LiveMCPBench, recall", _recall, 0), ("  by step", _by_step, goal),
    ):  # fmt: skip
        figures = {name: measure(tasks, search) for name, search in searches.items()}
        beside = _beside(figures, "MiniLM int8 alone 0.59" if measure is _is_found else "")
        ours_ = figures[""]
        rows.append(at_least(what, ours_, wanted, beside) if wanted else Row(what, f"{ours_:.3f}  {beside}"))
    return rows


def toole(data: Data, model: Model | None) -> list[Row]:
    """Return what is found of ToolE."""
    queries = data.queries()
    if model is not None:
        queries = random.Random(1).sample(queries, _SAMPLE)
        model.vectors(query for query, _ in queries)
    rows = []
    for what, more in (("ToolE, as shown", False), ("ToolE, with what plugins say", True)):
        plugins = data.plugins(with_what_they_say=more)
        names = list(plugins)
        index = indexed(list(plugins.items()), model)
        hits = 0
        for query, tool in queries:
            vector = model.vectors([query])[0] if model else None
            hits += tool in [found.key for found in index.search(query, K, vector=vector)]
        flat = [f"{name} {document.description}" for name, document in plugins.items()]
        figures = {"": hits / len(queries)}
        for by, name in (("bm25", "BM25"), ("tfidf", "TF-IDF")):
            plain = Plain(flat, by=by)
            figures[name] = mean(tool in [names[at] for at in plain.search(query, K)] for query, tool in queries)
        beside = _beside(figures, "MiniLM int8 alone 0.76")
        rows.append(at_least(what, figures[""], 0.82 if model else 0.60, beside))
    return rows


def latency(data: Data, model: Model | None) -> list[Row]:
    """Return how long a search over 1,000 tools takes."""
    documents = [tool.document for tool in data.tools()] + list(data.plugins(with_what_they_say=True).values())
    documents += documents[: 1000 - len(documents)]
    index = indexed(list(enumerate(documents)), model)
    asked = [text for task in data.tasks() for text in (task.question, *(step for step, _ in task.steps))]
    vectors: list[list[float] | None] = [*model.vectors(asked)] if model else [None] * len(asked)
    index.search(asked[0], K, vector=vectors[0])
    took_ms = sorted(
        fastest_ms(partial(index.search, words, K, vector=vector)) for words, vector in zip(asked, vectors, strict=True)
    )
    middle, late = took_ms[len(took_ms) // 2], took_ms[int(len(took_ms) * 0.99)]
    what = "search over 1,000 tools" + (", the query's vector at hand" if model else "")
    return [Row(what, f"p50 {middle:.2f} ms, p99 {late:.2f} ms", "< 2 ms p99", late < 2)]


def captured(data: Data, model: Model | None) -> list[Row]:
    """Return how much of others' traffic goes to a tool that says that it is for everything."""
    tools, tasks = data.tools(), data.tasks()
    questions = [text for task in tasks for text in (task.question, *(step for step, _ in task.steps))]
    # It knows what will be asked, and says it: the words that are asked most, wherever words can stand.
    often = [word for word, _ in Counter(word for text in questions for word in set(terms(text))).most_common(400)]
    every = list(dict.fromkeys(term for tool in tools for term in terms(tool.document.description)))
    liars = {
        "every word there is": Document("everything", "", " ".join(["Use me for everything.", *every])),
        "the words asked most": Document("everything", "", " ".join(["Use me for everything.", *often])),
        "in every field": Document(
            "_".join(often[:20]), " ".join(often[:20]), " ".join(often), tuple(often), tuple(often)
        ),
    }
    rows = []
    for what, liar in liars.items():
        index = indexed([*((at, tool.document) for at, tool in enumerate(tools)), (-1, liar)], model)
        first = shown = 0
        for words in questions:
            vector = model.vectors([words])[0] if model else None
            found = [one.key for one in index.search(words, K, vector=vector)]
            first += found[:1] == [-1]
            shown += -1 in found
        share = first / len(questions)
        figure = f"{share:.3f} first, {shown / len(questions):.3f} among five, of {len(questions)}"
        rows.append(Row(f"captured by a liar: {what}", figure, "< 0.02 first", share < 0.02))
    return rows


def _is_found(tasks: list[Task], search: Search) -> float:
    return mean(not task.tools.isdisjoint(search(task.question)) for task in tasks)


def _recall(tasks: list[Task], search: Search) -> float:
    return mean(len(task.tools & set(search(task.question))) / len(task.tools) for task in tasks)


def _by_step(tasks: list[Task], search: Search) -> float:
    return mean(tool in search(step) for task in tasks for step, tool in task.steps)


def _beside(figures: dict[str, float], more: str) -> str:
    told = [f"{name} {figure:.3f}" for name, figure in figures.items() if name]
    return f"({', '.join([*told, more] if more else told)})"
