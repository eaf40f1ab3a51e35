"""The docs site as a reader meets it: built once, served from this machine alone, every page opened in a browser."""
import os, re, shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

for needed in ("playwright", "material", "latex2mathml"): pytest.importorskip(needed, reason=f"{needed} is missing: pip install -e '.[dev,docs]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not BROWSER: pytest.skip("no Chromium on the PATH: the site is neither built nor opened", allow_module_level=True)

import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
PHONE, DESK = dict(width=390, height=800), dict(width=1400, height=900)
LOOK = """() => {
    const all = (what) => [...document.querySelectorAll(what)], prose = document.querySelector('article').cloneNode(true)
    prose.querySelectorAll('pre, code, script').forEach(e => e.remove())
    return {
        links: all('a[href]').map(a => a.href), ids: all('[id]').map(e => e.id), prose: prose.textContent, width: document.scrollingElement.scrollWidth,
        exported: all('h3.exported').map(e => e.id), signatures: all('h3.exported + p + .highlight').length, sources: all('a.source').map(a => a.href),
        formulas: all('math').map(e => e.getBoundingClientRect()).map(r => r.width * r.height), figures: all('article img').map(i => i.naturalWidth),
        code: all('article pre code').map(e => e.textContent)
    }}"""


class Silent(SimpleHTTPRequestHandler):
    "A file server that does not report."
    def log_message(self, *words): pass


def tracked():
    "What git would call changed, and how."
    return [subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout for words in (["status", "--porcelain"], ["diff"])]


@pytest.fixture(scope="session")
def built():
    "The site's folder, and the tracked files before and after."
    before = tracked()
    done = subprocess.run([sys.executable, "tools/docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT/"_docs", before, tracked()


@pytest.fixture(scope="session")
def address(built, tmp_path_factory):
    "Where the site is served, below a path of its own as on its host."
    host = tmp_path_factory.mktemp("host")
    (host/"osteonb").symlink_to(built[0])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=host))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/osteonb/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as play: yield play.chromium.launch(executable_path=BROWSER, args=QUIET)


@pytest.fixture(scope="session")
def pages(built, address, browser):
    "What there is to see on each page, opened once on a phone."
    seen, tab, said, asked = {}, browser.new_page(viewport=PHONE), [], []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    for file in sorted(built[0].rglob("*.html")):
        said.clear(), asked.clear()
        tab.goto(address + file.relative_to(built[0]).as_posix(), wait_until="load")
        seen[file.relative_to(built[0]).as_posix()] = tab.evaluate(LOOK) | dict(said=said[:], asked=asked[:])
    tab.close()
    return seen


def sidebar():
    "Sections and their notebooks."
    entries = yaml.safe_load((ROOT/"nbs"/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    return {e["section"]: e["contents"] for e in entries}


def named(notebook):
    "A notebook's address in the site, as nbdev makes it."
    folder, _, name = notebook.rpartition("/")
    return f"{folder}/".lstrip("/") + re.sub(r"^\d+[a-z]?_", "", name).replace(".ipynb", ".html")


def wrong(pages, key, bad):
    "Pages with what is bad on them."
    return {page: found for page, facts in pages.items() if (found := bad(facts[key]))}


def test_building_changes_no_tracked_file(built): assert built[1] == built[2]


def test_every_notebook_is_in_the_sidebar():
    names = [p.relative_to(ROOT/"nbs") for p in (ROOT/"nbs").rglob("*.ipynb")]
    there = {name.as_posix() for name in names if not any(part[0] in "._" for part in name.parts)}   # a draft begins with an underscore
    listed = [n for names in sidebar().values() for n in names]
    assert not there ^ set(listed) and len(listed) == len(there)


def test_the_sidebar_is_the_navigation(address, browser, pages):
    tab = browser.new_page(viewport=DESK)
    tab.goto(address)
    assert [t.strip() for t in tab.locator(".md-tabs__link").all_inner_texts()] == list(sidebar())
    links = tab.locator(".md-nav--primary a.md-nav__link[href$='.html']").evaluate_all("links => links.map(a => a.href)")
    order = list(dict.fromkeys(urldefrag(link)[0].removeprefix(address) for link in links))
    assert order == [named(n) for names in sidebar().values() for n in names]
    tab.close()


def test_no_page_complains(pages): assert not wrong(pages, "said", list)
def test_nothing_comes_from_elsewhere(pages, address): assert not wrong(pages, "asked", lambda urls: [u for u in urls if not u.startswith((address, "data:", "blob:"))])
def test_no_page_is_wider_than_a_phone(pages): assert not wrong(pages, "width", lambda width: width > PHONE["width"])
def test_figures_are_drawn(pages): assert sum(len(p["figures"]) for p in pages.values()) > 50 and not wrong(pages, "figures", lambda sizes: 0 in sizes)
def test_no_directive_is_left(pages): assert not wrong(pages, "code", lambda cells: [c for c in cells if re.search(r"^#\s*\|", c, re.M) or "nbdev_export()" in c])


def test_formulas_are_drawn(pages):
    assert len(pages["models/loss.html"]["formulas"]) > 3 and not wrong(pages, "formulas", lambda areas: [a for a in areas if not a])
    assert not wrong(pages, "prose", lambda text: re.findall(r"\$\$|\\[a-z]{2,}\b.*", text))


def test_no_link_inside_is_broken(pages, built, address):
    def broken(link):
        path, anchor = urldefrag(link)
        name = unquote(path.removeprefix(address)) or "index.html"
        return not (built[0]/name).is_file() or bool(anchor) and name in pages and unquote(anchor) not in pages[name]["ids"]
    assert not wrong(pages, "links", lambda links: [link for link in links if link.startswith(address) and broken(link)])
    assert not wrong(pages, "links", lambda links: [link for link in links if re.search(r"osteonb\.github\.io/.*\.html|\.ipynb$", link) and "/blob/main/nbs/" not in link])


def test_every_exported_name_is_documented(pages):
    from osteonb._modidx import d
    index = [(entry[0].partition("#"), name.rpartition(".")[0]) for module, names in d["syms"].items() for name, entry in names.items()]
    public = {line.split()[1].lower() for line in (ROOT/"tests"/"public_names.txt").read_text().splitlines()}
    names = {(page, anchor) for (page, _, anchor), _ in index if anchor in public}
    assert len(names) > 130 and not [name for name in names if name[1] not in pages[name[0]]["exported"]]
    assert not wrong(pages, "exported", lambda shown: [name for name in shown if name.startswith("_")])
    for facts in pages.values(): assert len(facts["exported"]) == facts["signatures"] == len([s for s in facts["sources"] if re.search(r"/osteonb/[\w/]+\.py#L\d+$", s)])


def test_a_chapter_names_its_module_and_notebook(pages):
    chapters = [name for names in sidebar().values() for name in names if name.split("/")[0] not in ("tutorials", "studies") and "/" in name]
    assert len(chapters) > 60
    for name in chapters:
        facts = pages[named(name)]
        assert any(link.endswith(f"/blob/main/nbs/{name}") for link in facts["links"]), name
        assert any(re.search(r"/blob/main/osteonb/[\w/]+\.py$", link) for link in facts["links"]), name


def test_the_front_page_is_light(pages, built, address):
    files = [built[0]/(urldefrag(url)[0].split("?")[0].removeprefix(address) or "index.html") for url in pages["index.html"]["asked"] if url.startswith(address)]
    assert sum(f.stat().st_size for f in files if "search" not in f.parts) < 1e6


def test_search_finds_a_class(address, browser):
    tab = browser.new_page(viewport=DESK)
    tab.goto(address)
    tab.locator(".md-search__input").click()
    tab.locator(".md-search__input").press_sequentially("HierarchicalLoss")
    tab.locator(".md-search-result__link[href*='loss.html'][href$='#hierarchicalloss']").first.click()
    tab.wait_for_url("**/models/loss.html*")
    assert tab.locator("h3#hierarchicalloss").is_visible()
    tab.close()


@pytest.mark.parametrize("module, said", [
    ("material", "material: not installed; pip install 'osteonb[dev,docs]'"),
    ("nbconvert", "nbconvert: not installed; pip install 'osteonb[dev,docs]'"),
])
def test_what_is_missing_is_named(tmp_path, module, said):
    (tmp_path/f"{module}.py").write_text(f"raise ImportError(name={module!r})")
    done = subprocess.run([sys.executable, "tools/docs.py"], cwd=ROOT, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(tmp_path)))
    assert (done.returncode, done.stderr) == (1, said + "\n")


def test_a_notebook_on_no_list_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/"tools")
    import docs
    (tmp_path/"01_new.ipynb").touch()
    with pytest.raises(SystemExit, match="nbs/01_new.ipynb: no section of nbs/sidebar.yml names it"): docs.check_sidebar([], tmp_path)
    with pytest.raises(SystemExit, match="names 02_gone.ipynb, which is not there"): docs.check_sidebar(["01_new.ipynb", "02_gone.ipynb"], tmp_path)
