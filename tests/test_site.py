"""The docs site as a reader sees it: built once, served from this machine alone, every page opened in a browser."""

import ast
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

for package in ("playwright", "material", "latex2mathml"):
    pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[dev,docs]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
if not BROWSER:
    pytest.skip("no Chromium on the PATH: the site is neither built nor opened", allow_module_level=True)

import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 390, "height": 800}
DESKTOP = {"width": 1400, "height": 900}
READ_PAGE = """() => {
    const all = (selector) => [...document.querySelectorAll(selector)]
    const prose = document.querySelector('article').cloneNode(true)
    prose.querySelectorAll('pre, code, script').forEach(e => e.remove())
    return {
        links: all('a[href]').map(a => a.href),
        ids: all('[id]').map(e => e.id),
        prose: prose.textContent,
        width: document.scrollingElement.scrollWidth,
        exported: all('h3.exported').map(e => e.id),
        signatures: all('h3.exported + p + .highlight').length,
        sources: all('a.source').map(a => a.href),
        formulas: all('math').map(e => e.getBoundingClientRect()).map(r => r.width * r.height),
        figures: all('article img').map(i => i.naturalWidth),
        code: all('article pre code').map(e => e.textContent),
    }
}"""
WIDE_CODE = """() => {
    document.querySelectorAll('details').forEach(e => e.open = true)
    return [...document.querySelectorAll('article .highlight code')]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))
}"""


class SilentHandler(SimpleHTTPRequestHandler):
    "A file server that logs nothing."

    def log_message(self, *args):
        pass


def git_state() -> list[str]:
    "Return the changed files and their differences."
    commands = [["git", "status", "--porcelain"], ["git", "diff"]]
    return [subprocess.run(c, cwd=ROOT, capture_output=True, text=True).stdout for c in commands]


@pytest.fixture(scope="session")
def built():
    "The site's folder, and the state of the checkout before and after."
    before = git_state()
    done = subprocess.run([sys.executable, "tools/docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_docs", before, git_state()


@pytest.fixture(scope="session")
def address(built, tmp_path_factory):
    "The address of the site, below a path of its own as on its host."
    host = tmp_path_factory.mktemp("host")
    (host / "osteonb").symlink_to(built[0])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SilentHandler, directory=host))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/osteonb/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)


@pytest.fixture(scope="session")
def pages(built, address, browser):
    "What each page holds on a phone, its messages, the addresses that it loads, and code too wide for a desktop."
    found = {}
    messages = []
    requests = []
    tab = browser.new_page(viewport=PHONE)
    tab.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    for file in sorted(built[0].rglob("*.html")):
        messages.clear()
        requests.clear()
        name = file.relative_to(built[0]).as_posix()
        tab.goto(address + name, wait_until="load")
        found[name] = tab.evaluate(READ_PAGE)
        found[name] |= {"messages": messages[:], "requests": requests[:]}
        tab.set_viewport_size(DESKTOP)
        found[name]["wide_code"] = tab.evaluate(WIDE_CODE)
        tab.set_viewport_size(PHONE)
    tab.close()
    return found


def flatten(entries: list) -> list[str]:
    "Return the notebooks of a section and of the sections in it."
    names = []
    for entry in entries:
        names += [entry] if isinstance(entry, str) else flatten(entry["contents"])
    return names


def sidebar() -> dict[str, list[str]]:
    "Return the notebooks of each section."
    text = (ROOT / "nbs" / "sidebar.yml").read_text()
    entries = yaml.safe_load(text)["website"]["sidebar"]["contents"]
    return {entry["section"]: flatten(entry["contents"]) for entry in entries}


def listed() -> list[str]:
    "Return the notebooks of all sections."
    return [name for names in sidebar().values() for name in names]


def page_name(notebook: str) -> str:
    "Return a notebook's address in the site, as nbdev makes it."
    folder, _, name = notebook.rpartition("/")
    page = re.sub(r"^\d+[a-z]?_", "", name).replace(".ipynb", ".html")
    return f"{folder}/{page}".lstrip("/")


def wrong(pages, key, find) -> dict[str, list]:
    "Return the pages where `find` returns something of `key`."
    return {page: found for page, facts in pages.items() if (found := find(facts[key]))}


def public_names() -> set[tuple[str, str]]:
    "Return module and name of everything public: as listed, or from each module's `__all__`."
    file = ROOT / "tests" / "public_names.txt"
    if file.exists():
        return {tuple(line.split()) for line in file.read_text().splitlines() if line.strip()}
    found = set()
    for path in (ROOT / "osteonb").rglob("*.py"):
        module = path.relative_to(ROOT / "osteonb").as_posix()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found |= {(module, name) for name in ast.literal_eval(node.value)}
    return found


def test_building_changes_no_tracked_file(built):
    assert built[1] == built[2]


def test_every_notebook_is_in_the_sidebar():
    names = [path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").rglob("*.ipynb")]
    # a draft begins with an underscore
    expected = [name.as_posix() for name in names if not any(part[0] in "._" for part in name.parts)]
    assert sorted(listed()) == sorted(expected)


def test_the_face_of_a_folder_comes_first():
    for section, names in sidebar().items():
        faces = [name for name in names if "/00_" in name]
        assert not faces or faces == names[:1], section


def test_the_sidebar_is_the_navigation(address, browser, pages):
    tab = browser.new_page(viewport=DESKTOP)
    tab.goto(address)
    sections = tab.locator(".md-sidebar--primary .md-nav[data-md-level='0'] > ul > li > label .md-ellipsis")
    assert [title.strip() for title in sections.all_inner_texts()] == list(sidebar())
    links = tab.locator(".md-nav--primary a.md-nav__link[href$='.html']")
    links = links.evaluate_all("links => links.map(a => a.href)")
    order = list(dict.fromkeys(urldefrag(link)[0].removeprefix(address) for link in links))
    assert order == [page_name(name) for name in listed()]
    tab.close()


def test_no_page_complains(pages):
    assert not wrong(pages, "messages", list)


def test_nothing_comes_from_elsewhere(pages, address):
    allowed = (address, "data:", "blob:")
    assert not wrong(pages, "requests", lambda urls: [url for url in urls if not url.startswith(allowed)])


def test_no_page_is_wider_than_a_phone(pages):
    assert not wrong(pages, "width", lambda width: width > PHONE["width"])


def test_code_is_not_wider_than_its_block_on_a_desktop(pages):
    assert not wrong(pages, "wide_code", list)


def test_figures_are_drawn(pages):
    assert sum(len(page["figures"]) for page in pages.values()) > 50
    assert not wrong(pages, "figures", lambda widths: 0 in widths)


def test_no_directive_is_left(pages):
    def left(cells):
        return [code for code in cells if re.search(r"^#\s*\|", code, re.M) or "nbdev_export()" in code]

    assert not wrong(pages, "code", left)


def test_formulas_are_drawn(pages):
    assert len(pages["models/loss.html"]["formulas"]) > 3
    assert not wrong(pages, "formulas", lambda areas: [area for area in areas if not area])
    assert not wrong(pages, "prose", lambda text: re.findall(r"\$\$|\\[a-z]{2,}\b.*", text))


def test_no_link_inside_is_broken(pages, built, address):
    def is_broken(link):
        path, anchor = urldefrag(link)
        name = unquote(path.removeprefix(address)) or "index.html"
        if not (built[0] / name).is_file():
            return True
        return bool(anchor) and name in pages and unquote(anchor) not in pages[name]["ids"]

    def broken(links):
        return [link for link in links if link.startswith(address) and is_broken(link)]

    def leaves_the_site(links):
        found = [link for link in links if re.search(r"osteonb\.github\.io/.*\.html|\.ipynb$", link)]
        return [link for link in found if "/blob/main/nbs/" not in link]

    assert not wrong(pages, "links", broken)
    assert not wrong(pages, "links", leaves_the_site)


def test_every_public_function_and_class_has_an_entry(pages):
    from osteonb._modidx import d

    names = {(f"osteonb/{module}", name) for module, name in public_names()}
    expected = set()
    for entries in d["syms"].values():
        for dotted, (link, file) in entries.items():
            page, _, anchor = link.partition("#")
            if (file, dotted.rpartition(".")[2]) in names and "." not in anchor:
                expected.add((page, anchor))
    assert len(expected) > 100
    assert not [(page, anchor) for page, anchor in expected if anchor not in pages[page]["exported"]]


def test_an_entry_has_a_signature_and_its_source(pages):
    assert not wrong(pages, "exported", lambda ids: [name for name in ids if name.startswith("_")])
    for name, facts in pages.items():
        sources = [s for s in facts["sources"] if re.search(r"/osteonb/[\w/]+\.py#L\d+$", s)]
        assert len(facts["exported"]) == facts["signatures"] == len(sources), name


def test_a_chapter_names_its_module_and_notebook(pages):
    folders = ("tutorials", "studies")
    chapters = [name for name in listed() if "/" in name and name.split("/")[0] not in folders]
    assert len(chapters) > 60
    for name in chapters:
        links = pages[page_name(name)]["links"]
        assert any(link.endswith(f"/blob/main/nbs/{name}") for link in links), name
        assert any(re.search(r"/blob/main/osteonb/[\w/]+\.py$", link) for link in links), name


def test_the_front_page_is_light(pages, built, address):
    size = 0
    for url in pages["index.html"]["requests"]:
        name = urldefrag(url)[0].split("?")[0].removeprefix(address) or "index.html"
        if url.startswith(address) and "search" not in name.split("/"):
            size += (built[0] / name).stat().st_size
    assert 0 < size < 1e6


def test_search_finds_a_class(address, browser):
    tab = browser.new_page(viewport=DESKTOP)
    tab.goto(address)
    tab.locator(".md-search__input").click()
    tab.locator(".md-search__input").press_sequentially("HierarchicalLoss")
    tab.locator(".md-search-result__link[href*='loss.html'][href$='#hierarchicalloss']").first.click()
    tab.wait_for_url("**/models/loss.html*")
    assert tab.locator("h3#hierarchicalloss").is_visible()
    tab.close()


@pytest.mark.parametrize("module", ["material", "nbconvert"])
def test_a_missing_package_is_named(tmp_path, module):
    (tmp_path / f"{module}.py").write_text(f"raise ImportError(name={module!r})")
    done = subprocess.run(
        [sys.executable, "tools/docs.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    message = f"{module}: not installed; pip install 'osteonb[dev,docs]'\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_private_definitions_and_constants_are_shown(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import docs

    private = "#| export\ndef _half(x):\n    return x / 2"
    shown = "#| exec_doc\n#| code-fold: true\n#| code-summary: _half\ndef _half(x):\n    return x / 2"
    assert docs.show_private(private) == shown
    assert docs.show_private("#| export\nSIDE_PX = 64") == "#| exec_doc\nSIDE_PX = 64"
    for unchanged in ("#| export\ndef half(x): ...", "#| export\nimport os", "#| hide\nx = 1", "x = 1"):
        assert docs.show_private(unchanged) == unchanged


def test_a_notebook_that_is_not_listed_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import docs

    (tmp_path / "01_new.ipynb").touch()
    with pytest.raises(SystemExit, match="nbs/01_new.ipynb: not in nbs/sidebar.yml"):
        docs.check_sidebar([], tmp_path)
    with pytest.raises(SystemExit, match="lists 02_old.ipynb, which does not exist"):
        docs.check_sidebar(["01_new.ipynb", "02_old.ipynb"], tmp_path)
