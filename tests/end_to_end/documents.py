"""Policy documents that several themes begin from."""

from __future__ import annotations


def document(provider: str, more: str = "", *, tokens: int | None = 10_000_000, **budget: object) -> str:
    """Both dialects at one provider, with a budget per workflow unless `tokens` is None; `more` is YAML of the top.

    Tests ask the same again and again, so loops are noted here and not refused.
    """
    noting = "limits: {turns: {ladder: note}"
    more = more.replace("limits: {", f"{noting}, ", 1) if "limits: {" in more else f"{noting}}}\n{more}"
    rules = ""
    if tokens is not None:
        extra = "".join(f", {key}: {value}" for key, value in budget.items())
        rules = (
            f"  - name: purse\n    match: {{kind: llm}}\n    budget: {{tokens: {tokens}, output_default: 64{extra}}}\n"
        )
    head, _, rest = more.partition("rules:\n")
    return (
        "agent: researcher\n"
        "upstreams:\n"
        f'  openai: {{url: "{provider}", kind: llm, dialect: openai}}\n'
        f'  anthropic: {{url: "{provider}", kind: llm, dialect: anthropic}}\n'
        f'  plain: {{url: "{provider}", kind: host}}\n'
        f"{head}" + (f"rules:\n{rest}{rules}" if rest or rules else "")
    )
