{{/* Adds the namespace of the release to an object, and labels that no selector uses. */}}
{{- define "symroute.stamp" -}}
{{- $labels := dict "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_")
    "app.kubernetes.io/managed-by" .root.Release.Service
    "app.kubernetes.io/instance" .root.Release.Name
    "app.kubernetes.io/version" .root.Chart.AppVersion }}
{{- $metadata := .object.metadata }}
{{- $_ := set $metadata "namespace" .root.Release.Namespace }}
{{- $own := get $metadata "labels" | default dict }}
{{- $_ := set $metadata "labels" (mergeOverwrite (dict) (.labels | default dict) $own $labels) }}
{{- toYaml .object }}
{{- end }}

{{- define "symroute.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{/* The node's directories of plugins and conflists, as a map. */}}
{{- define "symroute.directories" -}}
{{- $known := .Files.Get "files/platforms.yaml" | fromYaml }}
{{- $platform := .Values.platform | default "kubeadm" }}
{{- if not (hasKey $known $platform) }}
{{- $remedy := "For another platform set directories.plugins and directories.conflists." }}
{{- fail (printf "platform %q is unknown; known: %s. %s" $platform (keys $known | sortAlpha | join ", ") $remedy) }}
{{- end }}
{{- $directories := get $known $platform }}
{{- range $name := list "plugins" "conflists" }}
{{- with get $.Values.directories $name }}
{{- $_ := set $directories $name . }}
{{- end }}
{{- end }}
{{- toYaml $directories }}
{{- end }}

{{/* The text of symroute.json. */}}
{{- define "symroute.settings" -}}
{{- if .Values.settings -}}
{{ mergeOverwrite (dict "type" "symroute") .Values.settings | toJson }}
{{ else -}}
{{ .Files.Get "files/symroute.json" }}
{{- end }}
{{- end }}

{{/* The name contains a hash of the settings, so changed settings restart the agents, node after node. */}}
{{- define "symroute.settingsName" -}}
symroute-{{ include "symroute.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{/* Merges arguments: an option of "more" replaces the option with the same name, or is added at the end. */}}
{{- define "symroute.arguments" -}}
{{- $result := list }}
{{- $new := .more }}
{{- range $argument := .arguments }}
{{- $place := $argument }}
{{- range $other := $.more }}
{{- if eq (splitList "=" $other | first) (splitList "=" $argument | first) }}
{{- $place = $other }}
{{- $new = without $new $other }}
{{- end }}
{{- end }}
{{- $result = append $result $place }}
{{- end }}
{{- concat $result $new | toYaml }}
{{- end }}

{{/* Applies the values to a DaemonSet's template. "worker" is the container that works on the node. */}}
{{- define "symroute.changeTemplate" -}}
{{- $values := .root.Values }}
{{- $metadata := .daemonset.spec.template.metadata }}
{{- $pod := .daemonset.spec.template.spec }}
{{- with $values.podAnnotations }}
{{- $_ := set $metadata "annotations" (mergeOverwrite (get $metadata "annotations" | default dict) .) }}
{{- end }}
{{- $_ := set $metadata "labels" (mergeOverwrite (dict) ($values.podLabels | default dict) $metadata.labels) }}
{{- range $container := concat (get $pod "initContainers" | default list) $pod.containers }}
{{- $_ := set $container "image" (include "symroute.image" $.root) }}
{{- with $values.image.pullPolicy }}
{{- $_ := set $container "imagePullPolicy" . }}
{{- end }}
{{- end }}
{{- with $values.imagePullSecrets }}
{{- $_ := set $pod "imagePullSecrets" . }}
{{- end }}
{{- with $values.nodeSelector }}
{{- $_ := set $pod "nodeSelector" (mergeOverwrite (dict) . $pod.nodeSelector) }}
{{- end }}
{{- if not (kindIs "invalid" $values.tolerations) }}
{{- $_ := set $pod "tolerations" $values.tolerations }}
{{- end }}
{{- with $values.priorityClassName }}
{{- $_ := set $pod "priorityClassName" . }}
{{- end }}
{{- with $values.resources }}
{{- $_ := set $.worker "resources" . }}
{{- end }}
{{- with $values.seLinuxType }}
{{- $_ := set $.worker.securityContext "seLinuxOptions" (dict "type" .) }}
{{- end }}
{{- $directories := include "symroute.directories" .root | fromYaml }}
{{- range $volume := $pod.volumes }}
{{- with get $directories $volume.name }}
{{- $_ := set $volume.hostPath "path" . }}
{{- end }}
{{- end }}
{{- end }}
