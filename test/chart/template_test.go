package chart

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// variant is a way to install the chart.
type variant struct {
	values string
	args   []string
	check  func(t *testing.T, all objects)
	// old is for a Kubernetes that the API server of the tests is too new for.
	old bool
}

var variants = map[string]variant{
	"defaults": {check: checkDefaults},
	"job mode": {
		values: `operator: {conversion: {mode: job, jobTemplate: {spec: {containers: [{name: convert, resources: {limits: {memory: 1Gi}}}]}}}}`,
		check: func(t *testing.T, all objects) {
			d := has[*appsv1.Deployment](t, all, "apparate-operator")
			contains(t, flags(d.Spec.Template.Spec.Containers[0]),
				"--conversion-mode=job\n", "--job-image=ghcr.io/apparate/apparate:1.0.0\n", "--job-template=/etc/apparate/jobs/template.yaml\n")
			contains(t, has[*corev1.ConfigMap](t, all, "apparate-operator-jobs").Data["template.yaml"], "memory: 1Gi")
		},
	},
	"notifications with TLS": {
		values: `operator: {notifications: {tlsSecret: certificate, service: {type: LoadBalancer, annotations: {a: b}}}}`,
		check: func(t *testing.T, all objects) {
			d := has[*appsv1.Deployment](t, all, "apparate-operator")
			contains(t, flags(d.Spec.Template.Spec.Containers[0]),
				"--notification-cert=/etc/apparate/notifications/tls.crt\n", "--notification-key=/etc/apparate/notifications/tls.key\n")
			s := has[*corev1.Service](t, all, "apparate-notifications")
			if s.Spec.Ports[0].Port != 443 || s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Annotations["a"] != "b" {
				t.Errorf("the Service is %+v", s.Spec)
			}
		},
	},
	"no notifications": {
		values: `operator: {notifications: {enabled: false}}`,
		check: func(t *testing.T, all objects) {
			d := has[*appsv1.Deployment](t, all, "apparate-operator")
			contains(t, flags(d.Spec.Template.Spec.Containers[0]), "--notification-address=0\n")
			if find[*corev1.Service](all, "apparate-notifications") != nil {
				t.Error("there is a Service for notifications")
			}
		},
	},
	"no profiles": {
		values: `profiles: {enabled: false}`,
		check: func(t *testing.T, all objects) {
			for component, pod := range pods(t, all) {
				if strings.Contains(flags(pod.Containers[0]), "--samples") || slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == "samples" }) {
					t.Errorf("%s has to do with samples: %+v", component, pod)
				}
			}
			if find[*corev1.Service](all, "apparate-samples") != nil || find[*rbacv1.ClusterRole](all, "apparate-profiles") != nil {
				t.Error("there is a Service or a role for samples")
			}
		},
	},
	"profiles with TLS": {
		values: `{profiles: {tlsSecret: certificate}, networkPolicy: {enabled: true}}`,
		check: func(t *testing.T, all objects) {
			workloads := pods(t, all)
			contains(t, flags(workloads["operator"].Containers[0]), "--samples-cert=/etc/apparate/samples/tls.crt\n", "--samples-key=/etc/apparate/samples/tls.key\n")
			contains(t, flags(workloads["node"].Containers[0]), "--samples-ca=/etc/apparate/samples/ca.crt\n")
			if s := has[*corev1.Service](t, all, "apparate-samples"); s.Spec.Ports[0].Port != 443 {
				t.Errorf("the Service is %+v", s.Spec)
			}
			sources := workloads["node"].Volumes[1].Projected.Sources
			// Of the key the nodes see nothing.
			if len(sources) != 2 || sources[1].Secret.Name != "certificate" || len(sources[1].Secret.Items) != 1 || sources[1].Secret.Items[0].Key != "ca.crt" {
				t.Errorf("the node's pods have %+v", sources)
			}
			rules := has[*networkingv1.NetworkPolicy](t, all, "apparate-operator").Spec.Ingress
			if !slices.ContainsFunc(rules, func(r networkingv1.NetworkPolicyIngressRule) bool {
				return r.Ports[0].Port.StrVal == "samples" && r.From[0].PodSelector.MatchLabels["app.kubernetes.io/component"] == "node"
			}) {
				t.Errorf("nodes may not send samples: %+v", rules)
			}
		},
	},
	"a tuned operator": {
		values: `
operator:
  replicas: 1
  watchNamespaces: [a, b]
  logLevel: debug
  logFormat: text
  conversion: {workers: 8, workersPerRegistry: 3, processors: 2, timeout: 1h30m, maxAttempts: 3, volume: {ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 50Gi}}}}}}}
  podDisruptionBudget: {enabled: false}
  priorityClassName: system-cluster-critical
  topologySpreadConstraints: [{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {a: b}}}]
  nodeSelector: {kubernetes.io/os: null, pool: system}
  tolerations: [{key: pool, operator: Exists}]
  affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}
  podAnnotations: {a: b}
  podLabels: {c: d}
  serviceAccountAnnotations: {role: arn}
  extraArgs: [--kube-qps=100]
`,
		check: checkTuned,
	},
	"a tuned node": {
		values: `
node:
  cacheSize: 20GiB
  minFree: 5GiB
  backgroundFetchDelay: "-1s"
  containerdConfig: /etc/k3s/config.toml
  containerdSocket: /run/k3s/containerd/containerd.sock
  restartCommand: [systemctl, restart, k3s]
  hostsDirs: [/etc/containerd/certs.d, /etc/docker/certs.d]
  podCredentials: true
  credentialProviderConfig: /etc/kubernetes/credentials.yaml
  credentialProviderBinDir: /usr/libexec/credentials
  startupTaint: true
  ownNodeOnly: false
  logLevel: debug
  extraArgs: ["--host-dir=/opt/apparate"]
  maxUnavailable: 10%
  nodeSelector: {cloud.tencent.com/apparate: null, lazy: "yes"}
  tolerations: []
  priorityClassName: ""
  podAnnotations: {a: b}
  podLabels: {c: d}
`,
		check: func(t *testing.T, all objects) {
			d := has[*appsv1.DaemonSet](t, all, "apparate-node")
			if find[*admissionv1.ValidatingAdmissionPolicy](all, "apparate-node") != nil {
				t.Error("nodes are restricted to themselves all the same")
			}
			pod := d.Spec.Template.Spec
			contains(t, flags(pod.Containers[0]),
				"--cache-size=20GiB\n", "--min-free=5GiB\n", "--background-fetch-delay=-1s\n", "--containerd-config=/etc/k3s/config.toml\n",
				"--containerd-socket=/run/k3s/containerd/containerd.sock\n", "--restart-command=systemctl\n--restart-command=restart\n--restart-command=k3s\n",
				"--hosts-dir=/etc/containerd/certs.d\n", "--hosts-dir=/etc/docker/certs.d\n", "--pod-credentials\n",
				"--credential-provider-config=/etc/kubernetes/credentials.yaml\n", "--credential-provider-bin-dir=/usr/libexec/credentials\n",
				"--startup-taint\n", "--log-level=debug\n", "--host-dir=/opt/apparate\n")
			if !maps.Equal(pod.NodeSelector, map[string]string{"lazy": "yes"}) || pod.Tolerations != nil || pod.PriorityClassName != "" {
				t.Errorf("it goes to %v, tolerates %v, priority %q", pod.NodeSelector, pod.Tolerations, pod.PriorityClassName)
			}
			if d.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String() != "10%" || d.Spec.Template.Annotations["a"] != "b" || d.Spec.Template.Labels["c"] != "d" {
				t.Errorf("the DaemonSet is %+v", d.Spec)
			}
		},
	},
	"monitoring": {
		values: `monitoring: {serviceMonitor: {enabled: true, interval: 30s, labels: {team: a}}, podMonitor: {enabled: true, labels: {team: b}}}`,
		check: func(t *testing.T, all objects) {
			var kinds []string
			for _, o := range all {
				if u, ok := o.(*unstructured.Unstructured); ok {
					kinds = append(kinds, u.GetKind()+" "+u.GetName()+" "+u.GetLabels()["team"])
				}
			}
			if fmt.Sprint(kinds) != "[PodMonitor apparate-node b ServiceMonitor apparate-operator a]" {
				t.Errorf("there are %q", kinds)
			}
		},
	},
	"network policies": {
		values: `networkPolicy: {enabled: true, notificationsFrom: [{ipBlock: {cidr: 10.0.0.0/8}}], metricsFrom: [{namespaceSelector: {matchLabels: {a: b}}}], egress: [{ports: [{port: 443}]}]}`,
		check: func(t *testing.T, all objects) {
			p := has[*networkingv1.NetworkPolicy](t, all, "apparate-operator")
			if len(p.Spec.Ingress) != 3 || p.Spec.Ingress[0].From[0].IPBlock.CIDR != "10.0.0.0/8" || len(p.Spec.Egress) != 1 || len(p.Spec.PolicyTypes) != 2 {
				t.Errorf("the operator's policy is %+v", p.Spec)
			}
			if n := has[*networkingv1.NetworkPolicy](t, all, "apparate-node"); len(n.Spec.Ingress) != 1 || len(n.Spec.Ingress[0].From) != 1 {
				t.Errorf("the nodes' policy is %+v", n.Spec)
			}
		},
	},
	"an image by digest": {
		values: `image: {registry: "", repository: "mirror:5000/apparate", tag: ignored, digest: "sha256:` + strings.Repeat("ab", 32) + `", pullPolicy: Always, pullSecrets: [one, {name: two}]}`,
		check: func(t *testing.T, all objects) {
			for _, pod := range pods(t, all) {
				c := pod.Containers[0]
				if c.Image != "mirror:5000/apparate@sha256:"+strings.Repeat("ab", 32) || c.ImagePullPolicy != corev1.PullAlways {
					t.Errorf("the image is %s, pulled %s", c.Image, c.ImagePullPolicy)
				}
				if fmt.Sprint(pod.ImagePullSecrets) != "[{one} {two}]" {
					t.Errorf("it is pulled with %v", pod.ImagePullSecrets)
				}
			}
		},
	},
	"no hook, no CRDs": {
		values: `{uninstallHook: {enabled: false}, crds: {enabled: false}}`,
		check: func(t *testing.T, all objects) {
			for _, o := range all {
				if _, crd := o.(*apiextensionsv1.CustomResourceDefinition); crd || strings.Contains(o.GetName(), "uninstall") {
					t.Errorf("there is %T %s", o, o.GetName())
				}
			}
		},
	},
	"other names": {
		values: `{nameOverride: images, commonLabels: {team: platform, gone: null}}`,
		args:   []string{"--namespace", "elsewhere"},
		check: func(t *testing.T, all objects) {
			d := has[*appsv1.DaemonSet](t, all, "apparate-images-node")
			if d.Labels["team"] != "platform" || d.Spec.Template.Labels["team"] != "platform" || d.Spec.Selector.MatchLabels["team"] != "" {
				t.Errorf("labels are %v, of pods %v, selected by %v", d.Labels, d.Spec.Template.Labels, d.Spec.Selector.MatchLabels)
			}
			for _, o := range all {
				if n := o.GetNamespace(); n != "" && n != "elsewhere" {
					t.Errorf("%T %s is in namespace %s", o, o.GetName(), n)
				}
			}
		},
	},
	"a long name": {
		values: `{fullnameOverride: ` + strings.Repeat("a", 40) + `, uninstallHook: {timeoutSeconds: 600}}`,
		check: func(t *testing.T, all objects) {
			for _, o := range all {
				if len(o.GetName()) > 63 {
					t.Errorf("the name of %T %s is too long for a label", o, o.GetName())
				}
			}
		},
	},
	"Kubernetes 1.20": {
		args: []string{"--kube-version", "1.20"}, old: true,
		check: func(t *testing.T, all objects) {
			has[*policyv1beta1.PodDisruptionBudget](t, all, "apparate-operator")
		},
	},
}

// TestTemplate renders every variant, decodes it strictly, and looks at what it is
// about.
func TestTemplate(t *testing.T) {
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			all := render(t, v.values, v.args...)
			v.check(t, all)
			checkEverywhere(t, all)
		})
	}
}

// checkEverywhere is what holds for every variant.
func checkEverywhere(t *testing.T, all objects) {
	t.Helper()
	names := map[string]bool{}
	for _, o := range all {
		key := fmt.Sprintf("%T %s", o, o.GetName())
		if names[key] {
			t.Errorf("there are two of %s", key)
		}
		names[key] = true
		if o.GetLabels()["app.kubernetes.io/managed-by"] != "Helm" || o.GetLabels()["app.kubernetes.io/instance"] != release {
			t.Errorf("%s has labels %v", key, o.GetLabels())
		}
	}
	for name, pod := range pods(t, all) {
		for _, v := range pod.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s mounts %s of the host", name, v.HostPath.Path)
			}
		}
		for _, c := range pod.Containers {
			for _, m := range c.VolumeMounts {
				if m.SubPath != "" {
					t.Errorf("%s mounts %s by subPath, which is never updated", name, m.Name)
				}
			}
			if name == "node" {
				continue
			}
			s := c.SecurityContext
			if !*s.RunAsNonRoot || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || s.Privileged != nil ||
				fmt.Sprint(s.Capabilities.Drop) != "[ALL]" || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s may do too much: %+v", name, s)
			}
		}
		if name != "node" && (pod.HostPID || pod.HostNetwork) {
			t.Errorf("%s is in namespaces of the host", name)
		}
	}
}

// pods are the pods of all workloads, by component.
func pods(t *testing.T, all objects) map[string]corev1.PodSpec {
	t.Helper()
	found := map[string]corev1.PodSpec{}
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.Deployment:
			found["operator"] = o.Spec.Template.Spec
		case *appsv1.DaemonSet:
			found["node"] = o.Spec.Template.Spec
		case *batchv1.Job:
			found["uninstall"] = o.Spec.Template.Spec
		}
	}
	if len(found) < 2 {
		t.Fatal("workloads are missing")
	}
	return found
}

func checkDefaults(t *testing.T, all objects) {
	checkDefaultNode(t, has[*appsv1.DaemonSet](t, all, "apparate-node"))
	d := has[*appsv1.Deployment](t, all, "apparate-operator")
	pod := d.Spec.Template.Spec
	contains(t, flags(pod.Containers[0]), "/apparate-operator\n", "--leader-elect=true\n", "--leader-namespace=$(POD_NAMESPACE)\n", "--conversion-mode=process\n")
	if *d.Spec.Replicas != 2 || *has[*policyv1.PodDisruptionBudget](t, all, "apparate-operator").Spec.MaxUnavailable != intOrString(1) {
		t.Error("there is no second operator, or both may be evicted")
	}
	c := pod.Containers[0]
	contains(t, flags(c), "--samples-address=:8083\n", "--samples-account=$(POD_NAMESPACE)/apparate-node\n")
	if s := has[*corev1.Service](t, all, "apparate-samples"); s.Spec.Ports[0].Name != "samples" || s.Spec.Ports[0].Port != 80 || s.Spec.Type != "" {
		t.Errorf("the Service for samples is %+v", s.Spec)
	}
	if c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("the container is %+v", c)
	}
	if s := pod.TopologySpreadConstraints; len(s) != 1 || s[0].LabelSelector.MatchLabels["app.kubernetes.io/component"] != "operator" {
		t.Errorf("it is spread by %+v", s)
	}
	// No pull secrets: no file, no right.
	for _, o := range all {
		if strings.Contains(o.GetName(), "pull-secrets") {
			t.Errorf("there is %T %s without a list", o, o.GetName())
		}
	}
	if strings.Contains(flags(c), "--pull-secrets") {
		t.Error("the operator is to keep pull secrets without a list")
	}
	job := has[*batchv1.Job](t, all, "apparate-uninstall")
	contains(t, flags(job.Spec.Template.Spec.Containers[0]),
		"/apparate\nnode\nremove-all\n", "--namespace=apparate-system\n", "--daemonset=apparate-node\n", "--operator=apparate-operator\n")
	if *job.Spec.ActiveDeadlineSeconds != 180 || job.Annotations["helm.sh/hook"] != "pre-delete" || job.Annotations["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded" {
		t.Errorf("the hook is %+v", job)
	}
	weight := func(o interface{ GetAnnotations() map[string]string }) string {
		return o.GetAnnotations()["helm.sh/hook-weight"]
	}
	if weight(has[*corev1.ServiceAccount](t, all, "apparate-uninstall")) != "-10" || weight(has[*rbacv1.ClusterRole](t, all, "apparate-uninstall")) != "-10" ||
		weight(has[*rbacv1.RoleBinding](t, all, "apparate-uninstall")) != "-9" || weight(job) != "0" {
		t.Error("the hook's rights come after the hook")
	}
}

func checkDefaultNode(t *testing.T, d *appsv1.DaemonSet) {
	t.Helper()
	pod := d.Spec.Template.Spec
	c := pod.Containers[0]
	contains(t, flags(c), "/apparate\nnode\n", "--node-name=$(NODE_NAME)\n", "--daemonset=$(POD_NAMESPACE)/apparate-node\n",
		"--listen-address=:9465\n", "--credentials=/etc/apparate/credentials\n")
	if !maps.Equal(pod.NodeSelector, map[string]string{"cloud.tencent.com/apparate": "true"}) ||
		!slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) ||
		!pod.HostPID || pod.HostNetwork || *pod.TerminationGracePeriodSeconds != 60 || pod.PriorityClassName != "system-node-critical" {
		t.Errorf("the pod is %+v", pod)
	}
	if !*c.SecurityContext.Privileged || c.Ports[0].ContainerPort != 9465 || c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" {
		t.Errorf("the container is %+v", c)
	}
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.ValueFrom.FieldRef.FieldPath
	}
	if env["NODE_NAME"] != "spec.nodeName" || env["POD_NAMESPACE"] != "metadata.namespace" {
		t.Errorf("the environment is %v", env)
	}
	if s := d.Spec.UpdateStrategy; s.Type != appsv1.RollingUpdateDaemonSetStrategyType || s.RollingUpdate.MaxUnavailable.IntValue() != 1 {
		t.Errorf("it is updated by %+v", s)
	}
	contains(t, flags(c), "--samples-service=$(POD_NAMESPACE)/apparate-samples\n", "--samples-token=/etc/apparate/samples/token\n")
	if s := pod.Volumes[1].Projected.Sources; len(s) != 1 || s[0].ServiceAccountToken.Audience != "apparate" || s[0].ServiceAccountToken.Path != "token" {
		t.Errorf("its token for samples is %+v", s)
	}
	if v := pod.Volumes; len(v) != 2 || v[0].Secret.SecretName != "apparate-node-credentials" || *v[0].Secret.DefaultMode != 0o400 {
		t.Errorf("its volumes are %+v", v)
	}
}

func checkTuned(t *testing.T, all objects) {
	d := has[*appsv1.Deployment](t, all, "apparate-operator")
	pod := d.Spec.Template.Spec
	contains(t, flags(pod.Containers[0]), "--namespace=a,b\n", "--log-level=debug\n", "--log-format=text\n", "--workers=8\n", "--workers-per-registry=3\n",
		"--processors=2\n", "--conversion-timeout=1h30m\n", "--max-attempts=3\n", "--kube-qps=100\n")
	if find[*policyv1.PodDisruptionBudget](all, "apparate-operator") != nil {
		t.Error("there is a PodDisruptionBudget")
	}
	if *d.Spec.Replicas != 1 || pod.PriorityClassName != "system-cluster-critical" || !maps.Equal(pod.NodeSelector, map[string]string{"pool": "system"}) ||
		len(pod.Tolerations) != 1 || pod.Affinity.PodAntiAffinity == nil || pod.Volumes[0].Ephemeral == nil ||
		d.Spec.Template.Annotations["a"] != "b" || d.Spec.Template.Labels["c"] != "d" {
		t.Errorf("the Deployment is %+v", d.Spec)
	}
	if s := pod.TopologySpreadConstraints; len(s) != 1 || !maps.Equal(s[0].LabelSelector.MatchLabels, map[string]string{"a": "b"}) {
		t.Errorf("it is spread by %+v", s)
	}
	if has[*corev1.ServiceAccount](t, all, "apparate-operator").Annotations["role"] != "arn" {
		t.Error("the service account has no annotation")
	}
}

// contains demands that text has every one of the parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

// TestLint has helm's own linter look at the chart, for which a warning is a
// mistake, with the defaults and with every variant.
func TestLint(t *testing.T) {
	for name, v := range variants {
		if out, bad, err := helm(t, v.values, "lint", "--strict", chart); err != nil {
			t.Errorf("%s: %v\n%s%s", name, err, out, bad)
		}
	}
}

// TestPackage packs the chart as the documentation says: the archive has the
// version in its name and nothing that is no part of a chart.
func TestPackage(t *testing.T) {
	dir := t.TempDir()
	must(t, "", "package", chart, "--destination", dir)
	path := filepath.Join(dir, "apparate-1.0.0.tgz")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if packed := must(t, "", "template", release, path, "--namespace", namespace); packed != template(t, "") {
		t.Error("the package renders something else than the directory")
	}
}

// TestPartOfAnother renders the chart as a part of another one, which hands its
// global values on.
func TestPartOfAnother(t *testing.T) {
	parent := t.TempDir()
	if err := os.CopyFS(filepath.Join(parent, "charts", "apparate"), os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(parent, "Chart.yaml"), []byte("apiVersion: v2\nname: parent\nversion: 0.1.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := decode(t, must(t, `{global: {a: b}, apparate: {node: {cacheSize: 5GiB}}}`, "template", release, parent, "--namespace", namespace))
	contains(t, flags(has[*appsv1.DaemonSet](t, all, "apparate-node").Spec.Template.Spec.Containers[0]), "--cache-size=5GiB\n")
}

// TestFlags proves that the programs know every flag that the chart can give them.
func TestFlags(t *testing.T) {
	used := map[string]map[string]bool{}
	for _, v := range variants {
		for component, pod := range pods(t, render(t, v.values+"\n", v.args...)) {
			if used[component] == nil {
				used[component] = map[string]bool{}
			}
			for _, a := range pod.Containers[0].Args {
				name, _, _ := strings.Cut(a, "=")
				used[component][name] = true
			}
		}
	}
	used["operator"]["--pull-secrets"] = true
	for component, command := range map[string][]string{"operator": {"apparate-operator"}, "node": {"apparate", "node"}, "uninstall": {"apparate", "node", "remove-all"}} {
		help := help(t, command...)
		for name := range used[component] {
			if !regexp.MustCompile(`(?m)^\s*(-\w, )?` + regexp.QuoteMeta(name) + `\b`).MatchString(help) {
				t.Errorf("%s has no flag %s:\n%s", strings.Join(command, " "), name, help)
			}
		}
	}
}
