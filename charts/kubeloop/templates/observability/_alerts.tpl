{{- /* The alerts on drift, retraining and the payload log. Triggers and monitors read their numbers from a database, so
several pods report the same ones: the rules use max, not sum. The alerts on missing parts and on serving are in
_serving.tpl. */ -}}
{{- define "kubeloop.alerts" -}}
{{- $part := printf "namespace=%q" .Release.Namespace -}}
{{- $is := include "kubeloop.served" . | fromYaml -}}
- name: KubeloopDriftOpen
  severity: warning
  for: {{ .Values.alerts.driftOpenFor }}
  expr: max by (namespace, service) (kubeloop_monitor_open_episodes{ {{- $part -}} }) > 0
  summary: An episode of drift of {{ "{{ $labels.service }}" }} has been open for {{ .Values.alerts.driftOpenFor }}.
- name: KubeloopCollectorDropping
  severity: critical
  for: 0m
  # The loss by a damaged write-ahead file is known before the first scrape, so this counter never increases.
  expr: >-
    sum by (namespace, reason) (increase(kubeloop_collector_events_dropped_total{ {{- $part -}} }[10m])) > 0
    or sum by (namespace, reason) (kubeloop_collector_events_dropped_total{ {{- $part }}, reason="damaged"}) > 0
  summary: 'The collector loses payload events: {{ "{{ $labels.reason }}" }}.'
- name: KubeloopLogNotWritten
  severity: warning
  for: 5m
  expr: sum by (namespace) (increase(kubeloop_collector_flush_failures_total{ {{- $part -}} }[10m])) > 0
  summary: The collector cannot write segments of the payload log; events wait in its write-ahead file.
- name: KubeloopEventsUnreadable
  severity: warning
  for: 0m
  expr: >-
    max by (namespace, service) (increase(kubeloop_monitor_malformed_total{ {{- $part -}} }[1h])) > 0
    or sum by (namespace, reason) (increase(kubeloop_collector_events_rejected_total{ {{- $part -}} }[1h])) > 0
  summary: 'Events cannot be read, so predictions or labels are missing: {{ "{{ or $labels.reason $labels.service }}" }}.'
{{- with $is.predictors }}
- name: KubeloopEventsLost
  severity: warning
  for: 30m
  # An hour is long enough to rule out chance. Events that the collector refuses also have their own alert.
  expr: >-
    1 - sum by (namespace) (increase(kubeloop_collector_events_total{ {{- $part }}, kind="request"}[1h]))
    / on () group_left sum(increase(kubeloop_inferences_total{ {{- . -}} }[1h])) > 0.05
    and on () sum(increase(kubeloop_inferences_total{ {{- . -}} }[1h])) > 20
  summary: '{{ "{{ $value | humanizePercentage }}" }} of the predictions of the last hour did not reach the payload log.'
{{- end }}
- name: KubeloopEventsAhead
  severity: warning
  for: 0m
  expr: >-
    max by (namespace, service) (increase(kubeloop_monitor_rows_outside_total{ {{- $part }}, why="early"}[1h])) > 0
    or max by (namespace, service) (kubeloop_monitor_watermark_ahead{ {{- $part -}} }) > 0
  summary: 'A clock runs ahead: predictions of {{ "{{ $labels.service }}" }} are in no window.'
{{- with $is.transformers }}
- name: KubeloopRowsLate
  severity: warning
  for: 0m
  expr: >-
    max by (namespace, service) (increase(kubeloop_monitor_rows_outside_total{ {{- $part }}, why="late"}[1h]))
    / on (service) group_left sum by (service) (increase(kubeloop_rows_total{ {{- . -}} }[1h])) > 0.05
  summary: 'Predictions of {{ "{{ $labels.service }}" }} came after their window had closed: {{ "{{ $value | humanizePercentage }}" }} of the last hour.'
- name: KubeloopFeaturesStale
  severity: warning
  for: 15m
  expr: >-
    sum by (namespace, service, feature) (rate(kubeloop_features_missing_total{ {{- . -}} }[30m]))
    / on (namespace, service) group_left
    sum by (namespace, service) (rate(kubeloop_rows_total{ {{- . -}} }[30m]))
    > {{ $.Values.alerts.missingShare }}
  summary: 'Feature {{ "{{ $labels.feature }}" }} of {{ "{{ $labels.service }}" }} is missing or too old in {{ "{{ $value | humanizePercentage }}" }} of the rows.'
{{- end }}
- name: KubeloopLabelsMissing
  severity: warning
  for: 1h
  # A loop that never had labels cannot miss any, and weekends and monthly jobs are expected. Labels that come too late
  # for their window count as missing.
  expr: >-
    max by (namespace, service) (kubeloop_monitor_labelled_share{ {{- $part -}} })
    < 0.5 * max by (namespace, service) (avg_over_time(kubeloop_monitor_labelled_share{ {{- $part -}} }[14d]))
    or sum by (namespace) (increase(kubeloop_collector_events_total{ {{- $part }}, kind="label"}[2d])) == 0
    and sum by (namespace) (increase(kubeloop_collector_events_total{ {{- $part }}, kind="label"}[2d] offset 7d)) > 0
    and count_over_time((sum by (namespace) (increase(kubeloop_collector_events_total{ {{- $part }}, kind="label"}[1d])) > 0)[7d:1d]) > 2
  summary: 'Fewer predictions than usual get their label in time: {{ "{{ or $labels.service \"no label came for two days\" }}" }}.'
- name: KubeloopRetrainFailing
  severity: critical
  for: 0m
  expr: max by (namespace, service) (increase(kubeloop_trigger_runs_total{ {{- $part }}, outcome="failed"}[6h])) > 0
  summary: A retraining of {{ "{{ $labels.service }}" }} failed in all its attempts.
- name: KubeloopGateRejecting
  severity: warning
  for: 0m
  expr: >-
    max by (namespace, service) (increase(kubeloop_trigger_runs_total{ {{- $part }}, outcome="rejected"}[14d])) > {{ sub .Values.alerts.rejections 1 }}.5
    unless max by (namespace, service) (increase(kubeloop_trigger_runs_total{ {{- $part }}, outcome="promoted"}[14d])) > 0
  summary: The gate rejected at least {{ .Values.alerts.rejections }} challengers of {{ "{{ $labels.service }}" }} in two weeks and promoted none.
- name: KubeloopEventsUndelivered
  severity: warning
  for: 15m
  expr: max by (namespace, service) (kubeloop_monitor_undelivered{ {{- $part -}} }) > 0
  summary: The trigger of {{ "{{ $labels.service }}" }} does not answer its monitor.
- name: KubeloopMonitorBehind
  severity: warning
  for: 30m
  expr: min by (namespace, service) (min_over_time(kubeloop_monitor_lag_events{ {{- $part -}} }[30m])) > 0
  summary: The monitor of {{ "{{ $labels.service }}" }} has not caught up with its log for an hour.
- name: KubeloopMonitorFailing
  severity: warning
  for: 15m
  expr: max by (namespace, service) (kubeloop_monitor_failing{ {{- $part -}} }) > 0
  summary: The monitor of {{ "{{ $labels.service }}" }} judges no windows, because a service that it needs does not answer.
- name: KubeloopStoreUnreachable
  severity: warning
  for: 15m
  expr: increase(kubeloop_mirror_failures_total{ {{- $part -}} }[15m]) > 3
  summary: 'The payload log does not reach the S3 store from {{ "{{ $labels.pod }}" }}.'
{{- end -}}
