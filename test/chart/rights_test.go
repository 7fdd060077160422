package chart

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const onePullSecret = `imagePullSecretsCrs: {dockerUsername: a, dockerPassword: b, dockerServer: r.example.com}`

// TestRoles proves that the operator has the rights that its code says it needs,
// and no others: those of config/rbac.
func TestRoles(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "config", "rbac", "role.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want, all := decode(t, string(text)), render(t, onePullSecret)
	for _, name := range []string{"apparate-operator", "apparate-pull-secrets", "apparate-profiles"} {
		if a, b := has[*rbacv1.ClusterRole](t, want, name).Rules, has[*rbacv1.ClusterRole](t, all, name).Rules; len(a) == 0 || !reflect.DeepEqual(a, b) {
			t.Errorf("ClusterRole %s has\n%+v\nnot\n%+v", name, b, a)
		}
	}
	if a, b := has[*rbacv1.Role](t, want, "apparate-operator").Rules, has[*rbacv1.Role](t, all, "apparate-operator").Rules; len(a) == 0 || !reflect.DeepEqual(a, b) {
		t.Errorf("Role apparate-operator has\n%+v\nnot\n%+v", b, a)
	}
}

// TestCRDs proves that the chart's CustomResourceDefinitions are those of
// config/crd, and that helm leaves them when it uninstalls, unless told otherwise.
func TestCRDs(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(root, "config", "crd", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b)
	}
	want := decode(t, text.String())
	for values, policy := range map[string]string{"": "keep", "crds: {keep: false}": ""} {
		count := 0
		for _, o := range render(t, values) {
			got, ok := o.(*apiextensionsv1.CustomResourceDefinition)
			if !ok {
				continue
			}
			count++
			w := has[*apiextensionsv1.CustomResourceDefinition](t, want, got.Name)
			if !reflect.DeepEqual(got.Spec, w.Spec) {
				t.Errorf("%s is not that of config/crd", got.Name)
			}
			for k, v := range w.Annotations {
				if got.Annotations[k] != v {
					t.Errorf("%s lacks the annotation %s", got.Name, k)
				}
			}
			if got.Annotations["helm.sh/resource-policy"] != policy {
				t.Errorf("%s has the annotations %v", got.Name, got.Annotations)
			}
		}
		if count != len(want) || count == 0 {
			t.Errorf("%d definitions, not %d", count, len(want))
		}
	}
}

// TestRights asks the API server what each account may do, once the chart is there.
func TestRights(t *testing.T) {
	r := newRelease(t, "rights")
	r.install(onePullSecret)
	// The hook's are made when it runs.
	r.apply(template(t, onePullSecret, "--namespace", r.namespace, "--show-only", "templates/uninstall.yaml"))
	t.Cleanup(func() {
		r.kubectl("", "delete", "clusterrole,clusterrolebinding,role,rolebinding,serviceaccount,job", "--selector", "app.kubernetes.io/component=uninstall", "--namespace", r.namespace)
	})
	const yes, no = true, false
	for _, c := range []struct {
		account, verb, resource, name string
		// in the release's namespace, or in that of somebody else
		own  bool
		want bool
	}{
		{"node", "get", "nodes", "worker", no, yes},
		{"node", "patch", "nodes", "worker", no, yes},
		{"node", "patch", "nodes/status", "worker", no, yes},
		{"node", "create", "events", "", no, yes},
		{"node", "patch", "events", "e", no, yes},
		{"node", "get", "apps/daemonsets", "apparate-node", yes, yes},
		{"node", "get", "apps/daemonsets", "other", yes, no},
		{"node", "get", "apps/daemonsets", "apparate-node", no, no},
		{"node", "list", "apps/daemonsets", "", yes, no},
		{"node", "patch", "apps/daemonsets", "apparate-node", yes, no},
		{"node", "list", "nodes", "", no, no},
		{"node", "update", "nodes", "worker", no, no},
		{"node", "delete", "nodes", "worker", no, no},
		{"node", "list", "pods", "", no, no},
		{"node", "get", "secrets", "s", yes, no},
		{"node", "get", "serviceaccounts", "s", no, no},
		{"node", "get", "services", "apparate-samples", yes, yes},
		{"node", "get", "services", "other", yes, no},
		{"node", "get", "services", "apparate-samples", no, no},
		{"node", "list", "services", "", yes, no},
		{"node", "create", "authentication.k8s.io/tokenreviews", "", no, no},
		{"node", "create", "serviceaccounts/token", "apparate-node", yes, no},

		{"operator", "get", "secrets", "s", no, yes},
		{"operator", "list", "secrets", "", no, yes}, // of the pull secrets' role
		{"operator", "update", "secrets", "s", no, no},
		{"operator", "patch", "serviceaccounts", "default", no, yes},
		{"operator", "update", "coordination.k8s.io/leases", "l", yes, yes},
		{"operator", "get", "coordination.k8s.io/leases", "l", no, no},
		{"operator", "patch", "apparate.cloud.tencent.com/registries/status", "r", no, yes},
		{"operator", "patch", "apparate.cloud.tencent.com/registries", "r", no, no},
		{"operator", "patch", "nodes", "worker", no, no},
		{"operator", "create", "pods", "", yes, no},
		{"operator", "create", "authentication.k8s.io/tokenreviews", "", no, yes},
		{"operator", "create", "serviceaccounts/token", "apparate-node", yes, no},
		{"operator", "get", "services", "apparate-samples", yes, no},

		{"uninstall", "get", "apps/daemonsets", "apparate-node", yes, yes},
		{"uninstall", "delete", "apps/daemonsets", "apparate-node", yes, yes},
		{"uninstall", "delete", "apps/daemonsets", "other", yes, no},
		{"uninstall", "list", "apps/daemonsets", "", yes, yes},
		{"uninstall", "delete", "apps/deployments", "apparate-operator", yes, yes},
		{"uninstall", "delete", "apps/deployments", "other", yes, no},
		{"uninstall", "watch", "pods", "", yes, yes},
		{"uninstall", "list", "pods", "", no, no},
		{"uninstall", "delete", "pods", "p", yes, no},
		{"uninstall", "list", "nodes", "", no, yes},
		{"uninstall", "patch", "nodes", "worker", no, yes},
		{"uninstall", "patch", "nodes/status", "worker", no, yes},
		{"uninstall", "list", "secrets", "", no, yes},
		{"uninstall", "delete", "secrets", "s", no, yes},
		{"uninstall", "get", "secrets", "s", no, no},
		{"uninstall", "create", "secrets", "", no, no},
		{"uninstall", "list", "serviceaccounts", "", no, yes},
		{"uninstall", "patch", "serviceaccounts", "default", no, yes},
	} {
		if got := r.may(c.account, c.verb, c.resource, c.name, c.own); got != c.want {
			t.Errorf("%s may %s %s %q (own namespace: %v): %v, want %v", c.account, c.verb, c.resource, c.name, c.own, got, c.want)
		}
	}

	r.upgrade(`profiles: {enabled: false}`)
	if r.may("node", "get", "services", "apparate-samples", true) || r.may("operator", "create", "authentication.k8s.io/tokenreviews", "", false) {
		t.Error("without profiles there are the rights for them")
	}
	r.upgrade(`node: {podCredentials: true}`)
	for resource, verbs := range map[string][]string{"pods": {"get", "list", "watch"}, "secrets": {"get"}, "serviceaccounts": {"get"}} {
		for _, v := range verbs {
			if !r.may("node", v, resource, "", false) {
				t.Errorf("with podCredentials the node may not %s %s", v, resource)
			}
		}
	}
	if r.may("node", "list", "secrets", "", true) || r.may("node", "patch", "serviceaccounts", "default", true) {
		t.Error("with podCredentials the node may do more than it needs")
	}
}

// TestOwnNodeOnly proves that the token of a pod of the DaemonSet, which is good for
// patching Nodes, is so for the node alone that the pod runs on.
func TestOwnNodeOnly(t *testing.T) {
	r := newRelease(t, "own-node")
	r.install("")
	for _, name := range []string{"mine", "others"} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := r.client.Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.client.Delete(context.WithoutCancel(t.Context()), n); err != nil {
				t.Error(err)
			}
		})
	}
	c, err := kubernetes.NewForConfig(cluster.Config)
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "node-pod"},
		Spec:       corev1.PodSpec{ServiceAccountName: "apparate-node", NodeName: "mine", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if pod, err = c.CoreV1().Pods(r.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := c.CoreV1().ServiceAccounts(r.namespace).CreateToken(t.Context(), "apparate-node", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(cluster.Config)
	config.BearerToken = token.Status.Token
	if c, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	const annotation = `{"metadata":{"annotations":{"apparate.cloud.tencent.com/node":"{}"}}}`
	const condition = `{"status":{"conditions":[{"type":"ApparateReady","status":"True"}]}}`
	patch := func(node, text string, part ...string) error {
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, types.StrategicMergePatchType, []byte(text), metav1.PatchOptions{}, part...)
		return err
	}
	// A policy works some time after it is made.
	refused := func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "changes the Node that it runs on, and no other")
	}
	for deadline := time.Now().Add(30 * time.Second); !refused(patch("others", annotation)); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the pod changes the Node of another one")
		}
	}
	if err := patch("others", condition, "status"); !refused(err) {
		t.Errorf("the pod changes the status of another Node: %v", err)
	}
	for part, text := range map[string]string{"": annotation, "status": condition} {
		var parts []string
		if part != "" {
			parts = []string{part}
		}
		if err := patch("mine", text, parts...); err != nil {
			t.Errorf("the pod may not change its own Node %s: %v", part, err)
		}
	}
}

// may asks whether a component's account may do something, in its own namespace or
// in another; resource is [group/]name[/part].
func (r *installed) may(component, verb, resource, name string, own bool) bool {
	r.t.Helper()
	a := &authorizationv1.ResourceAttributes{Verb: verb, Name: name, Namespace: "default"}
	parts := strings.Split(resource, "/")
	if strings.Contains(parts[0], ".") || parts[0] == "apps" {
		a.Group, parts = parts[0], parts[1:]
	}
	a.Resource = parts[0]
	if len(parts) > 1 {
		a.Subresource = parts[1]
	}
	if own {
		a.Namespace = r.namespace
	}
	if a.Resource == "nodes" || a.Resource == "tokenreviews" {
		a.Namespace = ""
	}
	c, err := kubernetes.NewForConfig(cluster.Config)
	if err != nil {
		r.t.Fatal(err)
	}
	review, err := c.AuthorizationV1().SubjectAccessReviews().Create(r.t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:" + r.namespace + ":" + release + "-" + component,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + r.namespace, "system:authenticated"}, ResourceAttributes: a,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return review.Status.Allowed
}
