"""Finding in the catalogue: what changed is found as it is now, and what is not admitted takes nobody's place."""

from meshd.discovery.catalogue import Catalogue
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.finder import Finder


def tool(owner: str, name: str, description: str = "", schema: bytes = b"") -> Entry:
    return Entry(Sort.TOOL, owner, name, description, origin=Origin.MCP, input_schema=schema)


def names(finder: Finder, words: str, **more: object) -> list[str]:
    return [one.key.name for one in finder.find(words, 5, **more)]  # type: ignore[arg-type]


def test_what_changed_is_found_as_it_is_now():
    catalogue = Catalogue()
    finder = Finder(catalogue)
    assert finder.find("read a file", 5) == []
    catalogue.replace("files", Origin.MCP, [tool("files", "read_file", "Reads a file from disk"), tool("files", "sum")])
    assert names(finder, "read a file")[0] == "read_file"
    catalogue.replace("files", Origin.MCP, [tool("files", "sum", "Adds numbers")])
    assert "read_file" not in names(finder, "read a file")
    assert names(finder, "add two numbers") == ["sum"]


def test_entries_are_found_by_their_vectors_until_they_change():
    catalogue = Catalogue()
    finder = Finder(catalogue)
    catalogue.replace("pets", Origin.MCP, [tool("pets", "feedCat", "Feeds it"), tool("pets", "walk_dog")])
    (cat, texts), (dog, _) = finder.unembedded()
    assert texts == ("feed Cat: Feeds it", "feed Cat", "Feeds it")
    finder.embed(cat, [[1.0, 0.0], [1.0, 0.1]])
    finder.embed(dog, [[0.0, 1.0], [0.1, 1.0]])
    assert finder.unembedded() == []
    assert names(finder, "kitty", vector=[1.0, 0.2]) == ["feedCat", "walk_dog"]
    assert names(finder, "kitty", vector=[0.2, 1.0]) == ["walk_dog", "feedCat"]
    catalogue.replace("pets", Origin.MCP, [tool("pets", "feedCat", "Feeds another"), tool("pets", "walk_dog")])
    assert [key for key, _ in finder.unembedded()] == [cat]
    # It is still found, by words, beside those that have vectors.
    assert set(names(finder, "feed", vector=[0.2, 1.0])) == {"walk_dog", "feedCat"}


def test_what_is_not_admitted_takes_nobodys_place():
    catalogue = Catalogue()
    catalogue.replace("a", Origin.MCP, [tool("a", f"search_{one}", "Searches the web") for one in range(9)])
    catalogue.replace("b", Origin.MCP, [tool("b", "find", "Searches the web for pages that hold all of these words")])
    finder = Finder(catalogue)
    found = finder.find("search the web", 1, admit=lambda entry: entry.owner == "b")
    assert [one.key.name for one in found] == ["find"]
    assert finder.find("search the web", 5, sorts=(Sort.AGENT,)) == []


def test_a_tool_is_found_by_what_its_agent_says_of_itself():
    catalogue = Catalogue()
    agent = Entry(Sort.AGENT, "maps", "maps", "Geography: cities, routes and places", origin=Origin.A2A)
    catalogue.replace("maps", Origin.A2A, [agent])
    catalogue.replace("maps", Origin.MCP, [tool("maps", "lookup", "Looks something up")])
    catalogue.replace("books", Origin.MCP, [tool("books", "lookup", "Looks something up")])
    found = Finder(catalogue).find("look up the geography of a place", 5, sorts=(Sort.TOOL,))
    assert [one.key.owner for one in found] == ["maps", "books"]
