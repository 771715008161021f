"""Shared versioned state: objects that agents read and write without losing each other's changes.

    keys        what an object is called, and what a reference to it looks like      Key, Reference, Scope
    access      who may read and write which scope; who is handed which reference    denied, handed
    record      an object as the store keeps it                                      Head, Version, Lease
    deciding    what becomes of it: pure, every outcome a value                      commit, check_out, Conflict
    pieces      long values, in pieces of their own                                  Pieces
    objects     the operations, each one compare-and-set on one record               Objects
    shadows     tentative versions, and their promotion                         Shadows
    knowing     what each workflow knows here, as vector clocks                      Knowing
    watching    who wants to hear of which object                                    Watching
    sweeping    what has expired, and what crashes have left                         Sweeping

An object is one record of the store port, its head: the versions that are kept, short values within, and who has
checked it out. So each change is one compare-and-set, on every engine. Long values are written before the head that
names them, and removed after the head that names them no more.
"""
