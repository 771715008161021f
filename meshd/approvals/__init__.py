"""Approvals: the durable object by which a person allows one call. Pure state machines, and their records in the store.

    state       where an approval stands, and the table of what may happen to it     State, Event, TABLE
    record      the approval as the store keeps it                                    Approval, Decision
    question    what is asked, and the digest that an approval holds for              Question
    drafting    an approval as people will read it, without secrets                    draft
    deciding    who may decide, and what that does                                    decided, Declined
    keys        approvers' keys: made once, known by their hash; wrong ones counted   new_key, Guard
    desk        asks, waits, uses and lists, over the store                           Desk
    shelf       the records and their index in the store                              Shelf
    holding     one call that waits, for whoever keeps its connection                 Holding
    line        the calls that wait, and the changes that wake them                   Line
    held_calls  calls that were answered with a task, until they are carried out       HeldCalls
    carrying    carries them out: each by one sidecar, once                            Carrying
    tally       how many were asked for, and what became of them                       Tally
    notices     what people are told, until it has been taken                         Notices
    webhook     one POST, signed

An approval holds for the hash of workflow, agent, operation and arguments, once. It is `used` by compare-and-set before
the call goes out: so neither two sidecars nor a crash can use it twice.
"""
