"""The files of deploy/: what the programs that read them say of them, and what must be in them."""

from __future__ import annotations

import json
import plistlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_env import base_environment
from gateway_process import ROOT
from support.tools import need

from acp_gateway.cli.serve import serve
from acp_gateway.config import ENV_PREFIX, Settings

DEPLOY = ROOT / "deploy"
UNITS = ("systemd", "systemd/user")


def flags() -> set[str]:
    return {word for parameter in serve.params for word in parameter.opts}


def check_flags(words: list[str]) -> None:
    """Every flag after ``serve`` is one of it."""
    assert "serve" in words
    given = [word for word in words if word.startswith("--")]
    assert set(given) <= flags(), given


# -- systemd ---------------------------------------------------------------------------------------


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections -> keys -> values (keys may be repeated)."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("where", UNITS)
def test_systemd_reads_the_units(where: str, tmp_path: Path) -> None:
    tool = need("systemd-analyze", "systemd")
    (tmp_path / "run").mkdir(mode=0o700)
    for name in ("acp-gateway.service", "acp-gateway.socket"):
        text = (DEPLOY / where / name).read_text(encoding="utf-8")
        # It looks for the program.
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text, flags=re.M)
        (tmp_path / name).write_text(text)
    for name in ("acp-gateway.service", "acp-gateway.socket"):
        done = subprocess.run(
            [tool, *(["--user"] if "user" in where else []), "verify", str(tmp_path / name)],
            env=base_environment(tmp_path / "home") | {"XDG_RUNTIME_DIR": str(tmp_path / "run")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        about_ours = [line for line in done.stderr.splitlines() if "acp-gateway" in line]
        assert (done.returncode, about_ours) == (0, []), done.stderr


def test_a_wrong_unit_is_seen(tmp_path: Path) -> None:
    tool = need("systemd-analyze", "systemd")
    text = (DEPLOY / "systemd" / "acp-gateway.service").read_text(encoding="utf-8")
    wrong = text.replace("ProtectSystem=strict", "ProtectSystm=strict")
    (tmp_path / "acp-gateway.service").write_text(wrong)
    done = subprocess.run(
        [tool, "verify", str(tmp_path / "acp-gateway.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ProtectSystm" in done.stderr


def test_the_exposure_of_the_system_unit() -> None:
    """What systemd itself thinks of the hardening, out of 10; without any it is 9.6."""
    tool = need("systemd-analyze", "systemd")
    done = subprocess.run(
        [
            *(tool, "security", "--offline=true", "--threshold=30", "--no-pager"),
            str(DEPLOY / "systemd" / "acp-gateway.service"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.parametrize("where", UNITS)
def test_the_units_fit_the_gateway(where: str) -> None:
    service = unit(DEPLOY / where / "acp-gateway.service")["Service"]
    socket = unit(DEPLOY / where / "acp-gateway.socket")["Socket"]
    check_flags(shlex.split(service["ExecStart"][0]))
    assert service["Type"] == ["notify"] and service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert service["NoNewPrivileges"] == ["true"] and service["KillMode"] == ["mixed"]
    # Node compiles to memory that is both writable and executable.
    assert "MemoryDenyWriteExecute" not in service
    grace = next(
        field.default for field in Settings.__attrs_attrs__ if field.name == "shutdown_grace"
    )
    assert float(service["TimeoutStopSec"][0]) > grace + 12
    assert socket["SocketMode"] == ["0600"] and "Accept" not in socket
    assert any(value.startswith("127.0.0.1:") for value in socket["ListenStream"])


def test_the_system_unit_lets_agents_write_their_workspace() -> None:
    service = unit(DEPLOY / "systemd" / "acp-gateway.service")["Service"]
    words = shlex.split(service["ExecStart"][0])
    workspace = words[words.index("--workspace") + 1]
    assert service["ProtectSystem"] == ["strict"]
    assert workspace in service["ReadWritePaths"][0].split()
    home = next(v for v in service["Environment"] if v.startswith("HOME="))
    assert home == f"HOME=/var/lib/{service['StateDirectory'][0]}"
    assert words[words.index("--token-file") + 1] == "%d/token"
    assert service["LoadCredential"][0].startswith("token:")


# -- launchd ---------------------------------------------------------------------------------------


def test_the_plist() -> None:
    content = plistlib.loads((DEPLOY / "launchd" / "org.acp-gateway.plist").read_bytes())
    assert content["Label"] == "org.acp-gateway"
    check_flags(content["ProgramArguments"])
    assert content["KeepAlive"] == {"SuccessfulExit": False}
    assert content["Umask"] == 0o077
    assert content["ExitTimeOut"] >= 30


# -- Docker ----------------------------------------------------------------------------------------


def instructions(text: str) -> Iterator[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    for line in joined.splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def test_the_dockerfile() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    found = list(instructions(text))
    words = [word for word, _ in found]
    assert words[0] == "FROM" and words.count("HEALTHCHECK") == 1
    user = dict(found)["USER"]
    assert user.isdecimal() and int(user) > 0, "Kubernetes' runAsNonRoot wants a number"
    # Nothing is run as root after it.
    assert "RUN" not in words[words.index("USER") :]
    names = {rest.split("=")[0] for word, rest in found if word == "ARG"}
    assert names == {"AGENT_PACKAGES", "AGENT_INSTALL"}
    environment = dict(pair.split("=", 1) for pair in shlex.split(dict(found)["ENV"]))
    settings = {field.name for field in Settings.__attrs_attrs__}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in environment} <= settings
    assert environment["ACP_GATEWAY_HOST"] == "0.0.0.0"
    assert "ACP_GATEWAY_TOKEN_FILE" in environment, "else it does not start"
    entry = [*json.loads(dict(found)["ENTRYPOINT"]), *json.loads(dict(found)["CMD"])]
    assert entry[-2:] == ["acp-gateway", "serve"]
    health = dict(found)["HEALTHCHECK"]
    command = json.loads(health[health.index("CMD") + 3 :])
    compile(command[2], "healthcheck", "exec")
    assert "/health" in command[2]


def test_compose() -> None:
    content = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    service = content["services"]["gateway"]
    assert service["secrets"] == list(content["secrets"])
    # It is /run/secrets/NAME that the image reads the token from.
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert f"/run/secrets/{service['secrets'][0]}" in text
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    named = [volume.split(":")[0] for volume in service["volumes"]]
    assert set(named) == set(content["volumes"])
    arguments = set(service["build"]["args"])
    assert arguments <= set(re.findall(r"^ARG (\w+)", text, flags=re.M))
    build = (DEPLOY / "docker" / service["build"]["context"]).resolve()
    assert (build / service["build"]["dockerfile"]).is_file() and build == ROOT


def test_docker_reads_the_compose_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    asked = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, timeout=60, check=False
    )
    if not asked or asked.returncode:
        pytest.skip("docker compose is not installed (Debian has none of version 2)")
    done = subprocess.run(
        [str(docker), "compose", "-f", str(DEPLOY / "docker" / "compose.yaml"), "config", "-q"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- Kubernetes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """Kind -> object."""
    text = (DEPLOY / "kubernetes" / "acp-gateway.yaml").read_text(encoding="utf-8")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_what_kubernetes_demands_is_there(objects: dict[str, Any]) -> None:
    versions = {"Secret": "v1", "ConfigMap": "v1", "Service": "v1", "StatefulSet": "apps/v1"}
    assert {kind: each["apiVersion"] for kind, each in objects.items()} == versions
    for each in objects.values():
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", each["metadata"]["name"])
    stateful = objects["StatefulSet"]["spec"]
    template = stateful["template"]
    labels = template["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"].items() <= labels.items()
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    assert stateful["serviceName"] == objects["Service"]["metadata"]["name"]
    assert stateful["replicas"] == 1
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    claims = {each["metadata"]["name"] for each in stateful["volumeClaimTemplates"]}
    container = template["spec"]["containers"][0]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {*volumes, *claims}
    assert volumes["token"]["secret"]["secretName"] == objects["Secret"]["metadata"]["name"]
    assert volumes["config"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]


def test_kubernetes_fits_the_gateway(objects: dict[str, Any]) -> None:
    spec = objects["StatefulSet"]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    check_flags(container["args"])
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    words = container["args"]
    token, config = words[words.index("--token-file") + 1], words[words.index("--config") + 1]
    assert {str(Path(token).parent), str(Path(config).parent)} <= mounts
    assert Path(token).name in objects["Secret"]["stringData"]
    assert Path(config).name in objects["ConfigMap"]["data"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": 4170}
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] in ports
    for probe, path in (("liveness", "/health"), ("startup", "/health"), ("readiness", "/readyz")):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {spec['securityContext']['runAsUser']}\n" in text
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
