"""Hands setuptools what settings.ini, the one truth about the project, says."""
# There is no pyproject.toml: nbdev 2.4.14 reads settings.ini, and pip builds from this file with the newest setuptools.
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
STATUS = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}


def read_settings() -> dict[str, str]:
    "Every key of settings.ini, with %(names)s filled in."
    config = ConfigParser()
    with open(HERE/"settings.ini", encoding="utf-8") as f: config.read_file(f)
    return dict(config["DEFAULT"])


def extras(
    settings: dict[str, str]  # keys and values of settings.ini
) -> dict[str, list[str]]:    # `dev_requirements = a b` becomes `{"dev": ["a", "b"]}`
    "The optional groups of requirements."
    ending = "_requirements"
    return {k.removesuffix(ending): v.split() for k, v in settings.items() if k.endswith(ending)}


def readme(
    settings: dict[str, str]  # `git_url`, `branch`
) -> str:
    "The README for a package index, where its links into the repository lead there; nothing where it is yet to be made."
    path = HERE/"README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    def mend(m): return f"{m[1]}{settings['git_url']}/{'raw' if m[1].startswith('!') else 'blob'}/{settings['branch']}/{m[2]})"
    return re.sub(r"(!?\[[^\]]*\]\()(?!https?:|#)([^)]+)\)", mend, text)


s = read_settings()
package = s["lib_path"]

setup(
    name=s["lib_name"], version=s["version"], description=s["description"], keywords=s["keywords"].split(),
    long_description=readme(s), long_description_content_type="text/markdown",
    author=s["author"], author_email=s["author_email"], url=s["git_url"], project_urls={"Documentation": s["doc_host"] + s["doc_baseurl"]},
    license_expression=s["license"], license_files=["LICENSE"],
    classifiers=[f"Development Status :: {STATUS[s['status']]}", f"Intended Audience :: {s['audience']}", f"Natural Language :: {s['language']}",
                 "Programming Language :: Python :: 3 :: Only", "Topic :: Scientific/Engineering :: Medical Science Apps."],
    packages=find_packages(include=[package, f"{package}.*"]), include_package_data=False, zip_safe=False,
    package_data={package: ["pretrained/*/*"]},  # models that come with the package, a folder each
    python_requires=f">={s['min_python']}", install_requires=s["requirements"].split(), extras_require=extras(s),
    entry_points={"console_scripts": s["console_scripts"].split(), "nbdev": [f"{s['lib_name']}={package}._modidx:d"]},
)
