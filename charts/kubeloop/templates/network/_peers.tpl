{{- /* Parts of NetworkPolicies; each is one entry of `ingress` or `egress`. */ -}}

{{- define "kubeloop.ports" -}}
{{- $found := list -}}
{{- range . -}}{{- $found = append $found (dict "port" (int .) "protocol" "TCP") -}}{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- /* Anywhere except the blocked addresses: pods by selector, since some networks do not match pods by address. */ -}}
{{- define "kubeloop.anywhere" -}}
- namespaceSelector: {}
{{ include "kubeloop.outside" . }}
{{- end -}}

{{- /* Any address except the blocked ones. */ -}}
{{- define "kubeloop.outside" -}}
{{- $four := list -}}
{{- $six := list -}}
{{- range .Values.networkPolicy.blocked -}}
{{- if contains ":" . -}}{{- $six = append $six . -}}{{- else -}}{{- $four = append $four . -}}{{- end -}}
{{- end -}}
- ipBlock: {cidr: 0.0.0.0/0{{ with $four }}, except: {{ toJson . }}{{ end }}}
- ipBlock: {cidr: "::/0"{{ with $six }}, except: {{ toJson . }}{{ end }}}
{{- end -}}

{{- /* Egress to one of networkPolicy's destinations: dict root, destination. */ -}}
{{- define "kubeloop.to" -}}
{{- $destination := index .root.Values.networkPolicy .destination -}}
{{- $ports := list -}}
{{- range $destination.ports -}}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- if eq .destination "objectStore" -}}
{{- $ports = append $ports (include "kubeloop.storePort" .root | int) | uniq -}}
{{- end -}}
- to:
    {{- if or $destination.namespaces $destination.to }}
    {{- with $destination.namespaces }}
    {{- include "kubeloop.peerNamespaces" . | nindent 4 }}
    {{- end }}
    {{- with $destination.to }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- else if eq .destination "objectStore" }}
    {{- include "kubeloop.store" .root | nindent 4 }}
    {{- else if has .destination (list "kubernetes" "sources") }}
    {{- include "kubeloop.anywhere" .root | nindent 4 }}
    {{- else }}
    {{- include "kubeloop.peerNamespaces" (list .root.Release.Namespace) | nindent 4 }}
    {{- end }}
  {{- with $ports }}
  ports:
    {{- range . }}
    - {port: {{ . }}, protocol: TCP}
    {{- if eq $.destination "dns" }}
    - {port: {{ . }}, protocol: UDP}
    {{- end }}
    {{- end }}
  {{- end }}
{{- end -}}

{{- /* The host of storage.endpoint and, after a colon, its port if it names one. */ -}}
{{- define "kubeloop.storeHost" -}}
{{- with .Values.storage.endpoint -}}{{- get (urlParse .) "host" -}}{{- end -}}
{{- end -}}

{{- define "kubeloop.storePort" -}}
{{- $named := regexFind "[0-9]+$" (regexFind ":[0-9]+$" (include "kubeloop.storeHost" .)) -}}
{{- $named | default (ternary "80" "443" (hasPrefix "http:" .Values.storage.endpoint)) -}}
{{- end -}}

{{- /* Peers: the store of storage.endpoint. A store outside the cluster is only identified by its port. */ -}}
{{- define "kubeloop.store" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (include "kubeloop.storeHost" .) "" -}}
{{- $labels := splitList "." $host -}}
{{- if regexMatch "^[0-9]+([.][0-9]+){3}$" $host -}}
- ipBlock: {cidr: {{ $host }}/32}
{{- else if and $host (eq (len $labels) 1) -}}
{{- include "kubeloop.peerNamespaces" (list .Release.Namespace) -}}
{{- else if or (regexMatch "^[^.]+[.][^.]+[.]svc([.]|$)" $host) (and (eq (len $labels) 2) (hasPrefix "http:" .Values.storage.endpoint)) -}}
{{- include "kubeloop.peerNamespaces" (list (index $labels 1)) -}}
{{- else -}}
{{- include "kubeloop.outside" . -}}
{{- end -}}
{{- end -}}

{{- /* Egress of a pipeline's pods. A destination `anywhere` includes all others. */ -}}
{{- define "kubeloop.stepsReach" -}}
{{- include "kubeloop.to" (dict "root" . "destination" "sources") }}
{{- $sources := .Values.networkPolicy.sources }}
{{- if or $sources.namespaces $sources.to }}
- to:
    {{- include "kubeloop.peerNamespaces" (list .Values.kubeflow.systemNamespace) | nindent 4 }}
- to:
    {{- range list "collector" "monitor" }}
    {{- include "kubeloop.peer" (dict "part" . "namespace" $.Release.Namespace) | nindent 4 }}
    {{- end }}
  ports:
    {{- include "kubeloop.ports" (list 8080) | nindent 4 }}
{{- if .Values.mlflow.enabled }}
- to:
    {{- include "kubeloop.peer" (dict "part" "mlflow" "namespace" .Release.Namespace) | nindent 4 }}
  ports:
    {{- include "kubeloop.ports" (list 5000) | nindent 4 }}
{{- end }}
{{- range list "database" "onlineStore" "objectStore" "kubernetes" }}
{{ include "kubeloop.to" (dict "root" $ "destination" .) }}
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

{{- /* Ingress of clients that only read, on read-only ports: dict root, ports, test (bool: `helm test` too). */ -}}
{{- define "kubeloop.scrape" -}}
{{- $prometheus := .root.Values.networkPolicy.prometheusNamespace -}}
{{- if or $prometheus .test -}}
- from:
    {{- with $prometheus }}
    {{- include "kubeloop.peerNamespaces" (list .) | nindent 4 }}
    {{- end }}
    {{- if .test }}
    {{- include "kubeloop.peer" (dict "part" "test") | nindent 4 }}
    {{- end }}
  ports:
    {{- include "kubeloop.ports" .ports | nindent 4 }}
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
