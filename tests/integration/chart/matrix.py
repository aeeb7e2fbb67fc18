"""Installations that people make, as values of the chart."""

from __future__ import annotations

from typing import Any

EVERYTHING: dict[str, Any] = {
    "commonLabels": {"team": "images"},
    "image": {
        "registry": "registry.example.com/team",
        "pullPolicy": "Always",
        "pullSecrets": [{"name": "registry"}],
    },
    "operator": {
        "image": {"digest": "sha256:" + "0" * 64},
        "serviceAccount": {"name": "op", "annotations": {"example.com/identity": "op"}},
        "extraEnv": [{"name": "AWS_CA_BUNDLE", "value": "/etc/s3/ca.crt"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "s3-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/s3", "readOnly": True}],
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "control", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
    },
    "api": {
        "apiKeys": {"existingSecret": "api-keys"},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"example.com/size": "64k"},
            "hosts": [{"host": "images.example.com", "paths": ["/"]}, {"host": "other.example.com"}],
            "tls": [{"secretName": "images-tls", "hosts": ["images.example.com"]}],
        },
        "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 5},
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "service": {"type": "NodePort", "nodePort": 30080, "annotations": {"e": "f"}},
        "trustedProxies": "*",
        "rootPath": "/images",
        "corsOrigins": "https://app.example.com",
        "keyLimits": {
            "alice": {"maxUnfinishedJobs": 100, "maxPriority": 10, "rateLimit": "60/minute", "models": ["sdxl"]}
        },
        "maxStreams": 0,
        "maxStreamsByClient": 10,
        "streamHeartbeatSeconds": 5.5,
        "rateLimit": "10/second;5000/hour",
        "imageForm": "url",
        "priorityClassName": "system-cluster-critical",
    },
    "worker": {
        "template": {
            "metadata": {"labels": {"cost-center": "images"}},
            "spec": {"containers": [{"name": "worker", "env": [{"name": "PRICE", "value": "$(5)"}]}]},
        }
    },
    "defaultModel": {
        "create": True,
        "spec": {
            "source": {
                "huggingFace": {"repository": "org/model", "revision": "main", "tokenSecretRef": {"name": "hf"}}
            },
            "workers": {"maxReplicas": 4, "resources": {"limits": {"memory": "24Gi"}}},
        },
        "gpus": 1,
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {}},
        "runtimeClassName": "nvidia",
        "priorityClassName": "images",
    },
    "networkPolicy": {
        "dns": {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]},
        "apiServer": {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [6443]},
        "s3": {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [443, 9000]},
        "modelHub": {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]},
        "api": {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}]},
        "metrics": {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]},
        "extraEgress": [{"ports": [{"port": 3128}]}],
    },
    "metrics": {
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "relabelings": [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}],
        },
        "podMonitor": {
            "enabled": True,
            "interval": "15s",
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "python_.*"}],
        },
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "tests": {"apiKeyName": "tester"},
}

MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "whole cluster": {"clusterWide": True},
    "two tenants": {"namespaces": ["chart", "tenant"], "image": {"pullSecrets": [{"name": "registry"}]}},
    "whole cluster and everything": EVERYTHING | {"clusterWide": True, "namespaces": ["chart", "tenant"]},
    "no network policies": {"networkPolicy": {"enabled": False}},
    "no model hub": {"networkPolicy": {"modelHub": {"enabled": False}}},
    "another API only": {
        "operator": {"enabled": False},
        "crds": {"upgrade": False},
        "admissionPolicies": {"create": False},
        "aggregatedRoles": {"create": False},
    },
    "webhooks": {
        "webhooks": {
            "enabled": True,
            "replicas": 2,
            "secrets": ["kubediffusion-webhooks", "team-hooks"],
            "allowedHosts": ["hooks.team.svc:8080", "receiver.example"],
            "deniedNetworks": ["203.0.113.0/24", "2001:db8::/32"],
            "timeoutSeconds": 2.5,
        },
        "namespaces": ["chart", "tenant"],
        "metrics": {"podMonitor": {"enabled": True}},
        "networkPolicy": {"webhooks": {"to": [], "ports": [443, 8080]}},
    },
    "webhooks of the whole cluster": {"webhooks": {"enabled": True}, "clusterWide": True},
    "another deliverer's webhooks": {"api": {"webhooks": True}},
    "no API": {"api": {"enabled": False}},
    "OpenShift": {"podSecurity": {"runAsUser": None}},
    "one IP family": {
        # The family that the tests' API server has; it refuses another.
        "api": {"service": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}},
        "networkPolicy": {"api": {"from": [{"ipBlock": {"cidr": "2001:db8::/64"}}]}},
    },
    "storage of a company's own": {
        "s3": {"addressingStyle": "path", "checksums": "when_required", "caBundle": {"configMap": "company-ca"}},
        "networkPolicy": {"workloadIdentity": {"enabled": False}},
    },
    "a proxy that authenticates": {
        "api": {
            "allowUnauthenticated": True,
            "ingress": {"enabled": True, "hosts": [{"host": "images.example.com"}]},
            "trustedProxies": "10.0.0.0/8, 2001:db8::1",
        }
    },
    "a Gateway": {
        "api": {
            "apiKeys": {"existingSecret": "api-keys"},
            "httpRoute": {
                "enabled": True,
                "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
                "hostnames": ["images.example.com"],
                "timeouts": {"request": "0s"},
            },
        },
        "tests": {"apiKeyName": "tester"},
    },
    "accounts of the platform": {
        part: {"serviceAccount": {"create": False, "name": f"their-{part}"}} for part in ("operator", "api", "worker")
    },
    "another namespace": {"namespaceOverride": "tenant"},
    "objects of their own": {
        "extraObjects": [
            """
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-notes
  labels: {{- include "kubediffusion.labels" (dict "root" . "component" "notes") | nindent 4 }}
"""
        ]
    },
    "one replica without drain": {
        "api": {"replicas": 1, "drainSeconds": 0, "podDisruptionBudget": {"enabled": False}, "rateLimit": ""},
        "fullnameOverride": "kd",
    },
}
