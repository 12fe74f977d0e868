{{/* Names and labels of a document of base/: those that kustomize's namePrefix and labels make of it. */}}
{{- define "fuseline.named" -}}
{{- $document := .document -}}
{{- $instance := dict "app.kubernetes.io/instance" .root.Release.Name -}}
{{- $metadata := $document.metadata -}}
{{- $_ := set $metadata "name" (printf "%s-%s" .root.Release.Name $metadata.name) -}}
{{- $_ := merge $metadata.labels $instance -}}
{{- $spec := $document.spec -}}
{{- if eq $document.kind "Service" -}}
{{- $_ := merge $spec.selector $instance -}}
{{- else if eq $document.kind "NetworkPolicy" -}}
{{- $_ := merge $spec.podSelector.matchLabels $instance -}}
{{- else if hasKey $spec "selector" -}}
{{- $_ := merge $spec.selector.matchLabels $instance -}}
{{- end -}}
{{- if hasKey $spec "scaleTargetRef" -}}
{{- $_ := set $spec.scaleTargetRef "name" (printf "%s-%s" .root.Release.Name $spec.scaleTargetRef.name) -}}
{{- end -}}
{{- end -}}

{{/* The Deployment with the values' figures. */}}
{{- define "fuseline.deployment" -}}
{{- $values := .root.Values -}}
{{- $spec := .document.spec -}}
{{- $pod := $spec.template.spec -}}
{{- $container := first $pod.containers -}}
{{- $_ := merge $spec.template.metadata.labels (dict "app.kubernetes.io/instance" .root.Release.Name) -}}
{{- range $pod.topologySpreadConstraints -}}
{{- $_ := merge .labelSelector.matchLabels (dict "app.kubernetes.io/instance" $.root.Release.Name) -}}
{{- end -}}
{{- with $values.podAnnotations }}{{ $_ := set $spec.template.metadata "annotations" . }}{{ end -}}
{{- if eq $values.autoscaling.kind "none" -}}
{{- $_ := set $spec "replicas" $values.replicas -}}
{{- else -}}
{{- $_ := unset $spec "replicas" -}}
{{- end -}}
{{- $tolerations := $values.tolerations -}}
{{- if $values.gpu }}{{ $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}{{ end -}}
{{- with $tolerations }}{{ $_ := set $pod "tolerations" . }}{{ end -}}
{{- range $name := list "nodeSelector" "imagePullSecrets" "initContainers" -}}
{{- with index $values $name }}{{ $_ := set $pod $name . }}{{ end -}}
{{- end -}}
{{- $image := $values.image.repository -}}
{{- if $values.image.digest }}{{ $image = printf "%s@%s" $image $values.image.digest }}
{{- else if $values.image.tag }}{{ $image = printf "%s:%s" $image $values.image.tag }}{{ end -}}
{{- $_ := set $container "image" $image -}}
{{- with $values.image.pullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end -}}
{{- with $values.args }}{{ $_ := set $container "args" (concat $container.args .) }}{{ end -}}
{{- $_ := set $container.startupProbe "failureThreshold" $values.startupFailures -}}
{{- $env := list -}}
{{- if not $values.gpu }}{{ $env = append $env (dict "name" "FUSELINE_THREADS" "value" (toString $values.cpus)) }}{{ end -}}
{{- $env = append $env (dict "name" "FUSELINE_DECODE_THREADS" "value" (toString $values.cpus)) -}}
{{- if ne (toString $values.drainTimeoutSeconds) "30" -}}
{{- $env = append $env (dict "name" "FUSELINE_DRAIN_TIMEOUT_S" "value" (toString $values.drainTimeoutSeconds)) -}}
{{- end -}}
{{- range $name, $value := $values.env }}{{ $env = append $env (dict "name" $name "value" (toString $value)) }}{{ end -}}
{{- $_ := set $container "env" $env -}}
{{- $_ := set $pod "terminationGracePeriodSeconds" (add $container.lifecycle.preStop.sleep.seconds (ceil $values.drainTimeoutSeconds) 10) -}}
{{- $limits := dict "memory" $values.memory -}}
{{- $mounts := list -}}
{{- $volumes := list -}}
{{- if $values.gpu -}}
{{- $_ := set $limits $values.gpu "1" -}}
{{- $mounts = append $mounts (dict "name" "engines" "mountPath" "/var/cache/fuseline") -}}
{{- $volumes = append $volumes (dict "name" "engines" "emptyDir" (dict "sizeLimit" "8Gi")) -}}
{{- end -}}
{{- with $values.models -}}
{{- $mounts = append $mounts (dict "name" "models" "mountPath" "/models" "readOnly" true) -}}
{{- $volumes = append $volumes (merge (dict "name" "models") .) -}}
{{- end -}}
{{- /* The components' patches; lists are added to, and a probe that is HTTPS' is none of gRPC. */}}
{{- range $name := list "tokens" "tls" -}}
{{- $secret := (index $values $name).secret -}}
{{- if $secret -}}
{{- $patch := ($.root.Files.Get (printf "base/%s.yaml" $name) | fromYaml).spec.template.spec -}}
{{- $its := first $patch.containers -}}
{{- $_ := set $container "env" (concat $container.env $its.env) -}}
{{- $mounts = concat $mounts $its.volumeMounts -}}
{{- range $patch.volumes -}}
{{- $_ := set .secret "secretName" $secret -}}
{{- $volumes = append $volumes . -}}
{{- end -}}
{{- range $probe := list "startupProbe" "readinessProbe" "livenessProbe" -}}
{{- with index $its $probe -}}
{{- $_ := unset (index $container $probe) "grpc" -}}
{{- $_ := set (index $container $probe) "httpGet" .httpGet -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $requests := dict "cpu" (toString $values.cpus) "memory" $values.memory -}}
{{- $_ := set $container "resources" (dict "requests" $requests "limits" $limits) -}}
{{- with $mounts }}{{ $_ := set $container "volumeMounts" . }}{{ end -}}
{{- with $volumes }}{{ $_ := set $pod "volumes" . }}{{ end -}}
{{- end -}}

{{/* An autoscaler with the values' bounds. */}}
{{- define "fuseline.autoscaler" -}}
{{- $its := .root.Values.autoscaling -}}
{{- $spec := .document.spec -}}
{{- if eq .document.kind "ScaledObject" -}}
{{- $_ := set $spec "minReplicaCount" $its.minReplicas -}}
{{- $_ := set $spec "maxReplicaCount" $its.maxReplicas -}}
{{- $told := (first $spec.triggers).metadata -}}
{{- $_ := set $told "threshold" (toString $its.queuedRows) -}}
{{- $_ := set $told "serverAddress" $its.prometheus -}}
{{- $_ := set $told "query" (replace "\"fuseline\"" (quote .root.Release.Name) $told.query) -}}
{{- else -}}
{{- $_ := set $spec "minReplicas" $its.minReplicas -}}
{{- $_ := set $spec "maxReplicas" $its.maxReplicas -}}
{{- $_ := set (first $spec.metrics).pods.target "averageValue" (toString $its.queuedRows) -}}
{{- end -}}
{{- end -}}
