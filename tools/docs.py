#!/usr/bin/env python3
"""Builds the site into _docs/ from the notebooks' kept outputs. It changes no tracked file, and runs no cell but what Quarto's way needs for signatures.

    python tools/docs.py

Where `quarto` is on the PATH, nbdev_docs makes the site. Elsewhere nbdev processes the notebooks all the same, and mkdocs-material makes it: the same pages at the same
addresses, in the order and the sections of nbs/sidebar.yml. What mkdocs is told stands in tools/docs/.
"""
import ast, importlib, inspect, logging, os, posixpath, re, shutil, sys, tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType

from readme import LINK, directives, fenced

try:
    import latex2mathml, material, nbformat, yaml   # the first two are for mkdocs to find
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
except ImportError as e: raise SystemExit(f"{e.name}: not installed; pip install 'osteonb[dev,docs]'")

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT/"tools"/"docs"
SHOW_DOC = re.compile(r"^show_doc\(([\w.]+)\)", re.M)
DEFAULT_EXP = re.compile(r"#\s*\|\s*default_exp\s+([\w.]+)")
QUALIFIED = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")   # `torch.` of `torch.Tensor`
NO_RUN = "---\nskip_showdoc: true\n---"                         # front matter, in nbdev's words


@dataclass(frozen=True)
class Page:
    "A notebook and what becomes of it."
    notebook:str # below nbs/, as the sidebar names it
    path:str     # of its markdown in the site
    title:str    # from its `# Title`
    lead:str     # from its `> subtitle`; may be empty
    module:str   # `osteonb.loss`; empty where it exports nothing
    cells:list   # as nbdev processed them


# The sidebar: the one list of pages, for Quarto as for mkdocs

def read_sidebar(
    file:Path # nbs/sidebar.yml
) -> list:    # notebooks, and sections: `{"section": title, "contents": [...]}`
    "What the sidebar holds."
    return yaml.safe_load(file.read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]


def listed(
    entries:list  # of the sidebar or of a section
) -> list[str]:   # notebooks in reading order
    "Every notebook that the sidebar names."
    return [n for e in entries for n in ([e] if isinstance(e, str) else listed(e["contents"]))]


def check_sidebar(
    names:list[str], # notebooks that the sidebar names
    folder:Path      # nbs/
) -> None:
    "End with a message where the sidebar and the folder differ."
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(folder).parts)}
    for name in sorted(there - set(names)): raise SystemExit(f"nbs/{name}: no section of nbs/sidebar.yml names it; add it there")
    for name in sorted(set(names) - there): raise SystemExit(f"nbs/sidebar.yml: names {name}, which is not there; take the line out")


def navigation(
    entries:list,         # of the sidebar or of a section
    pages:dict[str, Page] # by notebook
) -> list:                # as mkdocs wants it
    "The sidebar's sections with the site's pages."
    return [pages[e].path if isinstance(e, str) else {e["section"]: navigation(e["contents"], pages)} for e in entries]


# Processed notebooks

def is_definition(
    source:str # of a code cell
) -> bool:
    "Whether a cell exports, or imports and does nothing else: all that a signature needs."
    says, code = directives(source)
    if says.keys() & {"export", "exports", "exporti"}: return True
    try: return all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in ast.parse(code).body)
    except SyntaxError: return False   # a magic


def stage(
    work:Path,   # an empty folder below the root
    quarto:bool  # whether nbdev is to make the signatures, and has to run their definitions
) -> Path:       # a copy of nbs/, relative to the root: nbdev passes over folders with a dot in front
    "Notebooks that tell nbdev what not to run: any other cell with an import in it, or all of them."
    copy = shutil.copytree(ROOT/"nbs", work/"nbs", ignore=shutil.ignore_patterns(".*"))
    for file in copy.rglob("*.ipynb"):
        try: notebook = nbformat.read(file, as_version=4)
        except nbformat.reader.NotJSONError: raise SystemExit(f"nbs/{file.relative_to(copy)}: not a notebook; nbdev_fix mends one that a merge broke")
        if not quarto: notebook.cells.insert(0, new_raw_cell(NO_RUN))
        for cell in notebook.cells if quarto else []:
            if cell.cell_type == "code" and not is_definition(cell.source): cell.source = "#| eval: false\n" + cell.source
        nbformat.write(notebook, file)
    return copy.relative_to(ROOT)


def read_page(
    name:str,      # of the notebook, below nbs/
    processed:Path # nbdev's folder of processed notebooks
) -> Page:
    "A processed notebook with its title, address and module."
    about, *cells = nbformat.read(processed/name, as_version=4).cells
    facts = yaml.safe_load(about.source.strip().strip("-"))
    if "title" not in facts: raise SystemExit(f"nbs/{name}: begins without a `# Title`")
    path = posixpath.join(posixpath.dirname(name), posixpath.splitext(facts["output-file"])[0] + ".md")
    module = DEFAULT_EXP.search((ROOT/"nbs"/name).read_text(encoding="utf-8"))
    return Page(name, path, facts["title"], facts.get("description", ""), f"osteonb.{module[1]}" if module else "", cells)


# Links

def repository(
    settings:dict # of settings.ini
) -> str:
    "Where the repository's files can be read."
    return f"{settings['git_url']}/blob/{settings['branch']}"


def file_link(
    link:str,              # relative to the notebook's folder
    page:Page,             # where it stands
    pages:dict[str, Page], # by notebook
    settings:dict          # of settings.ini
) -> str:
    "A link to a notebook as one to its page, any other as one into the repository."
    path, mark, anchor = link.partition("#")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(page.notebook), path))
    if name in pages: return posixpath.relpath(pages[name].path, posixpath.dirname(page.path) or ".") + mark + anchor
    file = posixpath.normpath(posixpath.join("nbs", name))
    if not (ROOT/file).exists(): raise SystemExit(f"nbs/{page.notebook}: links to {link}, which is not there")
    return f"{repository(settings)}/{file}{mark}{anchor}"


def name_link(
    found:re.Match, # a word in backticks, `word`, with nbdev's link to `at` and `anchor`
    page:Page       # where it stands
) -> str:
    "The link inside the site; none where the word is more likely a column or a setting that happens to have a function's name."
    shown, word = found["word"], found["word"].removesuffix("()")
    if page.module:
        known = vars(importlib.import_module(page.module))
        if getattr(known.get(word), "__module__", "") == page.module: return f"[`{shown}`](#{word.lower()})"   # nbdev takes the first chapter with the name
        if word.isalpha() and word.islower() and word not in known: return f"`{shown}`"
    return f"[`{shown}`]({posixpath.relpath(found['at'] + '.md', posixpath.dirname(page.path) or '.')}{found['anchor']})"


def linked(
    text:str,              # markdown as nbdev leaves it
    page:Page,             # where it stands
    pages:dict[str, Page], # by notebook
    settings:dict          # of settings.ini
) -> str:
    "The same with links that stay inside the site where they can."
    site = re.escape(settings["doc_host"] + settings["doc_baseurl"])
    text = LINK.sub(lambda m: m[0] if m["code"] else m["before"] + file_link(m["target"], page, pages, settings), text)
    return re.sub(rf"\[`(?P<word>[^`]+)`\]\({site}/(?P<at>[^)#]+)\.html(?P<anchor>#[^)]+)\)", lambda m: name_link(m, page), text)


# What an exported name is

def shortened(
    code:str # a signature, a type or a value
) -> str:
    "Types by their own names alone, functions too."
    return QUALIFIED.sub("", re.sub(r"<(?:function|class) '?([\w.]+)'?(?: at \w+)?>", r"\1", code))


def signature(
    name:str,  # as the heading has it
    thing:type # a function or a class
) -> str:
    "Its signature: on one line where it fits, else a parameter a line."
    try: whole = inspect.signature(thing)
    except ValueError: return f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"   # an exception takes what it is given
    result = f" -> {shortened(inspect.formatannotation(whole.return_annotation))}" if whole.return_annotation not in (whole.empty, None) else ""
    words = [shortened(str(p)) for p in whole.parameters.values()]
    line = f"{name}({', '.join(words)}){result}"
    return line if len(line) < 90 else f"{name}(\n    " + ",\n    ".join(words) + f"\n){result}"


def told(
    text:str|None # a docstring or a comment
) -> str:
    "It on one line, with links to the names in it."
    return NbdevLookup().linkify(" ".join((text or "").split())) or ""


def row(
    name:str,  # of a parameter, or what stands for the result
    facts:dict # its `anno`, `default` and `docment`
) -> list[str]:
    "A line of the table of parameters: name, type, default, what it is."
    blank = inspect.Parameter.empty
    kind = "" if facts["anno"] in (blank, None) else f"`{shortened(inspect.formatannotation(facts['anno']))}`"
    default = "" if facts["default"] is blank else f"`{shortened(repr(facts['default']))}`"
    return [name, kind, default, told(facts["docment"])]


def table(
    header:list[str],    # of its columns
    rows:list[list[str]] # of its cells, markdown on one line
) -> str:
    "A table of markdown without its empty columns; nothing where it has no row."
    if not rows: return ""
    kept = [i for i in range(len(header)) if any(cells[i] for cells in rows)]
    lines = [header, ["---"] * len(header), *rows]
    body = "\n".join("| " + " | ".join(cells[i].replace("|", r"\|") for i in kept) + " |" for cells in lines)
    return f'<div class="parameters" markdown>\n\n{body}\n\n</div>'


def parameters(
    thing:type # a function or a class
) -> str:      # empty where no parameter has a comment
    "Its parameters and its result as a table of markdown."
    found = {k: v for k, v in docments(thing, full=True).items() if k != "self"}
    if not any(facts["docment"] for facts in found.values()): return ""
    result = found.pop("return", None)
    rows = [row(f"`{name}`", facts) for name, facts in found.items()]
    if result and result["docment"]: rows.append(row("*result*", result))
    return table(["parameter", "type", "default", ""], rows)


def methods(
    thing:type # a class; anything else has none
) -> str:
    "What the methods of a class do, each with the anchor that nbdev's links name."
    own = {n: m for n, m in vars(thing).items() if n[0] != "_" and isinstance(m, (FunctionType, property, cached_property)) and m.__doc__}
    rows = [[f'<code id="{f"{thing.__name__}.{n}".lower()}">{n}{"()" if callable(m) else ""}</code>', told(m.__doc__)] for n, m in own.items()]
    return table(["method", ""], rows)


def source(
    thing:type,   # a function or a class
    module:str,   # that it is exported to
    settings:dict # of settings.ini
) -> str:
    "Where it stands in the repository."
    return f"{repository(settings)}/{module.replace('.', '/')}.py#L{inspect.getsourcelines(thing)[1]}"


def described(
    name:str,     # of something exported, `class_probs` or `Balance.weights`
    module:str,   # that it is exported to
    settings:dict # of settings.ini
) -> str:
    "Heading, source, signature, docstring, parameters and methods of an exported name, as markdown."
    thing = importlib.import_module(module)
    for part in name.split("."): thing = getattr(thing, part, None)
    if thing is None: raise SystemExit(f"{module} has no {name}, its notebook has; run nbdev_export")
    top = f"### {name} {{ #{name.lower()} .exported }}\n\n[source]({source(thing, module, settings)}){{ .source }}"
    said = NbdevLookup().linkify(inspect.getdoc(thing)) or ""
    return "\n\n".join([top, fenced(signature(name, thing), "python"), said, parameters(thing), methods(thing)])


# From notebook to markdown

def shown(
    cell:NotebookNode,     # of a processed notebook
    page:Page,             # where it stands
    pages:dict[str, Page], # by notebook
    settings:dict          # of settings.ini
) -> NotebookNode:
    "A cell without its directives, with its links mended; `show_doc` becomes what it shows."
    says, code = directives(cell.source) if cell.cell_type == "code" else ({}, cell.source)
    if name := SHOW_DOC.search(code): cell = new_markdown_cell(described(name[1], page.module, settings))
    if cell.cell_type == "markdown": return new_markdown_cell(linked(cell.source, page, pages, settings))
    outputs = [] if says.get("output") == "false" else cell.get("outputs", [])
    for output in outputs:
        data = output.get("data", {})
        if "text/markdown" in data: data["text/markdown"] = linked(data["text/markdown"], page, pages, settings)
    return new_code_cell("" if says.get("echo") == "false" else code, outputs=outputs, metadata=dict(alt=says.get("fig-alt", "")))


def head(
    page:Page,    # what is to be made
    settings:dict # of settings.ini
) -> str:
    "A page's front matter, title, lead, and where it comes from."
    at = repository(settings)
    facts = dict(title=page.title, description=page.lead) | (dict(hide=["navigation"]) if page.path == "index.md" else {})
    module = f"`{page.module}` · [module]({at}/{page.module.replace('.', '/')}.py) · " if page.module else ""
    lead = f"{page.lead}\n{{ .lead }}\n\n" if page.lead else ""
    return f"---\n{yaml.safe_dump(facts, allow_unicode=True)}---\n\n# {page.title}\n\n{lead}{module}[view source notebook]({at}/nbs/{page.notebook})\n{{ .origin }}\n\n"


def plain_tables(
    html:str # an output
) -> str:
    "Tables of pandas without its own looks, so that the site's apply; formulas in their cells as the markdown extension marks them."
    html = re.sub(r"<style scoped>.*?</style>|(?<=<table) border=\"1\" class=\"dataframe\"|(?<=<tr) style=\"text-align: right;\"", "", html, flags=re.S)
    def mark(cell): return re.sub(r"\$([^$]+)\$", r'<span class="arithmatex">\\(\1\\)</span>', cell[0])
    return re.sub(r"<t[dh][^>]*>[^<]*\$[^<]*", mark, html)


def write_page(
    page:Page,             # what is to be made
    pages:dict[str, Page], # by notebook
    settings:dict,         # of settings.ini
    folder:Path            # of mkdocs' sources
) -> None:
    "A page's markdown, with its pictures beside it."
    exporter = MarkdownExporter(template_file=str(PARTS/"page.md.j2"), filters=dict(fenced=fenced, plain_tables=plain_tables))
    notebook = new_notebook(cells=[shown(cell, page, pages, settings) for cell in page.cells])
    stem = Path(page.path).stem
    body, made = exporter.from_notebook_node(notebook, dict(unique_key=stem, output_files_dir=f"{stem}_files"))
    at = folder/page.path
    for file, content in {at.name: (head(page, settings) + body).encode(), **made["outputs"]}.items():
        (at.parent/file).parent.mkdir(parents=True, exist_ok=True)
        (at.parent/file).write_bytes(content)


# The site

def with_mkdocs(
    sources:Path, # markdown and pictures
    site:Path,    # where the site goes
    nav:list,     # as `navigation` makes it
    settings:dict # of settings.ini
) -> None:
    "Let mkdocs-material build the site."
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    shutil.copy(PARTS/"site.css", sources)
    about = dict(site_name=settings["title"], site_url=settings["doc_host"] + settings["doc_baseurl"] + "/", site_description=settings["description"],
                 copyright=f"{settings['copyright']} · {settings['license']} · <a href=\"{settings['git_url']}\">{settings['git_url'].split('//')[1]}</a>")
    build(load_config(str(PARTS/"mkdocs.yml"), docs_dir=str(sources), site_dir=str(site), nav=nav, strict=True, **about))


def with_quarto(
    work:Path # an empty folder below the root
) -> None:
    "The site by nbdev_docs."
    notebooks = stage(work, quarto=True)
    (ROOT/"README.md").touch()   # nbdev would write an older README anew, from Quarto's markdown
    nbdev_docs.__wrapped__(str(notebooks))


def without_quarto(
    work:Path,    # an empty folder below the root
    entries:list, # of the sidebar
    docs:Path     # _docs/
) -> None:
    "The site by nbdev and mkdocs-material: whole, or as it was."
    settings = get_config().d
    processed = proc_nbs(str(stage(work, quarto=False)), force=True)
    pages = {name: read_page(name, processed) for name in listed(entries)}
    for page in pages.values(): write_page(page, pages, settings, work/"pages")
    with_mkdocs(work/"pages", work/"site", navigation(entries, pages), settings)
    if docs.exists(): docs.rename(work/"old")
    (work/"site").rename(docs)


def main() -> None:
    "Build the site."
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    entries, docs = read_sidebar(ROOT/"nbs"/"sidebar.yml"), ROOT/"_docs"
    check_sidebar(listed(entries), ROOT/"nbs")
    (ROOT/"build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="docs-", dir=ROOT/"build") as work:
        if shutil.which("quarto"): with_quarto(Path(work))
        else: without_quarto(Path(work), entries, docs)
    print(f"{docs.name}/index.html and {len(listed(entries)) - 1} more pages")


if __name__ == "__main__": main()
