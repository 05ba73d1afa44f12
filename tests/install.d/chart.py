"""Checks Helm's output for conf/helm/symroute, for tests/install helm.

chart.py versions              version and appVersion are those of Cargo.toml
chart.py keys                  values.yaml and its schema have the same keys; their settings are those of README.md
chart.py same FILE OTHER       Helm's objects are those of kustomize, except for the differences that "same" lists
chart.py directories FILE PLAIN PLUGINS CONFLISTS
                               the node's directories are these, and nothing else differs from PLAIN
chart.py settings FILE OTHER WANTED
                               OTHER has the settings WANTED, and its agents restart with them
chart.py values FILE VALUES    each value of the file VALUES has its effect
chart.py forced FILE PLAIN     the uninstall has --force, and nothing else differs from PLAIN
"""

import difflib
import json
import re
import sys

import yaml
from manifests import node_path, option, pod_of

CHART = "conf/helm/symroute"
AGENT_LABEL = {"symroute.io/agent": "yes"}


def objects(path):
    return [item for item in yaml.safe_load_all(open(path)) if item]


def kinds_of(items):
    """The objects by kind; further objects of a kind by kind and name."""
    kinds = {}
    for item in items:
        kind = item["kind"]
        kinds[f"{kind} {item['metadata']['name']}" if kind in kinds else kind] = item
    assert len(kinds) == len(items)
    return kinds


def the_chart():
    return yaml.safe_load(open(f"{CHART}/Chart.yaml"))


def equal(left, right):
    def lines(items):
        items = sorted(items, key=lambda item: (item["kind"], item["metadata"]["name"]))
        return json.dumps(items, indent=1, sort_keys=True).splitlines()

    difference = list(difflib.unified_diff(lines(left), lines(right), lineterm="", n=3))
    assert not difference, "\n".join(difference)


def containers_of(pod):
    return pod.get("initContainers", []) + pod["containers"]


def worker_of(kinds):
    """The container that changes the node: the agent, or the uninstall."""
    return containers_of(pod_of(kinds))[0]


def with_plain_name(items):
    """Removes the hash from the name of the settings' ConfigMap; Helm and kustomize hash differently."""
    maps = [item for item in items if item["kind"] == "ConfigMap"]
    for item in maps:
        name = item["metadata"]["name"]
        assert re.fullmatch("symroute-[0-9a-z]{10}", name), name
        item["metadata"]["name"] = "symroute"
        volumes = [v for v in pod_of(kinds_of(items))["volumes"] if "configMap" in v]
        assert [v["configMap"]["name"] for v in volumes] == [name], "the pods take another ConfigMap"
        volumes[0]["configMap"]["name"] = "symroute"
    return items


def same(path, other):
    """Allows three differences: the hash in the ConfigMap's name, four labels that no selector uses, and the
    tag of the image, which is the chart's appVersion."""
    chart, items = the_chart(), objects(path)
    for item in items:
        labels = item["metadata"]["labels"]
        for name, value in (
            ("helm.sh/chart", f"symroute-{chart['version']}"),
            ("app.kubernetes.io/managed-by", "Helm"),
            ("app.kubernetes.io/instance", "release"),
            ("app.kubernetes.io/version", chart["appVersion"]),
        ):
            assert labels.pop(name) == value, name
        if not labels:
            del item["metadata"]["labels"]
        if item["kind"] == "DaemonSet":
            for container in containers_of(pod_of(kinds_of([item]))):
                assert container["image"] == f"symroute:{chart['appVersion']}", container["image"]
                container["image"] = "symroute"
    equal(with_plain_name(items), with_plain_name(objects(other)))


def versions():
    chart = the_chart()
    [crate] = re.findall(r'^version = "(.*)"$', open("Cargo.toml").read(), re.M)
    found = chart["version"], chart["appVersion"]
    assert found == (crate, crate), f"Cargo.toml has {crate}, Chart.yaml {found}"


def keys():
    schema = json.load(open(f"{CHART}/values.schema.json"))

    def known(node):
        while "$ref" in node:
            node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
        return node

    def compare(values, node, place):
        node = known(node)
        # Helm adds "global" to the values.
        names = set(node.get("properties", {})) - {"global"}
        assert node["additionalProperties"] is False, f"{place} takes unknown keys"
        assert set(values) == names, f"{place}: {set(values) ^ names}"
        for name, value in values.items():
            if "properties" in known(node["properties"][name]) and value is not None:
                compare(value, node["properties"][name], f"{place}.{name}")

    compare(yaml.safe_load(open(f"{CHART}/values.yaml")), schema, "values")
    text = open("README.md").read().split("\n## Configuration\n")[1].split("\n## ")[0]
    table = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    settings = set(schema["properties"]["settings"]["properties"]) - {"type", "capabilities"}
    assert len(table) > 5 and settings == table, f"only in one of README.md and values.schema.json: {settings ^ table}"


def directories(path, plain, plugins, conflists):
    kinds = kinds_of(objects(path))
    pod, worker = pod_of(kinds), worker_of(kinds)
    found = [node_path(pod, worker, option(worker, name)) for name in ("--bin-dir", "--conf-dir")]
    assert found == [plugins, conflists], found
    usual = {volume["name"]: volume for volume in pod_of(kinds_of(objects(plain)))["volumes"]}
    for volume in pod["volumes"]:
        if volume["name"] in ("plugins", "conflists"):
            volume["hostPath"]["path"] = usual[volume["name"]]["hostPath"]["path"]
    equal(kinds.values(), objects(plain))


def settings(path, other, wanted):
    before, after = objects(path), objects(other)
    templates = [kinds_of(items)["DaemonSet"]["spec"]["template"] for items in (before, after)]
    assert templates[0] != templates[1], "the agents do not start anew"
    before, after = with_plain_name(before), with_plain_name(after)
    [text] = kinds_of(after)["ConfigMap"]["data"].values()
    assert json.loads(text) == json.loads(wanted), text
    kinds_of(after)["ConfigMap"]["data"] = kinds_of(before)["ConfigMap"]["data"]
    equal(before, after)


def values(path, values_path):
    wanted = yaml.safe_load(open(values_path))
    by_kind = kinds_of(objects(path))
    daemonset, pod, worker = by_kind["DaemonSet"], pod_of(by_kind), worker_of(by_kind)
    image = wanted["image"]
    for container in containers_of(pod):
        assert container["image"] == f"{image['repository']}@{image['digest']}", container["image"]
        assert container["imagePullPolicy"] == image["pullPolicy"]
    for name in "imagePullSecrets", "tolerations", "priorityClassName":
        assert pod[name] == wanted[name], name
    places = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    assert places["plugins"] == wanted["directories"]["plugins"], "the directory yields to the platform"
    assert places["conflists"] == "/var/snap/microk8s/current/args/cni-network", places["conflists"]
    selector = {"kubernetes.io/os": "linux", **wanted["nodeSelector"]}
    metadata = daemonset["spec"]["template"]["metadata"]
    assert metadata["annotations"] == wanted["podAnnotations"]
    # The values must not change the label of the selector.
    labels = daemonset["spec"]["selector"]["matchLabels"]
    assert metadata["labels"] == {**wanted["podLabels"], **labels}, metadata["labels"]
    assert worker["resources"] == wanted["resources"]
    assert worker["securityContext"]["seLinuxOptions"] == {"type": wanted["seLinuxType"]}
    if wanted.get("uninstall"):
        assert set(by_kind) == {"DaemonSet"}, "the uninstall is the only object"
        assert pod["nodeSelector"] == selector, "the uninstall goes to nodes without the label, too"
        assert pod["containers"][0]["resources"] != wanted["resources"]
        return
    assert pod["nodeSelector"] == {**selector, **AGENT_LABEL}, pod["nodeSelector"]
    assert daemonset["spec"]["updateStrategy"] == wanted["updateStrategy"]
    # An argument replaces the same option of the manifest; a new option is appended.
    usual = yaml.safe_load(open("conf/kubernetes/daemonset.yaml"))
    usual = usual["spec"]["template"]["spec"]["containers"][0]["args"]
    more = ["--listen=0.0.0.0:9617"] + wanted["extraArgs"]
    new = {argument.split("=")[0]: argument for argument in more}
    inside = [new.pop(argument.split("=")[0], argument) for argument in usual]
    assert list(new) == ["--resync"] and worker["args"] == inside + list(new.values()), worker["args"]
    metrics = wanted["metrics"]
    dashboard = by_kind["ConfigMap symroute-dashboard"]
    for item, labels in (
        (by_kind["PodMonitor"], metrics["podMonitor"]["labels"]),
        (by_kind["PrometheusRule"], metrics["prometheusRule"]["labels"]),
        (dashboard, {"grafana_dashboard": "1", **metrics["dashboard"]["labels"]}),
    ):
        assert labels.items() <= item["metadata"]["labels"].items(), item["metadata"]["labels"]
        assert item["metadata"]["namespace"] == "kube-system"
    assert list(dashboard["data"].values()) == [open("conf/grafana/symroute.json").read()]


def forced(path, plain):
    items = objects(path)
    worker = worker_of(kinds_of(items))
    assert worker["args"].pop() == "--force"
    equal(items, objects(plain))


def main():
    verb, *words = sys.argv[1:]
    verbs = (versions, keys, same, directories, settings, values, forced)
    {verb.__name__: verb for verb in verbs}[verb](*words)


if __name__ == "__main__":
    main()
