"""What tokens cost, in US dollars: a table that ships and is dated, and the arithmetic of one call.

    billed      Billed: what an answer says that its price depends on
    price       Rates and Price: what is known of a model; Quote: the same for one call
    table       table.toml read, and a model's name looked up in it

Everything is a whole number. An amount is in micro-dollars; a rate in pico-dollars a token, which is a dollar for each
million tokens, times a million: `0.075` is 75,000 exactly. Nothing is rounded but the end of a sum, and that up.
"""

from typing import Final

MONEY: Final = "/@usd"
"""Ends the name of an account whose amounts are micro-dollars, wherever tokens are spoken of."""
