{{- /* The specification of each serving runtime: dict root, runtime. */ -}}

{{- define "kubeloop.runtime.onnx" -}}
supportedModelFormats:
  - {name: onnx, version: "1", autoSelect: true, priority: 2}
{{ include "kubeloop.runtime.ours" (merge (dict "image" "runtime") .) }}
{{- end -}}

{{- define "kubeloop.runtime.onnxGpu" -}}
supportedModelFormats:
  - {name: onnx, version: "1", autoSelect: false}
{{ include "kubeloop.runtime.ours" (merge (dict "image" "runtimeGpu") .) }}
{{- end -}}

{{- /* Our server, on the processor or, in the other image, with the CUDA and TensorRT execution providers. */ -}}
{{- define "kubeloop.runtime.ours" -}}
protocolVersions: [v1, v2]
annotations:
  prometheus.kserve.io/port: "8080"
  prometheus.kserve.io/path: /metrics
containers:
  - name: kserve-container
    {{- include "kubeloop.container" . | nindent 4 }}
    command: [python, -m, kubeloop.serving.server]
    args:
      - --model-dir=/mnt/models
      - --host=0.0.0.0
      - --port=8080
      {{- with .runtime.device }}
      - --device={{ . }}
      {{- end }}
    env:
      - {name: HOME, value: /tmp}
      - {name: PYTHONUNBUFFERED, value: "1"}
    ports:
      - {name: http1, containerPort: 8080, protocol: TCP}
    {{- include "kubeloop.probes" (dict "port" "8080" "live" "/v2/health/live" "ready" "/v2/health/ready") | nindent 4 }}
    resources:
      {{- toYaml .runtime.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
volumes:
  - {name: tmp, emptyDir: {sizeLimit: 2Gi}}
{{- end -}}

{{- define "kubeloop.runtime.triton" -}}
supportedModelFormats:
  - {name: onnx, version: "1", autoSelect: false}
  - {name: tensorrt, version: "8", autoSelect: false}
  - {name: pytorch, version: "1", autoSelect: false}
protocolVersions: [v2, grpc-v2]
annotations:
  prometheus.kserve.io/port: "8002"
  prometheus.kserve.io/path: /metrics
containers:
  - name: kserve-container
    image: {{ .runtime.image }}
    imagePullPolicy: {{ .root.Values.images.pullPolicy }}
    terminationMessagePolicy: FallbackToLogsOnError
    securityContext:
      {{- include "kubeloop.containerSecurity" . | nindent 6 }}
    command: [tritonserver]
    args:
      - --model-store=/mnt/models
      - --http-port=8080
      - --grpc-port=9000
      - --allow-grpc=true
      - --allow-http=true
      - --strict-readiness=true
    env:
      - {name: HOME, value: /tmp}
    ports:
      - {name: http1, containerPort: 8080, protocol: TCP}
    {{- include "kubeloop.probes" (dict "port" "8080" "live" "/v2/health/live" "ready" "/v2/health/ready") | nindent 4 }}
    resources:
      {{- toYaml .runtime.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: shared-memory, mountPath: /dev/shm}
volumes:
  - {name: tmp, emptyDir: {sizeLimit: 10Gi}}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: 2Gi}}
{{- end -}}

{{- define "kubeloop.runtime.vllm" -}}
supportedModelFormats:
  - {name: huggingface, version: "1", autoSelect: false}
protocolVersions: [v1, v2]
annotations:
  prometheus.kserve.io/port: "8080"
  prometheus.kserve.io/path: /metrics
containers:
  - name: kserve-container
    image: {{ .runtime.image }}
    imagePullPolicy: {{ .root.Values.images.pullPolicy }}
    terminationMessagePolicy: FallbackToLogsOnError
    securityContext:
      {{- include "kubeloop.containerSecurity" . | nindent 6 }}
    command: [python3, -m, vllm.entrypoints.openai.api_server]
    # KServe puts the inference service's name where the braces are.
    args:
      - --model=/mnt/models
      - --host=0.0.0.0
      - --port=8080
      - {{ "--served-model-name={{.Name}}" | quote }}
    env:
      - {name: HOME, value: /tmp}
      - {name: HF_HUB_OFFLINE, value: "1"}
      - {name: VLLM_NO_USAGE_STATS, value: "1"}
    ports:
      - {name: http1, containerPort: 8080, protocol: TCP}
    {{- include "kubeloop.probes" (dict "port" "8080" "live" "/health" "ready" "/health") | nindent 4 }}
    resources:
      {{- toYaml .runtime.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: shared-memory, mountPath: /dev/shm}
volumes:
  - {name: tmp, emptyDir: {sizeLimit: 20Gi}}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: 2Gi}}
{{- end -}}
