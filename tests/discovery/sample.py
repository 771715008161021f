"""A few servers with tools, requests for them, and intents with examples: of our own writing."""

from __future__ import annotations

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.intents import Intent

_SERVERS = {
    "files": ("Works with files and folders of this machine", [
        ("read_file", "Reads the whole content of a text file", ["show me the text of notes.txt", "read the readme"]),
        ("writeFile", "Writes text to a file, in place of what it held", ["save this text to report.md"]),
        ("list_directory", "Lists what a folder holds", ["which files are in the downloads folder"]),
        ("move_file", "Moves or renames a file", ["rename draft.txt to final.txt"]),
    ]),
    "weather": ("Forecasts for every place on earth", [
        ("get_forecast", "Returns the forecast for a city: rain and wind", ["will it rain in Oslo tomorrow"]),
        ("air_quality", "Returns how clean the air is at a place", ["is the air polluted in Delhi today"]),
    ]),
    "git": ("Version control of source code", [
        ("git_commit", "Records the staged changes with a message", ["commit my changes to the repository"]),
        ("git_log", "Shows the history of a branch", ["who changed this branch last week"]),
        ("git_create_branch", "Creates a branch from another", ["start a new branch for the feature"]),
    ]),
    "travel": ("Plans journeys", [
        ("search_flights", "Finds flights between two airports on a date", ["fly from Rome to Madrid on Friday"]),
        ("bookHotel", "Books a room in a hotel", ["I need somewhere to stay in Lisbon, two nights"]),
        ("currency_exchange", "Converts an amount of money into another currency", ["how many euros are 50 dollars"]),
    ]),
    "calendar": ("Appointments and reminders", [
        ("create_event", "Puts an appointment into the calendar", ["schedule a meeting with Ana at noon"]),
        ("list_events", "Shows the appointments of a day", ["what is on my schedule today"]),
    ]),
}  # fmt: skip

ENTRIES: list[Entry] = []
REQUESTS: list[tuple[str, str]] = []
"""What somebody wants, and the tool for it."""
for _server, (_said, _tools) in _SERVERS.items():
    ENTRIES.append(Entry(Sort.AGENT, _server, _server, _said, origin=Origin.A2A))
    for _name, _description, _asked in _tools:
        ENTRIES.append(Entry(Sort.TOOL, _server, _name, _description, origin=Origin.MCP))
        REQUESTS += [(_one, _name) for _one in _asked]

INTENTS = [
    Intent("order_status", (
        "where is my order", "has my parcel been sent yet", "when does my package arrive",
        "track the delivery of my order", "my order has not come, where is it", "is my parcel on its way",
    )),
    Intent("refund", (
        "I want my money back", "please refund my purchase", "how do I return this and get a refund",
        "send me back what I paid", "the shoes do not fit, I want to return them", "can I get a refund",
    )),
    Intent("change_address", (
        "I have moved, please change my address", "update my delivery address", "my street is wrong in your system",
        "how can I edit the address of my account", "deliver it to another address", "I want to change where I live",
    )),
    Intent("lost_password", (
        "I forgot my password", "I cannot log in any more", "reset my password please",
        "my login does not work, I lost the password", "how do I get a new password", "the account is locked",
    )),
]  # fmt: skip
IN_SCOPE = [
    ("where is the parcel that I ordered", "order_status"),
    ("I would like to get my money refunded", "refund"),
    ("my address has changed", "change_address"),
    ("I have forgotten the password of my account", "lost_password"),
]
NOWHERE = [
    "how tall is the highest mountain of Africa", "sing something by the Beatles", "who won the chess championship",
    "what is seven times nine",
]  # fmt: skip
NONSENSE = [
    "", " ", "\0\x07\x1b[2J", "\u202e\u2066gnihtemos\u2069", "\u200b\u200d\ufeff", "?!…—", "a" * 1_000_000,
    "find " * 200_000, "\ud800", "日本語の文章を探す", "ابحث عن ملف", "ค้นหาไฟล์", "🙂" * 500, "e\u0301" * 999,
]  # fmt: skip
