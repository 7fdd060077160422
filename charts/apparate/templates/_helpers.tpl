{{- define "apparate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* RELEASE-apparate, or apparate alone where the release has that in its name. 40
leaves room for what is appended: names end up in host names and labels. */}}
{{- define "apparate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "apparate.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "apparate.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "apparate.operator" -}}{{ include "apparate.fullname" . }}-operator{{- end -}}
{{- define "apparate.node" -}}{{ include "apparate.fullname" . }}-node{{- end -}}
{{- define "apparate.uninstall" -}}{{ include "apparate.fullname" . }}-uninstall{{- end -}}
{{- define "apparate.profiles" -}}{{ include "apparate.fullname" . }}-profiles{{- end -}}
{{- define "apparate.samples" -}}{{ include "apparate.fullname" . }}-samples{{- end -}}
{{- define "apparate.pullSecrets" -}}{{ include "apparate.fullname" . }}-pull-secrets{{- end -}}

{{/* What selects pods of a component: never changes. Called with (list . "node"). */}}
{{- define "apparate.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "apparate.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object of a component. */}}
{{- define "apparate.labels" -}}
{{- $ := index . 0 -}}
{{- $own := fromYaml (include "apparate.selector" .) -}}
{{- $_ := set $own "app.kubernetes.io/version" $.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $.Chart.Name ($.Chart.Version | replace "+" "_")) -}}
{{- toYaml (merge $own (include "apparate.clean" $.Values.commonLabels | fromYaml)) -}}
{{- end -}}

{{/* Labels of a component's pods: only what is meant to replace them when it changes.
Called with (list . "node" .Values.node.podLabels). */}}
{{- define "apparate.podLabels" -}}
{{- $ := index . 0 -}}
{{- $more := merge (include "apparate.clean" (index . 2) | fromYaml) (include "apparate.clean" $.Values.commonLabels | fromYaml) -}}
{{- toYaml (merge (include "apparate.selector" . | fromYaml) $more) -}}
{{- end -}}

{{/* A map of strings without what was set to null. */}}
{{- define "apparate.clean" -}}
{{- $out := dict -}}
{{- range $k, $v := . }}{{ if not (kindIs "invalid" $v) }}{{ $_ := set $out $k $v }}{{ end }}{{ end -}}
{{- toYaml $out -}}
{{- end -}}

{{- define "apparate.image" -}}
{{- with .Values.image -}}
{{- $name := .repository -}}
{{- if .registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .registry) .repository }}{{ end -}}
{{- if .digest -}}
{{- printf "%s@%s" $name .digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* imagePullSecrets of the installation's own pods. */}}
{{- define "apparate.imagePullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ if kindIs "map" . }}{{ .name | quote }}{{ else }}{{ . | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Pods and containers that need no rights on their node. */}}
{{- define "apparate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "apparate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Annotations of what exists only while the release is being uninstalled. */}}
{{- define "apparate.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
