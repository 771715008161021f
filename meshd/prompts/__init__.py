"""Prompts by name and version: kept in the store or in a folder, named by `prompt://` in requests, resolved here.

    template    a text with `{{variables}}`, and what becomes of it        Template, parse
    reference   `prompt://name@selector?variable=value`                    Reference, read_reference
    finding     where a request names prompts, in each dialect             Named, named_in, replaced
    record      what the store keeps                                       Prompt, Head, Pin
    choosing    which version a selector means                             choose, canary
    shelf       the records over the store port                            Shelf
    folder      prompts as files, for those who keep them in git           Folder
    registry    the two, what is known of them here, and pins              Registry
    noting      what a call was resolved to, for spans, replies and traces Used, note_prompt

A prompt is data: nothing in it, nor in the value of a variable, is looked at again for references.
"""
