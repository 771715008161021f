"""Routing by intent: a call says what it wants, and not from whom.

    asking       what a call wants: words of its address or of a header, and what is not let in      Asked
    candidates   who could serve it: agents of the policy, and what is known of them                  candidates_of
    deciding     who does: those that may and can be called, ranked, or nobody                        Decision, decide
    barring      why one may or can not be called: health, policy, scope                              Barred
    resolver     all of it for one sidecar: asked by the way of a call, counted, shown                Resolver
    leading      events that say so: copies for every agent that they fit, or a dead letter            Leading
    showing      a decision as the admin port and `meshd route` tell it                               told

What is chosen is judged by the filters as if the call had named it: a name in words opens no door that the name itself
does not.
"""
