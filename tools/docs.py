#!/usr/bin/env python3
"""Build the site into _docs/ from the outputs kept in the notebooks. No tracked file is changed.

    python tools/docs.py

Where `quarto` is on the PATH, nbdev_docs makes the site; it runs the definitions to get their signatures.
Elsewhere nbdev processes the same notebooks, runs none of them, and mkdocs-material makes the same pages at the
same addresses, in the order and the sections of nbs/sidebar.yml. The settings of mkdocs are in tools/docs/.
"""

import ast
import importlib
import inspect
import logging
import os
import posixpath
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType

from readme import LINK, directives, fenced

try:
    import latex2mathml  # noqa: F401  used by mkdocs, see tools/docs/mathml.py
    import material  # noqa: F401  the theme of mkdocs
    import nbformat
    import yaml
    from fastcore.docments import docments
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from nbconvert import MarkdownExporter
    from nbdev.config import get_config
    from nbdev.doclinks import NbdevLookup
    from nbdev.quarto import nbdev_docs
    from nbdev.serve import proc_nbs
    from nbformat import NotebookNode
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell
except ImportError as error:
    raise SystemExit(f"{error.name}: not installed; pip install 'osteonb[dev,docs]'")

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "tools" / "docs"
SHOW_DOC = re.compile(r"^show_doc\(([\w.]+)\)", re.MULTILINE)
DEFAULT_EXP = re.compile(r"#\s*\|\s*default_exp\s+([\w.]+)")
QUALIFIERS = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")  # `torch.` in `torch.Tensor`
ADDRESS = re.compile(r"<(?:function|class) '?([\w.]+)'?(?: at \w+)?>")  # `<function relu at 0x7f..>`
RUN_NOTHING = "---\nskip_showdoc: true\n---"  # front matter that nbdev understands
EXPORTS = {"export", "exports", "exporti"}
METHODS = (FunctionType, classmethod, staticmethod, property, cached_property)
MAX_OPEN_LINES = 12  # longer constants are folded


@dataclass(frozen=True)
class Page:
    "A notebook and its page."

    notebook: str  # below nbs/, as in the sidebar
    path: str  # of its markdown in the site
    title: str  # from its `# Title`
    lead: str  # from its `> subtitle`; may be empty
    module: str  # `osteonb.models.loss`; empty where it exports nothing
    file: str  # `osteonb/models/loss.py`; empty where it exports nothing
    cells: list  # as nbdev processed them


# The sidebar: the one list of pages, for Quarto and for mkdocs


def read_sidebar(
    file: Path,  # nbs/sidebar.yml
) -> list:  # notebooks, and sections: `{"section": title, "contents": [...]}`
    "Return the entries of the sidebar."
    return yaml.safe_load(file.read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]


def listed_notebooks(
    entries: list,  # of the sidebar or of a section
) -> list[str]:  # in reading order
    "Return every notebook that the sidebar lists."
    names = []
    for entry in entries:
        names += [entry] if isinstance(entry, str) else listed_notebooks(entry["contents"])
    return names


def find_notebooks(
    folder: Path,  # nbs/
) -> set[str]:  # below the folder; without drafts and hidden files, which begin with `_` or `.`
    "Return the notebooks of a folder and of the folders in it."
    names = [path.relative_to(folder) for path in folder.rglob("*.ipynb")]
    return {name.as_posix() for name in names if not any(part[0] in "._" for part in name.parts)}


def check_sidebar(
    names: list[str],  # notebooks that the sidebar lists
    folder: Path,  # nbs/
) -> None:
    "Exit with a message where the sidebar and the folder differ."
    found = find_notebooks(folder)
    for name in sorted(found - set(names)):
        raise SystemExit(f"nbs/{name}: not in nbs/sidebar.yml; add it to a section")
    for name in sorted(set(names) - found):
        raise SystemExit(f"nbs/sidebar.yml: lists {name}, which does not exist; remove the line")


def make_navigation(
    entries: list,  # of the sidebar or of a section
    pages: dict[str, Page],  # by notebook
    section: str = "",  # title of the section
) -> list:  # as mkdocs wants it
    "Return the sidebar's sections with the pages of the site."
    navigation = []
    for entry in entries:
        if not isinstance(entry, str):
            contents = make_navigation(entry["contents"], pages, entry["section"])
            navigation.append({entry["section"]: contents})
        elif section and posixpath.basename(entry).startswith("00_"):
            navigation.append({f"{section} overview": pages[entry].path})
        else:
            navigation.append(pages[entry].path)
    return navigation


# Notebooks, before and after nbdev processes them


def parse(
    code: str,  # of a cell
) -> list[ast.stmt] | None:  # `None` where it holds a magic
    "Return the statements of a cell."
    try:
        return ast.parse(code).body
    except SyntaxError:
        return None


def only_imports(
    statements: list[ast.stmt] | None,  # of a cell
) -> bool:
    "Return whether a cell only imports."
    return statements is not None and all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements)


def show_private(
    source: str,  # of a code cell
) -> str:
    "Return an exporting cell that gets no entry as a shown one: private definitions, which are folded, and constants."
    found, code = directives(source)
    statements = parse(code)
    if not found.keys() & EXPORTS or "hide" in found or not statements or only_imports(statements):
        return source
    definitions = [s.name for s in statements if isinstance(s, ast.FunctionDef | ast.ClassDef)]
    has_entry = "exporti" not in found and any(not name.startswith("_") for name in definitions)
    if has_entry or ("exporti" in found and not definitions):
        return source
    shown = [] if "exporti" in found else ["#| exec_doc"]  # nbdev runs such a cell for signatures
    if definitions or len(code.splitlines()) > MAX_OPEN_LINES:
        title = ", ".join(definitions) or "Code"
        shown += ["#| code-fold: true", f"#| code-summary: {title}"]
    return "\n".join([*shown, code])


def prepare_cell(
    cell: NotebookNode,  # of a notebook; changed in place
    quarto: bool,  # whether nbdev makes the signatures, and has to run the definitions
) -> None:
    "Show what gets no entry, and keep nbdev from running cells that no signature needs."
    found, code = directives(cell.source)
    needed = found.keys() & EXPORTS or only_imports(parse(code))
    cell.source = show_private(cell.source)
    if quarto and not needed:
        cell.source = "#| eval: false\n" + cell.source


def copy_notebooks(
    work: Path,  # an empty folder below the root
    quarto: bool,  # whether nbdev makes the signatures
) -> Path:  # the copy, relative to the root: nbdev ignores folders whose name begins with a dot
    "Copy nbs/ and prepare the cells for nbdev; without Quarto it runs none of them."
    copy = shutil.copytree(ROOT / "nbs", work / "nbs", ignore=shutil.ignore_patterns(".*"))
    for file in copy.rglob("*.ipynb"):
        try:
            notebook = nbformat.read(file, as_version=4)
        except nbformat.reader.NotJSONError:
            name = file.relative_to(copy).as_posix()
            raise SystemExit(f"nbs/{name}: not a notebook; nbdev_fix repairs one that a merge broke")
        for cell in notebook.cells:
            if cell.cell_type == "code":
                prepare_cell(cell, quarto)
        if not quarto:
            notebook.cells.insert(0, new_raw_cell(RUN_NOTHING))
        nbformat.write(notebook, file)
    return copy.relative_to(ROOT)


def read_page(
    name: str,  # of the notebook, below nbs/
    processed: Path,  # nbdev's folder of processed notebooks
) -> Page:
    "Return a processed notebook with its title, address and module."
    front_matter, *cells = nbformat.read(processed / name, as_version=4).cells
    facts = yaml.safe_load(front_matter.source.strip().strip("-"))
    if "title" not in facts:
        raise SystemExit(f"nbs/{name}: has no `# Title`; add it as the first cell")
    stem = posixpath.splitext(facts["output-file"])[0]
    path = posixpath.join(posixpath.dirname(name), f"{stem}.md")
    module = file = ""
    if match := DEFAULT_EXP.search((ROOT / "nbs" / name).read_text(encoding="utf-8")):
        file = f"osteonb/{match[1].replace('.', '/')}.py"
        module = f"osteonb.{match[1]}".removesuffix(".__init__")
    return Page(name, path, facts["title"], facts.get("description", ""), module, file, cells)


# Links


def repository_url(
    settings: dict,  # of settings.ini
) -> str:
    "Return the address below which the repository's files can be read."
    return f"{settings['git_url']}/blob/{settings['branch']}"


def relative_link(
    path: str,  # in the site
    page: Page,  # that links to it
) -> str:
    "Return a link from a page to a file of the site."
    return posixpath.relpath(path, posixpath.dirname(page.path) or ".")


def file_link(
    link: str,  # relative to the notebook's folder
    page: Page,  # that holds it
    pages: dict[str, Page],  # by notebook
    settings: dict,  # of settings.ini
) -> str:
    "Return a link to a notebook as a link to its page, any other as one into the repository."
    path, mark, anchor = link.partition("#")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(page.notebook), path))
    if name in pages:
        return relative_link(pages[name].path, page) + mark + anchor
    file = posixpath.normpath(posixpath.join("nbs", name))
    if not (ROOT / file).exists():
        raise SystemExit(f"nbs/{page.notebook}: links to {link}, which does not exist")
    return f"{repository_url(settings)}/{file}{mark}{anchor}"


def has_entry(
    anchor: str,  # of nbdev's link, `#run.path_of`
    module: str,  # that the name is exported to
) -> bool:
    "Return whether a name has an entry on its page; private names and those of an `exporti` cell have none."
    name, *members = anchor.removeprefix("#").split(".")
    public = {known.lower() for known in importlib.import_module(module).__all__}
    return name in public and not any(member.startswith("_") for member in members)


def name_link(
    match: re.Match,  # a `word` in backticks with nbdev's link to a `path` and an `anchor`
    page: Page,  # that holds it
    pages: dict[str, Page],  # by notebook
) -> str:
    """Return the link inside the site, or the word alone where it has no entry, or where it is more likely a column
    or a setting with the name of a function of another module."""
    shown = match["word"]
    word = shown.removesuffix("()")
    if page.module:
        module = importlib.import_module(page.module)
        names = vars(module)
        # nbdev links to the first chapter with the name, even where this chapter has it too
        if getattr(names.get(word), "__module__", "") == page.module:
            anchor = f"#{word.lower()}"
            return f"[`{shown}`]({anchor})" if has_entry(anchor, page.module) else f"`{shown}`"
        if word.isalpha() and word.islower() and word not in {*names, *module.__all__}:
            return f"`{shown}`"
    path = match["path"] + ".md"
    modules = [other.module for other in pages.values() if other.path == path]
    if not modules or not has_entry(match["anchor"], modules[0]):
        return f"`{shown}`"
    return f"[`{shown}`]({relative_link(path, page)}{match['anchor']})"


def resolve_links(
    text: str,  # markdown as nbdev leaves it
    page: Page,  # that holds it
    pages: dict[str, Page],  # by notebook
    settings: dict,  # of settings.ini
) -> str:
    "Return the text with links that stay inside the site where they can."

    def replace_file(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        return match["before"] + file_link(match["target"], page, pages, settings)

    site = re.escape(settings["doc_host"] + settings["doc_baseurl"])
    target = rf"{site}/(?P<path>[^)#]+)\.html(?P<anchor>#[^)]+)"
    text = LINK.sub(replace_file, text)
    return re.sub(rf"\[`(?P<word>[^`]+)`\]\({target}\)", lambda match: name_link(match, page, pages), text)


# The entry of a public name


def shorten(
    code: str,  # a signature, a type or a value
) -> str:
    "Return the code with types and functions by their last name."
    return QUALIFIERS.sub("", ADDRESS.sub(r"\1", code))


def format_signature(
    name: str,  # as in the heading
    thing: type | FunctionType,  # a class or a function
) -> str:
    "Return the signature: on one line where it fits, otherwise one line for each parameter."
    try:
        signature = inspect.signature(thing)
    except ValueError:  # an exception takes any arguments
        return f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"
    words = [shorten(str(parameter)) for parameter in signature.parameters.values()]
    result = ""
    if signature.return_annotation not in (signature.empty, None):
        result = f" -> {shorten(inspect.formatannotation(signature.return_annotation))}"
    line = f"{name}({', '.join(words)}){result}"
    if len(line) < 90:
        return line
    return f"{name}(\n    " + ",\n    ".join(words) + f"\n){result}"


def one_line(
    text: str | None,  # a docstring or a comment
) -> str:
    "Return the text on one line, with links to the names in it."
    return NbdevLookup().linkify(" ".join((text or "").split())) or ""


def parameter_row(
    name: str,  # of a parameter, or the word for the result
    facts: dict,  # its `anno`, `default` and `docment`
) -> list[str]:
    "Return a row of the table of parameters: name, type, default, comment."
    empty = inspect.Parameter.empty
    kind = default = ""
    if facts["anno"] not in (empty, None):
        kind = f"`{shorten(inspect.formatannotation(facts['anno']))}`"
    if facts["default"] is not empty:
        default = f"`{shorten(repr(facts['default']))}`"
    return [name, kind, default, one_line(facts["docment"])]


def markdown_table(
    header: list[str],  # titles of the columns
    rows: list[list[str]],  # markdown on one line each
) -> str:  # empty where there is no row
    "Return a markdown table without its empty columns."
    if not rows:
        return ""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = []
    for row in [header, ["---"] * len(header), *rows]:
        cells = [row[i].replace("|", r"\|") for i in kept]
        lines.append(f"| {' | '.join(cells)} |")
    body = "\n".join(lines)
    return f'<div class="parameters" markdown>\n\n{body}\n\n</div>'


def parameter_table(
    thing: type | FunctionType,  # a class or a function
) -> str:  # empty where no parameter has a comment
    "Return the parameters and the result as a markdown table."
    found = {name: facts for name, facts in docments(thing, full=True).items() if name != "self"}
    if not any(facts["docment"] for facts in found.values()):
        return ""
    result = found.pop("return", None)
    rows = [parameter_row(f"`{name}`", facts) for name, facts in found.items()]
    if result and result["docment"]:
        rows.append(parameter_row("*result*", result))
    return markdown_table(["parameter", "type", "default", ""], rows)


def method_table(
    thing: type | FunctionType,  # a class; a function has no methods
) -> str:
    "Return the public methods of a class as a markdown table, each with the anchor that nbdev links to."
    rows = []
    for name, method in vars(thing).items():
        if name.startswith("_") or not isinstance(method, METHODS):
            continue
        if method.__doc__:
            anchor = f"{thing.__name__}.{name}".lower()
            brackets = "" if isinstance(method, property | cached_property) else "()"
            rows.append([f'<code id="{anchor}">{name}{brackets}</code>', one_line(method.__doc__)])
    return markdown_table(["method", ""], rows)


def describe(
    name: str,  # of something exported, `class_probs` or `Run.path_of`
    page: Page,  # that describes it
    settings: dict,  # of settings.ini
) -> str:
    "Return heading, link to the source, signature, docstring, parameters and methods as markdown."
    thing = importlib.import_module(page.module)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    if thing is None:
        raise SystemExit(f"{page.module} has no {name}, but its notebook has; run nbdev_export")
    heading = f"### {name} {{ #{name.lower()} .exported }}"
    line = inspect.getsourcelines(thing)[1]
    source = f"[source]({repository_url(settings)}/{page.file}#L{line}){{ .source }}"
    signature = fenced(format_signature(name, thing), "python")
    docstring = NbdevLookup().linkify(inspect.getdoc(thing)) or ""
    parts = [heading, source, signature, docstring, parameter_table(thing), method_table(thing)]
    return "\n\n".join(part for part in parts if part)


# From notebook to markdown


def fold_title(
    found: dict[str, str],  # directives of a cell
    code: str,  # of the cell
) -> str:  # empty where the code is not folded
    "Return the line that a reader clicks to see folded code."
    if found.get("code-fold") != "true":
        return ""
    is_test = re.search(r"^\s*assert\b|pytest\.raises|\btest_\w+\(", code, re.MULTILINE)
    return found.get("code-summary") or ("Tests" if is_test else "Code")


def show_cell(
    cell: NotebookNode,  # of a processed notebook
    page: Page,  # that shows it
    pages: dict[str, Page],  # by notebook
    settings: dict,  # of settings.ini
) -> NotebookNode:
    "Return a cell without its directives and with its links; `show_doc` becomes the entry of the name."
    found, code = {}, cell.source
    if cell.cell_type == "code":
        found, code = directives(cell.source)
    if match := SHOW_DOC.search(code):
        cell = new_markdown_cell(describe(match[1], page, settings))
    if cell.cell_type == "markdown":
        return new_markdown_cell(resolve_links(cell.source, page, pages, settings))
    outputs = [] if found.get("output") == "false" else cell.get("outputs", [])
    for output in outputs:
        data = output.get("data", {})
        if "text/markdown" in data:
            data["text/markdown"] = resolve_links(data["text/markdown"], page, pages, settings)
    facts = {"alt": found.get("fig-alt", ""), "fold": fold_title(found, code)}
    source = "" if found.get("echo") == "false" else code
    return new_code_cell(source, outputs=outputs, metadata=facts)


def page_head(
    page: Page,  # to be made
    settings: dict,  # of settings.ini
) -> str:
    "Return front matter, title, lead, and links to the module and the notebook."
    url = repository_url(settings)
    front_matter = yaml.safe_dump({"title": page.title, "description": page.lead}, allow_unicode=True)
    origin = f"[notebook]({url}/nbs/{page.notebook})"
    if page.module:
        origin = f"`{page.module}` · [module]({url}/{page.file}) · {origin}"
    lead = f"{page.lead}\n{{ .lead }}\n\n" if page.lead else ""
    return f"---\n{front_matter}---\n\n# {page.title}\n\n{lead}{origin}\n{{ .origin }}\n\n"


def mark_formulas(
    match: re.Match,  # a cell of a table with a `$` in it
) -> str:
    "Return the cell with its formulas marked as the markdown extension marks them."
    return re.sub(r"\$([^$]+)\$", r'<span class="arithmatex">\\(\1\\)</span>', match[0])


def plain_tables(
    html: str,  # an output
) -> str:
    "Return pandas' tables without their own style, so that the style of the site applies."
    html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.DOTALL)
    html = html.replace('<table border="1" class="dataframe"', "<table")
    html = html.replace('<tr style="text-align: right;"', "<tr")
    return re.sub(r"<t[dh][^>]*>[^<]*\$[^<]*", mark_formulas, html)


def write_page(
    page: Page,  # to be made
    pages: dict[str, Page],  # by notebook
    settings: dict,  # of settings.ini
    folder: Path,  # of the sources of mkdocs
) -> None:
    "Write the markdown of a page, with its pictures beside it."
    filters = {"fenced": fenced, "plain_tables": plain_tables}
    exporter = MarkdownExporter(template_file=str(PARTS / "page.md.j2"), filters=filters)
    notebook = new_notebook(cells=[show_cell(cell, page, pages, settings) for cell in page.cells])
    stem = Path(page.path).stem
    resources = {"unique_key": stem, "output_files_dir": f"{stem}_files"}
    body, resources = exporter.from_notebook_node(notebook, resources)
    text = page_head(page, settings) + body
    parent = (folder / page.path).parent
    for name, content in {f"{stem}.md": text.encode(), **resources["outputs"]}.items():
        (parent / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / name).write_bytes(content)


# The site


def run_mkdocs(
    sources: Path,  # markdown and pictures
    site: Path,  # where the site is written
    navigation: list,  # see `make_navigation`
    settings: dict,  # of settings.ini
) -> None:
    "Build the site with mkdocs-material."
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    shutil.copy(PARTS / "site.css", sources)
    git_url = settings["git_url"]
    host = git_url.split("//")[1]
    config = load_config(
        str(PARTS / "mkdocs.yml"),
        docs_dir=str(sources),
        site_dir=str(site),
        nav=navigation,
        strict=True,
        site_name=settings["title"],
        site_url=f"{settings['doc_host']}{settings['doc_baseurl']}/",
        site_description=settings["description"],
        copyright=f'{settings["copyright"]} · {settings["license"]} · <a href="{git_url}">{host}</a>',
    )
    build(config)


def build_with_quarto(
    work: Path,  # an empty folder below the root
) -> None:
    "Build the site with nbdev_docs."
    notebooks = copy_notebooks(work, quarto=True)
    (ROOT / "README.md").touch()  # nbdev would replace an older README with Quarto's markdown
    nbdev_docs.__wrapped__(str(notebooks))


def build_with_mkdocs(
    work: Path,  # an empty folder below the root
    entries: list,  # of the sidebar
    docs: Path,  # _docs/
) -> None:
    "Build the site with nbdev and mkdocs-material; where that fails, the old site is kept."
    settings = get_config().d
    processed = proc_nbs(str(copy_notebooks(work, quarto=False)), force=True)
    pages = {name: read_page(name, processed) for name in listed_notebooks(entries)}
    for page in pages.values():
        write_page(page, pages, settings, work / "pages")
    run_mkdocs(work / "pages", work / "site", make_navigation(entries, pages), settings)
    if docs.exists():
        docs.rename(work / "old")
    (work / "site").rename(docs)


def main() -> None:
    "Build the site."
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    docs = ROOT / "_docs"
    entries = read_sidebar(ROOT / "nbs" / "sidebar.yml")
    names = listed_notebooks(entries)
    check_sidebar(names, ROOT / "nbs")
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="docs-", dir=ROOT / "build") as work:
        if shutil.which("quarto"):
            build_with_quarto(Path(work))
        else:
            build_with_mkdocs(Path(work), entries, docs)
    print(f"{docs.name}/index.html and {len(names) - 1} more pages")


if __name__ == "__main__":
    main()
