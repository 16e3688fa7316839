"""Readers: what the fetched packages hold, as sections of prose, definitions of terms, and functions."""

from __future__ import annotations

import ast
import gzip
import random
import re
import textwrap
import zipfile
import zlib
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree, html

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PYTHON_FILES = 80
MAX_HTML_FILES = 500
MAX_FUNCTIONS = 400
MAX_PARAGRAPHS = 12


@dataclass(frozen=True)
class Section:
    """A heading and the paragraphs under it."""

    source: str
    heading: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """A term and what it means."""

    source: str
    term: str
    gloss: str


@dataclass(frozen=True)
class Function:
    """A public Python function or class with its docstring."""

    source: str
    name: str
    signature: str
    docstring: str
    body: str


def one_line(text: str) -> str:
    """Join lines and squeeze runs of white space."""
    return " ".join(text.split())


def is_english(text: str) -> bool:
    """Tell prose in ASCII letters from other languages, tables and binary."""
    if not text:
        return False
    letters = sum(char.isascii() and (char.isalpha() or char == " ") for char in text)
    return letters >= 0.8 * len(text)


def shuffled(items: list, key: str, limit: int) -> list:
    """A reproducible sample, the same on every machine."""
    items = sorted(item for item in items if not isinstance(item, Path) or item.is_file())
    random.Random(zlib.crc32(key.encode())).shuffle(items)
    return items[:limit]


def functions_of_source(source: str, module: str, code: str) -> Iterator[Function]:
    """Yield the documented public functions, methods and classes of a Python file.

    Args:
        source: the package's name.
        module: the module's dotted name.
        code: the file's text.

    Yields:
        Function records; classes carry no body.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = code.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(docstring.split()) < 4 or not docstring.isascii():
            continue
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            signature, body = f"class {node.name}({bases})" if bases else f"class {node.name}", ""
        else:
            signature = f"def {node.name}({ast.unparse(node.args)})"
            rest = lines[node.body[0].end_lineno : node.end_lineno][:40]
            body = textwrap.dedent("\n".join(rest)).strip()
        yield Function(source, f"{module}.{node.name}", one_line(signature), docstring, body)


def functions_of_wheel(wheel: Path) -> Iterator[Function]:
    """Yield a sample of a wheel's documented functions."""
    package = wheel.name.split("-")[0].lower().replace("_", "-")
    found: list[Function] = []
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".py") and not re.search(r"(^|/)_?(tests?|vendor)", n)]
        for name in shuffled(names, package, MAX_PYTHON_FILES):
            if len(found) > 2 * MAX_FUNCTIONS:
                break
            if archive.getinfo(name).file_size < 150_000:
                code = archive.read(name).decode("utf-8", "ignore")
                module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                found.extend(functions_of_source(package, module, code))
    yield from random.Random(0).sample(found, min(MAX_FUNCTIONS, len(found)))


def sections_of_wheel(wheel: Path) -> Iterator[Section]:
    """Yield the README sections of a wheel and its summary line."""
    package = wheel.name.split("-")[0].lower().replace("_", "-")
    with zipfile.ZipFile(wheel) as archive:
        metadata = next((n for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None)
        message = message_from_string(archive.read(metadata).decode("utf-8", "ignore")) if metadata else None
    if message is None:
        return
    readme = str(message.get_payload() or message.get("Description") or "")
    yield from sections_of_markup(package, f"{package}: {message.get('Summary', '')}", readme)


def sections_of_markup(source: str, title: str, text: str) -> Iterator[Section]:
    """Cut Markdown or reStructuredText at its headings, leaving out code blocks, links and tables."""
    text = re.sub(r"```.*?```|<[^>]+>|!\[[^\]]*\]\([^)]*\)", " ", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|`+([^`<]*?)(?: <[^>]*>)?`+_*", r"\1\2", text)
    heading, paragraphs = title, []
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").splitlines()
        if not lines:
            continue
        underlined = len(lines) >= 2 and re.fullmatch(r"([=\-~^#*])\1{2,}\s*", lines[1])
        if lines[0].startswith("#") or underlined:
            if paragraphs:
                yield Section(source, heading, tuple(paragraphs))
            heading, paragraphs = one_line(lines[0].strip("# ")), []
            lines = lines[2:] if underlined else lines[1:]
        paragraph = one_line(re.sub(r"[*_]{2,}", "", " ".join(lines)))
        if len(paragraph) >= 40 and not block.startswith((" ", ".. ", "|", "+")) and is_english(paragraph):
            paragraphs.append(paragraph)
    if paragraphs:
        yield Section(source, heading, tuple(paragraphs))


def sections_of_html(source: str, folder: Path) -> Iterator[Section]:
    """Yield the sections of a sample of a package's HTML pages."""
    for path in shuffled([*folder.rglob("*.html"), *folder.rglob("*.htm")], source, MAX_HTML_FILES):
        if re.search(r"\.(?!en\b)[a-z]{2}(-[a-z]{2})?\.html$|/(?!en|us)[a-z]{2}(-[A-Z]{2})?/", str(path)):
            continue
        try:
            tree = html.fromstring(path.read_bytes())
        except (etree.ParserError, ValueError):
            continue
        title = one_line(tree.findtext(".//title") or "")
        heading, paragraphs = title, []
        for element in tree.iter("h1", "h2", "h3", "h4", "p"):
            text = one_line(element.text_content()).replace("\u00b6", "").replace("\u2019", "'")
            if element.tag.startswith("h"):
                if paragraphs:
                    yield Section(source, heading, tuple(paragraphs))
                heading, paragraphs = text.lstrip("0123456789. "), []
            elif 50 <= len(text) <= 2500 and is_english(text) and len(paragraphs) < MAX_PARAGRAPHS:
                paragraphs.append(text)
        if paragraphs:
            yield Section(source, heading, tuple(paragraphs))


def sections_of_help(source: str, folder: Path) -> Iterator[Section]:
    """Yield the sections of Mallard and DocBook help pages (GNOME's manuals) in English."""
    for path in shuffled([*folder.rglob("C/**/*.page"), *folder.rglob("C/**/*.xml")], source, MAX_HTML_FILES):
        try:
            tree = etree.parse(path, etree.XMLParser(recover=True, resolve_entities=False, no_network=True))
        except (etree.XMLSyntaxError, OSError):
            continue
        heading, paragraphs = "", []
        for element in tree.iter("{*}title", "{*}p", "{*}para"):
            text = one_line("".join(element.itertext()))
            if etree.QName(element).localname == "title":
                if heading and paragraphs:
                    yield Section(source, heading, tuple(paragraphs))
                heading, paragraphs = text, []
            elif 50 <= len(text) <= 2500 and is_english(text):
                paragraphs.append(text)
        if heading and paragraphs:
            yield Section(source, heading, tuple(paragraphs))


def sections_of_manual(source: str, folder: Path) -> Iterator[Section]:
    """Yield the sections of a package's English manual pages, roff commands taken out."""
    for path in shuffled(list(folder.glob("usr/share/man/man*/*.gz")), source, MAX_HTML_FILES):
        try:
            text = gzip.decompress(path.read_bytes()).decode(errors="ignore")
        except OSError:
            continue
        name = path.name.split(".")[0]
        summary = re.search(r"\.SH \"?NAME\"?\n(?:\.\w.*\n)*(.*\\-.*)", text)
        title = one_line(re.sub(r"\\f.|\\", "", summary.group(1))) if summary else name
        for part in re.split(r"^\.S[HS] ", text, flags=re.MULTILINE)[1:]:
            heading, _, body = part.partition("\n")
            if heading.strip('" ').upper() in {
                "SYNOPSIS",
                "NAME",
                "SEE ALSO",
                "AUTHOR",
                "COPYRIGHT",
                "COLOPHON",
            }:
                continue
            body = re.sub(r"^\.nf.*?^\.fi", "", body, flags=re.MULTILINE | re.DOTALL)
            body = re.sub(r"^\.(?:PP|TP|IP|P|LP|sp|RS|RE).*$", "\n", body, flags=re.MULTILINE)
            body = re.sub(
                r"^[.'](?:[BI]|BR|RB|IR|RI|BI|IB|SM)\s+(.*)$",
                lambda m: m[1].replace('"', ""),
                body,
                flags=re.MULTILINE,
            )
            body = re.sub(r"^[.'].*$", "", body, flags=re.MULTILINE)
            body = re.sub(r"\\f\(..|\\f.|\\[&|]|\\s[-+]?\d", "", body).replace("\\-", "-").replace("\\(aq", "'")
            paragraphs = [one_line(p) for p in re.split(r"\n\s*\n", body.replace("\\", ""))]
            paragraphs = [p for p in paragraphs if len(p) >= 50 and is_english(p)]
            if paragraphs:
                yield Section(source, f"{title} {heading.strip().strip(chr(34)).lower()}", tuple(paragraphs))


def sections_of_descriptions(path: Path) -> Iterator[Section]:
    """Yield Debian's packages: the short description as the heading, the long one as paragraphs."""
    seen = set()
    for stanza in path.read_text(errors="ignore").split("\n\n"):
        package = re.search(r"^Package: (.*)$", stanza, re.MULTILINE)
        description = re.search(r"^Description(?:-en)?: (.*)\n((?: .*\n?)*)", stanza, re.MULTILINE)
        if not package or not description or package[1] in seen or re.search(r"-(dbg|dbgsym|l10n)", package[1]):
            continue
        seen.add(package[1])
        paragraphs = [one_line(part) for part in re.split(r"^ \.$", description[2], flags=re.MULTILINE)]
        paragraphs = [p for p in paragraphs if len(p) >= 50 and is_english(p)]
        if paragraphs:
            yield Section(f"apt:{package[1]}", f"{package[1]}: {description[1]}", tuple(paragraphs))


def sections_of_speeches(folder: Path) -> Iterator[Section]:
    """Yield passages of the State of the Union addresses, each file a speech on one line."""
    for path in sorted(folder.glob("data/*.txt")):
        year, *president = path.stem.split("_")[:-1]
        heading = f"State of the Union {year}, {' '.join(president).title()}"
        for text in passages_of(one_line(path.read_text(errors="ignore"))):
            yield Section(f"sotu:{path.stem}", heading, (text,))


def sections_of_long_html(source: str, folder: Path) -> Iterator[Section]:
    """Yield passages of HTML pages that are long essays."""
    for path in sorted(folder.rglob("html/*.html")):
        tree = html.fromstring(path.read_bytes())
        title = one_line(tree.findtext(".//title") or "")
        for element in tree.iter("p", "blockquote"):
            text = one_line(element.text_content())
            for part in passages_of(text) if len(text) > 150 and is_english(text) else ():
                yield Section(f"{source}:{path.stem}", title, (part,))


def sections_of_fortunes(source: str, folder: Path) -> Iterator[Section]:
    """Yield quotations and short texts of fortune files."""
    for path in sorted(folder.glob("usr/share/games/fortunes/*")):
        if path.is_file() and not path.is_symlink() and not path.suffix:
            for entry in path.read_text(errors="ignore").split("\n%\n"):
                text = one_line(entry)
                if 80 < len(text) < 900 and is_english(text):
                    yield Section(f"{source}:{path.stem}", "", (text,))


def sections_of_nations(folder: Path) -> Iterator[Section]:
    """Yield what freeciv tells about each nation."""
    for path in sorted(folder.rglob("nation/*.ruleset")):
        text = path.read_text(errors="ignore")
        legend = re.search(r'^legend\s*=\s*_\("(.*?)"\)', text, re.MULTILINE | re.DOTALL)
        if legend:
            about = one_line(legend[1].replace("\\\n", "").replace("\\n", " "))
            yield Section(f"freeciv:{path.stem}", f"{path.stem.replace('_', ' ').title()} people", (about,))


def passages_of(text: str, most: int = 700) -> Iterator[str]:
    """Cut a long text between sentences."""
    passage = ""
    for sentence in re.split(r"(?<=[a-z0-9)\"'][.!?])\s+(?=[A-Z\"'(])", text):
        if passage and len(passage) + len(sentence) > most:
            yield passage
            passage = ""
        passage = f"{passage} {sentence}".strip()
    if len(passage) > 60:
        yield passage


def definitions_of_wordnet(folder: Path) -> Iterator[Definition]:
    """Yield WordNet's synsets."""
    for path in sorted(folder.glob("usr/share/wordnet/data.*")):
        for line in path.read_text().splitlines():
            if line.startswith(" ") or "|" not in line:
                continue
            fields, _, gloss = line.partition("|")
            parts = fields.split()
            words = [re.sub(r"\(.*", "", parts[4 + 2 * i]).replace("_", " ") for i in range(int(parts[3], 16))]
            yield Definition("wordnet-base", ", ".join(words), one_line(gloss))


def definitions_of_dict(source: str, path: Path) -> Iterator[Definition]:
    """Yield the entries of a dictd database, of which each begins unindented."""
    text = gzip.decompress(path.read_bytes()).decode(errors="ignore")
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        term = re.split(r"\s\\|,| :", head)[0].strip()
        body = re.sub(r"\[[^\]]*\]|[{}]|--\w+\.?|\(\d{4}-\d\d-\d\d\)|\\", " ", body)
        gloss = one_line(body)
        if 3 <= len(term) <= 60 and len(gloss) >= 25 and is_english(gloss) and not term.startswith("00"):
            yield Definition(source, term, gloss)
