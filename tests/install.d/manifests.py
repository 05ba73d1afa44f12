"""Checks kustomize's output for conf/kubernetes, for tests/install kubernetes.

manifests.py agent FILE SETTINGS      checks the agent's objects
manifests.py monitored FILE SETTINGS  checks the agent's objects with the component of the PodMonitor
manifests.py uninstall FILE           checks the objects that uninstall
manifests.py example FILE             checks the objects of the example overlay
manifests.py example-uninstall FILE   checks the objects of the example's uninstall
manifests.py words FILE CONTAINER DIR prints podman's arguments for a container, one per line; DIR is for
                                      the files of its ConfigMap
"""

import os
import sys

import yaml

# The image name of the base, which an overlay replaces.
IMAGE = "symroute"


def load(path):
    """The objects by kind; there is one of each."""
    objects = [item for item in yaml.safe_load_all(open(path)) if item]
    kinds = {item["kind"]: item for item in objects}
    assert len(kinds) == len(objects), "a kind comes twice"
    return kinds


def pod_of(kinds):
    return kinds["DaemonSet"]["spec"]["template"]["spec"]


def holds_of_pods(kinds, name):
    """Checks what every DaemonSet of symroute has in common."""
    daemonset, pod = kinds["DaemonSet"], pod_of(kinds)
    assert daemonset["metadata"]["name"] == name
    for item in kinds.values():
        assert item["metadata"]["namespace"] == "kube-system", item["kind"]
    labels = daemonset["spec"]["selector"]["matchLabels"]
    assert labels == {"app.kubernetes.io/name": name}
    assert labels == daemonset["spec"]["template"]["metadata"]["labels"]
    assert pod["hostNetwork"] and pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["automountServiceAccountToken"] is False and "serviceAccountName" not in pod
    assert "hostPID" not in pod and "hostIPC" not in pod
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    containers = pod.get("initContainers", []) + pod["containers"]
    mounted = {m["name"] for c in containers for m in c.get("volumeMounts", [])}
    assert mounted == set(volumes)
    for volume in volumes.values():
        # A mount of a single file would keep the old file after a rename replaces it.
        if "hostPath" in volume:
            assert volume["hostPath"]["type"].startswith("Directory"), volume
        else:
            assert "configMap" in volume, volume
    for container in containers:
        assert container["image"] == IMAGE, container["image"]
        assert container["imagePullPolicy"] == "IfNotPresent"
        security = container["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security["capabilities"].get("add", []) in ([], ["NET_ADMIN"])
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert not security.get("privileged")
        assert container["resources"]["limits"]["memory"]


def option(container, name):
    [value] = [a.split("=", 1)[1] for a in container["args"] if a.startswith(name + "=")]
    return value


def node_path(pod, container, path):
    """The node's path of a path in the container, through the mount with the longest matching path."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    above = [m for m in container["volumeMounts"] if (path + "/").startswith(m["mountPath"] + "/")]
    mount = max(above, key=lambda m: len(m["mountPath"]))
    return volumes[mount["name"]]["hostPath"]["path"] + path[len(mount["mountPath"]):]


def agent(kinds, settings, listen="127.0.0.1:9617"):
    holds_of_pods(kinds, "symroute")
    assert set(kinds) - {"PodMonitor", "PrometheusRule"} == {"ConfigMap", "DaemonSet"}
    pod = pod_of(kinds)
    [container] = pod["containers"]
    assert container["securityContext"]["capabilities"]["add"] == ["NET_ADMIN"]
    assert option(container, "--listen") == listen
    # "kubectl logs" shows the agent's messages.
    assert "--log-to-stderr" in container["args"]
    for probe, path in ("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"):
        get = container[probe]["httpGet"]
        assert (get["path"], get["port"], get["host"]) == (path, 9617, "127.0.0.1"), probe
    # The name changes with the settings, and the pods use the current name.
    data, name = kinds["ConfigMap"]["data"], kinds["ConfigMap"]["metadata"]["name"]
    assert data == {"symroute.json": open(settings).read()}
    assert name.startswith("symroute-") and len(name) > len("symroute-")
    [used] = [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    assert used == name, used
    assert option(container, "--entry") == "/settings/symroute.json"


def example(kinds):
    pod = pod_of(kinds)
    [container] = pod["containers"]
    assert container["image"] == "registry.example/symroute:0.2.0", container["image"]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "symroute.io/agent": "yes"}
    assert "eth1" in kinds["ConfigMap"]["data"]["symroute.json"]
    [used] = [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    assert used == kinds["ConfigMap"]["metadata"]["name"]
    k3s = "/var/lib/rancher/k3s/"
    assert node_path(pod, container, option(container, "--bin-dir")) == k3s + "data/cni"
    assert node_path(pod, container, option(container, "--conf-dir")) == k3s + "agent/etc/cni/net.d"


def example_uninstall(kinds):
    pod = pod_of(kinds)
    [first], [second] = pod["initContainers"], pod["containers"]
    assert first["image"] == second["image"] == "registry.example/symroute:0.2.0", first["image"]
    assert node_path(pod, first, option(first, "--bin-dir")) == "/var/lib/rancher/k3s/data/cni"


def monitored(kinds):
    monitor = kinds["PodMonitor"]
    assert monitor["metadata"]["namespace"] == "kube-system"
    labels = kinds["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [container] = pod_of(kinds)["containers"]
    assert endpoint["port"] in [port["name"] for port in container["ports"]]
    assert option(container, "--listen") == "0.0.0.0:9617"
    [group] = kinds["PrometheusRule"]["spec"]["groups"]
    assert all(rule["expr"].startswith(("symroute_", "rate(symroute_", "count(")) for rule in group["rules"])


def uninstall(kinds):
    holds_of_pods(kinds, "symroute-uninstall")
    assert set(kinds) == {"DaemonSet"}
    pod = pod_of(kinds)
    [first], [second] = pod["initContainers"], pod["containers"]
    assert first["securityContext"]["capabilities"]["add"] == ["NET_ADMIN"]
    assert "add" not in second["securityContext"]["capabilities"]
    assert second["securityContext"]["runAsNonRoot"] and "volumeMounts" not in second
    assert "--force" not in first["args"]
    # The paths are those of the agent. symroute's own directories are mounted through their parents.
    for name, path in (
        ("--conf-dir", "/etc/cni/net.d"),
        ("--bin-dir", "/opt/cni/bin"),
        ("--cache-dir", "/var/lib/cni/results"),
        ("--state-dir", "/var/lib/symroute"),
        ("--run-dir", "/run/symroute"),
    ):
        assert node_path(pod, first, option(first, name)) == path, name
    for name in "/host/var/lib", "/host/run":
        [mount] = [m for m in first["volumeMounts"] if m["mountPath"] == name]
        assert mount["mountPropagation"] == "HostToContainer", name


def source_of(volume, kinds, folder):
    """A directory of this machine for a volume, created like the kubelet does."""
    if "configMap" in volume:
        os.makedirs(folder, exist_ok=True)
        for name, text in kinds["ConfigMap"]["data"].items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        return folder
    path, kind = volume["hostPath"]["path"], volume["hostPath"]["type"]
    if kind == "DirectoryOrCreate":
        os.makedirs(path, exist_ok=True)
    assert os.path.isdir(path), path
    return path


def words(kinds, name, folder):
    pod = pod_of(kinds)
    containers = pod.get("initContainers", []) + pod["containers"]
    [container] = [c for c in containers if c["name"] == name]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    security = container["securityContext"]
    assert pod["hostNetwork"]
    yield from ("--network", "host", "--cap-drop", "all", "--read-only", "--read-only-tmpfs=false")
    yield from ("--security-opt", "no-new-privileges")
    for capability in security["capabilities"].get("add", []):
        yield from ("--cap-add", capability.lower())
    yield from ("--user", str(security["runAsUser"]))
    for variable in container.get("env", []):
        yield from ("--env", f"{variable['name']}={variable['value']}")
    for mount in container.get("volumeMounts", []):
        options = ["ro"] if mount.get("readOnly") else []
        if mount.get("mountPropagation") == "HostToContainer":
            options.append("rslave")
        source = source_of(volumes[mount["name"]], kinds, folder)
        yield "-v"
        yield ":".join([source, mount["mountPath"]] + [",".join(options)] * bool(options))
    yield container["image"]
    yield from container["args"]


def main():
    verb, kinds = sys.argv[1], load(sys.argv[2])
    if verb == "agent":
        agent(kinds, sys.argv[3])
    elif verb == "monitored":
        agent(kinds, sys.argv[3], "0.0.0.0:9617")
        monitored(kinds)
    elif verb == "uninstall":
        uninstall(kinds)
    elif verb == "example":
        example(kinds)
    elif verb == "example-uninstall":
        example_uninstall(kinds)
    elif verb == "words":
        print("\n".join(words(kinds, sys.argv[3], sys.argv[4])))
    else:
        sys.exit(f"manifests.py: unknown word {verb}")


if __name__ == "__main__":
    main()
