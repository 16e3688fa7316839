"""Task instructions for queries: named sentences, and the template that the models were trained with."""

from __future__ import annotations

import difflib
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_INSTRUCTION = ("", "none")
"""In an instruction's place: nothing stands before the text."""

_REPORT = "the models' own default (config_sentence_transformers.json; Qwen3-Embedding report, arXiv:2506.05176)"
_E5 = "E5-Mistral's instructions for {} (arXiv:2401.00368), which the Qwen3-Embedding evaluation follows"
_OURS = "this package's own wording"

_CATALOGUE: dict[str, tuple[str, str]] = {
    "web_search": (
        "Given a web search query, retrieve relevant passages that answer the query",
        _REPORT,
    ),
    "question_answering": (
        "Given a question, retrieve Wikipedia passages that answer the question",
        _E5.format("NQ"),
    ),
    "multi_hop_question": (
        "Given a multi-hop question, retrieve documents that can help answer the question",
        _E5.format("HotpotQA"),
    ),
    "code_search": ("Find functions that:", "the page this project was started from, on code search"),
    "code_to_code": (
        "Given a code snippet, retrieve code snippets that do the same thing",
        _OURS,
    ),
    "question_to_sql": (
        "Given a question in natural language, retrieve SQL queries that answer the question",
        _OURS,
    ),
    "bug_to_fix": (
        "Given a bug report or an error message, retrieve code changes and discussions that fix the bug",
        _OURS,
    ),
    "fact_checking": (
        "Given a claim, retrieve documents that support or refute the claim",
        _E5.format("FEVER"),
    ),
    "scientific_claim": (
        "Given a scientific claim, retrieve documents that support or refute the claim",
        _E5.format("SciFact"),
    ),
    "duplicate_questions": (
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        _E5.format("Quora"),
    ),
    "forum_duplicates": (
        "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates "
        "to the given question",
        _E5.format("CQADupStack"),
    ),
    "citation": (
        "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper",
        _E5.format("SCIDOCS"),
    ),
    "argument": (
        "Given a question, retrieve detailed and persuasive arguments that answer the question",
        _E5.format("Touche 2020"),
    ),
    "counter_argument": (
        "Given a claim, find documents that refute the claim",
        _E5.format("ArguAna"),
    ),
    "entity": (
        "Given a query, retrieve relevant entity descriptions from DBPedia",
        _E5.format("DBPedia"),
    ),
    "legal": (
        "Given a legal question, retrieve statutes, court decisions and contract clauses that answer the question",
        _OURS,
    ),
    "medical": (
        "Given a medical question, retrieve documents that best answer the question",
        "adapted from E5-Mistral's instruction for NFCorpus (arXiv:2401.00368)",
    ),
    "financial": (
        "Given a financial question, retrieve user replies that best answer the question",
        _E5.format("FiQA"),
    ),
    "ecommerce": (
        "Given a shopping query, retrieve descriptions of products that match the query",
        _OURS,
    ),
    "support_tickets": (
        "Given a customer's problem, retrieve support tickets and help articles that solve the problem",
        _OURS,
    ),
    "log_search": (
        "Given a description of a system problem, retrieve log messages that show the problem",
        _OURS,
    ),
    "semantic_similarity": ("Retrieve semantically similar text", _E5.format("the STS tasks")),
    "bitext": ("Retrieve parallel sentences", _E5.format("Tatoeba and BUCC")),
    "sentiment_classification": (
        "Classify Amazon reviews into positive or negative sentiment",
        _E5.format("AmazonPolarity"),
    ),
    "intent_classification": (
        "Given a online banking query, find the corresponding intents",
        _E5.format("Banking77"),
    ),
    "classification": ("Classify the given text by its category", _OURS),
    "clustering": (
        "Identify the topic or theme of the given text",
        "adapted from E5-Mistral's instruction for TwentyNewsgroups (arXiv:2401.00368)",
    ),
    "long_document_sections": (
        "Given a question, retrieve the sections of a long document that answer the question",
        _OURS,
    ),
    "conversation_memory": (
        "Given the latest message of a conversation, retrieve earlier messages that help to answer it",
        _OURS,
    ),
}

INSTRUCTIONS: Mapping[str, str] = MappingProxyType({name: task for name, (task, _) in _CATALOGUE.items()})
"""Task sentence by name, in English as the report advises for texts of any language."""

INSTRUCTION_SOURCES: Mapping[str, str] = MappingProxyType({name: source for name, (_, source) in _CATALOGUE.items()})
"""Where the wording of each entry of `INSTRUCTIONS` comes from."""


# The names that sentence-transformers' `encode_document` looks for, in its order.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class Prompts(NamedTuple):
    """What stands before texts.

    Attributes:
        query: before each query.
        document: before each document.
    """

    query: str
    document: str


def resolve_instruction(instruction: str) -> str:
    r"""Turn an instruction's name into its sentence; a whole sentence, or a whole prompt, is returned as it is.

    Args:
        instruction: a name in `INSTRUCTIONS`, a task sentence, a prompt (`Instruct: {task}\nQuery:`), or "" or "none"
            for no instruction.

    Returns:
        The task sentence, or "" for none.

    Raises:
        TypeError: instruction is not a string.
        ValueError: it is a single word but not a name, most likely a name misspelt.
    """
    if not isinstance(instruction, str):
        raise TypeError(f"an instruction must be a string, got {instruction!r} ({type(instruction).__name__})")
    if instruction in NO_INSTRUCTION:
        return ""
    if instruction in INSTRUCTIONS:
        return INSTRUCTIONS[instruction]
    if any(character.isspace() for character in instruction.strip()):
        return instruction
    nearest = difflib.get_close_matches(instruction.strip().lower(), INSTRUCTIONS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"the names are {', '.join(sorted(INSTRUCTIONS))}."
    raise ValueError(
        f"unknown instruction {instruction!r}: {hint} A task of your own has to be a whole sentence with spaces in it; "
        "'' is for none"
    )


def format_query(text: str, instruction: str = "web_search") -> str:
    r"""Write a query as the models expect it: `Instruct: {task}\nQuery:{text}`, with no space before the text.

    Args:
        text: the query.
        instruction: a name in `INSTRUCTIONS`, a task sentence, a whole prompt, or "" for none.

    Returns:
        The text that the model reads.

    Raises:
        TypeError: instruction is not a string.
        ValueError: instruction is a single word but not a name.

    Example:
        >>> format_query("who invented the telephone?", "semantic_similarity")
        'Instruct: Retrieve semantically similar text\nQuery:who invented the telephone?'
    """
    return f"{query_prompt(instruction)}{text}"


def query_prompt(instruction: str) -> str:
    r"""Return what stands before a query's text, the `prompt` of sentence-transformers.

    Args:
        instruction: a name in `INSTRUCTIONS`, or a task sentence; a prompt that is whole already
            (`Instruct: {task}\nQuery:`), as it is published for other wrappers, stays as it is; "" for none.

    Returns:
        The prompt, or "".

    Raises:
        TypeError: instruction is not a string.
        ValueError: instruction is a single word but not a name, or a template with a place for the text.
    """
    task = resolve_instruction(instruction)
    if not task.startswith("Instruct:"):
        return f"Instruct: {task}\nQuery:" if task else ""
    if "\\n" in task:
        raise ValueError(f"the prompt {task!r} has a backslash and an n where a line must end: write a line's end")
    if not is_written_out(task):
        return f"{task.rstrip()}\nQuery:"
    if re.search(r"\{\w*\}|%s", task.rpartition("\nQuery:")[2]):
        raise ValueError(f"the prompt {task!r} must end where the text begins: leave out its place for the text")
    return task


def is_written_out(text: str) -> bool:
    r"""Check whether a text has the models' template already: `Instruct: {task}\nQuery:{text}`."""
    return text.startswith("Instruct:") and "\nQuery:" in text


def task_of(prompt: str) -> str:
    """Return the task sentence of a prompt in the models' template; any other prompt as it is."""
    match = re.fullmatch(r"Instruct: (.*)\nQuery:", prompt, re.DOTALL)
    return match[1] if match else prompt


def saved_prompts(path: str, saved: Mapping[str, Any]) -> Prompts | None:
    """Read the prompts that a model's author saved with it.

    sentence-transformers 6 writes an empty `document` beside a `passage` or `corpus`, and one for all texts is its
    `default_prompt_name`'s: of each side's names, the first prompt that is not empty counts.

    Args:
        path: of config_sentence_transformers.json, for messages.
        saved: what it holds.

    Returns:
        The prompts; None where both are empty, as in models that were saved without any.

    Raises:
        ValueError: a prompt is not a string.
    """
    prompts = saved.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, (str, type(None))) for prompt in prompts.values()):
        raise ValueError(f"{path} must have an object of strings as prompts")
    name = saved.get("default_prompt_name")
    default = prompts.get(name) if name not in ("query", *_DOCUMENT_PROMPTS) else None
    query = prompts.get("query") or default or ""
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if prompts.get(name)), default) or ""
    return Prompts(query, document) if query or document else None


OWN_PROMPTS = Prompts(query_prompt("web_search"), "")
"""The models' own: the default task before queries, bare documents."""
