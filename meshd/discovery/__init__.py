"""What can be called: agents, tools, skills and models by their descriptions, found by name or by words.

    entry       one of them, as whoever serves it describes it                         Entry, Sort
    catalogue   all that this sidecar knows, by owner; who changes it, and who looks   Catalogue
    told        what the policy says of an upstream                                        Told
    versions    semantic versions and ranges                                               Version, Range
    screening   what is wrong with what a server says (schemas)                            screen, Flaw
    pins        what was seen first is what is offered                                     judge, Pin
    shared      what sidecars tell each other of theirs, as records                        Head
    words       text becomes the terms that are compared                               terms
    document    what of an entry is searched                                           Document
    index       documents, found by words                                              Index, Found
    meanings    vectors of documents, where a model makes them                         Meanings
    finder      an index that is kept in step with a catalogue                         Finder
    intents     which of several intents a sentence belongs to, or none                Router
    features    what of a sentence tells what it asks for                              Space
    linear      the model that is learned from examples                                Linear
    thesaurus   words that mean nearly the same                                        groups

Nothing here does input or output: what is learned of servers is handed in, and time with it.
"""
