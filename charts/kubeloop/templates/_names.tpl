{{- /* Every name and label of the chart. All names start with the release's; _loops.tpl passes to loops those that they use. */ -}}

{{- define "kubeloop.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "kubeloop" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-kubeloop" .Release.Name -}}
{{- end -}}
{{- end -}}

{{- /* The name of a part, or of a loop's part: dict root, part, loop (optional). */ -}}
{{- define "kubeloop.name" -}}
{{- $name := printf "%s-%s" (include "kubeloop.fullname" .root) .part -}}
{{- if .loop -}}{{- $name = printf "%s-%s" $name .loop -}}{{- end -}}
{{- if gt (len $name) 63 -}}
{{- fail (printf "the name %s has more than 63 characters; set fullnameOverride to a shorter one" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- /* The address of a part inside the cluster. */ -}}
{{- define "kubeloop.address" -}}
{{- printf "http://%s.%s.svc" (include "kubeloop.name" .) .root.Release.Namespace -}}
{{- end -}}

{{- define "kubeloop.pipelineAccount" -}}{{ include "kubeloop.name" (dict "root" . "part" "pipeline") }}{{- end -}}
{{- define "kubeloop.servingAccount" -}}{{ include "kubeloop.name" (dict "root" . "part" "serving") }}{{- end -}}
{{- define "kubeloop.environment" -}}{{ include "kubeloop.name" (dict "root" . "part" "env") }}{{- end -}}

{{- /* The owner in the bucket's mark (bucket.py). */ -}}
{{- define "kubeloop.owner" -}}
{{- .Values.storage.owner | default (printf "%s/%s" .Release.Namespace (include "kubeloop.fullname" .)) -}}
{{- end -}}

{{- /* The names of ServingRuntimes, as the pipelines make them from loop.yaml's delivery.runtimes. */ -}}
{{- define "kubeloop.runtimes" -}}
{{- $prefix := include "kubeloop.fullname" . -}}
onnx: {{ $prefix }}-onnx
onnxGpu: {{ $prefix }}-onnx-gpu
triton: {{ $prefix }}-triton
vllm: {{ $prefix }}-vllm
{{- end -}}

{{- define "kubeloop.selector" -}}
app.kubernetes.io/name: kubeloop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- if .loop }}
kubeloop.io/loop: {{ .loop }}
{{- end }}
{{- end -}}

{{- define "kubeloop.labels" -}}
{{ include "kubeloop.selector" . }}
app.kubernetes.io/part-of: kubeloop
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Namespaces, as lists under the key `items`, since a template can only return text. */ -}}
{{- define "kubeloop.pipelineNamespace" -}}
{{- .Values.kubeflow.namespace | default .Release.Namespace -}}
{{- end -}}

{{- define "kubeloop.servingNamespaces" -}}
{{- $found := list -}}
{{- range $name, $entry := .Values.loops -}}
{{- $found = append $found (include "kubeloop.loop" (dict "root" $ "name" $name) | fromYaml).delivery.namespace -}}
{{- end -}}
items: {{ $found | default (list .Release.Namespace) | uniq | sortAlpha | toJson }}
{{- end -}}

{{- define "kubeloop.namespaces" -}}
{{- $serving := (include "kubeloop.servingNamespaces" . | fromYaml).items -}}
items: {{ concat $serving (list .Release.Namespace (include "kubeloop.pipelineNamespace" .)) | uniq | sortAlpha | toJson }}
{{- end -}}

{{- /* The pods of an inference service, by the labels that our builder gives them (names.labels): dict loop, part. */ -}}
{{- define "kubeloop.inferencePods" -}}
app.kubernetes.io/name: {{ .loop }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: kubeloop
{{- end -}}
