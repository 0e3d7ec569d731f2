"""Prompt sets by name: fetched once from the address that a table has, and checked by hash."""

import csv
import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from eigencache.commands.prompts import read_prompts
from reproduction.config import ConfigError, load
from reproduction.prompts import PromptSetError, file_of, prompt_sets

LINES = b"a red car\na blue car\n"
TABLE = b'Prompt\tCategory\n"a sign that says ""hi"""\tText\na dog, s\xc3\xbc\xc3\x9f\tAnimals\n'


class Served:
    """A server on loopback, and a table of prompt sets that names it."""

    def __init__(self, folder):
        self.home, self.table, self.fetched = folder / "home", folder / "sets.tsv", folder / "here"
        self.home.mkdir()
        (self.home / "cars.txt").write_bytes(LINES)
        (self.home / "mixed.tsv").write_bytes(TABLE)
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                asked.append(self.path)
                super().do_GET()

        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=self.home)
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.pin()

    def pin(self, **hashes):
        address = f"http://127.0.0.1:{self.server.server_port}"
        rows = [["name", "source", "sha256", "column", "prompts", "note"]]
        for name, file, column in (("Cars", "cars.txt", ""), ("Mixed", "mixed.tsv", "Prompt")):
            digest = hashlib.sha256((self.home / file).read_bytes()).hexdigest()
            rows.append([name, f"{address}/{file}", hashes.get(name, digest), column, "2", ""])
        self.table.write_text("".join("\t".join(row) + "\n" for row in rows))

    def named(self, name):
        return file_of(name, str(self.table), str(self.fetched))


@pytest.fixture
def served(tmp_path):
    made = Served(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_set_is_fetched_once_and_read_in_order(served):
    path = served.named("cars")
    assert read_prompts(path) == ["a red car", "a blue car"] and path.endswith("/Cars.txt")
    assert served.named("Cars") == path and served.asked == ["/cars.txt"]


def test_of_a_table_one_column_is_taken(served):
    path = served.named("Mixed")
    assert read_prompts(path) == ['a sign that says "hi"', "a dog, süß"]
    served.fetched.joinpath("Mixed.txt").write_text("another\n")
    assert read_prompts(served.named("Mixed")) == ['a sign that says "hi"', "a dog, süß"]


def test_a_path_is_no_name(served):
    assert served.named("data/prompts/x.txt") == "data/prompts/x.txt"
    assert served.named("x.jsonl") == "x.jsonl" and not served.asked


def test_an_unknown_name_is_told_the_names(served):
    with pytest.raises(PromptSetError, match=r"'Boats' is no file, and no prompt set .*: Cars, Mi"):
        served.named("Boats")


def test_a_file_with_another_hash_is_not_kept(served):
    served.pin(Cars="0" * 64)
    with pytest.raises(PromptSetError, match=r"Cars: http.*/cars\.txt has sha256 .* 0000.* pinned"):
        served.named("Cars")
    assert not served.fetched.exists() or not list(served.fetched.iterdir())


def test_an_open_hash_is_named_to_be_written_into_the_table(served):
    served.pin(Cars="")
    digest = hashlib.sha256(LINES).hexdigest()
    with pytest.raises(PromptSetError, match=rf"sets\.tsv: the sha256 of Cars is open.*{digest}"):
        served.named("Cars")


def test_a_set_that_was_changed_here_is_refused(served):
    path = served.named("Cars")
    with open(path, "a") as file:
        file.write("one more\n")
    with pytest.raises(PromptSetError, match=r"Cars\.txt, which is fetched anew once you delete"):
        served.named("Cars")


def test_without_a_connection_the_file_may_be_put_there(served):
    served.server.shutdown()
    served.server.server_close()
    with pytest.raises(PromptSetError, match=r"cannot be fetched .*put a copy .* at .*Cars\.txt"):
        served.named("Cars")
    served.fetched.mkdir()
    (served.fetched / "Cars.txt").write_bytes(LINES)
    assert read_prompts(served.named("Cars")) == ["a red car", "a blue car"]


def test_a_configuration_names_a_set(served, monkeypatch):
    monkeypatch.setattr("reproduction.config.file_of", served.named)
    config = yaml.safe_load(Path("config.yaml").read_text()) | {
        "prompts": "mixed",
        "num_prompts": None,
    }
    loaded = load(config)
    assert loaded.prompts.endswith("/Mixed.txt") and len(loaded.evaluation_prompts) == 2
    with pytest.raises(ConfigError, match=r"'boats' is no file, and no prompt set"):
        load(config | {"prompts": "boats"})


def test_the_sets_of_the_field_are_pinned():
    sets = prompt_sets()
    counts = {name: row["prompts"] for name, row in sets.items()}
    assert counts == {"DrawBench": "200", "PartiPrompts": "1632"}
    for row in sets.values():
        assert len(bytes.fromhex(row["sha256"])) == 32 and "/main/" not in row["source"]
    with open("data/prompts/sets.tsv", newline="") as file:
        assert all(len(row) == 6 for row in csv.reader(file, delimiter="\t"))
