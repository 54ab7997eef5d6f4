"""What is told of a request beside its pictures: sentences for people, here in English.

A note keeps the facts that it is made of, so that the page can say it in the language of its reader: base.js does there
what `Note` does here, with the sentences of web/page/words.json.
"""

from typing import Any, Self

SENTENCES = {
    "unknown": "I have never seen: {unknown}. I know {known} things, such as {such}.",
    "unknown-words": "I have never seen: {unknown}. I know {known} words.",
    "nearest": "{word} (nearest: {near})",
    "others": "{more} more",
    "negative": "negative prompt: {note}",
    "cut": "the prompt is longer than the model reads and was cut to {length} tokens",
    "cut-negative": "the negative prompt is longer than the model reads and was cut to {length} tokens",
    "no-guidance": "negative_prompt changes nothing where condition_scale is 1",
    "late": "{whole} of {asked} candidates were whole after {seconds} s",
}


class Note(str):
    """A sentence of SENTENCES. Facts are what its braces hold, but

    unknown: pairs of a word and the nearest known one, or None; more: how many unknown words there are beside them;
    note: another note.
    """

    name: str
    facts: dict[str, Any]

    def __new__(cls, name: str, **facts: Any) -> Self:
        words = [say("nearest", word=word, near=near) if near else word for word, near in facts.get("unknown", ())]
        if facts.get("more"):
            words.append(say("others", more=f"{facts['more']:,}"))
        found = super().__new__(cls, say(name, **facts | {"unknown": ", ".join(words)}))
        found.name, found.facts = name, facts
        return found

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.name,), self.facts

    def to_dict(self) -> dict[str, Any]:
        """For JSON: {name, facts}."""
        facts = {key: fact.to_dict() if isinstance(fact, Note) else fact for key, fact in self.facts.items()}
        return {"name": self.name, "facts": facts}


def say(name: str, **values: Any) -> str:
    return SENTENCES[name].format(**values)
