{{- /* The specification of each serving runtime: dict root, runtime. */ -}}

{{- /* Loops name their runtime. KServe refuses two selectable runtimes for one format, which two releases would create. */ -}}
{{- define "kubeloop.runtime.onnx" -}}
supportedModelFormats:
  - {name: onnx, version: "1", autoSelect: false}
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
  prometheus.kserve.io/port: "8082"
  prometheus.kserve.io/path: /metrics
containers:
  - name: kserve-container
    {{- include "kubeloop.container" . | nindent 4 }}
    command: [python, -m, kubeloop.serving.server]
    args:
      - --model-dir=/mnt/models
      - --host=0.0.0.0
      - --port=8080
      # No containerPort, since KServe's Service would include it and offer it to clients.
      - --metrics-port=8082
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

{{- /*
Triton needs a repository, <name>/<version>/model.onnx, but a model folder is flat, so this script creates the repository.
Every answer contains the version's number, with which the monitor finds the model's training data.
*/ -}}
{{- define "kubeloop.runtime.tritonStart" -}}
set -eu
for flag do
  shift
  case $flag in
    --name=*) name=${flag#*=} ;;
    --version=*) version=${flag#*=} ;;
    --sha256=*) sha256=${flag#*=} ;;
    *) set -- "$@" "$flag" ;;
  esac
done
told="in the InferenceService's predictor.model.args"
model=/mnt/models/model.onnx
echo "${sha256:?is missing $told}  $model" | sha256sum --check --strict
folder=/tmp/repository/${name:?is missing $told}/${version:?is missing $told}
mkdir -p "$folder"
ln -sf "$model" "$folder/model.onnx"
exec tritonserver --model-repository=/tmp/repository "$@"
{{- end -}}

{{- define "kubeloop.runtime.triton" -}}
supportedModelFormats:
  - {name: onnx, version: "1", autoSelect: false}
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
    command:
      - sh
      - -c
      - |
        {{- include "kubeloop.runtime.tritonStart" . | nindent 8 }}
      - triton
    args:
      # Every input and output has one dimension, the rows. With batches, Triton would expect [rows, 1] and at most 4 rows.
      - --backend-config=default-max-batch-size=0
      - --http-port=8080
      - --grpc-port=9000
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
    # KServe replaces the braces with the inference service's name.
    args:
      - --model=/mnt/models
      - --host=0.0.0.0
      - --port=8080
      - {{ "--served-model-name={{.Name}}" | quote }}
    env:
      - {name: HOME, value: /tmp}
      # PyTorch needs the user's name, which the image does not have.
      - {name: USER, value: vllm}
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
