"""Queries that come for free: made from headings, sentences, terms, docstrings and function names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_VERBS = re.compile(
    r"\b(is|are|was|were|can|will|has|have|does|do|provides|contains|allows|uses|returns|supports|includes|means"
    r"|requires|gives|makes|takes|creates|became|consists|describes|shows)\b"
)
_STOP = frozenset(
    """
    a an the of to in on for and or is are was were be been by with as at from that this it its which who what
    when where how why do does did can could will would should may might has have had not no if then than so
    such into about there their they he she you your we our i us me my s t also only more most very any all
    some each other
    """.split()  # noqa: SIM905  # words read better without quotes
)
_PAST = re.compile(
    r"\b(was|were|had|became|began|made|gave|took|led|wrote|won|held|built|found|said|went|came|left|kept|saw|sent"
    r"|has|have|is|are|can|will|must|should|\w{3,}ed|means|requires|provides|contains|consists|leads|exists)\b"
)
_AUXILIARY = frozenset(("was", "were", "had", "has", "have", "is", "are", "can", "will", "must", "should"))
_IRREGULAR = {
    "became": "become", "began": "begin", "made": "make", "gave": "give", "took": "take", "led": "lead",
    "wrote": "write", "won": "win", "held": "hold", "built": "build", "found": "find", "said": "say", "went": "go",
    "came": "come", "left": "leave", "kept": "keep", "saw": "see", "sent": "send",
}  # fmt: skip
_WEB_CODE = (
    "python {}", "python {}", "{} python", "{} in python", "how to {} python", "how to {} in python",
    "python how to {}", "how do you {} in python", "{}", "python code for {}", "python function {}",
    "best way to {} python", "python3 {}", "how to make python {}",
)  # fmt: skip
_ASK = (
    "what is {}", "what is {}?", "What is {}?", "{} meaning", "define {}", "{} definition",
    "what does {} mean", "explain {}", "tell me about {}", "{}", "who or what is {}", "what are {}",
)  # fmt: skip
_HOW = (
    "how to {}", "how to {} in python", "python {}", "{} python", "How do I {}?", "{}", "{}",
    "function to {}", "python function to {}", "how can i {} in python", "python code to {}",
    "best way to {} with python",
)  # fmt: skip


def sentences_of(text: str) -> list[str]:
    """Split a paragraph into its sentences of five words or more."""
    parts = re.split(r"(?<=[a-z0-9)\"'][.!?])\s+(?=[A-Z\"'(])", text)
    return [part.strip() for part in parts if len(part.split()) >= 5]


def keywords(text: str, rng: random.Random, most: int = 7) -> str:
    """Pick a few content words in their order, as people type them into a search box."""
    words = [w for w in re.findall(r"[A-Za-z][\w'-]*[A-Za-z0-9]|\d+", text) if w.lower() not in _STOP]
    keep = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(2, most))))
    return " ".join(words[i] for i in keep).lower()


def question(sentence: str, rng: random.Random) -> str:
    """Turn a statement into something like a question about one half of it."""
    match = _VERBS.search(sentence)
    if not match or match.start() < 4 or match.end() > len(sentence) - 12:
        return keywords(sentence, rng, 9)
    subject, verb, rest = sentence[: match.start()].strip(" ,"), match[1], sentence[match.end() :].strip(" .")
    rest = " ".join(rest.split()[: rng.randint(4, 14)])
    subject = subject if len(subject.split()) <= 12 else " ".join(subject.split()[-8:])
    if subject.split() and not subject.isupper():
        head = subject.split()[0]
        subject = subject[0].lower() + subject[1:] if head.lower() in _STOP else subject
    number = re.search(r"\b\d[\d,.]*\b", rest)
    year = re.search(r"\b(1[0-9]|20)\d\d\b", rest)
    plain = verb in {"is", "are", "was", "were", "can", "will", "has", "have", "does", "do"}
    forms = [f"What {verb} {rest}?", f"which {verb} {rest}", f"what {verb} {rest}"]
    if plain:
        forms += [f"What {verb} {subject}?", f"How {verb} {subject} {' '.join(rest.split()[:5])}?",
                  f"why {verb} {subject} {' '.join(rest.split()[:6])}"]  # fmt: skip
    else:
        forms += [
            f"What does {subject} {verb.rstrip('s')}?",
            f"How does {subject} {verb.rstrip('s')} {' '.join(rest.split()[:6])}?",
        ]
    if year:
        forms += [
            f"When {verb} {subject} {rest.replace(year[0], '').strip()}?",
            f"In what year {verb} {subject}?",
        ]
    elif number:
        forms += [f"How many {rest.split(number[0])[-1].strip()} {verb} {subject}?"]
    elif re.search(r"\b(?:by|of|from) [A-Z]\w+", rest):
        forms += [f"Who {verb} {subject} {re.sub(r' (?:by|of|from) [A-Z].*', '', rest)}?"]
    return rng.choice(forms)


def wh_question(sentence: str, rng: random.Random) -> str:
    """Ask for the subject, the object, the time, the place or the number of a sentence, as readers of a passage do."""
    match = next((m for m in _PAST.finditer(sentence) if m.start() > 3), None)
    if not match or match.end() > len(sentence) - 12:
        return keywords(sentence, rng)
    subject, verb, rest = sentence[: match.start()].strip(" ,;"), match[1], sentence[match.end() :].strip(" .;")
    if len(subject.split()) > 10:
        return keywords(sentence, rng, 9)
    named = re.fullmatch(r"(?:[A-Z][\w.'-]+ ?)+", subject) is not None and subject.split()[0].lower() not in _STOP
    who = "Who" if named else "What"
    if not named and subject[0].isupper() and not subject.split()[0].isupper():
        subject = subject[0].lower() + subject[1:]
    short = re.split(r"[;:,] | (?:which|who|that|because|while|although)\b", rest)[0]
    short = " ".join(short.split()[: rng.randint(5, 12)])
    base = _IRREGULAR.get(verb, re.sub(r"(?<=[^aeiou]i)ed$|(?<=[aeiou]{2}[ntlrkmp])ed$|ed$|s$", "", verb))
    asked = f"{verb} {subject}" if verb in _AUXILIARY else f"did {subject} {base}"
    forms = [f"{who} {verb} {short}?", f"{who} {verb} {short}?"]
    place = re.search(r" (?:in|at|near|from|to) (?:the )?[A-Z]\w+(?: [A-Z]\w+)*", rest)
    if year := re.search(r"(?:,? (?:in|on|since|by|of|until) (?:[A-Z]\w+ )?(?:\d{1,2}, )?)?\b1\d\d\d\b", rest):
        before = " ".join(rest[: year.start()].split()[-10:]).strip(" ,")
        forms += [f"When {asked} {before}?", f"In what year {asked} {before}?"]
    if number := re.search(r"\b\d[\d,.]*\d?\b ([a-z]+)", rest):
        forms += [f"How many {number[1]} {asked} {' '.join(rest[: number.start()].split()[-6:])}?"]
    if place:
        forms += [f"Where {asked} {' '.join(rest[: place.start()].split()[-8:])}?"]
    if because := re.search(r" (?:because|in order to|so that|due to)\b", rest):
        forms += [f"Why {asked} {' '.join(rest[: because.start()].split()[-9:])}?"]
    forms += [f"What {asked}?", f"How {asked} {' '.join(short.split()[:4])}?"]
    asked_for = re.sub(r"\s+(?=[?])", "", rng.choice(forms))
    return asked_for if rng.random() < 0.7 else asked_for.rstrip("?").lower()


def web_code_query(sentence: str, rng: random.Random) -> str:
    """Ask for a function as people type it into a search engine: in lower case, shortened, without punctuation."""
    task = re.sub(r"[^a-z0-9+#_ ]+", " ", imperative(sentence).lower())
    words = task.split()
    if rng.random() < 0.5:
        words = [word for word in words if word not in _STOP or word in {"to", "from", "not", "all"}] or words
    elif rng.random() < 0.5:
        words = [word for word in words if word not in {"a", "an", "the", "this", "that", "given"}] or words
    return rng.choice(_WEB_CODE).format(" ".join(words[: rng.randint(4, 9)]))


def ask_term(term: str, rng: random.Random) -> str:
    """Ask for a term's meaning."""
    return rng.choice(_ASK).format(term)


def imperative(sentence: str) -> str:
    """Turn "Returns the mean of x." into "return the mean of x"."""
    words = sentence.rstrip(". ").split()
    if words and words[0].endswith("s") and not words[0].endswith("ss") and len(words[0]) > 4:
        first = words[0].lower()
        words[0] = first[:-2] if first.endswith(("shes", "ches", "sses")) else first[:-1]
    elif words and words[0][1:].islower():
        words[0] = words[0].lower()
    return " ".join(words)


def split_name(name: str) -> str:
    """Turn `copy_tree` or `CopyTree` into "copy tree"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.rsplit(".", 1)[-1])
    return spaced.replace("_", " ").strip().lower()


def ask_function(name: str, sentence: str, rng: random.Random) -> str:
    """Ask for a function by what its docstring's first sentence says, or by its name."""
    task = imperative(sentence)
    draw = rng.random()
    if draw < 0.15 and len(split_name(name).split()) >= 2:
        task = split_name(name)
    elif draw < 0.4:
        task = keywords(sentence, rng, 8) or task
    elif len(task.split()) > 14:
        task = " ".join(task.split()[: rng.randint(6, 14)])
    return rng.choice(_HOW).format(task)
