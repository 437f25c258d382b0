{{- /* Parts of NetworkPolicies; each is one entry of `ingress` or `egress`. */ -}}

{{- define "kubeloop.ports" -}}
{{- $found := list -}}
{{- range . -}}{{- $found = append $found (dict "port" (int .) "protocol" "TCP") -}}{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- /* Anywhere but the blocked addresses: pods by selector, since not every network takes them for addresses. */ -}}
{{- define "kubeloop.anywhere" -}}
{{- $four := list -}}
{{- $six := list -}}
{{- range .Values.networkPolicy.blocked -}}
{{- if contains ":" . -}}{{- $six = append $six . -}}{{- else -}}{{- $four = append $four . -}}{{- end -}}
{{- end -}}
- namespaceSelector: {}
- ipBlock: {cidr: 0.0.0.0/0{{ with $four }}, except: {{ toJson . }}{{ end }}}
- ipBlock: {cidr: "::/0"{{ with $six }}, except: {{ toJson . }}{{ end }}}
{{- end -}}

{{- /* Egress to one of networkPolicy's destinations: dict root, destination. */ -}}
{{- define "kubeloop.to" -}}
{{- $destination := index .root.Values.networkPolicy .destination -}}
- to:
    {{- if $destination.to }}
    {{- toYaml $destination.to | nindent 4 }}
    {{- else }}
    {{- include "kubeloop.anywhere" .root | nindent 4 }}
    {{- end }}
  ports:
    {{- range $destination.ports }}
    - {port: {{ int . }}, protocol: TCP}
    {{- if eq $.destination "dns" }}
    - {port: {{ int . }}, protocol: UDP}
    {{- end }}
    {{- end }}
{{- end -}}

{{- /* Peer: pods of a part, in the release's or another namespace: dict part, loop, namespace. */ -}}
{{- define "kubeloop.peer" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/part-of: kubeloop
      app.kubernetes.io/component: {{ .part }}
  {{- with .namespace }}
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ . }}}}
  {{- end }}
{{- end -}}

{{- /* Peers: whole namespaces. */ -}}
{{- define "kubeloop.peerNamespaces" -}}
- namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
{{- end -}}

{{- /* Ingress of Prometheus: dict root, ports. */ -}}
{{- define "kubeloop.scrape" -}}
{{- with .root.Values.networkPolicy.prometheusNamespace -}}
- from:
    {{- include "kubeloop.peerNamespaces" (list .) | nindent 4 }}
  ports:
    {{- include "kubeloop.ports" $.ports | nindent 4 }}
{{- end -}}
{{- end -}}

{{- define "kubeloop.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name | default (include "kubeloop.name" .) }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  labels:
    {{- include "kubeloop.labels" . | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  podSelector:
    matchLabels:
      {{- .selector | default (include "kubeloop.selector" .) | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}
