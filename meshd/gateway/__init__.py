"""The MCP gateway: one address behind which every MCP server of the policy stands.

    names       what a server's things are called here, and which server a name is of     Names
    uris        what its resources are called here, and which server a URI is of          Uris
    links       links to resources in what servers answer                                 linked
    listing     a server's lists, read page by page into entries of the catalogue         read_page
    messages    what is changed in a message on its way: names, ids, fields               renamed, with_id
    client      one who speaks with the gateway, and its sessions with the servers        Client, Link
    calling     calls that the gateway makes itself: judged and sent as every other one   ask, listen
    opening     a session with a server is opened, in the era that both speak             open_link
    resolving   for which server a message is, before any rule judges it                  resolve
    passage     a call on its way through, and what its answer goes through               Passage
    answering   what the gateway says for all servers                                     answer
    showing     three tools in the place of many: find, describe, call                    Showing
    legacy      clients of 2024-11-05: a stream of events, and a POST for each message        Talks
    streams     what servers say unasked, on the stream of the client that it is for      Stream
    pool        what stands in a pool's place for what the gateway answers itself         GatewayPool
    gateway     all of it                                                                 Gateway

A call for one server is resolved by plain function calls before the chain, and goes on as a direct call to that
server: rules judge what is really called, once. It waits only where a name is not known yet, or a session not open.
"""
