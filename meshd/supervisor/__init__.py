"""Whom `on_exceeded` names: an agent, an address, a topic or people, asked before a workflow is stopped.

story      what they are told                          encode, headline
answer     what they may say, or why that is nonsense  read
asking     one question for a workflow at a time       Asker
ways       how each of them is reached                 Agent, Address, Topic, People
"""
