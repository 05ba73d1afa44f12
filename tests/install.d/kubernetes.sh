# shellcheck shell=bash
# tests/install kubernetes: kustomize's output for conf/kubernetes, the image, the agent in a container, and
# the uninstall from a container. To be sourced.

podman_() {
    podman --root "$WORK/podman" --runroot /run/podman --storage-driver vfs --runtime runc \
        --cgroup-manager cgroupfs --network-config-dir "$WORK/networks" "$@"
}

manifests() {
    python3 tests/install.d/manifests.py "$@"
}

# Renders the tree with settings for this node. Its NICs are veths, which "auto" never selects.
rendered() {
    cp -r conf/kubernetes "$WORK/manifests"
    echo '{"type": "symroute", "uplinks": ["eth0", "eth1"]}' >"$WORK/manifests/symroute.json"
    kubectl kustomize conf/kubernetes >"$WORK/agent.yaml" &&
        manifests agent "$WORK/agent.yaml" conf/kubernetes/symroute.json &&
        kubectl kustomize "$WORK/manifests" >"$WORK/agent-here.yaml" &&
        manifests agent "$WORK/agent-here.yaml" "$WORK/manifests/symroute.json" &&
        ! diff <(grep -h 'name: symroute-' "$WORK/agent.yaml") <(grep -h 'name: symroute-' "$WORK/agent-here.yaml") >/dev/null
}

uninstall_rendered() {
    kubectl kustomize conf/kubernetes/uninstall >"$WORK/uninstall.yaml" &&
        manifests uninstall "$WORK/uninstall.yaml"
}

# Renders the example overlay, which operators copy.
example_rendered() {
    kubectl kustomize conf/kubernetes-example >"$WORK/example.yaml" && manifests example "$WORK/example.yaml" &&
        kubectl kustomize conf/kubernetes-example/uninstall >"$WORK/example.yaml" &&
        manifests example-uninstall "$WORK/example.yaml"
}

# kubectl of Debian 12 is too old for components, so by_hand applies the component there.
component() {
    mkdir -p "$WORK/overlay"
    cp -r conf/kubernetes "$WORK/overlay/base"
    cat >"$WORK/overlay/kustomization.yaml" <<'TEXT'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: kube-system
resources: [base]
components: [base/podmonitor]
TEXT
    if [[ $(kubectl version --client 2>/dev/null) == *'"1"'*'"20"'* ]]; then
        by_hand "$WORK/agent.yaml" >"$WORK/monitored.yaml"
    else
        kubectl kustomize "$WORK/overlay" >"$WORK/monitored.yaml"
    fi && manifests monitored "$WORK/monitored.yaml" conf/kubernetes/symroute.json
}

by_hand() {
    python3 - "$1" conf/kubernetes/podmonitor <<'TEXT'
import sys, yaml
read = lambda name: yaml.safe_load(open(f"{sys.argv[2]}/{name}"))
component = read("kustomization.yaml")
objects = [item for item in yaml.safe_load_all(open(sys.argv[1]))]
objects += [read(name) for name in component["resources"]]
[patch] = component["patches"]
[target] = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])]
[operation] = yaml.safe_load(patch["patch"])
assert operation["op"] == "replace"
*way, last = [int(w) if w.isdigit() else w for w in operation["path"].split("/")[1:]]
for word in way:
    target = target[word]
target[last] = operation["value"]
for item in objects:
    item["metadata"]["namespace"] = "kube-system"
yaml.safe_dump_all(objects, sys.stdout)
TEXT
}

image_builds() {
    mkdir -p "$WORK/context"
    cp "$SYMROUTE_BIN" "$SYMROUTE_CTL" "$WORK/context/"
    podman_ build --network=none -t symroute -f conf/kubernetes/Containerfile "$WORK/context"
}

# container MANIFEST NAME [PODMAN'S WORD...]: runs the container as the manifest describes it.
container() {
    local manifest=$1 name=$2 found container_words
    shift 2
    found=$(manifests words "$manifest" "$name" "$WORK/volume") || return 1
    mapfile -t container_words <<<"$found"
    podman_ run --pull never --name "$name" --log-driver none --ulimit nofile=1024:1024 \
        --ulimit nproc=1024:1024 "$@" "${container_words[@]}"
}

agent_runs() {
    container "$WORK/agent-here.yaml" agent --detach || return 1
    until_ answers_well || { page /readyz; return 1; }
}

doctor_finds_nothing() {
    local said
    if ! said=$(podman_ exec agent /symroutectl doctor --for 0s) || [[ $said != "ok: "* ]]; then
        echo "$said"
        return 1
    fi
}

agent_ends() {
    podman_ rm --force --time 5 agent >/dev/null 2>&1
}

page() {
    timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/9617 && printf 'GET $1 HTTP/1.0\r\n\r\n' >&3 && cat <&3"
}

answers_well() {
    page /healthz | grep -q '^HTTP/1.. 200' && page /readyz | grep -q '^HTTP/1.. 200'
}

# uninstalls CODE WORDS: the container has to end with CODE, and its output has to contain WORDS.
uninstalls() {
    local status=0
    container "$WORK/uninstall.yaml" uninstall --rm >"$WORK/said" 2>&1 || status=$?
    [[ $status -eq $1 ]] || { echo "exit code $status"; return 1; }
    grep -q -- "$2" "$WORK/said"
}

# The entry has been removed, and everything that the pod needs still exists.
pod_is_served() {
    [[ ! -e $NETD/05-symroute.conflist ]] && ! entry_is_there &&
        cmp "$SYMROUTE_BIN" /opt/cni/bin/symroute && "$SYMROUTE_CTL" status && ask "$(address_of "$1")" 2
}

refuses_as_it_was() {
    local before
    before=$(whole_node)
    uninstalls "$@" && diff <(echo "$before") <(whole_node)
}

done_container() {
    container "$WORK/uninstall.yaml" "done" --detach &&
        [[ $(podman_ inspect --format '{{.State.Running}}' "done") == true ]] &&
        podman_ stop --time 5 "done" && [[ $(podman_ inspect --format '{{.State.ExitCode}}' "done") == 0 ]]
}

with_force() {
    sed -i 's/^\( *\)- --run-dir=.*/&\n\1- --force/' "$WORK/uninstall.yaml" && uninstalls 0 "will hang at their end"
}

kubernetes() {
    works "kustomize renders the agent as promised" rendered
    works "and with the PodMonitor" component
    works "and the uninstall" uninstall_rendered
    works "and the example overlay" example_rendered
    conflist bridge bare
    works "a pod starts before" libcni_start early
    whole_node >"$WORK/before"
    works "the image builds offline" image_builds
    works "its agent is ready, run as the manifest says" agent_runs
    works "it has installed the program" cmp "$SYMROUTE_BIN" /opt/cni/bin/symroute
    works "and the entry" entry_is_there
    works "and node state is in force" "$SYMROUTE_CTL" status
    works "doctor finds nothing, in its container" doctor_finds_nothing
    works "a pod starts" node_holds
    works "the pod of before answers by eth1" until_ reached early
    works "another pod starts" libcni_start later
    works "uninstall is refused while the agent runs" refuses_as_it_was 1 "an agent runs on this node"
    agent_ends
    works "uninstall is refused while a pod needs the program" uninstalls 4 "lab-later-eth0: a pod whose DEL"
    works "that pod is served, but the entry is out" pod_is_served later
    works "and refused again, with nothing changed" refuses_as_it_was 4 "lab-later-eth0: a pod whose DEL"
    # Like containerd, libcni now calls only the plugins in the current conflist, so symroute gets no DEL.
    works "the pod ends" libcni_stop later
    works "its DEL did not call us" enrolled_files 1
    works "uninstall" uninstalls 0 "Uninstalled"
    works "the node is as before" same_node "$WORK/before"
    works "uninstall again" uninstalls 0 "Uninstalled"
    works "nothing has come by that" same_node "$WORK/before"
    works "the container that follows stays, and ends when told" done_container
    works "the agent installs once more" agent_runs
    works "a pod starts once more" libcni_start stays
    agent_ends
    works "uninstall by force with that pod" with_force
    works "nothing of ours is left" nothing_is_left
    # The pod's DEL still calls symroute.
    cp "$SYMROUTE_BIN" /opt/cni/bin/symroute
    works "that pod ends" libcni_stop stays
    rm -rf /opt/cni/bin/symroute /run/symroute
    works "the pod of before ends" libcni_stop early
}
