{{- define "kubediffusion.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{- /* Prefix of all names: a part's name follows, and Pods' names add to that. A Service's name has no dot. */ -}}
{{- define "kubediffusion.fullname" -}}
{{- $name := include "kubediffusion.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What selects the Pods of a part. Arguments: root, component. */ -}}
{{- define "kubediffusion.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kubediffusion.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /* Labels of an object. Arguments: root, component. */ -}}
{{- define "kubediffusion.labels" -}}
{{ include "kubediffusion.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Selects the worker Pods that the operator makes, of all releases: their labels are the operator's own. */ -}}
{{- define "kubediffusion.workerSelectorLabels" -}}
app.kubernetes.io/managed-by: kubediffusion-operator
app.kubernetes.io/component: worker
{{- end -}}

{{- /* Namespaces that are served, as JSON for fromJsonArray. */ -}}
{{- define "kubediffusion.namespaces" -}}
{{- default (list .Release.Namespace) .Values.namespaces | uniq | toJson -}}
{{- end -}}

{{- /* Name of a part's service account. Arguments: root, component. */ -}}
{{- define "kubediffusion.serviceAccountName" -}}
{{- $own := (get .root.Values .component).serviceAccount.name -}}
{{- default (printf "%s-%s" (include "kubediffusion.fullname" .root) .component) $own -}}
{{- end -}}

{{- /* Image of a part. Arguments: root, component. */ -}}
{{- define "kubediffusion.image" -}}
{{- $image := (get .root.Values .component).image -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "kubediffusion.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "kubediffusion.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Where the Pods of a part go. Arguments: root, component. */ -}}
{{- define "kubediffusion.placement" -}}
{{- $part := get .root.Values .component -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $selector := dict "labelSelector" (dict "matchLabels" (include "kubediffusion.selectorLabels" $ | fromYaml)) }}
  {{- range . }}
  - {{- hasKey . "labelSelector" | ternary . (merge (deepCopy .) $selector) | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Rules of a part, from the one file that the local control plane reads too. Arguments: root, component. */ -}}
{{- define "kubediffusion.rules" -}}
{{- .root.Files.Get (printf "files/rbac/%s.yaml" .component) | trim -}}
{{- end -}}

{{- /* An egress rule. Arguments: to, ports, protocols. */ -}}
{{- define "kubediffusion.egress" -}}
- ports:
    {{- range $port := .ports }}
    {{- range default (list "TCP") $.protocols }}
    - protocol: {{ . }}
      port: {{ $port }}
    {{- end }}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "kubediffusion.dnsEgress" -}}
{{- with .Values.networkPolicy.dns -}}
{{ include "kubediffusion.egress" (dict "to" .to "ports" .ports "protocols" (list "UDP" "TCP")) }}
{{- end -}}
{{- end -}}

{{- /* What every part must reach: DNS and the API server. */ -}}
{{- define "kubediffusion.commonEgress" -}}
{{- $policy := .Values.networkPolicy -}}
{{ include "kubediffusion.dnsEgress" . }}
{{ include "kubediffusion.egress" (dict "to" $policy.apiServer.to "ports" $policy.apiServer.ports) }}
{{- with $policy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Storage, which all three parts reach. */ -}}
{{- define "kubediffusion.s3Egress" -}}
{{- $policy := .Values.networkPolicy -}}
{{ include "kubediffusion.egress" (dict "to" $policy.s3.to "ports" $policy.s3.ports) }}
{{- end -}}

{{- /* Who may read metrics. Arguments: root, port. */ -}}
{{- define "kubediffusion.metricsIngress" -}}
{{- with .root.Values.networkPolicy.metrics.from -}}
- ports:
    - protocol: TCP
      port: {{ $.port }}
  from:
    {{- toYaml . | nindent 4 }}
{{- end -}}
{{- end -}}
