"""Writes what follows from the manifests and the alerting rules: the Helm chart, and the rules for the operator.

python deploy/chart.py            write deploy/helm/mesh and deploy/kubernetes/components/monitoring/rules.yaml
python deploy/chart.py --check    exit with 1 if they are not current
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
KUBERNETES, COMPONENTS = DEPLOY / "kubernetes", DEPLOY / "kubernetes/components"
CHART = Path("helm/mesh")
MADE = "# Made by deploy/chart.py; change the manifests in deploy/kubernetes instead.\n"

#: The values of the chart, with their comments.
VALUES = """\
# How many replicas: 1 to 16, because one Redis has sixteen databases.
replicas: 4
# One more pod, which waits for a database: it takes over from a lost replica within the time of a lease.
hotSpare: false
image: {repository: quart-mesh, tag: ""}
# The services to run. messages needs the two provider URLs in env, movements database_url in the secret.
services: [values, addresses, grades]
# More settings of the replicas: docs/settings.md. Each NAME: value.
env: {}
# Host names that an Ingress passes on.
allowedHosts: []
# The secret with redis_password and grades_password, which must exist: deploy/generate-secrets makes such files.
secret: mesh
resources:
  requests: {cpu: 250m, memory: 192Mi}
  limits: {memory: 1Gi}
redis:
  # host:port of sentinels, for a Redis that something else runs; empty: one Redis of this chart
  sentinels: []
  sentinelMaster: mesh
  image: docker.io/valkey/valkey:9
  maxmemory: 512mb
  memory: 1Gi
  storage: 5Gi
# For the Prometheus operator.
monitoring: false
# KEDA adds and removes replicas; without hotSpare and without sentinels.
keda: false
# Each night, the last seven.
backup: false
"""

#: The value of `services` in which a policy of a component has its reason.
POLICIES = {"messages": "providers", "movements": "postgresql"}


def files() -> dict[Path, str]:
    """Return every file that is made, by its path below deploy/."""
    rules = (DEPLOY / "prometheus/mesh.rules.yml").read_text()
    made = {
        Path("kubernetes/components/monitoring/rules.yaml"): _rules(_indented(rules)),
        CHART / "Chart.yaml": _chart(),
        CHART / "values.yaml": MADE + VALUES,
        CHART / "files/rules.yml": rules,
    }
    scripts = re.findall(r"^      - (\S+)$", (DEPLOY / "redis/kustomization.yaml").read_text(), re.MULTILINE)
    made |= {CHART / f"files/redis/{name}": (DEPLOY / "redis" / name).read_text() for name in scripts}
    return made | {CHART / "templates" / name: MADE + text for name, text in _templates().items()}


def _templates() -> dict[str, str]:
    component = COMPONENTS.joinpath
    own_redis = "not .Values.redis.sentinels"
    return {
        "deployment.yaml": _deployment((KUBERNETES / "deployment.yaml").read_text()),
        "service.yaml": (KUBERNETES / "service.yaml").read_text(),
        "disruption.yaml": _disruption((KUBERNETES / "disruption.yaml").read_text()),
        "network.yaml": (KUBERNETES / "network.yaml").read_text(),
        "redis.yaml": _if(own_redis, _redis()),
        "sentinel.yaml": _if(".Values.redis.sentinels", component("sentinel/network.yaml").read_text()),
        "monitoring.yaml": _if(
            ".Values.monitoring",
            component("monitoring/podmonitor.yaml").read_text()
            + "---\n"
            + _rules('{{ .Files.Get "files/rules.yml" | indent 2 }}\n'),
        ),
        "keda.yaml": _if(
            ".Values.keda",
            _keda(component("keda/scaledobject.yaml").read_text())
            + "---\n"
            + component("keda/network.yaml").read_text(),
        ),
        "backup.yaml": _if(".Values.backup", _backup()),
        **{
            f"{name}.yaml": _if(f'has "{service}" .Values.services', component(f"{service}/network.yaml").read_text())
            for service, name in POLICIES.items()
        },
    }


def _if(condition: str, text: str) -> str:
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Replace each text; raise ValueError where a manifest no longer has it."""
    for old, new in pairs:
        if old not in text:
            raise ValueError(f"no manifest has {old!r}")
        text = text.replace(old, new)
    return text


def _deployment(text: str) -> str:
    return _replaced(
        text,
        ("  # 1 to 16; kustomization.yaml says how many.\n  replicas: 4\n", _REPLICAS),
        ("maxUnavailable: 1\n", "maxUnavailable: {{ if .Values.hotSpare }}2{{ else }}1{{ end }}\n"),
        (
            "image: quart-mesh\n",
            'image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"\n',
        ),
        (
            '{name: ALLOWED_HOSTS, value: ""}',
            '{name: ALLOWED_HOSTS, value: {{ join "," .Values.allowedHosts | quote }}}',
        ),
        (
            '{name: REPLICAS, value: "4"}',
            "{name: REPLICAS, value: {{ ternary 0 .Values.replicas .Values.keda | quote }}}",
        ),
        ('"values,addresses,grades"', '{{ join "," .Values.services | quote }}'),
        ("          startupProbe:\n", _ENV + "          startupProbe:\n"),
        ("            requests: {cpu: 250m, memory: 192Mi}\n            limits: {memory: 1Gi}\n", _RESOURCES),
        ("secretName: mesh,", "secretName: {{ .Values.secret }},"),
    )


_REPLICAS = """\
  {{- if not .Values.keda }}
  replicas: {{ add .Values.replicas (ternary 1 0 .Values.hotSpare) }}
  {{- end }}
"""
_ENV = """\
            {{- if .Values.hotSpare }}
            - {name: MESH_DATABASES, value: {{ .Values.replicas | quote }}}
            {{- end }}
            {{- with .Values.redis.sentinels }}
            - {name: REDIS_SENTINELS, value: {{ join "," . | quote }}}
            - {name: REDIS_SENTINEL_MASTER, value: {{ $.Values.redis.sentinelMaster }}}
            - {name: REDIS_WAIT_REPLICAS, value: "1"}
            {{- end }}
            {{- range $name, $value := .Values.env }}
            - {name: {{ $name }}, value: {{ $value | quote }}}
            {{- end }}
"""
_RESOURCES = """\
            {{- toYaml .Values.resources | nindent 12 }}
"""


def _disruption(text: str) -> str:
    spare = (
        "  {{- if .Values.hotSpare }}\n  maxUnavailable: 2\n  unhealthyPodEvictionPolicy: AlwaysAllow\n  {{- else }}\n"
    )
    return _replaced(text, ("  maxUnavailable: 1\n", spare + "  maxUnavailable: 1\n  {{- end }}\n"))


def _redis() -> str:
    stateful = _replaced(
        (DEPLOY / "redis/statefulset.yaml").read_text(),
        ("docker.io/valkey/valkey:9", "{{ .Values.redis.image }}"),
        ("512mb", "{{ .Values.redis.maxmemory }}"),
        ("limits: {memory: 1Gi}", "limits: {memory: {{ .Values.redis.memory }}}"),
        ("{storage: 5Gi}", "{storage: {{ .Values.redis.storage }}}"),
        ("secretName: mesh,", "secretName: {{ .Values.secret }},"),
    )
    config = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: redis
  labels: {app.kubernetes.io/name: redis, app.kubernetes.io/part-of: mesh}
data:
{{ (.Files.Glob "files/redis/*").AsConfig | indent 2 }}
"""
    return "---\n".join([stateful, (DEPLOY / "redis/service.yaml").read_text(), config])


def _keda(text: str) -> str:
    return _replaced(
        text,
        ("redis.mesh.svc", "redis.{{ .Release.Namespace }}.svc"),
        ("minReplicaCount: 4", "minReplicaCount: {{ .Values.replicas }}"),
        ("name: mesh, key:", "name: {{ .Values.secret }}, key:"),
    )


def _backup() -> str:
    names = ("cronjob.yaml", "volume.yaml", "network.yaml")
    text = "---\n".join((COMPONENTS / "backup" / name).read_text() for name in names)
    return _replaced(
        text,
        ("docker.io/valkey/valkey:9", "{{ .Values.redis.image }}"),
        ("secretName: mesh,", "secretName: {{ .Values.secret }},"),
        ("{storage: 5Gi}", "{storage: {{ .Values.redis.storage }}}"),
    )


def _rules(groups: str) -> str:
    return f"""\
# Made by deploy/chart.py of deploy/prometheus/mesh.rules.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mesh
  labels: {{app.kubernetes.io/name: mesh, app.kubernetes.io/part-of: mesh}}
spec:
{groups}"""


def _indented(text: str) -> str:
    return "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))


def _chart() -> str:
    setup = configparser.ConfigParser()
    setup.read(DEPLOY.parent / "setup.cfg")
    version = setup["metadata"]["version"]
    return f"""{MADE}apiVersion: v2
name: mesh
description: N identical replicas and one Redis, with the five services of quart-mesh
type: application
version: {version}
appVersion: "{version}"
kubeVersion: ">=1.27-0"
"""


def main(arguments: list[str]) -> int:
    made = files()
    if arguments == ["--check"]:
        there = {path.relative_to(DEPLOY) for path in (DEPLOY / CHART).rglob("*") if path.is_file()}
        current = all((DEPLOY / path).is_file() and (DEPLOY / path).read_text() == text for path, text in made.items())
        return int(not current or bool(there - made.keys()))
    for path, text in made.items():
        (DEPLOY / path).parent.mkdir(parents=True, exist_ok=True)
        (DEPLOY / path).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
