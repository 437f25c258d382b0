{{- /* A loop's configuration with the cluster's defaults under it, as YAML: dict root, name. */ -}}
{{- define "kubeloop.loop" -}}
{{- $config := (index .root.Values.loops .name).config -}}
{{- if kindIs "string" $config -}}
{{- $config = fromYaml $config -}}
{{- if hasKey $config "Error" -}}
{{- fail (printf "loops.%s.config is not valid YAML: %s" .name $config.Error) -}}
{{- end -}}
{{- end -}}
{{- range list "name" "source" "features" -}}
{{- if not (hasKey $config .) -}}
{{- fail (printf "loops.%s.config has no `%s`; give it what loop.yaml says: --set-file loops.%s.config=loop.yaml" $.name . $.name) -}}
{{- end -}}
{{- end -}}
{{- if ne $config.name .name -}}
{{- fail (printf "loops.%s.config.name is %s; call the entry loops.%s" .name $config.name $config.name) -}}
{{- end -}}
{{- $images := .root.Values.images -}}
{{- $pipelineImages := dict "pull_policy" $images.pullPolicy "pull_secrets" $images.pullSecrets -}}
{{- range $key, $name := dict "core" "core" "runtime" "runtime" "runtime_gpu" "runtimeGpu" "detector" "detector" -}}
{{- $_ := set $pipelineImages $key (include "kubeloop.image" (dict "root" $.root "image" $name)) -}}
{{- end -}}
{{- $environment := include "kubeloop.environment" .root -}}
{{- $delivery := dict "applier" "cluster" "namespace" .root.Release.Namespace "config_map" $environment -}}
{{- $_ := set $delivery "service_account" (include "kubeloop.servingAccount" .root) -}}
{{- $_ := set $delivery "runtimes" (include "kubeloop.fullname" .root) -}}
{{- $_ := set $delivery "secrets" (include "kubeloop.featureSecrets" .root | fromYaml).items -}}
{{- $pipelines := dict "images" $pipelineImages "config_map" $environment -}}
{{- $_ := set $pipelines "service_account" (include "kubeloop.pipelineAccount" .root) -}}
{{- $_ := set $pipelines "secrets" (include "kubeloop.stepSecrets" .root | fromYaml).items -}}
{{- $cluster := dict "delivery" $delivery "pipelines" $pipelines -}}
{{- mergeOverwrite $cluster (deepCopy $config) | toYaml -}}
{{- end -}}

{{- /* The Secrets of the shared feature store, as loop.yaml's delivery.secrets. */ -}}
{{- define "kubeloop.featureSecrets" -}}
{{- $found := list -}}
{{- range $variable, $secret := dict "KUBELOOP_FEATURE_REGISTRY" .Values.features.registry "KUBELOOP_ONLINE_STORE" .Values.features.onlineStore -}}
{{- if $secret.name -}}
{{- $found = append $found (dict "secret" $secret.name "env" (dict $variable $secret.key)) -}}
{{- end -}}
{{- end -}}
items: {{ $found | toJson }}
{{- end -}}

{{- /* The Secrets of every pipeline step, as loop.yaml's pipelines.secrets. */ -}}
{{- define "kubeloop.stepSecrets" -}}
{{- $found := (include "kubeloop.featureSecrets" . | fromYaml).items -}}
{{- with .Values.storage.secret -}}
{{- $found = append $found (dict "secret" . "env" (dict "AWS_ACCESS_KEY_ID" "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SECRET_ACCESS_KEY")) -}}
{{- end -}}
{{- with .Values.mlflow.login.clients -}}
{{- $found = append $found (dict "secret" . "env" (dict "MLFLOW_TRACKING_USERNAME" "username" "MLFLOW_TRACKING_PASSWORD" "password")) -}}
{{- end -}}
items: {{ $found | toJson }}
{{- end -}}

{{- /* Resources of one container of a loop, the loop's own over the default ones: dict root, name, part, default. */ -}}
{{- define "kubeloop.loopResources" -}}
{{- $own := index ((index .root.Values.loops .name).resources | default dict) .part | default dict -}}
{{- mergeOverwrite (deepCopy .default) (deepCopy $own) | toYaml -}}
{{- end -}}

{{- /* Not empty if a loop trains as a TrainJob. */ -}}
{{- define "kubeloop.trainJobs" -}}
{{- range $name, $entry := .Values.loops -}}
{{- /* `{}` counts too: a TrainJob with all defaults. */ -}}
{{- if kindIs "map" (dig "pipelines" "train_job" "" (include "kubeloop.loop" (dict "root" $ "name" $name) | fromYaml)) -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Not empty if a loop's transformer in a namespace uses gRPC: dict root, namespace. */ -}}
{{- define "kubeloop.grpc" -}}
{{- range $name, $entry := .root.Values.loops -}}
{{- $loop := include "kubeloop.loop" (dict "root" $.root "name" $name) | fromYaml -}}
{{- if and (eq $loop.delivery.namespace $.namespace) (dig "serving" "grpc" false $loop) -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Not empty if a pipeline itself applies to a namespace, as it does without GitOps: dict root, namespace. */ -}}
{{- define "kubeloop.applies" -}}
{{- range $name, $entry := .root.Values.loops -}}
{{- $delivery := (include "kubeloop.loop" (dict "root" $.root "name" $name) | fromYaml).delivery -}}
{{- if and (eq $delivery.namespace $.namespace) (ne $delivery.applier "gitops") -}}yes{{- end -}}
{{- else -}}yes{{- end -}}
{{- end -}}
