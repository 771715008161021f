"""The agent trace: everything that workflows did, as events that nobody can change unseen.

    kinds       what is written down, and the facts of each kind
    segment     how a file of the log is laid out: head, frames, checksums, chain of hashes
    log         the open log: an append into mapped memory, and the sync that many share
    knowledge   what a workflow's clock knows of other sidecars, and how it travels, signed
    writer      events, one after the other
    heads       what is kept of a call's head
    recorder    the moments of a call, written down as they come
    texts       what agents say of themselves, beside the log, where it can be erased
    opening     the log as a start finds it: recovered, named, locked
    retention   what is old, or too much, goes
    record      one event, as it is read
    reading     the events of a workflow, from files that may still grow, by an index
    verifying   the first bad record, and why it is one

An event is (sidecar, epoch, sequence): the sidecar's id is made once, its epoch counts its starts, and the sequence
never goes back. Calls are written down before they go out. No payload is in the log, only digests.
"""
