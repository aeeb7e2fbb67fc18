"""What the chart refuses to render, and that it says what is wrong by the value's name."""

from __future__ import annotations

import pytest

from integration.chart.helm_kit import Helm, HelmError, Object, pick

AN_INGRESS: Object = {"enabled": True, "hosts": [{"host": "images.example.com"}]}
A_MODEL = {"create": True, "spec": {"source": {"path": "/models"}}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"api": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"api": {"replicas": "two"}}, "got string, want integer"),
        ({"api": {"port": 80}}, "minimum: got 80, want 1,024"),
        ({"api": {"imageForm": "png"}}, "value must be one of 'base64', 'url'"),
        ({"api": {"rateLimit": "often"}}, "does not match pattern"),
        ({"api": {"ingress": {"enabled": True}}}, "minItems: got 0, want 1"),
        ({"api": {"ingress": AN_INGRESS}}, "whoever reaches the Ingress could use the API"),
        ({"api": {"service": {"type": "LoadBalancer"}}}, "whoever reaches the LoadBalancer could use the API"),
        ({"api": {"service": {"type": "NodePort"}}}, "whoever reaches the NodePort could use the API"),
        ({"api": {"trustedProxies": "10.0.0.300"}}, "does not match pattern"),
        ({"api": {"trustedProxies": "10.0.0.0/33"}}, "does not match pattern"),
        ({"api": {"trustedProxies": "2001:db8::/129"}}, "does not match pattern"),
        ({"api": {"trustedProxies": "ingress.example.com"}}, "does not match pattern"),
        ({"api": {"trustedProxies": "10.0.0.1,*"}}, "does not match pattern"),
        ({"api": {"service": {"ipFamilies": ["IPv5"]}}}, "value must be one of 'IPv4', 'IPv6'"),
        ({"podSecurity": {"runAsUser": 0}}, "minimum: got 0, want 1"),
        ({"s3": {"addressingStyle": "host"}}, "value must be one of 'auto', 'path', 'virtual'"),
        ({"s3": {"checksums": "never"}}, "value must be one of 'when_supported', 'when_required'"),
        ({"s3": {"caBundle": {"secret": "ca"}}}, "additional properties 'secret' not allowed"),
        ({"api": {"service": {"type": "Public"}}}, "value must be one of"),
        ({"operator": {"resources": {"limit": {}}}}, "additional properties 'limit' not allowed"),
        ({"operator": {"logLevel": "LOUD"}}, "value must be one of"),
        ({"s3": {"existingSecret": ""}}, "does not match pattern"),
        ({"s3": {"secretKey": "x"}}, "additional properties 'secretKey' not allowed"),
        ({"image": {"registry": "https://registry.example.com"}}, "does not match pattern"),
        ({"image": {"pullSecrets": ["registry"]}}, "got string, want object"),
        ({"worker": {"image": {"digest": "latest"}}}, "does not match pattern"),
        ({"image": {"pullPolicy": "Sometimes"}}, "value must be one of"),
        ({"nameOverride": "an.image.service"}, "does not match pattern"),
        ({"fullnameOverride": "x" * 41}, "does not match pattern"),
        ({"namespaces": ["a.b"]}, "does not match pattern"),
        ({"commonLabels": {"app.kubernetes.io/name": "mine"}}, "invalid propertyName 'app.kubernetes.io/name'"),
        ({"api": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "invalid propertyName"),
        ({"api": {"resources": {"limits": {"memory": "64 MB"}}}}, "does not match pattern"),
        ({"api": {"resources": {"limits": {"cpu": -1}}}}, "minimum: got -1, want 0"),
        ({"api": {"extraEnv": [{"value": "x"}]}}, "missing property 'name'"),
        ({"api": {"extraVolumeMounts": [{"name": "ca"}]}}, "missing property 'mountPath'"),
        ({"api": {"topologySpreadConstraints": [{"maxSkew": 1}]}}, "missing properties 'topologyKey'"),
        ({"api": {"podDisruptionBudget": {"maxUnavailable": "250%"}}}, "does not match pattern"),
        ({"api": {"service": {"nodePort": 30080}}}, "got number, want null"),
        ({"api": {"ingress": {"tls": [{"secret": "x"}]}}}, "additional properties 'secret' not allowed"),
        ({"api": {"presignSeconds": 700_000}}, "maximum: got 700,000, want 604,800"),
        ({"operator": {"tolerations": [{"key": "a", "effect": "No"}]}}, "value must be one of"),
        ({"networkPolicy": {"api": {"from": [{"cidr": "192.0.2.0/24"}]}}}, "additional properties 'cidr' not allowed"),
        ({"metrics": {"podMonitor": {"interval": "often"}}}, "does not match pattern"),
        ({"tests": {"numInferenceSteps": 0}}, "minimum: got 0, want 1"),
        ({"api": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}, "minReplicas, 2, is more than maxReplicas, 1"),
        ({"namespaces": ["tenant"]}, "namespaces: the release's own, chart, is not among them"),
        (
            {"namespaces": ["tenant"], "api": {"enabled": False}, "defaultModel": A_MODEL},
            "add it, or set defaultModel.create to false",
        ),
        ({"defaultModel": {"create": True}}, "missing property 'source'"),
        ({"defaultModel": {"name": "a.b"}}, "does not match pattern"),
        ({"networkPolicy": {"s3": {"ports": []}}}, "minItems: got 0, want 1"),
        ({"networkPolicy": {"s3": {"ports": ["443"]}}}, "got string, want integer"),
        ({"worker": {"template": {"spce": {}}}}, "invalid propertyName 'spce'"),
        ({"api": {"httpRoute": {"enabled": True}}}, "minItems: got 0, want 1"),
        ({"api": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}}, "no API keys are set"),
        ({"api": {"httpRoute": {"timeouts": {"idle": "1s"}}}}, "invalid propertyName 'idle'"),
        ({"api": {"serviceAccount": {"create": False}}}, "api.serviceAccount: name one that exists"),
        ({"namespaceOverride": "a.b"}, "does not match pattern"),
        ({"extraObjects": [1]}, "got number, want string or object"),
        ({"metrics": {"serviceMonitor": {"relabelings": [{"action": "delete"}]}}}, "does not match pattern"),
        ({"metrics": {"podMonitor": {"relabelings": [{"source": []}]}}}, "additional properties 'source' not allowed"),
        ({"namespaces": "all"}, "got string, want array"),
        ({"unknown": 1}, "additional properties 'unknown' not allowed"),
        ({"api": {"apiKeys": {"existingSecret": "keys"}}}, "tests.apiKeyName must name an entry"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, values: Object, said: str) -> None:
    with pytest.raises(HelmError) as refusal:
        helm.template(values)
    assert said in str(refusal.value)


def test_an_operator_for_other_namespaces_alone_is_no_mistake(helm: Helm) -> None:
    objects = helm.template({"namespaces": ["tenant"], "api": {"enabled": False}})
    assert pick(objects, "Role", "kubediffusion-operator")["metadata"]["namespace"] == "tenant"


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match="incompatible with Kubernetes"):
        helm.template({}, "--kube-version=1.31.9")
