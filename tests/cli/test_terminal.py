"""Help, versions, configuration and progress at the command line."""

import json
import subprocess
import sys

import pytest
import yaml

import llm4dsr as package
from llm4dsr.cli.main import main
from llm4dsr.config import Config


@pytest.fixture
def llm4dsr(monkeypatch, capsys):
    """llm4dsr("config", "show") → (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llm4dsr", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(llm4dsr, option):
    assert llm4dsr(option) == (0, f"llm4dsr {package.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["run"], ["data"], ["data", "prepare"], ["config"], ["bench"], ["study"]])
def test_every_command_has_help(llm4dsr, command):
    for option in ("-h", "--help"):
        code, out, _ = llm4dsr(*command, option)
        assert code == 0
        assert "Usage: llm4dsr" in out


def test_help_does_not_wait_for_torch():
    code = "import sys; from llm4dsr.cli.main import app; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_config_show_prints_a_recipe_that_can_be_used(llm4dsr, tmp_path):
    code, out, _ = llm4dsr("config", "show")
    assert code == 0
    assert Config.from_dict(yaml.safe_load(out)) == Config()
    (tmp_path / "recipe.yaml").write_text(llm4dsr("config", "show", "-c", "demo")[1])
    assert Config.from_yaml(tmp_path / "recipe.yaml") == Config.from_yaml("demo")


def test_config_schema_is_json(llm4dsr):
    code, out, _ = llm4dsr("config", "schema")
    assert code == 0
    assert json.loads(out)["properties"]["seed"]["minimum"] == 0


def test_short_flags(llm4dsr, tiny_demo, tmp_path):
    """The same run by short and by long flags."""
    data, short, long = tmp_path / "data", tmp_path / "a", tmp_path / "b"
    tiny_demo.write(data)
    assert llm4dsr("prepare", "-d", data, "-o", short, "-c", "demo", "-n", 40, "-s", 3)[0] == 0
    arguments = ["--data", data, "--out", long, "--config", "demo", "--limit", 40, "--seed", 3]
    assert llm4dsr("prepare", *arguments)[0] == 0
    for name in ("config.yaml", "windows/train.parquet"):
        assert (short / name).read_bytes() == (long / name).read_bytes()
