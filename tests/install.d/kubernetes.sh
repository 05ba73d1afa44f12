# shellcheck shell=bash
# tests/install kubernetes: the image, the DaemonSet and its agent. To be sourced.

podman_() {
    podman --root "$WORK/podman" --runroot /run/podman --storage-driver vfs --runtime runc \
        --cgroup-manager cgroupfs --network-config-dir "$WORK/networks" "$@"
}

# What the DaemonSet promises about rights, and that its parts fit each other.
daemonset_holds() {
    python3 - conf/kubernetes <<'TEXT'
import json, os, sys, yaml
folder = sys.argv[1]
read = lambda name: yaml.safe_load(open(os.path.join(folder, name)))
kustomization, daemonset = read("kustomization.yaml"), read("daemonset.yaml")
monitoring, monitor = read("podmonitor/kustomization.yaml"), read("podmonitor/podmonitor.yaml")
pod = daemonset["spec"]["template"]["spec"]
[container] = pod["containers"]
security = container["securityContext"]
assert pod["hostNetwork"] and pod["tolerations"] == [{"operator": "Exists"}]
assert pod["priorityClassName"] == "system-node-critical"
assert pod["automountServiceAccountToken"] is False and "serviceAccountName" not in pod
assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
assert not security["privileged"] and "hostPID" not in pod
assert container["resources"]["limits"]["memory"] == "64Mi"
for probe, path in ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"):
    get = container[probe]["httpGet"]
    assert (get["path"], get["port"], get["host"]) == (path, 9617, "127.0.0.1"), probe
volumes = {volume["name"]: volume for volume in pod["volumes"]}
assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
for volume in volumes.values():
    kind = volume.get("hostPath", {}).get("type", "Directory")
    assert kind.startswith("Directory"), volume
labels = daemonset["spec"]["selector"]["matchLabels"]
assert labels == daemonset["spec"]["template"]["metadata"]["labels"]
assert labels == monitor["spec"]["selector"]["matchLabels"]
[generated] = kustomization["configMapGenerator"]
assert generated["name"] == volumes["settings"]["configMap"]["name"]
for name in kustomization["resources"] + generated["files"]:
    assert os.path.exists(os.path.join(folder, name)), name
assert json.load(open(os.path.join(folder, "symroute.json")))["type"] == "symroute"
[image] = kustomization["images"]
assert image["name"] == container["image"]
[patch] = monitoring["patches"]
[operation] = yaml.safe_load(patch["patch"])
assert container["args"][int(operation["path"].rsplit("/", 1)[1])].startswith("--listen=")
TEXT
}

image_builds() {
    mkdir -p "$WORK/context"
    cp "$SYMROUTE_BIN" "$WORK/context/symroute"
    podman_ build --network=none -t symroute -f conf/kubernetes/Containerfile "$WORK/context"
}

# The container as the DaemonSet describes it, as far as podman has the words.
agent_runs() {
    mkdir -p /var/lib/cni/results /var/lib/symroute /run/symroute
    cp "$WORK/entry" "$WORK/context/symroute.json"
    podman_ run --detach --pull never --name agent --network host --log-driver none --read-only \
        --read-only-tmpfs=false --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        --cap-drop all --cap-add net_admin --security-opt no-new-privileges --env SYMROUTE_PROC=/host/proc \
        -v "$WORK/context:/settings:ro" -v /opt/cni/bin:/opt/cni/bin -v /etc/cni/net.d:/etc/cni/net.d \
        -v /var/lib/cni:/var/lib/cni:ro -v /var/lib/symroute:/var/lib/symroute -v /run/symroute:/run/symroute \
        -v /var/log:/var/log -v /proc/sys/net:/host/proc/sys/net -v /run/netns:/run/netns:ro,rslave \
        -v /run/netns:/var/run/netns:ro,rslave localhost/symroute agent --listen=127.0.0.1:9617 \
        --conf-dir=/etc/cni/net.d --cache-dir=/var/lib/cni/results --entry=/settings/symroute.json \
        --install=/symroute --bin-dir=/opt/cni/bin
    until_ answers_well || { page /readyz; return 1; }
}

page() {
    timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/9617 && printf 'GET $1 HTTP/1.0\r\n\r\n' >&3 && cat <&3"
}

answers_well() {
    page /healthz | grep -q '^HTTP/1.. 200' && page /readyz | grep -q '^HTTP/1.. 200'
}

kubernetes() {
    works "the DaemonSet's rights and parts" daemonset_holds
    conflist bridge bare
    echo '{"type": "symroute", "uplinks": ["eth0", "eth1"]}' >"$WORK/entry"
    whole_node >"$WORK/before"
    works "the image builds offline" image_builds
    works "its agent is ready, with the DaemonSet's rights" agent_runs
    works "it has installed the program" cmp "$SYMROUTE_BIN" /opt/cni/bin/symroute
    works "and the entry" entry_is_there
    works "and node state is in force" "$SYMROUTE_BIN" status
    works "a pod starts" node_holds
    podman_ rm --force --time 5 agent >/dev/null 2>&1 || true
    works "uninstall" run uninstall
    conflist bridge bare
    works "the node is as before" same_node "$WORK/before"
}
