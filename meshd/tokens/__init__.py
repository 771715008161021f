"""How many tokens a text has, exactly, for the models whose vocabulary is published.

The bytes of a body bound its tokens and cost nothing to know, but on English they are four times too many. Where that
would refuse a call that fits, its texts are counted here: with tiktoken, without the network, in a thread of their
own, and never on the way of a call that fits anyway. What cannot be counted safely counts as its bytes, so that a
count is a bound as well.

    encodings   which models can be counted, and with which vocabulary       encoding_of
    cutting     where a long text may be cut without changing its count      pieces_of
    vocabulary  the two vocabularies, checked against their publisher's hash load
    counter     the thread, its cache and its limits                         Counter
"""
