"""Claims: a call that is made again is not carried out again (guarantees, part 5).

Read in this order:

    states      what may become of a claim: the table of states and events
    record      a claim as it stands in the store
    keys        by what a call is known again, and what it says
    fate        what the end of a call says of its claim
    tape        what left for the caller, kept as it left
    replay      a tape becomes a reply to another call
    rest        what follows its beginning, read while it is sent
    claim       one call's claim, from the moment it is made to the moment that its record is final
    shelf       the records in the store, by compare-and-set
    book        who claims, who waits, and who is told: the facade for claims with a key
    retries     claims without a key, in memory: the retries of official clients
"""
