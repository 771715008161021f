"""Agents that go in circles: what a workflow has said so far, and whether the next call brings anything new.

Pure: time and bytes are handed in, decisions come out. Read in this order:

    turn        what is judged, by which limits, and what comes of it
    features    a payload as what it says: ids and times left out, counters told from content
    lexicon     what a word says: nothing, thanks, or its stem
    counters    counters told from content
    protobuf    the texts of a message whose schema nobody knows
    seen        the words of a workflow, in a kilobyte
    said        one payload, and how near it is to another
    question    what was asked on an edge, and what came back
    templates   the same words around another question
    thanks      thanks for thanks
    restating   small signs that a talk only says again what it has said, weighed
    rewording   a talk that goes round in other words
    edge        who calls whom, how often, and the questions of late
    counting    the edges of a workflow, and its limits
    connected   agents that call one another in a circle
    periods     the round that the last calls go in
    heeding     who goes on after a refusal
    patience    who asks the same again because time must pass, or for another sample
    workflow    one workflow: judge a turn, learn what was asked and answered
    book        the workflows of one sidecar
    asking      what a request to a model asks, and how often its history goes round already
    sample      the beginning and the end of what streams by
    record      a workflow in at most 4 kB, and the sum of two that several sidecars keep
    sharing     that record in the store, behind the calls
    words       what the model is told
    supervision who is asked before a workflow is stopped, and what may be answered
"""
