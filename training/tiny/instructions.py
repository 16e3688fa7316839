"""Wordings of the task instruction: for prose, for code, and a few that only the evaluation uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

DEFAULT = "Given a web search query, retrieve relevant passages that answer the query"

_GIVEN = (
    "a web search query", "a question", "a query", "a search query", "a topic", "a claim", "a title",
    "a user query", "a keyword query", "a scientific claim", "a medical question", "a term", "a problem",
    "a sentence", "a paper title", "a customer's problem", "a financial question", "a short description",
    "a request", "a multi-hop question", "a natural language query", "the user's need", "an information need",
)  # fmt: skip
_FIND = (
    "retrieve", "find", "search for", "return", "get", "fetch", "look for", "select", "rank", "locate",
    "give me", "show me", "choose", "list", "look up", "suggest", "surface", "match", "discover", "recommend",
)  # fmt: skip
_FRAMES = (
    "{find} {what} {which}", "{find} {what} {which}", "{find} the {what} {which}", "which {what} {which}",
    "I need {what} {which}", "I am looking for {what} {which}", "the user wants {what} {which}",
    "represent the query for retrieving {what}", "{what} search", "{what} retrieval",
    "search query for {what}", "query against a collection of {what}", "{find} the best {what}",
    "{find} {what}", "what {what} would help here", "{find} the most relevant {what} {which}",
    "are there {what} {which}",
)  # fmt: skip
_PROSE = (
    "passages", "relevant passages", "documents", "paragraphs", "articles", "Wikipedia passages", "text",
    "answers", "web pages", "descriptions", "explanations", "sections of the documentation", "abstracts",
    "definitions", "prose", "help articles", "entity descriptions", "relevant documents",
    "passages of text", "written explanations", "manual sections", "package descriptions", "facts",
    "background reading", "text passages", "evidence", "news", "reports", "blog posts", "papers", "stories",
    "textbook paragraphs", "summaries", "statements", "literature", "reference material", "guides",
    "tutorials in plain words", "information", "sentences", "man pages", "encyclopedia articles", "books",
)  # fmt: skip
_PROSE_TAIL = (
    "that answer the query", "that answer the question", "relevant to the query", "about it",
    "on this topic", "", "that explain it", "that help to answer it", "that support it",
    "which describe it", "that are relevant", "that match the query", "about:", "that explain:",
    "on the subject", "that discuss the topic", "worth reading", "that support or refute it",
    "with the answer", "in plain English", "for a reader", "which tell more about it", "giving background",
)  # fmt: skip
_CODE = (
    "functions", "Python functions", "code", "code snippets", "source code", "methods", "classes",
    "implementations", "Python code", "functions and classes", "code examples", "library functions",
    "program code", "definitions in code", "relevant code", "relevant functions", "API functions",
    "Python classes", "scripts", "function definitions", "utility functions", "helper functions",
    "a function", "a Python function", "pieces of code", "routines", "procedures", "API calls", "APIs",
    "snippets", "programs", "modules", "methods of a class", "library calls", "function signatures",
    "code fragments", "implementations in Python", "software components", "built-in functions",
    "functions with docstrings", "code blocks", "standard library functions", "a method", "a class",
)  # fmt: skip
_CODE_TAIL = (
    "that:", "that do this:", "that answer the query", "for the task", "that implement it",
    "which solve the problem", "matching the description", "that do what is described",
    "relevant to the query", "that does the following", "", "which can:", "to do this",
    "that match the comment", "for this purpose", "that perform the task", "that", "to call for this",
    "a developer could use", "that carry out the operation", "that could be reused", "I can import for it",
    "which handle this case", "that compute it", "doing the job", "that fulfil the request",
)  # fmt: skip
_CODE_GIVEN = (
    "a programming question", "a description of what code does", "a docstring", "a coding task",
    "a code search query", "a query", "a question", "a web search query", "a task", "a comment",
    "a problem", "a natural language description", "a developer's question", "a feature request",
)  # fmt: skip

UNSEEN_PROSE = (
    "Given what somebody hopes to learn, pick chapters covering the matter",
    "Could you point out essays or notes most helpful for understanding this?",
    "Identify articles whose wording clarifies what was asked",
)
UNSEEN_CODE = (
    "Which callables in a package would accomplish the following?",
    "Show subroutines whose behaviour fits what was asked",
    "Identify functions programmers should invoke to reach their goal",
)


def _wording(rng: random.Random, given: tuple[str, ...], what: tuple[str, ...], which: tuple[str, ...]) -> str:
    body = rng.choice(_FRAMES).format(find=rng.choice(_FIND), what=rng.choice(what), which=rng.choice(which))
    body = body.strip()
    text = f"Given {rng.choice(given)}, {body}" if rng.random() < 0.45 else body[0].upper() + body[1:]
    return text if text.endswith(":") else text + rng.choice(("", "", "", ".", ":", "?"))


def prose_instruction(rng: random.Random) -> str:
    """Make a wording that asks for prose; the official default four times out of ten."""
    return DEFAULT if rng.random() < 0.4 else _wording(rng, _GIVEN, _PROSE, _PROSE_TAIL)


def code_instruction(rng: random.Random) -> str:
    """Make a wording that asks for code; "Find functions that:" one time out of five."""
    return "Find functions that:" if rng.random() < 0.2 else _wording(rng, _CODE_GIVEN, _CODE, _CODE_TAIL)


def format_query(text: str, instruction: str = DEFAULT) -> str:
    """Write a query in the models' official template."""
    return f"Instruct: {instruction}\nQuery:{text}"
