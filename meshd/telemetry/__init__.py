"""What meshd says about the calls it carries: metrics, spans and logs.

    names        every metric, label and span attribute name, in one versioned table
    series       the counters and histograms that the hot path touches: plain ints in slotted objects
    exposition   how those are read at a scrape (prometheus_client)
    tally        the numbers that belong to no target
    sources      what is read only at a scrape: rule hits, breakers, budget totals, the store
    spans        the sampling decision, and what is kept of a call's span in the end
    span_bytes   how spans are written for a collector
    endpoint     where the collector is, as the environment says
    otlp         the exporter (opentelemetry-sdk), imported only where an endpoint is set
    redact       secrets are taken out of every text before it reaches a sink
    logs         JSON lines, or text on a terminal; one line a refusal, summed up in a flood
    telemetry    the facade that the proxy calls

Nothing here holds the content of a message, and no metric label grows with workflows, paths or prompts.
"""
