{{/* A user name or password as a string. YAML makes numbers of what looks like
one; helm hands them on as integers or as floats. */}}
{{- define "apparate.login" -}}
{{- $value := index . 0 -}}
{{- if kindIs "string" $value -}}
{{- $value -}}
{{- else -}}
{{- $text := toString $value -}}
{{- if or (kindIs "float64" $value) (kindIs "float32" $value) -}}
{{- $text = printf "%.0f" $value -}}
{{- if gt $value 9007199254740992.0 -}}
{{- fail (printf "imagePullSecretsCrs: %s is a number too long to be kept whole: put it in quotes" (index . 1)) -}}
{{- end -}}
{{- end -}}
{{- $text -}}
{{- end -}}
{{- end -}}

{{/* imagePullSecretsCrs as a JSON list of objects with strings, as
controllers/pullsecret reads it. */}}
{{- define "apparate.entries" -}}
{{- $list := .Values.imagePullSecretsCrs -}}
{{- if kindIs "map" $list -}}
{{- if $list -}}
{{- $list = list (merge (dict "name" (default "apparate-pull-secret" $list.name)) $list) -}}
{{- else -}}
{{- $list = list -}}
{{- end -}}
{{- end -}}
{{- $out := list -}}
{{- range $list -}}
{{- $entry := dict "namespaces" (default "*" .namespaces) "serviceAccounts" (default "*" .serviceAccounts) "type" (default "docker" .type) "dockerServer" .dockerServer -}}
{{- with .name }}{{ $_ := set $entry "name" . }}{{ end -}}
{{- $_ := set $entry "dockerUsername" (include "apparate.login" (list .dockerUsername "dockerUsername")) -}}
{{- $_ := set $entry "dockerPassword" (include "apparate.login" (list .dockerPassword "dockerPassword")) -}}
{{- $out = append $out $entry -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* "true" where the operator keeps pull secrets. In auto that begins with the first
item and goes on when the list is emptied, or nobody would remove what it made:
the Secret of the list, once in the cluster, is what remembers. */}}
{{- define "apparate.keepsPullSecrets" -}}
{{- $mode := .Values.operator.pullSecrets -}}
{{- if eq $mode "always" -}}
true
{{- else if eq $mode "auto" -}}
{{- if .Values.imagePullSecretsCrs -}}
true
{{- else if lookup "v1" "Secret" .Release.Namespace (printf "%s-pull-secrets" (include "apparate.operator" .)) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The files of the nodes' credentials by name, as JSON. In one file a server has
one account; a second account of a server is in a second file. */}}
{{- define "apparate.nodeCredentials" -}}
{{- $files := list (dict) -}}
{{- range fromJsonArray (include "apparate.entries" .) -}}
{{- $server := .dockerServer -}}
{{- $login := dict "username" .dockerUsername "password" .dockerPassword "auth" (printf "%s:%s" .dockerUsername .dockerPassword | b64enc) -}}
{{- $done := false -}}
{{- range $files -}}
{{- if and (not $done) (not (hasKey . $server)) -}}
{{- $_ := set . $server $login -}}
{{- $done = true -}}
{{- end -}}
{{- end -}}
{{- if not $done -}}
{{- $files = append $files (dict $server $login) -}}
{{- end -}}
{{- end -}}
{{- $out := dict -}}
{{- range $i, $auths := $files -}}
{{- $_ := set $out (ternary "chart.json" (printf "chart-%d.json" $i) (eq $i 0)) (toJson (dict "auths" $auths)) -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}
