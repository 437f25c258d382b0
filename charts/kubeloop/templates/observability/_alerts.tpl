{{- /* The alerts. Triggers and monitors read their numbers from a database, so that several pods tell the same ones:
hence max, where others would sum. */ -}}
{{- define "kubeloop.alerts" -}}
{{- $part := printf "namespace=%q" .Release.Namespace -}}
- name: KubeloopDriftOpen
  severity: warning
  for: {{ .Values.alerts.driftOpenFor }}
  expr: max by (service) (kubeloop_monitor_open_episodes{ {{- $part -}} }) > 0
  summary: An episode of drift of {{ "{{ $labels.service }}" }} has been open for {{ .Values.alerts.driftOpenFor }}.
- name: KubeloopCollectorDropping
  severity: critical
  for: 0m
  expr: sum by (reason) (increase(kubeloop_collector_events_dropped_total{ {{- $part -}} }[10m])) > 0
  summary: 'The collector refuses payload events: {{ "{{ $labels.reason }}" }}.'
- name: KubeloopEventsUnreadable
  severity: warning
  for: 0m
  expr: >-
    max by (service) (increase(kubeloop_monitor_malformed_total{ {{- $part -}} }[1h])) > 0
    or sum by (reason) (increase(kubeloop_collector_events_rejected_total{ {{- $part -}} }[1h])) > 0
  summary: 'Events cannot be read, so predictions or labels are missing: {{ "{{ or $labels.reason $labels.service }}" }}.'
- name: KubeloopEventsAhead
  severity: warning
  for: 0m
  expr: >-
    max by (service) (increase(kubeloop_monitor_rows_outside_total{ {{- $part }}, why="early"}[1h])) > 0
    or max by (service) (kubeloop_monitor_watermark_ahead{ {{- $part -}} }) > 0
  summary: 'A clock runs ahead: predictions of {{ "{{ $labels.service }}" }} are in no window.'
- name: KubeloopFeaturesStale
  severity: warning
  for: 15m
  expr: >-
    sum by (namespace, service, feature) (rate(kubeloop_features_missing_total[30m]))
    / on (namespace, service) group_left
    sum by (namespace, service) (rate(kubeloop_rows_total{component="transformer"}[30m]))
    > {{ .Values.alerts.missingShare }}
  summary: 'Feature {{ "{{ $labels.feature }}" }} of {{ "{{ $labels.service }}" }} is missing or too old in {{ "{{ $value | humanizePercentage }}" }} of the rows.'
- name: KubeloopRetrainFailing
  severity: critical
  for: 0m
  expr: max by (service) (increase(kubeloop_trigger_runs_total{ {{- $part }}, outcome="failed"}[6h])) > 0
  summary: A retraining of {{ "{{ $labels.service }}" }} failed in all its attempts.
- name: KubeloopGateRejecting
  severity: warning
  for: 0m
  expr: >-
    max by (service) (increase(kubeloop_trigger_runs_total{ {{- $part }}, outcome="rejected"}[14d])) > {{ sub .Values.alerts.rejections 1 }}.5
    unless max by (service) (increase(kubeloop_trigger_runs_total{ {{- $part }}, outcome="promoted"}[14d])) > 0
  summary: The gate turned down at least {{ .Values.alerts.rejections }} challengers of {{ "{{ $labels.service }}" }} in two weeks and let none pass.
- name: KubeloopEventsUndelivered
  severity: warning
  for: 15m
  expr: max by (service) (kubeloop_monitor_undelivered{ {{- $part -}} }) > 0
  summary: The trigger of {{ "{{ $labels.service }}" }} does not answer its monitor.
- name: KubeloopMonitorBehind
  severity: warning
  for: 30m
  expr: min by (service) (min_over_time(kubeloop_monitor_lag_events{ {{- $part -}} }[30m])) > 0
  summary: The monitor of {{ "{{ $labels.service }}" }} has not caught up with its log for an hour.
- name: KubeloopStoreUnreachable
  severity: warning
  for: 15m
  expr: increase(kubeloop_mirror_failures_total{ {{- $part -}} }[15m]) > 3
  summary: 'The payload log does not reach the S3 store from {{ "{{ $labels.pod }}" }}.'
- name: KubeloopPartDown
  severity: critical
  for: 10m
  expr: up{ {{- $part }}, job=~"{{ include "kubeloop.fullname" . }}-(collector|monitor|trigger).*"} == 0
  summary: '{{ "{{ $labels.pod }}" }} does not answer Prometheus.'
- name: KubeloopServingErrors
  severity: critical
  for: 5m
  expr: >-
    sum by (namespace, service) (rate(kubeloop_requests_total{component=~"transformer|predictor", code=~"5.."}[5m]))
    / sum by (namespace, service) (rate(kubeloop_requests_total{component=~"transformer|predictor"}[5m]))
    > 0.05
  summary: '{{ "{{ $value | humanizePercentage }}" }} of the requests to {{ "{{ $labels.service }}" }} fail.'
{{- end -}}
