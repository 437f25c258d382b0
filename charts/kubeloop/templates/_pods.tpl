{{- /* The common parts of pods and containers. */ -}}

{{- define "kubeloop.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- with .root.Values.images.registry -}}{{- $image = printf "%s/%s" . $image -}}{{- end -}}
{{- $image -}}
{{- end -}}

{{- /* The settings of a part's pods: `pods`, with the part's own changes over them. */ -}}
{{- define "kubeloop.podSettings" -}}
{{- mergeOverwrite (deepCopy .root.Values.pods) (deepCopy (.changes | default dict)) | toYaml -}}
{{- end -}}

{{- /* The pod's metadata: dict root, part, loop, changes, checksum (optional). */ -}}
{{- define "kubeloop.podMetadata" -}}
{{- $pod := include "kubeloop.podSettings" . | fromYaml -}}
labels:
  {{- include "kubeloop.labels" . | nindent 2 }}
{{- $annotations := $pod.annotations | default dict }}
{{- with .checksum }}
{{- $annotations = merge (dict "checksum/config" (sha256sum .)) $annotations }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The pod's own fields: dict root, part, loop, changes, account, token (bool), spread (bool). */ -}}
{{- define "kubeloop.podSpec" -}}
{{- $pod := include "kubeloop.podSettings" . | fromYaml -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if and .spread $pod.topologyKey }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $pod.topologyKey }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "kubeloop.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "kubeloop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Image, pull policy and security of a container, and the source of its termination message: dict root, image. */ -}}
{{- define "kubeloop.container" -}}
image: {{ include "kubeloop.image" . }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- include "kubeloop.containerSecurity" . | nindent 2 }}
{{- end -}}

{{- /* Variables of all our containers, the part's extra ones last: dict root, changes. */ -}}
{{- define "kubeloop.env" -}}
{{- $pod := include "kubeloop.podSettings" . | fromYaml -}}
- {name: HOME, value: /tmp}
- {name: PYTHONUNBUFFERED, value: "1"}
- {name: KUBELOOP_STATE, value: {{ .state | default "/tmp/kubeloop" }}}
# Return freed memory to the node: glibc keeps an arena for each thread, and Arrow's own allocator never returns any.
# This halves the memory that the monitor keeps after reading the log.
- {name: MALLOC_ARENA_MAX, value: "1"}
- {name: MALLOC_TRIM_THRESHOLD_, value: "131072"}
- {name: ARROW_DEFAULT_MEMORY_POOL, value: system}
{{- with $pod.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Variables for containers that use the S3 store. */ -}}
{{- define "kubeloop.storageEnv" -}}
{{- $storage := .root.Values.storage -}}
- {name: KUBELOOP_BUCKET, value: {{ $storage.bucket | quote }}}
- {name: KUBELOOP_OWNER, value: {{ include "kubeloop.owner" .root | quote }}}
- {name: AWS_REGION, value: {{ $storage.region | quote }}}
{{- with $storage.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- if $storage.secret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
{{ include "kubeloop.secretEnv" (dict "name" . "secret" (dict "name" $storage.secret "key" .)) }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* A variable from a Secret: dict name, secret. */ -}}
{{- define "kubeloop.secretEnv" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret.name }}, key: {{ .secret.key }}}}
{{- end -}}

{{- /* Probes over HTTP: dict port, live (path), ready (path; without it there is no readiness probe). */ -}}
{{- define "kubeloop.probes" -}}
startupProbe:
  httpGet: {path: {{ .live }}, port: {{ .port }}}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: {{ .live }}, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- with .ready }}
readinessProbe:
  httpGet: {path: {{ . }}, port: {{ $.port }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
{{- end -}}

{{- /* The mirror next to a collector or a monitor: dict root, direction, args, resources, changes, state.
No readiness probe: a store that is down must not take the pod out of its Service. */ -}}
{{- define "kubeloop.mirror" -}}
name: mirror
{{ include "kubeloop.container" (dict "root" .root "image" "runtime") }}
restartPolicy: Always
command: [python, -m, kubeloop.payloads.mirror]
args: [{{ .direction }}, --dir, /data/payloads, {{ with .references }}--references, {{ . }}, {{ end }}--host, "0.0.0.0", --port, "8081"]
env:
  {{- include "kubeloop.env" . | nindent 2 }}
  {{- include "kubeloop.storageEnv" . | nindent 2 }}
ports:
  - {name: mirror, containerPort: 8081}
{{ include "kubeloop.probes" (dict "port" "mirror" "live" "/healthz") }}
resources:
  {{- toYaml .resources | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
{{- end -}}

{{- /* A ServiceAccount: dict root, part, loop, name, namespace, storage (bool), token (bool): whether pods that do not
set this themselves get its token. Pods of this chart set it; those of Argo, Kubeflow Trainer and KServe do not. */ -}}
{{- define "kubeloop.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  labels:
    {{- include "kubeloop.labels" . | nindent 4 }}
  {{- if .storage }}
  {{- with .root.Values.storage.identityAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
automountServiceAccountToken: {{ .token | default false }}
{{- end -}}

{{- /* A Service on port 80: dict root, part, loop, port, always (bool: also while not ready), metrics (bool), mirror (bool). */ -}}
{{- define "kubeloop.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "kubeloop.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kubeloop.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "kubeloop.selector" . | nindent 4 }}
  publishNotReadyAddresses: {{ .always | default false }}
  ports:
    - {name: http, port: 80, targetPort: http}
    {{- if .metrics }}
    - {name: metrics, port: 8082, targetPort: metrics}
    {{- end }}
    {{- if .mirror }}
    - {name: mirror, port: 8081, targetPort: mirror}
    {{- end }}
{{- end -}}

{{- /* A PodDisruptionBudget: dict root, part, loop, labels (optional selector), name and namespace (optional). */ -}}
{{- define "kubeloop.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name | default (include "kubeloop.name" .) }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  labels:
    {{- include "kubeloop.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- .selector | default (include "kubeloop.selector" .) | nindent 6 }}
{{- end -}}

{{- /* An HPA, or KEDA's ScaledObject: dict root, part, scaling. */ -}}
{{- define "kubeloop.scaler" -}}
{{- if .root.Values.keda.enabled -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
{{- else -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
{{- end }}
metadata:
  name: {{ include "kubeloop.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kubeloop.labels" . | nindent 4 }}
spec:
  {{- if .root.Values.keda.enabled }}
  scaleTargetRef: {name: {{ include "kubeloop.name" . }}}
  minReplicaCount: {{ .scaling.minReplicas }}
  maxReplicaCount: {{ .scaling.maxReplicas }}
  triggers:
    - type: cpu
      metricType: Utilization
      metadata: {value: {{ .scaling.cpuPercent | quote }}}
  {{- else }}
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "kubeloop.name" . }}}
  minReplicas: {{ .scaling.minReplicas }}
  maxReplicas: {{ .scaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .scaling.cpuPercent }}}}
  {{- end }}
{{- end -}}
