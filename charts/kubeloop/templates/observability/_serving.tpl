{{- /* The alerts on parts that must run and answer: our own parts, and the predictors and transformers of every loop.

They use `up`, which Prometheus makes for every pod that it finds. It is 0 if a pod does not answer and absent if there is
no pod, so there is a term for each part that must exist (if the chart's own monitors scrape: without them the series is
unknown). No alert needs kube-state-metrics; if it runs, KubeloopPodsMissing also covers single replicas that never
started, MLflow, and predictors without our metrics. */ -}}

{{- /* Matchers of the pods that serve the loops: `transformers`, and `predictors` without those of other projects' servers,
which have other metrics on another port. */ -}}
{{- define "kubeloop.served" -}}
{{- $runtimes := include "kubeloop.runtimes" . | fromYaml -}}
{{- $all := list -}}
{{- $ours := list -}}
{{- range $name, $_ := .Values.loops -}}
{{- $all = append $all $name -}}
{{- $runtime := dig "delivery" "runtime" "" (include "kubeloop.loop" (dict "root" $ "name" $name) | fromYaml) -}}
{{- if has ($runtime | default $runtimes.onnx) (list $runtimes.onnx $runtimes.onnxGpu) -}}
{{- $ours = append $ours $name -}}
{{- end -}}
{{- end -}}
{{- $places := printf "namespace=~%q" ((include "kubeloop.servingNamespaces" . | fromYaml).items | join "|") -}}
loops: {{ $all | toJson }}
ours: {{ $ours | toJson }}
transformers: {{ if $all }}{{ printf "%s, service=~%q, component=\"transformer\"" $places ($all | join "|") | quote }}{{ end }}
predictors: {{ if $ours }}{{ printf "%s, service=~%q, component=\"predictor\"" $places ($ours | join "|") | quote }}{{ end }}
both: {{ if $all }}{{ printf "%s, service=~%q, component=~\"predictor|transformer\"" $places ($all | join "|") | quote }}{{ end }}
{{- end -}}

{{- /* Sum of inference requests with an outcome, by component: dict is, outcome (a matcher), window. */ -}}
{{- define "kubeloop.inferences" -}}
sum by (namespace, service, component) (increase(kubeloop_inferences_total{ {{- .is.both -}}, {{ .outcome -}} }[{{ .window }}]))
{{- end -}}

{{- /* Share of inference requests that the server could not answer, without errors of clients. */ -}}
{{- define "kubeloop.failedShare" -}}
{{ include "kubeloop.inferences" (merge (dict "outcome" "outcome=\"failed\"") .) }}
    / {{ include "kubeloop.inferences" (merge (dict "outcome" "outcome!=\"refused\"") .) }}
{{- end -}}

{{- define "kubeloop.servingAlerts" -}}
{{- $part := printf "namespace=%q" .Release.Namespace -}}
{{- $name := include "kubeloop.fullname" . -}}
{{- $is := include "kubeloop.served" . | fromYaml -}}
{{- $parts := printf "%s, job=~\"%s-(collector|monitor|trigger).*\"" $part $name -}}
{{- $expected := list (include "kubeloop.name" (dict "root" . "part" "collector")) -}}
{{- range $loop, $_ := .Values.loops -}}
{{- range list "monitor" "trigger" -}}
{{- $expected = append $expected (include "kubeloop.name" (dict "root" $ "part" . "loop" $loop)) -}}
{{- end -}}
{{- end -}}
{{- $pods := list $parts -}}
{{- range list $is.transformers $is.predictors -}}{{- with . -}}{{- $pods = append $pods . -}}{{- end -}}{{- end -}}
- name: KubeloopPartDown
  severity: critical
  for: 10m
  expr: >-
    {{- range $i, $matcher := $pods }}
    {{ if $i }}or {{ end }}up{ {{- $matcher -}} } == 0
    {{- end }}
  summary: '{{ "{{ $labels.pod }}" }} does not answer Prometheus.'
{{- if .Values.metrics.enabled }}
- name: KubeloopPartMissing
  severity: critical
  for: 10m
  expr: >-
    {{- range $i, $job := $expected }}
    {{ if $i }}or {{ end }}absent(up{ {{- $part }}, job={{ $job | quote -}} })
    {{- end }}
  summary: 'There is no pod of {{ "{{ $labels.job }}" }}.'
{{- end }}
- name: KubeloopPartRestarting
  severity: warning
  for: 0m
  expr: >-
    {{- range $i, $matcher := $pods }}
    {{ if $i }}or {{ end }}changes(process_start_time_seconds{ {{- $matcher -}} }[1h]) > 2
    {{- end }}
  summary: '{{ "{{ $labels.pod }}" }} started {{ "{{ $value }}" }} times within an hour.'
- name: KubeloopPodsMissing
  severity: warning
  for: 15m
  expr: >-
    kube_deployment_status_replicas_unavailable{ {{- $part }}, deployment=~"{{ $name }}-(monitor|trigger|mlflow).*"} > 0
    or kube_statefulset_replicas{ {{- $part }}, statefulset="{{ $name }}-collector"}
    - kube_statefulset_status_replicas_ready{ {{- $part }}, statefulset="{{ $name }}-collector"} > 0
    {{- if $is.loops }}
    or kube_deployment_status_replicas_unavailable{namespace=~{{ (include "kubeloop.servingNamespaces" . | fromYaml).items | join "|" | quote }}, deployment=~"({{ $is.loops | join "|" }})-(canary-)?(predictor|transformer)"} > 0
    {{- end }}
  summary: '{{ "{{ or $labels.deployment $labels.statefulset }}" }} lacks {{ "{{ $value }}" }} of its pods.'
{{- if $is.loops }}
- name: KubeloopServingDown
  severity: critical
  for: 5m
  expr: >-
    max by (namespace, service, component) (up{ {{- $is.transformers -}} }) == 0
    {{- with $is.predictors }}
    or max by (namespace, service, component) (up{ {{- . -}} }) == 0
    {{- end }}
    {{- range $loop := ternary $is.loops list .Values.metrics.enabled }}
    {{- $where := printf "namespace=%q, service=%q" (include "kubeloop.loop" (dict "root" $ "name" $loop) | fromYaml).delivery.namespace $loop }}
    or absent(up{ {{- $where }}, component="transformer"})
    {{- if has $loop $is.ours }}
    or absent(up{ {{- $where }}, component="predictor"})
    {{- end }}
    {{- end }}
  summary: 'No {{ "{{ $labels.component }}" }} of {{ "{{ $labels.service }}" }} answers.'
- name: KubeloopServingErrors
  severity: critical
  for: 5m
  # With little traffic, a share of five minutes means little: then alert if every request of a longer span failed.
  expr: >-
    {{ include "kubeloop.failedShare" (dict "is" $is "window" "5m") }} > 0.05
    {{- range list "30m" "6h" }}
    or {{ include "kubeloop.failedShare" (dict "is" $is "window" .) }} > 0.99
    and {{ include "kubeloop.inferences" (dict "is" $is "window" . "outcome" "outcome=\"failed\"") }} > 1.5
    {{- end }}
  summary: '{{ "{{ $value | humanizePercentage }}" }} of the requests to the {{ "{{ $labels.component }}" }} of {{ "{{ $labels.service }}" }} fail.'
- name: KubeloopRequestsRefused
  severity: warning
  for: 15m
  expr: >-
    {{ include "kubeloop.inferences" (dict "is" $is "window" "30m" "outcome" "outcome=\"refused\"") }}
    / {{ include "kubeloop.inferences" (dict "is" $is "window" "30m" "outcome" "outcome!=\"\"") }} > 0.5
    and {{ include "kubeloop.inferences" (dict "is" $is "window" "30m" "outcome" "outcome=\"refused\"") }} > 9.5
  summary: 'The {{ "{{ $labels.component }}" }} of {{ "{{ $labels.service }}" }} refuses {{ "{{ $value | humanizePercentage }}" }} of its requests as wrong.'
- name: KubeloopTrafficStopped
  severity: warning
  for: 5m
  # Compare with the same time a week ago, since weekends and nights are quiet. Without such old data, compare with
  # yesterday and with the previous hour, so that a service's first weekend does not raise the alert.
  expr: >-
    sum by (namespace, service) (increase(kubeloop_inferences_total{ {{- $is.both -}} }[30m])) == 0
    and (sum by (namespace, service) (increase(kubeloop_inferences_total{ {{- $is.both -}} }[30m] offset 7d)) > 10
    or (sum by (namespace, service) (increase(kubeloop_inferences_total{ {{- $is.both -}} }[30m] offset 1d)) > 10
    and sum by (namespace, service) (increase(kubeloop_inferences_total{ {{- $is.both -}} }[30m] offset 1h)) > 10
    unless sum by (namespace, service) (increase(kubeloop_inferences_total{ {{- $is.both -}} }[30m] offset 7d))))
  summary: '{{ "{{ $labels.service }}" }} has had no requests for half an hour, although it usually has some at this time.'
{{- end }}
{{- end -}}
