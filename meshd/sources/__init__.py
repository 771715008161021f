"""What fills the catalogue: servers are asked what they offer, again and again, and what they say is let in with care.

    asking       requests to upstreams, through the sidecar's own proxy, with their limits      Asking
    mcp_server   MCP: tools, prompts, resources, notices that these changed                     McpServer
    agent_card   A2A: the card of an agent, its skills                                          AgentCards
    openapi      an OpenAPI document: operations                                                OpenApi
    reflection   gRPC: services and methods, as a server reflects them                          Reflection
    told         what the policy and agents themselves say                                      told, agent_entries
    tending      one source: asked, waited for, given up                                        Tending
    admitting    what a source says, screened and held against its pins                         Admitting
    pinned       the pins, in the store                                                         Shelf
    sharing      what other sidecars have, by the store                                         Sharing
    registering  agents that register by themselves                                             Registering

No server is asked before the sidecar is ready, and none that hangs, lies or floods keeps another waiting.
"""
