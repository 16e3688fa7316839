"""Made-up encyclopaedia passages about real names, and questions to them, so that names, places and years are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wordfreq import top_n_list

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_TRADES = """
painter;physicist;poet;politician;composer;chemist;explorer;general;historian;novelist;architect;mathematician;actor;
philosopher;bishop;engineer;footballer;botanist;singer;economist;sculptor;astronomer;merchant;lawyer;physician;
journalist;inventor;queen;king;admiral;missionary;film director;geologist;biologist;activist;teacher;photographer
""".replace("\n", "").split(";")
_FIELDS = """
wool;steel;tourism;fishing;coal mining;shipbuilding;wine;banking;salt;textiles;car manufacturing;timber;glass;rice;
silk;oil refining;software;agriculture;printing;coffee;cotton;pottery;film production;chemicals;gold mining;paper
""".replace("\n", "").split(";")
_SCIENCES = """
medicine;law;theology;optics;electricity;music;genetics;astronomy;geometry;trade;navigation;chemistry;languages;
economics;architecture;psychology;agriculture;philosophy;education;history;statistics;politics;engineering;botany
""".replace("\n", "").split(";")
_BUILDINGS = (
    "cathedral", "bridge", "palace", "museum", "university", "library", "castle", "railway station", "harbour",
    "stadium", "opera house",
)  # fmt: skip
# Each kind of passage: its first sentence, then others; behind each sentence the questions that it answers.
_KINDS: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = (
    (
        ("{p} ({y}-{y3}) was a {d} {trade} from {c}.",
         ("Where was {p} from?", "When did {p} die?", "Who was the {d} {trade} from {c}?", "who was {p}")),
        ("{p} studied {science} in {c2} and moved to {c3} in {y2}.",
         ("What did {p} study in {c2}?", "In what year did {p} move to {c3}?", "where did {p} study {science}")),
        ('The work "{work}", finished in {y2}, made the {trade} famous.',
         ("What work made {p} famous?", 'When was "{work}" finished?', "who made {work}")),
        ("At the age of {age}, {p} married {p2}, with whom there were {few} children.",
         ("Who did {p} marry?", "How many children did {p} and {p2} have?", "How old was {p} when marrying {p2}?")),
        ("A {building} in {c2} is named after {p}.",
         ("What in {c2} is named after {p}?", "Who is the {building} in {c2} named after?")),
        ("Critics such as {p2} thought little of the {trade}'s ideas about {science}.",
         ("Who criticised {p}'s ideas about {science}?", "what did {p2} think of {p}")),
    ),
    (
        ("{c} is a city of {d} origin with a population of {big}.",
         ("What is the population of {c}?", "How many people live in {c}?", "population of {c}")),
        ("It was founded in {y} by {p}.",
         ("Who founded {c}?", "When was {c} founded?", "In which year did {p} found {c}?")),
        ("The local economy rests on {field} and {field2}.",
         ("What does the economy of {c} rest on?", "What industries are important in {c}?", "economy of {c}")),
        ("In {y2} a fire destroyed the {building} and {few} streets around it.",
         ("What destroyed the {building} of {c}?", "When did a fire destroy the {building} in {c}?")),
        ("A railway has linked the city with {c2} since {y3}.",
         ("Since when has a railway linked {c} with {c2}?", "Which city is {c} linked with by railway?")),
        ("Its {building} attracts about {big2} visitors a year.",
         ("How many visitors does the {building} of {c} attract?", "{c} {building} visitors")),
    ),
    (
        ("The Battle of {c} was fought in {y} between the {d} army under {p} and the forces of {p2}.",
         ("When was the Battle of {c} fought?", "Who led the {d} army in the Battle of {c}?", "battle of {c}")),
        ("About {big2} soldiers were killed, most of them on the side of {p2}.",
         ("How many soldiers were killed in the Battle of {c}?", "Who lost most soldiers at {c}?")),
        ("{p} had marched from {c2} with {big} men.",
         ("Where had {p} marched from?", "How many men did {p} have at the Battle of {c}?")),
        ("A treaty signed in {c3} ended the war and gave the region its {field} trade.",
         ("Where was the treaty signed that ended the war?", "What did the treaty of {c3} give the region?")),
        ("The victory is remembered in {c} every year with a market.",
         ("How is the victory remembered in {c}?", "what is remembered with a market in {c}")),
    ),
    (
        ("The University of {c} is known for research in {science}.",
         ("What is the University of {c} known for?", "Which university is known for research in {science}?")),
        ("It opened in {y} with {few} professors and {big2} students.",
         ("When did the University of {c} open?", "How many students did the University of {c} begin with?")),
        ("{p}, a {trade}, was its first rector.",
         ("Who was the first rector of the University of {c}?", "first rector of university of {c}")),
        ("The main {building} was designed by {p2} in {y2}.",
         ("Who designed the main {building} of the University of {c}?", "What did {p2} design in {y2}?")),
        ("Its rival is the college of {c2}, which teaches {science2}.",
         ("What is the rival of the University of {c}?", "What does the college of {c2} teach?")),
    ),
    (
        ('"{work}" is a {d} film of {y} directed by {p}.',
         ('Who directed "{work}"?', "When did {work} come out?", "what is {work}")),
        ("{p2} plays a {trade} who returns to {c} after {few} years.",
         ('Who plays the {trade} in "{work}"?', "Which city does the {trade} return to in {work}?")),
        ("It cost {big} dollars and was filmed in {c2}.",
         ('How much did "{work}" cost?', "Where was {work} filmed?")),
        ("The story is about {science} and the {field} trade.",
         ('What is "{work}" about?', "film about {science} and {field}")),
        ("It won {few} prizes at the festival of {c3}.",
         ('How many prizes did "{work}" win?', "At which festival did {work} win prizes?")),
    ),
    (
        ("The {d} people have lived near {c} since about {y}.",
         ("Where have the {d} people lived?", "Since when have the {d} people lived near {c}?")),
        ("Most of them work in {field}, and their festival honours {p}.",
         ("Who does the {d} festival honour?", "What do most {d} people work in?")),
        ("The {d} language was first described by the {trade} {p2} in {y2}.",
         ("Who first described the {d} language?", "When was the {d} language first described?")),
        ("Today about {big} {d} people live in {c2}.",
         ("How many {d} people live in {c2}?", "where do {d} people live today")),
        ("They are known for {field2} and for songs about {work}.",
         ("What are the {d} people known for?", "What are {d} songs about?")),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Real names of people and places, and the adjectives of nations."""

    people: tuple[str, ...]
    places: tuple[str, ...]
    nations: tuple[str, ...]


def read_names(folder: Path) -> Names:
    """Read the leaders, cities and nations of freeciv's rule sets.

    Args:
        folder: the unpacked package.

    Returns:
        Names in ASCII letters, sorted.
    """
    people, places, nations = set(), set(), set()
    for path in folder.rglob("nation/*.ruleset"):
        text = path.read_text(errors="ignore")
        nations.update(re.findall(r'^name\s*=\s*_\("(?:\?\w+:)?([^"]+)"\)', text, re.MULTILINE))
        leaders = re.search(r"^leaders\s*=\s*\{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        people.update(re.findall(r'^\s*"([^"]+)"\s*,\s*"(?:Fem|M)ale"', leaders[1] if leaders else "", re.MULTILINE))
        cities = re.search(r"^cities\s*=(.*?)(?:^\S|\Z)", text, re.MULTILINE | re.DOTALL)
        places.update(re.findall(r'"([^"(]+?)(?: \([^"]*)?"', cities[1] if cities else ""))
    chosen = (sorted(n for n in found if n.isascii() and len(n) > 3) for found in (people, places, nations))
    return Names(*map(tuple, chosen))


def passages(names: Names, count: int, rng: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Yield made-up passages, each with two questions.

    Args:
        names: who and what they are about.
        count: passages.
        rng: the source of everything drawn.

    Yields:
        A passage and its questions.
    """
    words = [word.title() for word in top_n_list("en", 20_000)[300:] if word.isalpha() and len(word) > 3]
    for _ in range(count):
        year = rng.randint(1100, 1960)
        fields, sciences = rng.sample(_FIELDS, 2), rng.sample(_SCIENCES, 2)
        slots = dict(zip(("p", "p2"), rng.sample(names.people, 2), strict=True))
        slots |= dict(zip(("c", "c2", "c3"), rng.sample(names.places, 3), strict=True))
        slots |= {
            "d": rng.choice(names.nations),
            "y": str(year), "y2": str(year + rng.randint(18, 40)), "y3": str(year + rng.randint(41, 80)),
            "age": str(rng.randint(18, 60)), "few": str(rng.randint(2, 12)),
            "big": f"{rng.randint(20, 2000) * 1000:,}", "big2": f"{rng.randint(5, 190) * 100:,}",
            "trade": rng.choice(_TRADES), "building": rng.choice(_BUILDINGS),
            "field": fields[0], "field2": fields[1], "science": sciences[0], "science2": sciences[1],
            "work": rng.choice(("The {} of {}", "{} and {}", "The {} {}", "A {} for {}")).format(
                *rng.sample(words, 2)
            ),
        }  # fmt: skip
        first, *others = rng.choice(_KINDS)
        chosen = [first, *rng.sample(others, rng.randint(2, len(others)))]
        questions = [question for _, asked in chosen for question in asked]
        yield (
            " ".join(sentence.format(**slots) for sentence, _ in chosen),
            [question.format(**slots) for question in rng.sample(questions, 2)],
        )
