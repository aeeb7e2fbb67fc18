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

{{- /* Where the objects of the release are, and whose jobs the API serves. */ -}}
{{- define "kubediffusion.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
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
{{- default (list (include "kubediffusion.namespace" .)) .Values.namespaces | uniq | toJson -}}
{{- end -}}

{{- /* Name of a part's service account. Arguments: root, component. */ -}}
{{- define "kubediffusion.serviceAccountName" -}}
{{- $own := (get .root.Values .component).serviceAccount.name -}}
{{- default (printf "%s-%s" (include "kubediffusion.fullname" .root) .component) $own -}}
{{- end -}}

{{- /* How Prometheus changes labels. Argument: a monitor's values. */ -}}
{{- define "kubediffusion.relabelings" -}}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Image of a part. Arguments: root, component. */ -}}
{{- define "kubediffusion.image" -}}
{{- $image := (get .root.Values .component).image -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- /* Without a user the platform chooses one, as OpenShift does from the namespace's range. */ -}}
{{- define "kubediffusion.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
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

{{- /* Storage, which all three parts reach, and where a cloud hands out the credentials for it. */ -}}
{{- define "kubediffusion.s3Egress" -}}
{{- $policy := .Values.networkPolicy -}}
{{ include "kubediffusion.egress" (dict "to" $policy.s3.to "ports" $policy.s3.ports) }}
{{- if $policy.workloadIdentity.enabled }}
{{ include "kubediffusion.egress" (dict "to" $policy.workloadIdentity.to "ports" $policy.workloadIdentity.ports) }}
{{- end }}
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

{{- /* Whether clients of the API may ask for webhooks. */ -}}
{{- define "kubediffusion.apiWebhooks" -}}
{{- kindIs "invalid" .Values.api.webhooks | ternary .Values.webhooks.enabled .Values.api.webhooks -}}
{{- end -}}

{{- /* What API and deliverer both know of webhooks, as environment variables. */ -}}
{{- define "kubediffusion.webhookEnvironment" -}}
- name: KUBEDIFFUSION_WEBHOOK_ALLOWED_HOSTS
  value: {{ join "," .Values.webhooks.allowedHosts | quote }}
- name: KUBEDIFFUSION_WEBHOOK_SECRETS
  value: {{ join "," .Values.webhooks.secrets | quote }}
{{- end -}}

{{- define "kubediffusion.caFolder" -}}
/etc/kubediffusion/s3-ca
{{- end -}}

{{- /* How storage is spoken to, as environment variables of a part: those that the S3 Secret may hold stay unset by default. */ -}}
{{- define "kubediffusion.s3Environment" -}}
{{- if ne .Values.s3.addressingStyle "auto" }}
- name: KUBEDIFFUSION_S3_ADDRESSING_STYLE
  value: {{ .Values.s3.addressingStyle }}
{{- end }}
{{- if ne .Values.s3.checksums "when_supported" }}
- name: AWS_REQUEST_CHECKSUM_CALCULATION
  value: {{ .Values.s3.checksums }}
- name: AWS_RESPONSE_CHECKSUM_VALIDATION
  value: {{ .Values.s3.checksums }}
{{- end }}
{{- if .Values.s3.caBundle.configMap }}
- name: AWS_CA_BUNDLE
  value: {{ include "kubediffusion.caFolder" . }}/{{ .Values.s3.caBundle.key }}
{{- end }}
{{- end -}}

{{- define "kubediffusion.caMount" -}}
{{- if .Values.s3.caBundle.configMap }}
- name: s3-ca
  mountPath: {{ include "kubediffusion.caFolder" . }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "kubediffusion.caVolume" -}}
{{- with .Values.s3.caBundle.configMap }}
- name: s3-ca
  configMap:
    name: {{ . }}
{{- end }}
{{- end -}}
