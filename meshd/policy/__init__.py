"""The policy: what is swapped whole.

document    from files to a `Policy`, or to every problem at once; begin to read here
reading     YAML to a tree whose every value knows its line and column
model       the keys of a document, their types, units and defaults (also the JSON Schema: `schema`)
report      problems in words, at their places
upstreams   the well-known LLM APIs; what a URL may be
checking    rules that can match nothing, or set nothing
building    the compiled objects (`compiled`) of a document without problems
matching    which rules fit a call, at a cost that the rules do not raise
planning    what the rules that fit amount to
addressing  which upstream a request names
reload      noticing changes, and keeping the old document where the new one is wrong
packaged    the documents that come with meshd
"""
